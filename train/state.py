"""What an unfinished training keeps: two files, each whole or not there. Knows nothing of data and losses.

Its state is float32 weights and both AdamW moments of each parameter, and the number of finished steps, which is the
data cursor and the state of the random numbers too: both are functions of the seed and the step. Beside it stand the
weights that did best on validation text. safetensors, never pickle.
"""

import json

import torch
from torch import Tensor

from memdec_edge.errors import StageError

from .artifacts import Stage

STATE, BEST = "resume.safetensors", "best.safetensors"
WITHOUT_BEST = f"remove {STATE} too, and run again to train anew"


def save_state(
    stage: Stage, step: int, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, best_step: int
) -> None:
    """Write the state after `step` steps in place of the one before. Raises OutputError.

    best_step  the step whose weights save_best() has kept; 0: none
    """
    arrays = {}
    for name, weight in weights.items():
        moments = optimizer.state[weight]
        arrays[f"weight.{name}"] = weight.detach().cpu().numpy()
        arrays[f"mean.{name}"] = moments["exp_avg"].cpu().numpy()
        arrays[f"square.{name}"] = moments["exp_avg_sq"].cpu().numpy()
    stage.write(STATE, arrays, step=str(step), best_step=str(best_step))


@torch.no_grad()
def load_state(stage: Stage, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Read a saved state into `weights` and `optimizer`; return its step, 0 when there is none. Raises StageError."""
    if not (stage.folder / STATE).exists():
        return 0
    arrays, metadata = stage.read_with_metadata(STATE)
    step = int(metadata["step"])
    if metadata["best_step"] != "0" and not (stage.folder / BEST).exists():
        raise StageError(stage.folder / BEST, "missing, and its weights may be the best ones", WITHOUT_BEST)
    for name, weight in weights.items():
        weight.copy_(torch.from_numpy(arrays[f"weight.{name}"]))
        optimizer.state[weight] = {
            "step": torch.tensor(float(step), device=weight.device),
            "exp_avg": torch.from_numpy(arrays[f"mean.{name}"]).to(weight.device),
            "exp_avg_sq": torch.from_numpy(arrays[f"square.{name}"]).to(weight.device),
        }
    return step


def save_best(stage: Stage, weights: dict[str, Tensor], figures: dict[str, float]) -> None:
    """Write the weights in place of those that were the best so far, with what is known of them. Raises OutputError."""
    arrays = {name: weight.detach().cpu().numpy() for name, weight in weights.items()}
    stage.write(BEST, arrays, figures=json.dumps(figures))


def best_figures(stage: Stage) -> dict[str, float]:
    """What is known of the best weights so far; {} when there are none. Raises StageError."""
    if not (stage.folder / BEST).exists():
        return {}
    figures: dict[str, float] = json.loads(stage.read_with_metadata(BEST)[1]["figures"])
    return figures


@torch.no_grad()
def load_best(stage: Stage, weights: dict[str, Tensor]) -> None:
    """Read the best weights into `weights`. Raises StageError."""
    for name, array in stage.read(BEST).items():
        weights[name].copy_(torch.from_numpy(array))


def remove_kept(stage: Stage) -> None:
    """Remove both files, when the training is finished."""
    for name in (STATE, BEST):
        (stage.folder / name).unlink(missing_ok=True)
