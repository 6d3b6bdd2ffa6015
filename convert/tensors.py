"""Tensors of a checkpoint as llama.cpp wants them: names, order, permutation, types.

Knows nothing of files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from .checkpoint import ModelConfig

Kind = GGMLQuantizationType
KINDS = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # enum llama_ftype
ROPE_FREQS = "rope_freqs.weight"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: where it comes from and what becomes of it."""

    name: str
    source: str  # name in the checkpoint; empty: computed from the config
    shape: tuple[int, ...]  # PyTorch's order, in the checkpoint
    heads: int = 0  # rows are permuted within so many heads


def plan(config: ModelConfig) -> list[TensorPlan]:
    """Every tensor that a checkpoint of this config must hold, in the GGUF's order."""
    hidden, heads = config.hidden, {"q": config.heads, "kv": config.kv_heads}
    sizes = {"hidden": hidden, "ffn": config.ffn} | {name: count * config.head_dim for name, count in heads.items()}
    found = [
        TensorPlan("token_embd.weight", "model.embed_tokens.weight", (config.rows, hidden)),
        TensorPlan("output_norm.weight", "model.norm.weight", (hidden,)),
    ]
    if not config.tied:
        found.append(TensorPlan("output.weight", "lm_head.weight", (config.rows, hidden)))
    if config.rope_scaling.get("rope_type") == "llama3":
        found.append(TensorPlan(ROPE_FREQS, "", (config.head_dim // 2,)))
    for layer in range(config.layers):
        for part in config.architecture.block:
            name, source = f"blk.{layer}.{part.name}", f"model.layers.{layer}.{part.source}"
            shape = tuple(sizes[size] for size in part.shape)
            permuted = heads[part.shape[0]] if part.interleaved else 0
            found.append(TensorPlan(f"{name}.weight", f"{source}.weight", shape, permuted))
            if part.bias is True or part.bias in config.biases:
                found.append(TensorPlan(f"{name}.bias", f"{source}.bias", shape[:1], permuted))
    return found


def compare(planned: list[TensorPlan], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> str:
    """What does not fit between the plan and a checkpoint's tensors: empty, or one sentence naming the first."""
    for tensor in planned:
        if tensor.source and tensor.source not in shapes:
            return f"the tensor {tensor.source} is missing"
        if tensor.source and shapes[tensor.source] != tensor.shape:
            return f"{tensor.source} is {_shape(shapes[tensor.source])}, config.json makes it {_shape(tensor.shape)}"
    known = {tensor.source for tensor in planned} | ({"lm_head.weight"} if config.tied else set())
    for name in shapes:
        # inv_freq: a buffer of old checkpoints, computed from rope_theta
        if name not in known and not name.endswith("rotary_emb.inv_freq"):
            return f"the tensor {name} has no place in a {config.architecture.name} model"
    return ""


def choose_kind(shape: tuple[int, ...], outtype: str) -> GGMLQuantizationType:
    """The type of a tensor: f32 for vectors, f16 where rows do not divide into blocks, else `outtype`."""
    kind = KINDS[outtype] if len(shape) > 1 else Kind.F32
    return Kind.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def n_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor in a GGUF."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(size)


def permute(array: Array, heads: int) -> Array:
    """Rows of a q or k projection, [heads * head_dim, ...], in the order of llama.cpp's rope.

    Hugging Face rotates element i of a head with i + head_dim/2, llama.cpp in some architectures neighbours 2i and
    2i + 1: within a head the halves are interleaved.
    """
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def rope_factors(config: ModelConfig) -> Array:
    """What llama3 rope scaling divides each frequency by, float32 [head_dim / 2].

    Frequencies of a wavelength under n/high_freq_factor stay (n the original context), those over n/low_freq_factor are
    divided by `factor`, and between the two the inverse is interpolated (Llama 3.1 model card, `apply_scaling`).
    """
    scaling = config.rope_scaling
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    turns = scaling["original_max_position_embeddings"] / (2 * np.pi * config.rope_theta**exponents)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Array = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def encode(array: Array, kind: GGMLQuantizationType) -> npt.NDArray[np.generic]:
    """A float32 array in the bytes of a ggml type; a value beyond f16's range becomes infinite."""
    with np.errstate(over="ignore"):
        encoded: npt.NDArray[np.generic] = quantize(np.ascontiguousarray(array, np.float32), kind)
    return encoded


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
