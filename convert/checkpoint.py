"""An HF checkpoint folder: config.json, safetensors and memdec.json, checked while read.

Tensors are read one at a time through a memory map, whatever the checkpoint's size; pickle files are not opened.
Knows nothing of GGUF.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import MissingExtraError, MissingFileError, ModelFileError

from .architectures import ARCHITECTURES, Architecture

DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """What llama.cpp must know of a model; sizes in elements."""

    architecture: Architecture
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int  # of the embedding: tokens and padding
    n_ctx: int  # positions it was trained for
    eps: float
    rope_theta: float
    rope_scaling: Facts  # {} or {"rope_type": "linear" | "llama3", ...}
    tied: bool  # the head is the embedding
    biases: frozenset[str]  # entries of config.json that give parts a bias, where they are true


class Checkpoint:
    """One folder: its config, the names, shapes and dtypes of its tensors, and each tensor as float32 on demand.

    Raises MissingFileError for a folder or file that is not there, ModelFileError for one that cannot be used, and
    MissingExtraError without torch and safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise MissingFileError(folder, "checkpoint folder")
        self.config = read_config(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        for path in self._weight_files():
            self._open(path)

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as float32. Raises ModelFileError where it holds NaN or infinity."""
        array: npt.NDArray[np.float32] = self._files[name].get_tensor(name).float().numpy()
        if not np.isfinite(array).all():
            raise ModelFileError(self.folder, f"{name} holds NaN or infinity; the training diverged")
        return array

    def _weight_files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict):
                raise ModelFileError(index, "has no weight_map; save the checkpoint again")
            return [self.folder / name for name in sorted({str(name) for name in names.values()})]
        single = self.folder / "model.safetensors"
        if not single.is_file() and (self.folder / "pytorch_model.bin").is_file():
            raise ModelFileError(self.folder, "holds only pickled weights; save it as safetensors (save_pretrained)")
        return [single]

    def _open(self, path: Path) -> None:
        try:
            import torch  # noqa: F401  safetensors gives its tensors through it, bfloat16 included
            from safetensors import SafetensorError, safe_open
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "safetensors", "convert") from error
        if not path.is_file():
            raise MissingFileError(path, "safetensors file")
        try:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  no mapping
                piece = file.get_slice(name)
                self.shapes[name], self.dtypes[name] = tuple(piece.get_shape()), piece.get_dtype()
                self._files[name] = file
        except (SafetensorError, OSError) as error:
            raise ModelFileError(path, f"cannot be read ({error}); it is damaged or cut short") from error
        for name, dtype in self.dtypes.items():
            if dtype not in DTYPES:
                raise ModelFileError(path, f"{name} is {dtype}; only {', '.join(DTYPES)} can be converted")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MissingFileError and ModelFileError."""
    if not path.is_file():
        raise MissingFileError(path, "file")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFileError(path, f"is no JSON ({error})") from error
    if not isinstance(body, dict):
        raise ModelFileError(path, f"holds a JSON {type(body).__name__}, not an object")
    return body


def read_config(folder: Path) -> ModelConfig:
    """config.json with Hugging Face's defaults. Raises as Checkpoint does."""
    path = folder / "config.json"
    body = read_json(path)
    architecture = _architecture(path, body)
    body = {**architecture.defaults, **body}
    if body.get("hidden_act", "silu") != "silu":
        raise ModelFileError(
            path, f"hidden_act is {body['hidden_act']!r}; llama.cpp's {architecture.name} knows only silu"
        )
    for entry in architecture.off:
        if body.get(entry):
            raise ModelFileError(path, f"{entry} is {body[entry]!r}; llama.cpp's {architecture.name} has no such thing")

    def whole(key: str, default: int | None = None) -> int:
        value = body.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ModelFileError(path, f"{key} is {value!r}; it must be a positive whole number")
        return value

    hidden, heads = whole("hidden_size"), whole("num_attention_heads")
    config = ModelConfig(
        architecture=architecture,
        layers=whole("num_hidden_layers"),
        hidden=hidden,
        ffn=whole("intermediate_size"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden // heads),
        rows=whole("vocab_size"),
        n_ctx=whole("max_position_embeddings"),
        eps=_positive(path, "rms_norm_eps", body.get("rms_norm_eps", 1e-6)),
        rope_theta=_positive(path, "rope_theta", _rope(body).get("rope_theta", 10000.0)),
        rope_scaling=_rope_scaling(path, body, architecture),
        tied=body.get("tie_word_embeddings", False) is True,
        biases=frozenset(str(part.bias) for part in architecture.block if body.get(str(part.bias)) is True),
    )
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ModelFileError(
            path, f"{config.heads} heads of {config.head_dim} do not go with {config.kv_heads} key-value heads"
        )
    if not architecture.free_heads and config.heads * config.head_dim != config.hidden:
        raise ModelFileError(
            path, f"{config.heads} heads of {config.head_dim} are no hidden_size of {config.hidden}, which llama.cpp's "
            f"{architecture.name} wants"
        )  # fmt: skip
    return config


def _architecture(path: Path, body: Facts) -> Architecture:
    names = body.get("architectures") or "not named"
    found = ", ".join(map(str, names)) if isinstance(names, list) else names
    if not isinstance(names, list) or found not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise ModelFileError(path, f"the architecture is {found}; {known} can be converted")
    return ARCHITECTURES[found]


def _positive(path: Path, key: str, value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(str(value)) < math.inf:
        raise ModelFileError(path, f"{key} is {value!r}; it must be a positive number")
    return float(str(value))


def _rope(body: Facts) -> Facts:
    """Rope settings: transformers 5 keeps them in rope_parameters, 4 in rope_theta and rope_scaling."""
    found = body.get("rope_parameters") or body.get("rope_scaling") or {}
    found = dict(found) if isinstance(found, dict) else {"rope_type": found}
    if body.get("rope_theta") is not None:
        found.setdefault("rope_theta", body["rope_theta"])
    return found


def _rope_scaling(path: Path, body: Facts, architecture: Architecture) -> Facts:
    rope = _rope(body)
    kind = rope.get("rope_type", rope.get("type", "default"))
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind if isinstance(kind, str) else "")
    if keys is None or kind not in architecture.rope_scaling:
        known = ", ".join(architecture.rope_scaling)
        raise ModelFileError(path, f"rope scaling {kind!r} of {architecture.name} cannot be converted; can be: {known}")
    return {"rope_type": kind} | {key: _positive(path, key, rope.get(key)) for key in keys} if keys else {}
