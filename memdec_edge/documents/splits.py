"""Which files of a corpus serve which split, by their names. Knows nothing of what is in them.

Names are those of Hugging Face: train, validation, test and their kin, with a number (train2, train-00000-of-00004) or
after the name of a data set (law_train.jsonl beside law_test.jsonl). They count in the folder, in its `data`, or as
names of folders. Tables of rows and .txt files name splits; a train.py is a program.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath

from memdec_edge.documents.files import File, members, walk
from memdec_edge.documents.kinds import KINDS, KNOWN, kind_of, suffix_of
from memdec_edge.errors import CorpusError, MissingFileError
from memdec_edge.files import MANIFEST

SPLITS = ("train", "valid", "test")
WORDS = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
NO_TEXT = f"no text in it; give {KNOWN}"
HELD_OUT = "cache/test.jsonl"  # where training keeps the documents that it took out of a corpus, in its output folder
_NAME = re.compile(rf"(?:(.*)[-_. ])?({'|'.join(WORDS)})(?:[-_. ]?\d+(?:-of-\d+)?)?", re.IGNORECASE)


@dataclass
class Corpus:
    """The files of a corpus by split; all are "train" where `named` says that no names of splits were found.

    left_out: name of a file or folder -> why it is none of them
    """

    path: Path
    files: dict[str, list[File]]
    named: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[File]:
        """The files of all splits."""
        return [file for files in self.files.values() for file in files]

    @property
    def is_one_file(self) -> bool:
        """Whether it is a single file, named directly."""
        return [file.name for file in self.all] == [str(self.path)]


def find_files(path: Path) -> Corpus:
    """Return the files of a file, a zip or a folder by split.

    Left out are hidden files, kinds that hold no text, and folders that hold results of training. Raises
    MissingFileError, and CorpusError where there is no text, or where names of splits can be read in two ways.
    """
    left_out: dict[str, str] = {}
    if path.is_dir():
        if is_result(path):
            if (kept := path / Path(HELD_OUT).name).is_file():
                return Corpus(path, {"test": [File(kept, PurePosixPath(kept.name))]}, True)
            held_out = f", such as {path / HELD_OUT}" if (path / HELD_OUT).is_file() else ""
            raise CorpusError(path, f"holds what training made, not documents; give text{held_out}")
        files = _without_results(walk(path, left_out), path, left_out)
    elif not path.exists():
        raise MissingFileError(path, "text file or folder")
    elif path.suffix.lower() == ".zip":
        files = _unfolded(members(path, left_out))
    else:
        return Corpus(path, {"train": [File(path, PurePosixPath(path.name))]})
    known = []
    for file in files:
        if kind_of(file):
            known.append(file)
        else:
            left_out[file.name] = (
                f"{suffix_of(file.inside)} files are not read" if suffix_of(file.inside) else "no suffix"
            )
    if not known:
        raise CorpusError(path, NO_TEXT + _what_there_is(left_out))
    splits = _named(path, known)
    if not splits:
        others = set(_held_out_below(known))
        left_out |= {file.name: "the name of a test or validation file, beside a training file" for file in others}
        return Corpus(path, {"train": [file for file in known if file not in others]}, left_out=left_out)
    chosen = {file for each in splits.values() for file in each}
    left_out |= {file.name: "other files name the splits" for file in known if file not in chosen}
    return Corpus(path, splits, True, left_out)


def split_of(name: str) -> tuple[str, str] | None:
    """Return the data set ("" or what stands before) and the split that a file's name says, None for other names."""
    stem = PurePath(name).with_suffix("") if name.lower().endswith(".gz") else PurePath(name)
    found = _NAME.fullmatch(stem.stem)
    return (found[1] or "", WORDS[found[2].lower()]) if found else None


