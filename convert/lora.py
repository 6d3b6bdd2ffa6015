"""A PEFT LoRA, merged into its base while converting: W + scale * B A, some rows at a time.

W is [out, in], A [rank, in], B [out, rank]. Embeddings and the weights of GPT-2 are stored the other way round, so
their change is (B A)^T. scale is alpha / rank (2106.09685, section 4.1), or alpha / sqrt(rank) with use_rslora
(2312.03732). Files are hostile until proven otherwise, and what peft would compute in another way is refused. Knows
nothing of GGUF, nor of what a tensor is for.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.hf_folder import ADAPTER, ADAPTER_WEIGHTS, Json, read_json

from .checkpoint import BLOCK, Array, Tensor, tensors_of, widen
from .config import ModelConfig
from .tensors import plan

INSTEAD = "merge it by merge_and_unload() of peft, save_pretrained(), and convert that folder"
WRONG_BASE = "give the model that it was trained on"
# Settings under which W + scale * B A is the whole change, whatever they are set to. peft writes many more, and new
# ones with each version: one that is not here may be off, and nothing else.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of training, which leave the base as it was
WRAPPED = "base_model.model."  # before the names of the model's own modules
KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB])"
    r"|(?:modules_to_save\.|base_layer\.)?(?P<whole>weight|bias))"
)
LARGEST = 1e30  # alpha; Python reads integers that no float holds
PATTERN = re.compile(r"\^?[\w.]+")  # names of modules; peft takes any regular expression, and one may run for ever
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Merged(Tensor):
    """A weight of the base with its change, float32."""

    base: Tensor
    down: Tensor  # A
    up: Tensor  # B
    scale: float
    turned: bool  # stored as [in, out]
    shape: tuple[int, ...]
    dtype: str = "F32"

    def part(self, start: int, count: int) -> Array:
        """As Tensor.part()."""
        width = self.shape[1]
        first, last = start // width, -(-(start + count) // width)
        return self._rows(first, last, *self._factors()).reshape(-1)[start - first * width :][:count]

    def read(self) -> Array:
        """All numbers; beside them only some rows are in memory."""
        whole = np.empty(self.shape, np.float32)
        left, right = self._factors()
        step = max(1, BLOCK // self.shape[1])
        for first in range(0, len(whole), step):
            last = min(first + step, len(whole))
            whole[first:last] = self._rows(first, last, left, right)
        return whole

    def _factors(self) -> tuple[F32, F32]:
        """[rows, rank] and [rank, columns]; their product is the change."""
        down, up = (widen(each.read(), each.dtype) for each in (self.down, self.up))
        return (down.T, up.T) if self.turned else (up, down)

    def _rows(self, first: int, last: int, left: F32, right: F32) -> F32:
        width = self.shape[1]
        rows = widen(self.base.part(first * width, (last - first) * width), self.base.dtype).reshape(-1, width)
        rows += np.float32(self.scale) * (left[first:last] @ right)
        return rows


class Changes(NamedTuple):
    """What an adapter's files hold, by name of the tensor that changes."""

    factors: dict[str, dict[str, Tensor]]  # {"A": ..., "B": ...}
    whole: dict[str, Tensor]  # in the base's place, such as those of modules_to_save
    embeddings: set[str]  # those of `factors` that belong to an embedding


