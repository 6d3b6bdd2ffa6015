"""Checkpoint folder -> GGUF: a model saved by Hugging Face's save_pretrained becomes a file for llama.cpp.

`convert` reads top to bottom: check the checkpoint, take the tokenizer, fill the metadata, write the tensors one by
one, and on request reopen the file with llama.cpp and compare it with PyTorch. Knows nothing of how a memory was
trained: what training wants to be remembered it leaves in `memdec.json` beside the weights.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_VERSION

from memdec_edge import metadata
from memdec_edge.errors import ModelFileError
from memdec_edge.files import atomic_path, refuse_existing
from memdec_edge.options import ConvertOptions
from memdec_edge.progress import progress

from . import tensors, tokenizer
from .checkpoint import Checkpoint, ModelConfig, read_json
from .verify import Verification, verify
from .writer import GgufFile, Value

__all__ = ["ConvertReport", "Verification", "convert"]

PREFIX = "memdec-"  # memory files are told from models by their name
OWN_KEYS = ("general.architecture", "general.type", "general.file_type", "general.quantization_version",
            "general.alignment", metadata.SCHEMA_VERSION, metadata.ROLE)  # fmt: skip


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    outfile: Path
    outtype: str  # f32, f16, bf16 or q8_0, also where "auto" was asked for
    n_bytes: int  # of the file
    n_tensors: int
    warnings: tuple[str, ...]  # for a person: dropped rows, tensors in another type, the file's name
    verification: Verification | None


def convert(options: ConvertOptions) -> ConvertReport:
    """Write `options.checkpoint` as `options.outfile`.

    The file appears under its name only when it is complete and, with `verify`, found equal to PyTorch. Raises
    ExistingOutputError, MissingFileError, ModelFileError (naming the key, tensor or token that does not fit),
    MissingExtraError and OutputError.
    """
    refuse_existing(options.outfile)
    checkpoint = Checkpoint(options.checkpoint)
    planned = tensors.plan(checkpoint.config)
    if difference := tensors.compare(planned, checkpoint.shapes, checkpoint.config):
        raise ModelFileError(options.checkpoint, difference)
    outtype = _outtype(options.outtype, checkpoint)
    if options.base is not None:
        block = tokenizer.copied(options.base, options.checkpoint, checkpoint.config.rows)
    else:
        block = tokenizer.built(options.checkpoint, checkpoint.config.rows)
    file = GgufFile()
    _add_metadata(file, options, checkpoint.config, outtype, block)
    warnings = [*block.warnings]
    for tensor in planned:
        shape = _kept(tensor, checkpoint.config, len(block.tokens))
        kind = tensors.choose_kind(shape, outtype)
        if len(shape) > 1 and kind != tensors.KINDS[outtype]:
            warnings.append(f"{tensor.name} is {kind.name}: its rows of {shape[-1]} do not divide into blocks of 32")
        file.add_tensor(tensor.name, shape, kind)
    if options.role == "memory" and not options.outfile.name.startswith(PREFIX):
        warnings.append(f"the name of a memory should start with {PREFIX}: {PREFIX}{options.outfile.name}")
    verification = None
    with atomic_path(options.outfile) as part:
        with progress("converting", len(planned), "tensors") as advance:
            file.write(part, _data(checkpoint, planned, file, advance))
        if options.verify:
            verification = verify(part, options.checkpoint)
            if verification.same_tokens is False:
                warnings.append(f"llama.cpp splits text into other tokens than {options.checkpoint}/tokenizer.json")
    size = options.outfile.stat().st_size
    return ConvertReport(options.outfile, outtype, size, len(planned), tuple(warnings), verification)


def _outtype(wanted: str, checkpoint: Checkpoint) -> str:
    """`auto`: the 16-bit type nearest to the checkpoint's own."""
    if wanted != "auto":
        return wanted
    return "bf16" if "BF16" in checkpoint.dtypes.values() else "f16"


def _kept(tensor: tensors.TensorPlan, config: ModelConfig, n_tokens: int) -> tuple[int, ...]:
    """A tensor's shape in the GGUF: rows of padding that the tokenizer does not have are dropped."""
    by_token = tensor.name in ("token_embd.weight", "output.weight")
    return (min(n_tokens, config.rows), *tensor.shape[1:]) if by_token else tensor.shape