def _named(path: Path, files: list[File]) -> dict[str, list[File]]:
    """The files that name splits, by split; {} where none do. Raises CorpusError for names that are ambiguous."""
    for folder in ((), ("data",)):
        here = [file for file in files if file.inside.parts[:-1] == folder and _may_name(file)]
        if found := _by_name(path, here, files):
            return found
    inside = defaultdict(list)
    for file in files:
        if len(file.inside.parts) > 1 and file.inside.parts[0].lower() in WORDS:
            inside[WORDS[file.inside.parts[0].lower()]].append(file)
    return _ordered(inside) if "train" in inside and len(inside) > 1 else {}


def _held_out_below(files: list[File]) -> Iterator[File]:
    """Files in deeper folders that name a held-out split beside a training file: no training text, whatever else is."""
    folders = defaultdict(list)
    for file in files:
        if _may_name(file) and (found := split_of(file.inside.name)):
            folders[file.inside.parent, found[0]].append((found[1], file))
    for some in folders.values():
        if any(split == "train" for split, _ in some):
            yield from (file for split, file in some if split != "train")


def _unfolded(files: list[File]) -> list[File]:
    """The members of a zip as they stand below the one folder that holds them all, if one does."""
    while files and all(len(file.inside.parts) > 1 for file in files):
        if len({file.inside.parts[0] for file in files}) > 1:
            break
        files = [replace(file, inside=PurePosixPath(*file.inside.parts[1:])) for file in files]
    return files


def _may_name(file: File) -> bool:
    return KINDS[suffix_of(file.inside)].rows or suffix_of(file.inside) == ".txt"


def _by_name(path: Path, here: Iterable[File], files: list[File]) -> dict[str, list[File]]:
    sets: dict[str, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for file in here:
        if found := split_of(file.inside.name):
            sets[found[0]][found[1]].append(file)
    plain = sets.pop("", {})
    complete = [each for each in sets.values() if "train" in each and len(each) > 1]  # a blood-test.jsonl is no split
    splits: dict[str, list[File]] = defaultdict(list)
    for each in [plain, *complete]:
        for split, some in each.items():
            splits[split] += some
    if not splits or "train" in splits:
        # train.txt among other notes is one of them, but beside it a validation or test file names a split
        alone = len(splits) == 1 and not any(kind.rows for file in splits["train"] if (kind := kind_of(file)))
        return {} if alone else _ordered(splits)
    names = ", ".join(file.inside.name for some in splits.values() for file in some)
    others = set(files).difference(*splits.values())
    held_out = [file for file in splits["test"] if KINDS[suffix_of(file.inside)].rows]
    if held_out and "valid" not in splits:
        return {"test": held_out}  # what a cache folder holds
    if not others and "valid" not in splits:
        return _ordered(splits)
    raise CorpusError(path, f"{names}: the name of a split, but no file is named train; rename it, or the others")


def _ordered(splits: dict[str, list[File]]) -> dict[str, list[File]]:
    return {split: splits[split] for split in SPLITS if splits.get(split)}


def _without_results(files: list[File], root: Path, left_out: dict[str, str]) -> list[File]:
    """The files that are in no folder that training made."""
    folders = {file.path.parent for file in files if file.path.name == MANIFEST}
    results = {folder for folder in folders if folder != root and is_result(folder)}
    left_out |= {str(folder): "holds what training made" for folder in results}
    return [file for file in files if results.isdisjoint(file.path.parents)]


def is_result(folder: Path) -> bool:
    """Return whether training made this folder: its manifest names a stage."""
    try:
        return "stage" in json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _what_there_is(left_out: dict[str, str]) -> str:
    """What a folder without text holds instead."""
    suffixes = sorted({suffix_of(name) for name, reason in left_out.items() if "not read" in reason})
    pictures = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp"}
    if suffixes and pictures.issuperset(suffixes):
        return "; there are only pictures: make text of them by OCR, such as tesseract"
    return f" (there are {', '.join(suffixes[:8])} files)" if suffixes else ""
