"""Tensors of a checkpoint as llama.cpp wants them: names, order of elements, types, bytes.

Knows nothing of files beyond the numbers that a Tensor reads.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from gguf import get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from .architectures import Part
from .checkpoint import BLOCK, Array, Tensor, widen
from .config import ModelConfig

Kind = GGMLQuantizationType
KINDS = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # enum llama_ftype
POSITIONS = "position_embd.weight"  # llama.cpp adds it to activations and needs it in f32
ROPE_FREQS = "rope_freqs.weight"
# Buffers of old checkpoints: attention masks, and frequencies computed from rope_theta.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
Encoded = npt.NDArray[np.generic]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: its source in the checkpoint, and what becomes of it."""

    name: str
    source: str  # name in the checkpoint; empty: computed from the config
    shape: tuple[int, ...]  # PyTorch's order, in the GGUF
    order: str = ""  # how the checkpoint's order of elements differs, in the words of arrange()
    heads: int = 0  # number of heads, which `order` is about
    offset: float = 0.0  # added to every element

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        return self.shape[::-1] if self.order == "transposed" else self.shape


def plan(config: ModelConfig) -> list[TensorPlan]:
    """Every tensor of the GGUF in its order; a checkpoint of this config must hold their sources."""
    table = config.architecture
    found: list[TensorPlan] = []
    for part in table.outer:
        found += _plan_part(config, part, table.prefix)
    if not config.tied:
        found += _plan_part(config, Part(table.head, ("rows", "hidden")), "")
    if config.rope_scaling.get("rope_type") == "llama3":
        found.append(TensorPlan(ROPE_FREQS, "", (config.rope_dim // 2,)))
    for layer in range(config.layers):
        for part in table.block:
            found += _plan_part(config, part, f"{table.prefix}{table.blocks}.{layer}.")
    names = get_tensor_name_map(table.gguf, config.layers)
    return [replace(tensor, name=names.get_name(tensor.name, (".weight", ".bias")) or tensor.name) for tensor in found]


def _plan_part(config: ModelConfig, part: Part, prefix: str) -> Iterator[TensorPlan]:
    """Weight and bias of a part, both still by their names in the checkpoint."""
    shape = tuple(config.sizes[size] for size in part.shape)
    heads = config.kv_heads if part.shape[0] == "kv" else config.heads
    weight = f"{prefix}{part.source}.weight"
    is_norm = part.shape in (("hidden",), ("head",))
    offset = config.architecture.norm_offset if is_norm else 0.0
    yield TensorPlan(weight, weight, shape, part.order, heads, offset)
    if part.bias is True or part.bias in config.biases:
        bias = f"{prefix}{part.source}.bias"
        yield TensorPlan(bias, bias, shape[:1], part.order, heads)


def settle_tying(config: ModelConfig, stored: dict[str, Tensor]) -> tuple[ModelConfig, str]:
    """The config as transformers understands it with these tensors, and a warning where it departs from config.json.

    A tied model may still have a head of its own in the file (transformers 5.24, PreTrainedModel.tie_weights). Where
    the head's numbers are the embedding's, the head is left out; where they differ, transformers does not tie the two.
    Where only the head is there, `stored` gets it as the embedding too.
    """
    head = f"{config.architecture.head}.weight"
    embedding = f"{config.architecture.prefix}{config.architecture.outer[0].source}.weight"
    if not config.tied or head not in stored:
        return config, ""
    if stored.setdefault(embedding, stored[head]).holds_same(stored[head]):
        return config, ""
    return replace(config, tied=False), (
        f"config.json ties head and embedding (tie_word_embeddings), but {head} differs from {embedding}; "
        "both are written, as transformers uses both"
    )


def compare(planned: list[TensorPlan], stored: Mapping[str, Tensor], config: ModelConfig) -> str:
    """One sentence on the first thing that does not fit between the plan and a checkpoint's tensors, or ""."""
    for tensor in planned:
        if tensor.source and tensor.source not in stored:
            return f"the tensor {tensor.source} is missing; save the checkpoint again, whole"
        if tensor.source and stored[tensor.source].shape != tensor.stored_shape:
            found, wanted = _shape(stored[tensor.source].shape), _shape(tensor.stored_shape)
            return f"{tensor.source} is {found}, config.json makes it {wanted}; save both again"
    known = {tensor.source for tensor in planned} | ({f"{config.architecture.head}.weight"} if config.tied else set())
    for name in stored:
        if name not in known and not name.endswith(BUFFERS):
            return (
                f"the tensor {name} has no place in a {config.architecture.name} model; is config.json another model's?"
            )
    return ""


def written_type(outtype: str, dtypes: set[str]) -> str:
    """The type that convert writes for `outtype`: the same if it is of KINDS, else a 16-bit type.

    "auto" and the types that llama.cpp's quantiser makes get the 16-bit type that is nearest to the checkpoint's own.

    dtypes  of the checkpoint's tensors
    """
    if outtype in KINDS:
        return outtype
    return "bf16" if "BF16" in dtypes else "f16"


def choose_kind(name: str, shape: tuple[int, ...], outtype: str) -> GGMLQuantizationType:
    """The type of a tensor: f32 for vectors and positions, f16 where its rows are no whole blocks, else `outtype`."""
    kind = Kind.F32 if len(shape) == 1 or name == POSITIONS else KINDS[outtype]
    return Kind.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def arrange(array: Array, tensor: TensorPlan) -> Array:
    """A tensor's elements in llama.cpp's order; `tensor.order` says what the checkpoint's is.

    rope        [heads * head_dim, ...]; Hugging Face rotates element i of a head with i + head_dim/2. In some
                architectures llama.cpp rotates 2i with 2i + 1, so the halves of a head are interleaved.
    transposed  [in, out], as GPT-2's Conv1D keeps weights
    grouped     [heads * 3 * head_dim, ...]; each head has its q, k and v together; llama.cpp wants all q, all k, all v
    """
    rest = array.shape[1:]
    if tensor.order == "rope":
        return array.reshape(tensor.heads, 2, -1, *rest).swapaxes(1, 2).reshape(array.shape)
    if tensor.order == "grouped":
        return array.reshape(tensor.heads, 3, -1, *rest).swapaxes(0, 1).reshape(array.shape)
    return array.T if tensor.order == "transposed" else array


def rope_factors(config: ModelConfig) -> npt.NDArray[np.float32]:
    """The divisors of llama3 rope scaling, one for each frequency, float32 [rope_dim / 2].

    n is the original context. A frequency with a wavelength under n/high_freq_factor stays, one over n/low_freq_factor
    is divided by `factor`. Between the two the inverse is interpolated (Llama 3.1 model card, `apply_scaling`).
    """
    scaling = config.rope_scaling
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    exponents = np.arange(0, config.rope_dim, 2, dtype=np.float64) / config.rope_dim
    with np.errstate(all="ignore"):  # settings without sense give NaN, which encode() refuses
        turns = scaling["original_max_position_embeddings"] / (2 * np.pi * config.rope_theta**exponents)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        factors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def encode(array: Array, dtype: str, kind: GGMLQuantizationType, offset: float = 0.0) -> Iterator[Encoded]:
    """The bytes of a tensor in a ggml type, some rows at a time. Raises ValueError for NaN, infinity and overflow.

    dtype   of `array`, a key of checkpoint.DTYPES
    offset  is added to every element
    """
    step = max(1, BLOCK // math.prod(array.shape[1:]))
    for start in range(0, len(array), step):
        rows = np.ascontiguousarray(widen(array[start : start + step], dtype))
        if offset:  # adding 0 would turn -0 into 0
            rows += np.float32(offset)
        if not np.isfinite(rows).all():
            raise ValueError("holds NaN or infinity; its training diverged, convert an earlier checkpoint")
        with np.errstate(over="ignore"):
            encoded: Encoded = quantize(rows, kind)
        if kind == Kind.F16 and not np.isfinite(encoded).all():
            raise ValueError("exceeds the range of f16; use `outtype` bf16")
        yield encoded


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
