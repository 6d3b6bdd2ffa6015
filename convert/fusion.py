"""How LMDeploy mixes a memory with its base, as far as a GGUF can say it: memory_fusion/config.json.

LMDeploy (since pull request 4767) reads that file in the memory's folder. Its keys are lambda_value, adaptive_router,
router_name, default_router, routers and lambda_base_only_threshold. A router is a small network over the hidden states
of both models, for one base; without one lambda_value is the weight. Knows nothing of weights and tokenizers.
"""

from pathlib import Path
from typing import NamedTuple

from memdec_edge.errors import ModelFileError
from memdec_edge.hf_folder import FUSION, Json, read_json


class Fusion(NamedTuple):
    """What is carried over: a weight in [0, 1], None where there is none, and a warning of what is not, or ""."""

    weight: float | None = None
    warning: str = ""


def read_fusion(folder: Path) -> Fusion:
    """What the file in a checkpoint folder says, or the one beside the folder. Raises ModelFileError."""
    places = (folder / FUSION, folder.absolute().parent / FUSION)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return Fusion()
    body = read_json(path)
    weight, routed = _weight(path, body), body.get("adaptive_router", True)
    if not isinstance(routed, bool):
        raise ModelFileError(path, f"adaptive_router is {routed!r:.80}; it must be true or false")
    if not routed:
        return Fusion(weight)
    if weight == 1.0:  # what stands there by default; with a router nothing uses it
        weight = None
    name = body.get("router_name") or body.get("default_router") or "without a name"
    instead = "the GGUF recommends no lambda" if weight is None else f"its lambda_value {weight:g} is"
    return Fusion(
        weight,
        f"{path}: the router {name!s:.80} reads hidden states and is not carried over; {instead}, and by default the "
        "weight follows the text",
    )


def _weight(path: Path, body: Json) -> float | None:
    value = body.get("lambda_value")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ModelFileError(path, f"lambda_value is {value!r:.80}; it must be a number from 0 to 1")
    return float(value)
