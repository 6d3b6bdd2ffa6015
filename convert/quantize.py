"""GGUF -> smaller GGUF: llama.cpp's own quantiser, and how far the result is from its source.

The quantiser runs in a process of its own. It works for minutes in one C call, which Ctrl-C could not stop here; and
where it finds what it did not expect, it ends its process. Knows nothing of checkpoints.
"""

import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType as Kind

from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.errors import ModelFileError, OutputError
from memdec_edge.files import atomic_path, refuse_existing, refuse_input
from memdec_edge.gguf import guard, parts
from memdec_edge.gguf.header import Header, TensorInfo
from memdec_edge.llama.model import Model
from memdec_edge.llama.trial import SURROUNDINGS, last_words
from memdec_edge.options import QuantizeOptions, QuantTypes

from .compare import Distance, distance, rows, windows

MIN_SAME_TOP = 0.9  # less is worth a warning: of SmolLM2-135M Q6_K keeps 94 % (docs/convert.md), Q4_K_M 86 %
# One type for each number of bits: what to try where one with fewer bits has lost too much.
LADDER = {3: "q3_k_m", 4: "q4_k_m", 5: "q5_k_m", 6: "q6_k", 8: "q8_0"}
UNQUANTISED = (Kind.F32, Kind.F16, Kind.BF16)
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Its standard input ends when the process that started it does, even if that one was killed; then it ends itself.
_RUN = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from memdec_edge.llama.model import run_quantizer
run_quantizer(*sys.argv[1:])
"""


@dataclass(frozen=True)
class QuantizeReport:
    """What was written, and what it costs."""

    outfile: Path
    outtype: str
    n_bytes: int  # of the file
    n_bytes_before: int
    kinds: dict[str, int]  # tensors by their type in the file
    reference: str  # the type of the source, which `quality` compares with
    quality: Distance | None  # None: not measured
    warnings: tuple[str, ...]  # of a loss beyond MIN_SAME_TOP


def quantize(options: QuantizeOptions) -> QuantizeReport:
    """Write `options.source` as `options.outfile` in the type asked for.

    An interrupt leaves nothing. Raises ExistingOutputError, MissingFileError, CorpusError and OutputError. Raises
    ModelFileError for a source that is quantised already, or of which llama.cpp cannot make the type.
    """
    refuse_existing(options.outfile, options.overwrite)
    text = [options.types.text] if options.types.text else []
    refuse_input(options.outfile, [*parts.files(options.source), *text])
    with atomic_path(options.outfile) as part:
        return make_quantized(options.source, part, options.types, options.outfile, options.allow_requantize)


def make_quantized(
    source: Path, part: Path, types: QuantTypes, outfile: Path, allow_requantize: bool = False
) -> QuantizeReport:
    """As quantize(), to the path `part`, which the caller renames to `outfile`."""
    documents = read_documents(types.text or GENERAL)  # first: what is wrong with them is said before the long work
    with Header(source) as header:
        guard.refuse_what_aborts(header)
        tensors = [*header.tensors, *parts.tensors_of_others(header)]
    if (found := _first_quantised(tensors)) and not allow_requantize:
        raise ModelFileError(
            source, f"is quantised already ({found}); quantise the F16 or F32 file, or `allow_requantize` and lose more"
        )
    if told := _run(source, part, types, embedding_type(types, tensors), allow_requantize):
        if "iostream" in told:  # C++ says no more of a full disk
            raise OutputError(outfile, "no space, or a limit on the size of files")
        raise ModelFileError(source, f"llama.cpp cannot quantise it to {types.outtype} ({told:.200})")
    kinds: dict[str, int] = {}
    for tensor in parts.tensors(part):
        kinds[_name(tensor.kind)] = kinds.get(_name(tensor.kind), 0) + 1
    reference = _name(next((tensor.kind for tensor in tensors if len(tensor.shape) > 1), Kind.F32))
    sizes = parts.n_bytes(part), parts.n_bytes(source)
    quality = _quality(source, part, documents, types.quality_tokens) if types.quality_tokens else None
    warnings = _warnings(types.outtype, quality, reference)
    return QuantizeReport(outfile, types.outtype, *sizes, kinds, reference, quality, warnings)


def _warnings(outtype: str, quality: Distance | None, reference: str) -> tuple[str, ...]:
    if quality is None or quality.same_top >= MIN_SAME_TOP:
        return ()
    found = re.search(r"\d+", outtype)
    bits = int(found[0]) if found else 0
    better = next((name for more, name in LADDER.items() if more > bits), reference)
    kept = f"{outtype} keeps the likeliest token at {quality.same_top:.1%} of positions, less than {MIN_SAME_TOP:.0%}"
    return (f"{kept}; {better.upper()} keeps more",)


def embedding_type(types: QuantTypes, tensors: list[TensorInfo]) -> str:
    """The type of the embedding to ask llama.cpp for; "" leaves the choice to llama.cpp.

    It is the one that `types` names. Without one it is q8_0 for an embedding that is the head too, in files of smaller
    types.
    """
    tied = HEAD not in {tensor.name for tensor in tensors}
    if types.token_embedding or not tied or types.outtype in ("f32", "f16", "bf16", "q8_0"):
        return types.token_embedding
    return "q8_0"


def _first_quantised(tensors: list[TensorInfo]) -> str:
    """Name and type of the first quantised tensor, or ""."""
    for tensor in tensors:
        if tensor.kind not in UNQUANTISED:
            return f"{tensor.name} is {_name(tensor.kind)}"
    return ""


def _name(kind: int) -> str:
    """The name of a ggml type; llama.cpp may know newer ones than gguf."""
    return Kind(kind).name if kind in set(Kind) else f"type {kind}"


def _run(source: Path, part: Path, types: QuantTypes, embedding: str, allow_requantize: bool) -> str:
    """Run llama.cpp's quantiser; return why it failed, or "". Its process ends with this call, or with ours."""
    arguments = [source, part, types.outtype, embedding, types.output_tensor, int(allow_requantize)]
    # -P: a file in the working directory must not take the place of a library
    command = [sys.executable, "-P", "-c", _RUN, *map(str, arguments)]
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            command,
            stdin=reading,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | SURROUNDINGS,
        )
    finally:
        os.close(reading)
        os.close(writing)
    if not done.returncode:
        return ""
    return done.stdout.strip() or last_words(done.stderr) or f"it ended with {done.returncode}"


def _quality(source: Path, part: Path, documents: list[str], n_tokens: int) -> Distance:
    with closing(Model(source)) as before, closing(Model(part)) as after:
        parts = windows(before, documents, n_tokens)
        return distance(rows(before, parts), rows(after, parts))
