"""The folder of a learned memory: where each thing stands, and what is finished.

    corpus/                       the text in its splits, as it was read
    memory/                       the checkpoint
    memdec-NAME.gguf              the memory
    memdec-NAME-index.gguf        the index
    report.html report.json       what it is worth
    plan.json                     what was agreed on, and the results of the stages that are finished
    added-1/ added-2/ ...         corpus, memory, report and plan of texts that were added later

Knows nothing of how a stage works.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memdec_edge.errors import ExistingOutputError, StageError
from memdec_edge.files import write_text

PLAN, REPORT = "plan.json", "report.json"
FORMAT = 1
Result = dict[str, Any]  # what JSON can hold


@dataclass(frozen=True)
class Place:
    """One round of learning in a folder; the first has its work in `out` itself, the others in added-N.

    name: of the files, made of the domain
    """

    out: Path
    name: str
    round: int = 0

    @property
    def work(self) -> Path:
        """Corpus, checkpoint, plan and report of this round."""
        return self.out / f"added-{self.round}" if self.round else self.out

    @property
    def earlier(self) -> list["Place"]:
        """The rounds before this one, the first one first."""
        return [replace(self, round=number) for number in range(self.round)]

    @property
    def corpus(self) -> Path:
        """The text in its splits."""
        return self.work / "corpus"

    @property
    def memory(self) -> Path:
        """The checkpoint."""
        return self.work / "memory"

    @property
    def gguf(self) -> Path:
        """The memory, which each round replaces."""
        return self.out / f"memdec-{self.name}.gguf"

    @property
    def index(self) -> Path:
        """The index, which each round replaces."""
        return self.out / f"memdec-{self.name}-index.gguf"

    @property
    def index_before(self) -> Path:
        """A copy of the index as this round found it, until the index has grown."""
        return self.work / ".index-before.gguf"

    @property
    def report(self) -> Path:
        """The figures; report.html stands beside it."""
        return self.work / REPORT

    @property
    def plan(self) -> Path:
        """What was agreed on and what is finished."""
        return self.work / PLAN

    @property
    def is_finished(self) -> bool:
        """Whether the last thing of the round was written."""
        return self.report.is_file() and self.plan.is_file()


def slug(text: str) -> str:
    """Letters and digits of a domain, joined by hyphens, for names of files."""
    return "-".join(re.findall(r"[^\W_]+", text.lower()))[:60] or "documents"


class Journal:
    """plan.json: what the results are made from, the plan, and each finished stage with its seconds.

    A stage's result is written when it is finished, whole or not at all; a killed run repeats only the stage that it
    was in, which goes on by its own means.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        """Raises StageError where the plan was made from something else, ExistingOutputError where it is none."""
        self.path, self._made_from = path, dict(made_from)
        self._body: dict[str, Any] = {"format": FORMAT, "made_from": self._made_from, "plan": None, "stages": {}}
        if path.is_file():
            self._body = read_plan(path)
            self._refuse_what_differs()

    @property
    def plan(self) -> Result | None:
        """What was agreed on; None before that."""
        found: Result | None = self._body["plan"]
        return found

    def begin(self) -> None:
        """Mark the folder as ours, before anything is agreed on. Raises OutputError."""
        self._write()

    def agree(self, plan: Result) -> None:
        """Write the plan. Raises OutputError."""
        self._body["plan"] = plan
        self._write()

    def seconds(self, stage: str) -> float | None:
        """How long a finished stage took; None where it was stopped in between, since no clock ran on."""
        found: float | None = self._body["stages"].get(stage, {}).get("seconds")
        return found

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return "result" in self._body["stages"].get(stage, {})

    def result(self, stage: str) -> Result:
        """What a finished stage found."""
        return dict(self._body["stages"][stage]["result"])

    def run(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of a stage: what an earlier run found, else what `work` returns. Raises what that raises."""
        entry: Result = self._body["stages"].setdefault(stage, {"begun": 0})
        if "result" in entry:
            return dict(entry["result"])
        entry["begun"] += 1
        self._write()
        began = time.monotonic()
        result = work()
        entry["result"] = result
        entry["seconds"] = time.monotonic() - began if entry["begun"] == 1 else None
        self._write()
        return result

    def _write(self) -> None:
        write_text(self.path, json.dumps(self._body, indent=1) + "\n")

    def _refuse_what_differs(self) -> None:
        old = self._body["made_from"]
        for name in sorted({*old, *self._made_from}):
            before, after = old.get(name), self._made_from.get(name)
            if before != after:
                known = before if after is None else after
                values = ("none" if value is None else value for value in (before, after))
                shown = " ({}, now {})".format(*values) if isinstance(known, int | str) and len(str(known)) < 40 else ""
                advice = "give the new documents by `add`" if name == "documents" else "use another output folder"
                raise StageError(self.path.parent, f"made with other {name}{shown}", advice)


def read_plan(path: Path) -> dict[str, Any]:
    """The content of a plan.json. Raises ExistingOutputError for a file that is none."""
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(body[key], dict) for key in ("made_from", "stages")) and "plan" in body
    except (ValueError, RecursionError, LookupError, TypeError):
        whole = False
    if not whole or body["format"] != FORMAT:
        raise ExistingOutputError(path, "it is no plan of memdec-edge learn; choose another `out`")
    return body
