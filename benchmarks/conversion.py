"""What conversion and quantising cost on real weights: distance from PyTorch, KL and top-1 by type, time, memory.

    python benchmarks/conversion.py MODEL.gguf... [--text PATH] [--tokens 4096] [--types q8_0,q6_k,q4_k_m]

Each MODEL is dequantised into an HF checkpoint, which is converted to F32 and compared with PyTorch on a page of
general English; then to each type, which is compared with F32 on `--text`. All comparisons are exact: F32 activations
and KV cache, flash attention off. Memory is the peak of a process that converts to Q8_0 without verification. The last
line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memdec_edge.convert import convert
from memdec_edge.convert.compare import distance, rows, windows
from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.gguf.header import Header
from memdec_edge.llama.model import Model
from memdec_edge.options import ConvertOptions, QuantTypes
from memdec_edge.train.models import load_source
from memdec_edge.train.student import save_copy

PEAK = (
    "import sys; from pathlib import Path; from memdec_edge.convert import convert\n"
    "from memdec_edge.options import ConvertOptions\n"
    "convert(ConvertOptions(Path(sys.argv[1]), Path(sys.argv[2]), 'q8_0', base=Path(sys.argv[3]), verify=False))\n"
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
)


def checkpoint_of(gguf: Path, folder: Path) -> Path:
    """An HF checkpoint with the weights of a GGUF, in float32."""
    save_copy(load_source(gguf), folder / "checkpoint")
    return folder / "checkpoint"


def measure(gguf: Path, checkpoint: Path, work: Path, text: Path, n_tokens: int, types: list[str]) -> dict[str, Any]:
    """Convert to F32 and to each type; what PyTorch and F32 say of them."""
    started = time.perf_counter()
    whole = work / "memdec-f32.gguf"
    verification = convert(ConvertOptions(checkpoint, whole, "f32", base=gguf, verify=True)).verification
    assert verification is not None
    result: dict[str, Any] = {"f32": asdict(verification), "f32_seconds": time.perf_counter() - started}
    print(f"{gguf.name}: F32 against PyTorch, {verification.n_tokens} tokens: largest difference of log-probs "
          f"{verification.max_delta:.1e}; {verification.token_difference or 'same tokens'}", flush=True)  # fmt: skip
    with closing(Model(whole)) as model:
        parts = windows(model, read_documents(text), n_tokens)
        for kind in types:
            outfile, started = work / f"memdec-{kind}.gguf", time.perf_counter()
            options = ConvertOptions(checkpoint, outfile, kind, gguf, verify=False, types=QuantTypes(quality_tokens=0))
            size, seconds = convert(options).n_bytes, time.perf_counter() - started
            with closing(Model(outfile)) as small:
                found = distance(rows(model, parts), rows(small, parts))
            result[kind] = {**asdict(found), "bytes": size, "seconds": seconds}
            print(f"  {kind:7} {size / 1e6:7.1f} MB, {seconds:5.1f} s, {found.n_tokens} tokens: KL {found.mean_kl:.4f} "
                  f"nats, same top token {found.same_top:.1%}", flush=True)  # fmt: skip
            outfile.unlink()
    with Header(whole) as header:
        result["largest_tensor"] = max(4 * tensor.shape[0] * tensor.shape[-1] for tensor in header.tensors)
    peak = [sys.executable, "-c", PEAK, str(checkpoint), str(work / "memdec-peak.gguf"), str(gguf)]
    result["peak_rss"] = 1024 * int(subprocess.run(peak, capture_output=True, text=True, check=True).stdout)
    print(f"  peak memory {result['peak_rss'] / 1e6:.0f} MB, largest tensor {result['largest_tensor'] / 1e6:.0f} MB")
    return result


def main() -> None:
    """Make checkpoints, convert, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, default=GENERAL)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--types", default="q8_0,q6_k,q5_k_m,q4_k_m,q4_0")
    parser.add_argument("--work", type=Path, help="where checkpoints are kept; default: a temporary folder")
    arguments = parser.parse_args()
    found = {}
    for gguf in arguments.models:
        with tempfile.TemporaryDirectory() as name:
            kept = (arguments.work or Path(name)) / gguf.stem
            checkpoint = kept if (kept / "config.json").is_file() else checkpoint_of(gguf, kept)
            types = arguments.types.split(",")
            found[gguf.stem] = measure(gguf, checkpoint, Path(name), arguments.text, arguments.tokens, types)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