def merge(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's `tensors` with the LoRA in `folder`.

    Where config ties the head to the embedding and the LoRA changes one of them, the other stays as it was, as in peft
    while it trains. Raises MissingFileError and ModelFileError, which name what does not fit and the next step.
    """
    settings = _settings(folder)
    found, ends = dict(tensors), _ends(config)
    tied = next((found[name] for name in ends if name in found), None) if config.tied else None
    changes = _changes(folder, found.keys() | (ends if tied else set()), config.architecture.prefix)
    if tied and ends & {*changes.factors, *changes.whole}:
        found = dict.fromkeys(ends, tied) | found
    for name, tensor in changes.whole.items():
        if name in found and found[name].shape != tensor.shape:
            raise _unfit(folder, name, tensor.shape, found[name].shape)
        found[name] = tensor
    turned = {each.source for each in plan(config) if each.order == "transposed"} | changes.embeddings
    for name, factors in changes.factors.items():
        down, up = _pair(folder, name, factors)
        rows, columns = down.shape[1], up.shape[0]
        made = (rows, columns) if name in turned else (columns, rows)
        if found[name].shape != made:
            raise _unfit(folder, name, made, found[name].shape)
        rank, alpha = down.shape[0], _alpha(folder, settings, name)
        scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
        found[name] = Merged(found[name], down, up, scale, name in turned, made)
    return found


def _ends(config: ModelConfig) -> set[str]:
    """Names of head and embedding."""
    table = config.architecture
    return {f"{table.head}.weight", f"{table.prefix}{table.outer[0].source}.weight"}


def _settings(folder: Path) -> Json:
    """adapter_config.json. Raises ModelFileError where a merge would not be all of it."""
    path = folder / ADAPTER
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelFileError(path, f"peft_type is {kind!r:.40}, and convert merges only LORA; {INSTEAD}")
    for name, value in settings.items():
        if name not in KNOWN and value:
            raise ModelFileError(path, f"{name:.80} is {value!r:.80}, which convert cannot merge; {INSTEAD}")
    start = settings.get("init_lora_weights", True)
    if not any(start is each or start == each for each in STARTS):
        raise ModelFileError(
            path, f"init_lora_weights is {start!r:.40}, for which peft changes the base's own weights; {INSTEAD}"
        )
    return settings


def _changes(folder: Path, known: set[str], prefix: str) -> Changes:
    """What the weights file holds. known: names of the base's tensors. Raises MissingFileError, ModelFileError."""
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise MissingFileError(folder / ADAPTER_WEIGHTS[0], "weights file", "download the whole adapter")
    found = Changes({}, {}, set())
    for key, tensor in tensors_of(file).items():
        match = KEY.fullmatch(key.removeprefix(WRAPPED))
        if match is None:
            raise ModelFileError(file, f"convert cannot merge {key:.200}; {INSTEAD}")
        name = f"{match['module']}.{match['whole'] or 'weight'}"
        name = name if name in known else f"{prefix}{name}"  # trained on the model without its head
        if name not in known:
            raise ModelFileError(file, f"the base has nothing that {key:.200} belongs to; {WRONG_BASE}")
        if match["whole"]:
            found.whole[name] = tensor
        else:
            found.factors.setdefault(name, {})[match["linear"] or match["embedding"]] = tensor
        if match["embedding"]:
            found.embeddings.add(name)
    if not found.factors and not found.whole:
        raise ModelFileError(file, "changes nothing; save the adapter again")
    return found


def _pair(folder: Path, name: str, factors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A and B, which must be matrices that can be multiplied."""
    down, up = factors.get("A"), factors.get("B")
    if down is None or up is None:
        raise ModelFileError(folder, f"has only one of two matrices for {name}; save the adapter again")
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise ModelFileError(folder, f"A of {name} is {down.shape} and B {up.shape}; save the adapter again")
    return down, up


def _alpha(folder: Path, settings: Json, name: str) -> float:
    """lora_alpha of a module: what the first pattern says that its name ends with, else the usual one."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(PATTERN.fullmatch, patterns)):
        raise ModelFileError(folder / ADAPTER, f"alpha_pattern {patterns!r:.80} has more than plain names; {INSTEAD}")
    module = name.rpartition(".")[0]
    fitting = (
        value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)
    )  # as peft does
    alpha = next(fitting, settings.get("lora_alpha", 8))  # peft's default
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -LARGEST < alpha < LARGEST:
        raise ModelFileError(folder / ADAPTER, f"the alpha of {module:.200} is {alpha!r:.40}; it must be a number")
    return float(alpha)


def _unfit(folder: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> ModelFileError:
    ours, theirs = (" x ".join(map(str, shape)) for shape in (found, wanted))
    return ModelFileError(folder, f"it is for {name} of {ours}, and the base's is {theirs}; {WRONG_BASE}")
