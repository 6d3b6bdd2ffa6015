"""Checkpoint folder -> GGUF: a model saved by Hugging Face's save_pretrained becomes a file for llama.cpp.

`convert` reads top to bottom. It checks the checkpoint, takes the tokenizer, fills the metadata, writes the tensors one
by one, and compares the file with PyTorch. Last it has llama.cpp quantise the file, where only llama.cpp can make the
type. Knows nothing of how a memory was trained, nor of any single architecture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.files import atomic_path, refuse_existing, refuse_input, scratch_path
from memdec_edge.gguf.writer import GgufFile
from memdec_edge.options import ConvertOptions
from memdec_edge.progress import progress

from . import tensors, tokenizer
from .checkpoint import Checkpoint
from .config import ModelConfig, read_config
from .folder import refuse_what_is_no_checkpoint, refuse_what_is_no_lora
from .fusion import Fusion, read_fusion
from .lora import merge
from .metadata import add_metadata
from .quantize import EMBEDDING, HEAD, QuantizeReport, make_quantized
from .verify import Verification, is_wanted, verify

PREFIX = "memdec-"  # memory files are told from models by their name


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    outfile: Path
    outtype: str  # also where "auto" was asked for
    n_bytes: int  # of the file
    n_tensors: int
    warnings: tuple[str, ...]  # for the user: files passed over, dropped rows, tensors in another type, losses
    verification: Verification | None  # of the file before llama.cpp quantised it; None: not verified
    quantized: QuantizeReport | None  # None: llama.cpp did not quantise it


def convert(options: ConvertOptions) -> ConvertReport:
    """Write `options.checkpoint`, or `options.lora_base` with that LoRA, as `options.outfile`.

    The file gets its name only when it is whole and, with `verify`, computes what PyTorch does. An interrupt leaves
    nothing. Raises ExistingOutputError, MissingFileError, MissingExtraError and OutputError. Raises ModelFileError,
    which names the key, tensor or token that does not fit.
    """
    refuse_existing(options.outfile, options.overwrite)
    folder, lora = options.checkpoint, None  # the folder of the whole model; what is merged into it
    if options.lora_base is not None:
        folder, lora = options.lora_base, options.checkpoint
        refuse_what_is_no_lora(lora, folder)
    refuse_what_is_no_checkpoint(folder)
    refuse_input(options.outfile, _inputs(options))
    config = read_config(folder)
    checkpoint = Checkpoint(folder, config.architecture.prefix, config.architecture.head, config.weights)
    written = tensors.written_type(options.outtype, {tensor.dtype for tensor in checkpoint.tensors.values()})
    if lora:
        checkpoint.tensors = merge(lora, config, checkpoint.tensors)
    config, untied = tensors.settle_tying(config, checkpoint.tensors)
    planned = tensors.plan(config)
    if difference := tensors.compare(planned, checkpoint.tensors, config):
        raise ModelFileError(folder, difference)
    if options.base is not None:
        block = tokenizer.copied(options.base, folder, config.rows)
    else:
        block = tokenizer.built(folder, config.rows)
    fusion = read_fusion(options.checkpoint) if options.role == "memory" else Fusion()
    file = GgufFile()
    add_metadata(file, options, config, written, block, fusion)
    warnings = [*checkpoint.warnings, *filter(None, [untied, fusion.warning]), *block.warnings]
    warnings += _announce(file, planned, config, len(block.tokens), written)
    if config.n_ctx < config.positions:
        warnings.append(f"llama.cpp's {config.architecture.name} has no sliding window: the context is cut to that of "
                        f"{config.n_ctx} tokens, within which both compute the same")  # fmt: skip
    if options.role == "memory" and not options.outfile.name.startswith(PREFIX):
        warnings.append(f"the name of a memory should start with {PREFIX}: {PREFIX}{options.outfile.name}")

    def write(path: Path) -> Verification | None:
        with progress("converting", len(planned), "tensors") as advance:
            file.write(path, _tensors(checkpoint, config, planned, file), advance)
        return verify(path, folder, written, lora) if is_wanted(options.verify, lora) else None

    quantized = None
    with atomic_path(options.outfile) as part:
        if options.quantized is None:
            verification = write(part)
        else:
            with scratch_path(options.outfile) as whole:
                verification = write(whole)
                quantized = make_quantized(whole, part, options.quantized, options.outfile)
    if verification and verification.token_difference:
        warnings.append(verification.token_difference)
    if quantized:
        warnings += quantized.warnings
    size, outtype = options.outfile.stat().st_size, quantized.outtype if quantized else written
    return ConvertReport(options.outfile, outtype, size, len(planned), tuple(warnings), verification, quantized)


def _inputs(options: ConvertOptions) -> list[Path]:
    """The files that must outlast the conversion. A GGUF in the checkpoint's folder is none: an earlier run made it."""
    named = [path for path in (options.base, options.types.text) if path is not None]
    folders = [options.checkpoint, *([options.lora_base] if options.lora_base else [])]
    return [*named, *(path for folder in folders for path in folder.iterdir() if path.suffix != ".gguf")]


def _announce(
    file: GgufFile, planned: list[tensors.TensorPlan], config: ModelConfig, n_tokens: int, outtype: str
) -> Iterator[str]:
    """Add the tensors to the file's table, without rows that no token has; yield a warning for each other type."""
    for tensor in planned:
        by_token = tensor.name in (EMBEDDING, HEAD)
        shape = (min(n_tokens, config.rows), *tensor.shape[1:]) if by_token else tensor.shape
        kind = tensors.choose_kind(tensor.name, shape, outtype)
        if kind == tensors.Kind.F16 != tensors.KINDS[outtype]:
            yield f"{tensor.name} is {kind.name}: its rows of {shape[-1]} do not divide into blocks of 32"
        file.add_tensor(tensor.name, shape, kind)


def _tensors(
    checkpoint: Checkpoint, config: ModelConfig, planned: list[tensors.TensorPlan], file: GgufFile
) -> Iterator[Iterator[tensors.Encoded]]:
    """The tensors of the file's table in order, each as its pieces."""
    for tensor, (_, shape, kind) in zip(planned, file.tensors, strict=True):
        yield _encoded(checkpoint, config, tensor, shape[0], kind)


def _encoded(
    checkpoint: Checkpoint, config: ModelConfig, tensor: tensors.TensorPlan, n_rows: int, kind: tensors.Kind
) -> Iterator[tensors.Encoded]:
    """A tensor's bytes in the GGUF, some rows at a time. Raises ModelFileError, which names the tensor."""
    try:
        if not tensor.source:
            yield from tensors.encode(tensors.rope_factors(config), "F32", kind)
            return
        stored = checkpoint.tensors[tensor.source]
        yield from tensors.encode(tensors.arrange(stored.read(), tensor)[:n_rows], stored.dtype, kind, tensor.offset)
    except ValueError as error:
        raise ModelFileError(checkpoint.folder, f"{tensor.source or tensor.name} {error}") from error