def _data(
    checkpoint: Checkpoint, planned: list[tensors.TensorPlan], file: GgufFile, advance: Callable[[int], None]
) -> Iterator[npt.NDArray[np.generic]]:
    """The tensors' bytes, one after the other."""
    for tensor, (_, shape, kind) in zip(planned, file.tensors, strict=True):
        array = checkpoint.tensor(tensor.source) if tensor.source else tensors.rope_factors(checkpoint.config)
        if tensor.heads:
            array = tensors.permute(array, tensor.heads)
        encoded = tensors.encode(array[: shape[0]], kind)
        if kind == tensors.Kind.F16 and not np.isfinite(encoded).all():
            raise ModelFileError(checkpoint.folder, f"{tensor.source} exceeds the range of f16; use --outtype bf16")
        yield encoded
        advance(1)


def _add_metadata(
    file: GgufFile, options: ConvertOptions, config: ModelConfig, outtype: str, block: tokenizer.TokenizerBlock
) -> None:
    notes = _notes(options.checkpoint)
    general: dict[str, Value] = {
        "general.architecture": config.architecture.name,
        "general.type": "model",
        "general.name": options.checkpoint.resolve().name,
        **_base_model(options.base),
        "general.file_type": tensors.FILE_TYPES[outtype],
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    if options.role == "memory":
        digest, n_tokens = metadata.tokenizer_digest(block.tokens)
        general["general.tags"] = ["memory-decoder", "memdec-edge"]
        general |= {
            metadata.SCHEMA_VERSION: metadata.SCHEMA,
            metadata.ROLE: "memory",
            **metadata.PLACEHOLDERS,
            metadata.TOKENIZER_SHA256: digest,
            metadata.TOKENIZER_N_TOKENS: n_tokens,
        }
    general |= {
        key: float(value) if key in metadata.PLACEHOLDERS and isinstance(value, int) else value
        for key, value in notes.items()
        if options.role == "memory" or key.startswith("general.")
    }
    if options.role == "memory":  # training leaves a recommendation here, perhaps one that cannot be
        metadata.MemoryFacts.from_gguf(options.checkpoint / metadata.CHECKPOINT_FACTS, general)
    for key, value in (general | _architecture(config, len(block.tokens))).items():
        try:
            file.add(key, value)
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise ModelFileError(options.checkpoint, f"{key} is {value!r:.40}, which GGUF cannot hold") from error
    file.entries |= block.entries


def _architecture(config: ModelConfig, n_tokens: int) -> dict[str, Value]:
    found: dict[str, Value] = {
        "block_count": config.layers,
        "context_length": config.n_ctx,
        "embedding_length": config.hidden,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": config.eps,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": n_tokens,
    }
    if config.rope_scaling.get("rope_type") == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling["factor"]}
    return {f"{config.architecture.name}.{key}": value for key, value in found.items()}


def _base_model(base: Path | None) -> dict[str, Value]:
    """Which model family a memory belongs to, as GGUF names it."""
    if base is None:
        return {}
    facts, _ = metadata.read(base)
    found = {
        f"general.base_model.0.{name}": str(facts[f"general.{name}"])
        for name in ("name", "organization", "repo_url")
        if f"general.{name}" in facts
    }
    return {"general.base_model.count": 1, **found} if found else {}


def _notes(folder: Path) -> dict[str, Value]:
    """memdec.json, checked: keys of general.* and memdec_edge.*, values that GGUF has a type for."""
    path = folder / metadata.CHECKPOINT_FACTS
    if not path.is_file():
        return {}
    notes: dict[str, Value] = {}
    for key, value in read_json(path).items():
        if value is None:
            continue
        if not key.startswith(("general.", metadata.PREFIX)) or not key.isascii() or key in OWN_KEYS:
            raise ModelFileError(path, f"{key} cannot be set; general.* and memdec_edge.* can, but what convert writes")
        texts = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
        if not isinstance(value, bool | int | float | str) and not texts:
            raise ModelFileError(path, f"{key} is {value!r}; it must be a number, a boolean, a string or strings")
        notes[key] = value
    return notes
