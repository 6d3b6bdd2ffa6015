"""The command quantize: a GGUF becomes a smaller one. Knows nothing of how it is quantised."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from memdec_edge.cli.flags import Flags, Given, of, spread
from memdec_edge.cli.output import print_json, warn
from memdec_edge.cli.parameters import Json
from memdec_edge.options import QuantizeOptions, QuantTypes

if TYPE_CHECKING:
    from memdec_edge.convert import QuantizeReport


@spread
def quantize(
    *,
    quantization: Given[QuantizeOptions],
    outtype: Annotated[str, of(QuantTypes, "outtype")],
    types: Annotated[Callable[..., QuantTypes], Flags("outtype")],
    json_: Json = False,
) -> None:
    """Quantise a GGUF with llama.cpp, and measure what is lost."""
    options = quantization(types=types(outtype=outtype.lower()))
    from memdec_edge.convert import quantize as run_quantization

    report = run_quantization(options)
    warn(report.warnings)
    print(f"{report.outfile}  {report.n_bytes / 1e6:.1f} MB  {report.outtype}")
    print_quality(report)
    if json_:
        print_json(asdict(report))


def print_quality(report: "QuantizeReport") -> None:
    """What was made of which tensors, and what that loses, on stdout."""
    print("tensors: " + ", ".join(f"{count} {kind}" for kind, count in report.kinds.items()))
    if found := report.quality:
        print(f"against {report.reference}, {found.n_tokens} tokens: KL {found.mean_kl:.4f} nats, "
              f"same top token {found.same_top:.1%}")  # fmt: skip
