"""What this machine does with these models, measured in seconds. Knows nothing of text and of plans."""

import os
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from memdec_edge.convert.architectures import ARCHITECTURES
from memdec_edge.convert.config import read_config
from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.engine import Engine
from memdec_edge.errors import ModelFileError, OutputError
from memdec_edge.evaluation.perplexity import join_documents, token_scores
from memdec_edge.evaluation.windows import Window
from memdec_edge.gguf import metadata, parts
from memdec_edge.machine import free_memory, usable_cpus
from memdec_edge.options import EvalOptions, LoadOptions
from memdec_edge.train import measure_speed_apart

WRITTEN = 64 << 20  # bytes that are written to see how fast the disk is
PATIENCE = 1.0  # seconds: a model that takes longer for a short window is not measured on a whole one
DECODED = 8  # tokens, one after the other


@dataclass(frozen=True)
class Machine:
    """Rates in tokens a second, unless something else is said; times in seconds, sizes in bytes."""

    cpus: int
    device: str  # of training
    training: float
    reading: float  # passes of PyTorch that score each next token
    scoring: float  # the same by llama.cpp in windows, for the base
    decoding: float  # of the base, token by token
    products: float  # multiplications and additions a second
    writing: float  # bytes a second, until they are safe on the disk
    starting: float  # of a process that trains, until the model is there
    warming: float  # what its first step takes more than others
    parameters: int  # of the model that training begins with
    context: int  # tokens that the base was trained to see
    free_memory: int | None
    free_disk: int


def probe(base: Path, teacher: Path, out: Path, block: int, batch: int) -> Machine:
    """Measure this machine. Leaves nothing in `out`, which need not exist.

    Raises what loading `base` and `teacher` raises, ModelFileError for an architecture that convert does not know,
    MemoryLimitError, MissingExtraError and OutputError.
    """
    _refuse_what_convert_does_not_know(teacher)
    context = context_of(base)
    block = min(block, context)
    began = time.monotonic()
    speed = measure_speed_apart(teacher, block, batch)
    starting = time.monotonic() - began - speed.seconds + speed.loading
    scoring, decoding = _llama(base)
    where = existing(out)
    return Machine(
        cpus=usable_cpus(),
        device=speed.device,
        training=speed.training,
        reading=speed.reading,
        scoring=scoring,
        decoding=decoding,
        products=speed.products,
        writing=_writing(where),
        starting=starting,
        warming=speed.warming,
        parameters=parameters_of(teacher),
        context=context,
        free_memory=free_memory(),
        free_disk=shutil.disk_usage(where).free,
    )


def existing(path: Path) -> Path:
    """The nearest folder above a path, itself included, that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def parameters_of(model: Path) -> int:
    """Weights of a GGUF, or of a Hugging Face folder by the size of its files."""
    if model.is_file():
        total = 0
        for tensor in parts.tensors(model):
            count = 1
            for side in tensor.shape:
                count *= side
            total += count
        return total
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) // 2  # bfloat16, as most are


def context_of(base: Path) -> int:
    """Tokens that a GGUF was trained to see."""
    values, _ = metadata.read(base)
    found = values.get(f"{values.get('general.architecture')}.context_length")
    return found if isinstance(found, int) else EvalOptions.window


def _refuse_what_convert_does_not_know(teacher: Path) -> None:
    """Raise ModelFileError before hours of training, not after them."""
    if teacher.is_dir():
        read_config(teacher)
        return
    name = metadata.read(teacher)[0].get("general.architecture")
    known = {table.name for table in ARCHITECTURES.values()}
    if name not in known:
        raise ModelFileError(
            teacher, f"its architecture is {name}, which cannot become a memory; known are {', '.join(sorted(known))}"
        )


def _llama(base: Path) -> tuple[float, float]:
    """Tokens a second that llama.cpp scores in windows, and that it decodes one by one."""
    with closing(Engine(base, [], LoadOptions(n_ctx=EvalOptions.window))) as engine:
        whole = min(EvalOptions.window, engine.longest())
        text = join_documents(engine, read_documents(GENERAL))
        tokens = (text * (1 + whole // len(text)))[:whole]
        rate = 0.0
        for size in (max(4, whole // 4), whole):
            began = time.monotonic()
            token_scores(engine.context, tokens, [Window(0, size // 2, size)], lambda count: None)
            seconds = time.monotonic() - began
            rate = (size - size // 2) / seconds
            if seconds > PATIENCE:
                break
        engine.context.truncate(0)
        began = time.monotonic()
        for token in tokens[:DECODED]:
            list(engine.context.feed_rows([token]))
        return rate, DECODED / (time.monotonic() - began)


def _writing(folder: Path) -> float:
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.monotonic()
            for _ in range(WRITTEN // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return WRITTEN / (time.monotonic() - began)
    except OSError as error:
        raise OutputError(folder, error.strerror or str(error)) from error
