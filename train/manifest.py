"""The manifest of a stage: what its results are made from, what is known of them, which files are its own.

    format, stage, inputs, options    what the results are made from; the digest of these four is the stage's identity
    facts                             what is known of the results, "files" and their digests among it
    own                               names of files that the stage has made, apart from its shards

Knows nothing of shards and folders.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdec_edge.errors import ExistingOutputError
from memdec_edge.files import MANIFEST

FORMAT = 4  # raised when the meaning of a stage's files changes
EARLIER = {  # what manifests of an earlier version call fields that have no flag; the others they call by their flag
    "a validation share of": "valid_fraction",
    "a test share of": "test_fraction",
    "a warm-up share of": "warmup",
    "a weight decay of": "weight_decay",
    "gradients clipped at": "clip",
    "a number of processes of": "processes",
}


@dataclass(frozen=True)
class MadeFrom:
    """What decides the results of a stage."""

    stage: str  # its kind
    inputs: Mapping[str, str]  # what a user would call a file -> its SHA-256
    options: Mapping[str, Any]  # the field of an option -> its value
    format: Any = FORMAT

    @property
    def body(self) -> dict[str, Any]:
        """These four as the manifest has them."""
        options = {name: _plain(value) for name, value in self.options.items()}
        return {"format": self.format, "stage": self.stage, "inputs": dict(self.inputs), "options": options}

    @property
    def identity(self) -> str:
        """SHA-256 of the four."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    def difference(self, now: "MadeFrom", unread: Collection[str]) -> str:
        """The first thing in which another stage differs, in words; "" when none does.

        unread  inputs that may differ
        """
        old, new = self.body, now.body
        if old["format"] != new["format"]:
            return f"made by another version (format {old['format']}, now {new['format']})"
        for name in sorted({*old["inputs"], *new["inputs"]}.difference(unread)):
            before, after = old["inputs"].get(name), new["inputs"].get(name)
            if before != after:
                what = "is new" if before is None else "is gone" if after is None else "has changed"
                return f"made with other inputs: {name} {what}"
        earlier, current = _by_field(old["options"]), _by_field(new["options"])
        for name in sorted({*earlier, *current}):
            before, after = earlier.get(name), current.get(name)
            if before != after:
                return f"made with `{name}` {before}, now {after}"
        return ""


@dataclass(frozen=True)
class Manifest:
    """A manifest as it stands in a folder."""

    made_from: MadeFrom
    entries: dict[str, Any]  # "facts" in the file
    own: list[str] | None  # None: an earlier version wrote it, which recorded no names

    @property
    def text(self) -> str:
        """The content of the file."""
        body = {**self.made_from.body, "facts": self.entries, "own": self.own}
        return json.dumps(body, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """None when there is none. Raises ExistingOutputError for one that is not ours, or not any more."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        stage, inputs, options, entries = (body[name] for name in ("stage", "inputs", "options", "facts"))
        files, own = entries.get("files", {}), body.get("own", [])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ExistingOutputError(path) from None
    objects = all(isinstance(each, dict) for each in (inputs, options, entries, files))
    if not objects or not isinstance(own, list) or not all(isinstance(name, str) for name in (stage, *own)):
        raise ExistingOutputError(path)
    return Manifest(MadeFrom(stage, inputs, options, body.get("format")), entries, body.get("own"))


def _by_field(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a manifest, of an earlier version's too, by their fields; its identity keeps its own names."""
    found = {EARLIER.get(name) or name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    batch, passes = found.get("batch"), found.get("accumulate")
    if isinstance(batch, int) and isinstance(
        passes, int
    ):  # an earlier version's; now `batch` has the blocks of all passes
        found["batch"] = batch * found.pop("accumulate")
    return found


def _plain(value: Any) -> Any:
    """2 for 2.0: they are the same option, and must have the same digest."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
