"""How a training goes: numbers of each step as they come, and curves at its end. Knows nothing of models.

metrics.jsonl is always written; TensorBoard reads the same numbers from tensorboard/ where it is installed; curves.png
shows loss and validation perplexity over the steps.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memdec_edge.errors import OutputError
from memdec_edge.files import MANIFEST, atomic_path, write_text
from memdec_edge.notes import note

from .artifacts import Stage
from .interrupts import unbroken

METRICS, CURVES, TENSORBOARD = "metrics.jsonl", "curves.png", "tensorboard"


class Metrics:
    """metrics.jsonl, a line a step, and the same for TensorBoard."""

    def __init__(self, stage: Stage, step: int) -> None:
        """Keep the lines of the first `step` steps, drop what a killed run wrote after them."""
        self.path = stage.folder / METRICS
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if step and self.path.exists() else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            folder = stage.folder / TENSORBOARD
            there = set(folder.glob("*"))
            with unbroken():  # so that the manifest names the file that is made
                self._board = SummaryWriter(str(folder), purge_step=step + 1)
                stage.adopt(*(f"{TENSORBOARD}/{path.name}" for path in set(folder.glob("*")) - there))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append a line. Raises OutputError.

        The caller holds interrupts off: TensorBoard's thread could miss its wake-up, and sleep for two minutes.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            raise OutputError(self.path, error.strerror or str(error)) from error
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()  # for whoever watches

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        if self._board:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, one a step."""
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def read_curves(folder: Path, tokens_a_step: int) -> dict[str, list[list[float]]]:
    """Points of tokens seen and a value: train, the loss of each step in nats; valid, perplexity of the memory alone.

    The second begins before the first step, where that was measured.
    """
    start = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["facts"].get("start", {})
    lines = [{"step": 0, **start}, *read_metrics(folder)]
    return {
        name: [[line["step"] * tokens_a_step, line[key]] for line in lines if key in line]
        for name, key in (("train", "loss"), ("valid", "valid_perplexity"))
    }


def draw_curves(folder: Path, start: Mapping[str, float]) -> None:
    """Draw curves.png from metrics.jsonl and what was measured before the first step. Raises OutputError.

    Says on stderr that there are none where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        note(f"{CURVES} is not drawn: matplotlib is not installed")
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [{"step": 0, **start}, *read_metrics(folder)]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in ("loss", "ce", "kl"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        left.plot(*zip(*points, strict=True), label=name, linewidth=1)
    left.set(xlabel="step", ylabel="nats", title="training")
    left.legend()
    for name, label in (("valid_perplexity", "alone"), ("mixture_perplexity", "mixed with the base")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", label=label)
    right.set(xlabel="step", ylabel="perplexity", title="validation")
    if points:
        right.legend()
    with atomic_path(folder / CURVES) as part:
        figure.savefig(part, format="png", dpi=120)
