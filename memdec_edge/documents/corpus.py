"""The documents of a corpus: read, said on stderr which files serve what, and divided so that a test is honest.

Knows nothing of tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memdec_edge.documents.content import Turn
from memdec_edge.documents.divide import divide, shuffled
from memdec_edge.documents.duplicates import families
from memdec_edge.documents.files import File, Reader
from memdec_edge.documents.kinds import kind_of, read_file, suffix_of
from memdec_edge.documents.splits import NO_TEXT, SPLITS, Corpus, find_files
from memdec_edge.errors import CorpusError, ExistingOutputError
from memdec_edge.files import atomic_path
from memdec_edge.notes import note, printable, warn

SHOWN = 5  # names of files in a line
WARNED = 20  # files that cannot be read, each with a line of its own


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the file that it comes from, as messages call it; title and turns as Content has them."""

    text: str
    source: str
    title: str | None = ""
    turns: tuple[Turn, ...] = ()

    def part(self, text: str) -> "Document":
        """The document with a part of its text: the title stays with the beginning, turns only with the whole."""
        if text == self.text:
            return self
        return Document(text, self.source, self.title if self.title is None or self.text.startswith(text) else "")


@dataclass(frozen=True)
class Divided:
    """The documents of a corpus by split, in seeded random order. alike: how many are like others of the corpus."""

    corpus: Corpus  # its `left_out` is complete
    splits: dict[str, list[Document]]
    alike: int


def scored_files(path: Path) -> list[File]:
    """Return the files to evaluate: the test split where names of files say which that is, else all.

    Raises as find_files(), and CorpusError for a corpus that names splits but no test split.
    """
    return _scored(find_files(path))


def read_documents(path: Path) -> list[str]:
    """Return the texts of scored_files(), and say on stderr which files were left out and why.

    Raises as that and read_file() do, and CorpusError for blank ones.
    """
    corpus = find_files(path)
    files = _scored(corpus)
    if corpus.named:
        others = [file for split, some in corpus.files.items() if split != "test" for file in some]
        note(f"text: the test split, {_names(files)}" + (f"; not {_names(others)}" if others else ""))
    say_left_out(corpus)
    documents = [document.text for document in read_files(corpus, files)]
    if not documents:
        raise CorpusError(path, NO_TEXT)
    return documents


def split_documents(path: Path, valid: float, test: float, seed: int) -> dict[str, list[Document]]:
    """Return the splits of divide_corpus()."""
    return divide_corpus(path, valid, test, seed).splits


def divide_corpus(path: Path, valid: float, test: float, seed: int) -> Divided:
    """Read the documents of each split, and say on stderr which files serve which.

    Splits that the corpus does not name are taken from its training documents: fractions `valid` and `test` of their
    characters, none where the fraction is 0. Documents that are equal, exactly or nearly, stay in one split; where no
    family of them is small enough, tails are cut off (documents/divide.py). Raises CorpusError where there is no
    training text, and as find_files() and read_file() do.
    """
    corpus = find_files(path)
    require_training(corpus)
    named = corpus.files if corpus.named else {}
    shares = {split: share for split, share in (("valid", valid), ("test", test)) if share and split not in named}
    _say_files(corpus, list(shares))
    read = {split: list(read_files(corpus, corpus.files.get(split, ()))) for split in SPLITS}
    if not read["train"]:
        raise CorpusError(path, NO_TEXT)
    _say_shared(read)
    if not shares:
        return Divided(corpus, {split: shuffled(documents, seed) for split, documents in read.items()}, 0)
    train = read["train"]
    family = families([document.text for document in train])
    parts = divide([document.text for document in train], family, shares, seed)
    taken = {split: [train[i].part(text) for i, text in some] for split, some in parts.items()}
    alike = sum(count for count in Counter(family).values() if count > 1)
    if alike:
        note(f"text: {alike:,} of {len(train):,} documents are like others, exactly or nearly; these stay together")
    counts = ", ".join(f"{split} {len(some):,}" for split, some in taken.items())
    many = f"{len(train):,} documents become {counts}"
    note(f"text: {many}" if len(train) > 1 else f"text: one document, cut into {', '.join(taken)}")
    splits = {split: taken[split] if split in taken else shuffled(read[split], seed) for split in SPLITS}
    return Divided(corpus, splits, alike)


