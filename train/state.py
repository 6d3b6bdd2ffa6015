"""What an unfinished training keeps: two files, each whole or not there. Knows nothing of data and losses.

The state is float32 weights, both AdamW moments of each parameter, and the number of finished steps. That number is
the data cursor and the state of the random numbers too: both are functions of seed and step. Beside it stand the
weights that did best on validation text, at first those of the start. safetensors, never pickle.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memdec_edge.errors import StageError

from .artifacts import Stage

STATE, BEST = "resume.safetensors", "best.safetensors"
WITHOUT_BEST = f"remove {STATE} too, and run again to train anew"


def save_state(
    stage: Stage,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    line: Mapping[str, float],
) -> None:
    """Write the state after `step` steps in place of the one before. Raises OutputError.

    line  the numbers of the last step where its validation is still to come; empty where it is recorded
    """
    arrays = {}
    for name, weight in weights.items():
        moments = optimizer.state[weight]
        arrays[f"weight.{name}"] = weight.detach().cpu().numpy()
        arrays[f"mean.{name}"] = moments["exp_avg"].cpu().numpy()
        arrays[f"square.{name}"] = moments["exp_avg_sq"].cpu().numpy()
    stage.write(STATE, arrays, step=str(step), line=json.dumps(line))


@torch.no_grad()
def load_state(
    stage: Stage, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float]]:
    """Read a saved state into `weights` and `optimizer`; return its step and line, 0 and {} where there is none.

    Raises StageError.
    """
    if not (stage.folder / STATE).exists():
        return 0, {}
    arrays, metadata = stage.read_with_metadata(STATE)
    step, line = int(metadata["step"]), json.loads(metadata.get("line", "{}"))
    if not (stage.folder / BEST).exists():
        raise StageError(stage.folder / BEST, "missing, and its weights may be the best ones", WITHOUT_BEST)
    for name, weight in weights.items():
        weight.copy_(torch.from_numpy(arrays[f"weight.{name}"]))
        optimizer.state[weight] = {
            "step": torch.tensor(float(step), device=weight.device),
            "exp_avg": torch.from_numpy(arrays[f"mean.{name}"]).to(weight.device),
            "exp_avg_sq": torch.from_numpy(arrays[f"square.{name}"]).to(weight.device),
        }
    return step, line


def save_best(stage: Stage, weights: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
    """Write the weights in place of the best so far, with their step and figures. Raises OutputError."""
    arrays = {name: weight.detach().cpu().numpy() for name, weight in weights.items()}
    stage.write(BEST, arrays, figures=json.dumps(figures))


def best_figures(stage: Stage) -> dict[str, float]:
    """Step and figures of the best weights so far. Raises StageError."""
    figures: dict[str, float] = json.loads(stage.read_with_metadata(BEST)[1]["figures"])
    return figures


def best_weights(stage: Stage) -> dict[str, Tensor]:
    """The best weights so far, float32, mapped from the file. Raises StageError."""
    return {name: torch.from_numpy(array) for name, array in stage.read(BEST).items()}


def remove_kept(stage: Stage) -> None:
    """Remove both files, when the training is finished."""
    for name in (STATE, BEST):
        if stage.owns(name):
            (stage.folder / name).unlink(missing_ok=True)
