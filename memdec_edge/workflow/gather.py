"""Documents become a corpus folder with splits; what was read is told file by file, and counted in tokens.

Knows nothing of plans and models but the tokenizer of the base.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdec_edge.documents import SPLITS, Divided, Document, divide_corpus, file_digests, find_files, read_files
from memdec_edge.documents.divide import shuffled
from memdec_edge.documents.duplicates import families
from memdec_edge.documents.kinds import suffix_of
from memdec_edge.files import write_text
from memdec_edge.llama.model import Model
from memdec_edge.long_text import token_ids
from memdec_edge.notes import note, printable

HELD_OUT = 0.05  # of the characters, for validation and for the test split each
SAMPLE = 1_000_000  # characters of a split that are tokenised to count its tokens
REPLAYED = 1.0  # characters of old training text that are read again, beside one of new text

Splits = Mapping[str, Sequence[Document]]


@dataclass(frozen=True)
class Gathered:
    """The text of a corpus. seconds: that reading took; tokens: by split, exact or from a SAMPLE."""

    divided: Divided
    tokens: dict[str, int]
    seconds: float
    seconds_a_token: float  # of the tokenizer

    @property
    def n_characters(self) -> int:
        """Of all splits."""
        return sum(len(document.text) for some in self.divided.splits.values() for document in some)


def gather(
    documents: Path, base: Path, seed: int, earlier: Sequence[Path] = (), chat_share: float | None = None
) -> Gathered:
    """Read documents, divide them and count their tokens.

    earlier: corpus folders whose training text is replayed, and whose held-out text stays held out. chat_share: of the
    training text, in the base's chat template; None: text alone. Raises as divide_corpus(), and ModelFileError for a
    base that is none.
    """
    began = time.monotonic()
    divided = divide_corpus(documents, HELD_OUT, HELD_OUT, seed)
    if earlier:
        divided = _joined(divided, earlier, seed)
    seconds = time.monotonic() - began
    tokens, rate = _count(divided.splits, base, chat_share)
    return Gathered(divided, tokens, seconds, rate)


def write_corpus(splits: Splits, folder: Path) -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl, from which the same documents are read. Raises OutputError."""
    for split in SPLITS:
        if splits[split]:
            lines = (json.dumps(_row(document), ensure_ascii=False) + "\n" for document in splits[split])
            write_text(folder / f"{split}.jsonl", "".join(lines))


def _row(document: Document) -> dict[str, Any]:
    """A document as documents/rows.py reads it."""
    source = {"source": printable(document.source)}
    if document.turns:
        return {"messages": [{"role": role, "content": text} for role, text in document.turns], **source}
    title = {} if document.title == "" else {"title": document.title}
    return {**title, "text": document.text, **source}


def read_split(folder: Path, split: str) -> list[Document]:
    """The documents of one split of a corpus folder, none where it lacks the split."""
    corpus = find_files(folder)
    return list(read_files(corpus, corpus.files.get(split, ())))


def digests_of(documents: Path) -> dict[str, str]:
    """SHA-256 of each file of a corpus by its name in it. Raises as find_files()."""
    return {str(file.inside): digest for file, digest in file_digests(find_files(documents).all).items()}


def told(divided: Divided, tokens: Mapping[str, int]) -> dict[str, Any]:
    """What the report says of the documents."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    characters: Counter[str] = Counter()
    for split, some in divided.splits.items():
        for document in some:
            counts[document.source][split] += 1
            characters[document.source] += len(document.text)
    kinds = {file.name: suffix_of(file.inside) for file in divided.corpus.all}
    files = [
        {
            "path": printable(source),
            "kind": kinds.get(source, ""),
            "documents": sum(splits.values()),
            "chars": characters[source],
            "split": ", ".join(split for split in SPLITS if splits[split]),
        }
        for source, splits in sorted(counts.items())
    ]
    left_out = [{"path": printable(name), "reason": reason} for name, reason in sorted(divided.corpus.left_out.items())]
    return {
        "files": files,
        "left_out": left_out,
        "duplicates": divided.alike,
        "documents": sum(map(len, divided.splits.values())),
        "tokens": dict(tokens),
    }


def _joined(new: Divided, earlier: Sequence[Path], seed: int) -> Divided:
    """New text, about as much old training text beside it, and the held-out text of both.

    New documents that are like held-out ones of the old text are left out. New held-out ones that are like old training
    text become training text: the memory has seen them.
    """
    old = {split: list(_documents(earlier, split)) for split in SPLITS}
    held_out = [*old["valid"], *old["test"]]
    known = [*held_out, *old["train"]]
    added = [(split, document) for split in SPLITS for document in new.splits[split]]
    family = families([document.text for document in [*known, *(document for _, document in added)]])
    is_held_out, is_known = set(family[: len(held_out)]), set(family[len(held_out) : len(known)])
    fresh: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for (split, document), number in zip(added, family[len(known) :], strict=True):
        if number not in is_held_out:
            fresh["train" if number in is_known else split].append(document)
    if dropped := len(added) - sum(map(len, fresh.values())):
        note(f"text: {dropped:,} new documents are like held-out ones, and are left out")
    left = REPLAYED * sum(len(document.text) for document in fresh["train"])
    for document in shuffled(old["train"], seed):
        if left <= 0:
            break
        fresh["train"].append(document)
        left -= len(document.text)
    splits = {"train": shuffled(fresh["train"], seed), **{s: [*old[s], *fresh[s]] for s in ("valid", "test")}}
    return Divided(new.corpus, splits, new.alike)


def _documents(folders: Sequence[Path], split: str) -> Iterator[Document]:
    """The documents of one split of corpus folders, each text once: later ones replay earlier ones."""
    seen = set()
    for folder in folders:
        for document in read_split(folder, split):
            if document.text not in seen:
                seen.add(document.text)
                yield document


def _count(splits: Splits, base: Path, chat_share: float | None) -> tuple[dict[str, int], float]:
    """Tokens of each split as training packs it, and the tokenizer's seconds for one."""
    counts, seen, began = dict[str, int](), 0, time.monotonic()
    with closing(Model(base, vocab_only=True)) as model:
        for split, documents in splits.items():
            sample: list[Document] = []
            left = SAMPLE
            for document in documents:
                sample.append(document.part(document.text[:left]))
                left -= len(document.text)
                if left <= 0:
                    break
            share = sum(len(document.text) for document in documents) / max(1, sum(len(one.text) for one in sample))
            if chat_share is not None and split == "train":
                found = _in_forms(sample, model, base, chat_share)
                counts[split] = round(found * share)
            else:
                texts = (one.text for one in sample)
                found = sum(len(part) for parts in token_ids(texts, model.encode) for part in parts)
                counts[split] = round(found * share) + len(documents) * (1 + model.add_bos)
            seen += found
    return counts, (time.monotonic() - began) / max(1, seen)


def _in_forms(documents: Sequence[Document], model: Model, base: Path, chat_share: float) -> int:
    """Tokens of documents of which a share is in the chat template of the base."""
    from memdec_edge.chat import Transcriber
    from memdec_edge.train.corpus import Encoder
    from memdec_edge.train.forms import pack_forms

    encoder = Encoder(model.encode, model.bos if model.add_bos else None, max(model.eos, 0))
    with closing(Transcriber(base)) as transcriber:
        return len(pack_forms(documents, encoder, transcriber, chat_share, 0).tokens)
