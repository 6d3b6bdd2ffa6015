"""config.json of a checkpoint, checked, with Hugging Face's defaults: what llama.cpp must know of a model.

Knows nothing of tensors, nor of any other file.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdec_edge.errors import ModelFileError
from memdec_edge.hf_folder import Json, read_json

from .architectures import ARCHITECTURES, Architecture

MAX_LAYERS = 512  # llama.cpp's limit
GEMMA3_27B = 62  # layers of the one Gemma 3 whose attention llama.cpp scales by hidden / heads


@dataclass(frozen=True)
class ModelConfig:
    """What llama.cpp must know of a model. Sizes are in elements."""

    architecture: Architecture
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rows: int  # of the embedding: tokens and padding
    positions: int  # that it was trained for
    n_ctx: int  # positions within which llama.cpp computes the same
    eps: float
    rope_dim: int  # elements of a head that rope rotates
    rope_theta: float
    rope_scaling: Json  # {} or {"rope_type": "linear" | "llama3", ...}
    window: int  # positions that a layer with a sliding window sees; 0: there is none
    window_period: int  # the layers of this number and of its multiples see everything
    window_theta: float  # rope_theta of the layers with a window
    parallel_residual: bool
    tied: bool  # the head is the embedding
    biases: frozenset[str]  # the true ones of the entries that give parts a bias
    weights: str  # the weights file that config.json names; "": one of the usual ones

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that the names in the architectures' shapes stand for."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "hidden": self.hidden, "ffn": self.ffn, "rows": self.rows, "positions": self.positions,
            "q": q, "kv": kv, "qkv": q + 2 * kv, "head": self.head_dim,
        }  # fmt: skip


class _Reader:
    """Entries of config.json by Llama's names, with Hugging Face's defaults; errors call them as the file does."""

    def __init__(self, path: Path, body: Json, architecture: Architecture) -> None:
        self.path, self.architecture = path, architecture
        self.body = {**architecture.defaults, **body}

    def spell(self, key: str) -> str:
        """The file's own name of an entry."""
        return self.architecture.spelling.get(key, key)

    def get(self, key: str, default: object = None) -> Any:
        """An entry; `default` where it is null or missing."""
        value = self.body.get(self.spell(key))
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """An entry that is a positive whole number. Raises ModelFileError."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.error(key, value, "it must be a positive whole number")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """An entry that is true or false. Raises ModelFileError."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "it must be true or false")
        return value

    def text(self, key: str) -> str:
        """An entry that is a string, "" where it is missing. Raises ModelFileError."""
        value = self.get(key, "")
        if not isinstance(value, str):
            raise self.error(key, value, "it must be a string")
        return value

    def error(self, key: str, value: object, advice: str) -> ModelFileError:
        """The error that names an entry, its value and what to do."""
        return ModelFileError(self.path, f"{self.spell(key)} is {value!r:.80}; {advice}")


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder.

    Raises MissingFileError, and ModelFileError for an entry that is wrong or that llama.cpp cannot compute.
    """
    path = folder / "config.json"
    body = read_json(path)
    architecture = _architecture(path, body)
    read = _Reader(path, body, architecture)
    hidden, heads = read.whole("hidden_size"), read.whole("num_attention_heads")
    head_dim, positions = read.whole("head_dim", hidden // heads or 1), read.whole("max_position_embeddings", 1024)
    window = read.whole("sliding_window") if architecture.window and read.get("sliding_window") is not None else 0
    rope, local = _rope(read)
    config = ModelConfig(
        architecture=architecture,
        layers=read.whole("num_hidden_layers"),
        hidden=hidden,
        ffn=read.whole("intermediate_size", 4 * hidden),  # GPT-2's default; compare() checks the tensors' shapes anyway
        heads=heads,
        kv_heads=read.whole("num_key_value_heads", heads),
        head_dim=head_dim,
        rows=read.whole("vocab_size"),
        positions=positions,
        n_ctx=min(positions, window or positions) if architecture.window == "lacking" else positions,
        eps=_positive(read, read.spell("rms_norm_eps"), read.body, 1e-6),
        rope_dim=int(head_dim * min(2.0, _positive(read, "partial_rotary_factor", rope, read.get("rotary_pct", 1.0)))),
        rope_theta=_positive(read, "rope_theta", rope),
        rope_scaling=_rope_scaling(read, rope),
        window=window if architecture.window == "layers" else 0,
        window_period=_window_period(read) if architecture.window == "layers" else 0,
        window_theta=_positive(read, "rope_theta", local, 10000.0),
        parallel_residual=read.flag("use_parallel_residual", True),
        tied=read.flag("tie_word_embeddings"),
        biases=frozenset(bias for part in architecture.block if isinstance(bias := part.bias, str) and read.flag(bias)),
        weights=read.text("transformers_weights"),
    )
    _refuse_what_differs(read, config)
    return config


def _architecture(path: Path, body: Json) -> Architecture:
    """The table of the architecture that config.json names. Raises ModelFileError where transformers reads another."""
    names = body.get("architectures") or "not named"
    found = ", ".join(map(str, names)) if isinstance(names, list) else names
    if not isinstance(names, list) or found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelFileError(path, f"the architecture is {found!s:.200}; what can be converted: {known}")
    architecture = ARCHITECTURES[found]
    if body.get("model_type", architecture.model_type) != architecture.model_type:  # transformers goes by this one
        kind = body["model_type"]
        raise ModelFileError(path, f"model_type is {kind!r:.80} and the architecture {found}; make the two agree")
    if (quantized := body.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelFileError(
            path, f"the weights are quantised already ({method!s:.40}); load them, dequantize() and save_pretrained()"
        )
    return architecture


def _refuse_what_differs(read: "_Reader", config: ModelConfig) -> None:
    """Raise ModelFileError where llama.cpp would compute something else, or abort."""
    architecture, name = config.architecture, config.architecture.name
    activation = read.get("hidden_act", architecture.activations[0])
    if activation not in architecture.activations:
        known = " or ".join(architecture.activations)
        raise read.error("hidden_act", activation, f"llama.cpp's {name} computes only {known}")
    for entry, value in architecture.fixed.items():
        if read.get(entry, value) != value:
            raise read.error(entry, read.get(entry), f"llama.cpp's {name} computes it only with {value}")
    if config.layers > MAX_LAYERS:
        raise read.error("num_hidden_layers", config.layers, f"llama.cpp takes at most {MAX_LAYERS}")
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ModelFileError(
            read.path, f"{config.heads} heads of {config.head_dim} do not go with {config.kv_heads} key-value heads"
        )
    if not 0 < config.rope_dim <= config.head_dim or config.rope_dim % 2:
        raise ModelFileError(read.path, f"{config.rope_dim} of {config.head_dim} elements of a head cannot be rotated")
    if not architecture.free_heads and config.heads * config.head_dim != config.hidden:
        raise ModelFileError(
            read.path, f"{config.heads} heads of {config.head_dim} are no {read.spell('hidden_size')} of "
            f"{config.hidden}, which llama.cpp's {name} wants"
        )  # fmt: skip
    if (scale := read.get("query_pre_attn_scalar")) is not None:  # of Gemma; attention divides by its root
        wanted = config.hidden // config.heads if config.layers == GEMMA3_27B else config.head_dim
        if scale != wanted:
            raise read.error("query_pre_attn_scalar", scale, f"llama.cpp's {name} takes {wanted}")


def _rope(read: "_Reader") -> tuple[Json, Json]:
    """The rope settings of layers without a window, and of layers with one.

    transformers 5 keeps them in rope_parameters, by kind of layer where there are several. Version 4 keeps them in
    rope_theta, rope_scaling and rope_local_base_freq.
    """
    found = read.get("rope_parameters") or read.get("rope_scaling") or {}
    found = dict(found) if isinstance(found, dict) else {"rope_type": found}
    local = found.get("sliding_attention", {"rope_theta": read.get("rope_local_base_freq", 10000.0)})
    found = found.get("full_attention", found)
    if not isinstance(found, dict) or not isinstance(local, dict):
        raise read.error("rope_parameters", read.get("rope_parameters"), "save the checkpoint again")
    if local.get("rope_type", "default") != "default":
        raise read.error("rope_type", local["rope_type"], "llama.cpp scales no layer that has a window")
    return {"rope_theta": read.get("rope_theta", 10000.0), **found}, local


def _rope_scaling(read: "_Reader", rope: Json) -> Json:
    """{"rope_type": kind} and the numbers of that kind; {} without scaling. Raises ModelFileError."""
    name, known = read.architecture.name, read.architecture.rope_scaling
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not known:
        return {}
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind if isinstance(kind, str) else "")
    if keys is None or kind not in known:
        raise ModelFileError(
            read.path, f"rope scaling {kind!r} of {name} cannot be converted; can be: {', '.join(known)}"
        )
    return {"rope_type": kind} | {key: _positive(read, key, rope) for key in keys} if keys else {}


def _window_period(read: "_Reader") -> int:
    """The period of the layers that see everything, counted from 1; all other layers see a window.

    Raises ModelFileError where layer_types has no such period.
    """
    layers, kinds = read.whole("num_hidden_layers"), read.get("layer_types")
    period = read.whole("_sliding_window_pattern", read.get("sliding_window_pattern", 6))
    if kinds is None:
        return period
    full = [number for number, kind in enumerate(kinds if isinstance(kinds, list) else []) if kind == "full_attention"]
    period = full[0] + 1 if full else layers + 1
    if kinds != ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(min(layers, MAX_LAYERS))]:
        raise read.error("layer_types", kinds, "llama.cpp wants full attention at regular intervals")
    return period


def _positive(read: "_Reader", key: str, entries: Json, default: object = None) -> float:
    """The positive number that `entries` has under `key`. Raises ModelFileError."""
    value = entries.get(key, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < float(str(value)) < math.inf:
        raise read.error(key, value, "it must be a positive number")
    return float(str(value))
