"""The state of an unfinished training: one file that is whole or not there. Knows nothing of data and losses.

float32 weights and both AdamW moments of each parameter, and the number of finished steps, which is the data cursor and
the state of the random numbers too: both are functions of the seed and the step. safetensors, never pickle.
"""

import torch
from torch import Tensor

from .stage import Stage

STATE = "resume.safetensors"


def save_state(stage: Stage, step: int, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write the state after `step` steps in place of the one before. Raises OutputError."""
    arrays = {}
    for name, weight in weights.items():
        moments = optimizer.state[weight]
        arrays[f"weight.{name}"] = weight.detach().cpu().numpy()
        arrays[f"mean.{name}"] = moments["exp_avg"].cpu().numpy()
        arrays[f"square.{name}"] = moments["exp_avg_sq"].cpu().numpy()
    stage.write(STATE, arrays, step=str(step))


@torch.no_grad()
def load_state(stage: Stage, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Read a saved state into `weights` and `optimizer`; return its step, 0 when there is none. Raises StageError."""
    if not (stage.folder / STATE).exists():
        return 0
    arrays, facts = stage.read_with_facts(STATE)
    step = int(facts["step"])
    for name, weight in weights.items():
        weight.copy_(torch.from_numpy(arrays[f"weight.{name}"]))
        optimizer.state[weight] = {
            "step": torch.tensor(float(step), device=weight.device),
            "exp_avg": torch.from_numpy(arrays[f"mean.{name}"]).to(weight.device),
            "exp_avg_sq": torch.from_numpy(arrays[f"square.{name}"]).to(weight.device),
        }
    return step