def require_training(corpus: Corpus) -> None:
    """Raise CorpusError for a corpus whose files name splits, and none of them train."""
    if corpus.named and "train" not in corpus.files:
        raise CorpusError(
            corpus.path, f"it has {_names(corpus.all)} but no training text; name the files train, or rename them"
        )


def show_text(path: Path, valid: float, test: float, seed: int, out: Path) -> None:
    """Write what split_documents() returns, for a person to look at, to the file `out`.

    Each document stands below a line with its split, its file and its length. Raises as split_documents() does,
    ExistingOutputError for a file that exists, and OutputError.
    """
    if out.exists():
        raise ExistingOutputError(out)
    splits = split_documents(path, valid, test, seed)
    with atomic_path(out) as part, part.open("w", encoding="utf-8") as file:
        for split, documents in splits.items():
            for document in documents:
                title = printable(f"{split}: {document.source} ({len(document.text):,} characters)")
                file.write(f"==== {title}\n{document.text}\n\n")


def _scored(corpus: Corpus) -> list[File]:
    if corpus.named and "test" not in corpus.files:
        raise CorpusError(corpus.path, f"it has {_names(corpus.all)} but no test split; name the file to evaluate")
    return corpus.files["test" if corpus.named else "train"]


def read_files(corpus: Corpus, files: Iterable[File]) -> Iterator[Document]:
    """Documents of some files. One of a folder that cannot be read is left out with a warning, text files excepted.

    `corpus.left_out` gets what is left out, blank files too.
    """
    failed, blank = 0, []
    with Reader() as reader:
        for file in files:
            try:
                contents = read_file(file, reader)
            except CorpusError as error:
                if corpus.is_one_file or _is_exact(file):
                    raise
                corpus.left_out[file.name] = error.reason
                failed += 1
                if failed <= WARNED:
                    warn([f"{error}; it is left out"])
                continue
            if not contents and not corpus.is_one_file:
                corpus.left_out[file.name] = "no text in it"
                blank.append(file)
            for content in contents:
                yield Document(content.text, file.name, content.title, content.turns)
    if failed > WARNED:
        warn([f"{failed - WARNED:,} more files cannot be read, and are left out"])
    if blank:
        note(f"text: left out, no text in it: {_names(blank)}")


def _is_exact(file: File) -> bool:
    kind = kind_of(file)
    return kind is None or kind.exact


def _say_files(corpus: Corpus, taken: Sequence[str]) -> None:
    """Say which files serve which split, and which none; splits that are `taken` have no files."""
    if corpus.named:
        serve = "; ".join(f"{split} from {_names(files)}" for split, files in corpus.files.items())
        verb = "is" if len(taken) == 1 else "are"
        note(f"text: {serve}" + (f"; {' and '.join(taken)} {verb} taken from train" if taken else ""))
    elif not corpus.is_one_file:
        kinds = Counter(suffix_of(file.inside) for file in corpus.all)
        note(
            f"text: {len(corpus.all):,} files ({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())})"
        )
    say_left_out(corpus)


def say_left_out(corpus: Corpus) -> None:
    """Say on stderr which files of a corpus are left out, and why."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in corpus.left_out.items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        note(f"text: left out, {reason}: {_listed([_short(name, corpus.path) for name in names])}")


def _say_shared(splits: dict[str, list[Document]]) -> None:
    """Say how many documents of held-out splits have near-copies in the training split."""
    texts = [(split, document.text) for split, documents in splits.items() for document in documents]
    if len(splits["train"]) == len(texts):
        return
    family = families([text for _, text in texts])
    seen = {number for number, (split, _) in zip(family, texts, strict=True) if split == "train"}
    for name in ("valid", "test"):
        count = sum(number in seen for number, (split, _) in zip(family, texts, strict=True) if split == name)
        if count:
            warn([f"{count:,} of {len(splits[name]):,} documents of {name} are in train too, exactly or nearly: "
                  "its perplexity will look too good"])  # fmt: skip


def _names(files: Sequence[File]) -> str:
    return _listed([str(file.inside) for file in files])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _short(name: str, root: Path) -> str:
    return name.removeprefix(f"{root}/")
