"""Commands that make GGUF files: convert, quantize."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memdec_edge.cli import params as p
from memdec_edge.cli.flags import Flags, spread
from memdec_edge.cli.output import print_json
from memdec_edge.options import ConvertOptions, QuantizeOptions, QuantTypes

if TYPE_CHECKING:
    from memdec_edge.convert import QuantizeReport

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Types = Annotated[
    QuantTypes,
    Flags(
        token_embedding=Annotated[
            str,
            typer.Option("--token-embedding-type", help="Default: q8_0 where it is the head too, else llama.cpp's."),
        ],
        output_tensor=Annotated[str, typer.Option("--output-tensor-type", help="Of the head. Default: llama.cpp's.")],
        text=Annotated[
            Path | None, typer.Option("--text", metavar="PATH", help="Text to measure the loss of quantising on.")
        ],
        quality_tokens=Annotated[int, typer.Option("--quality-tokens", help="Tokens of it; 0: not measured.")],
    ),
]


@spread
def convert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="HF checkpoint folder.")],
    outfile: Annotated[Path, typer.Option("--outfile", metavar="FILE", help="GGUF to write.")],
    outtype: Annotated[
        str, typer.Option("--outtype", help="f32, f16, bf16, q8_0, auto, or a type of quantize.")
    ] = ConvertOptions.outtype,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FILE", help="GGUF whose tokenizer is copied byte for byte.")
    ] = None,
    role: Annotated[str, typer.Option("--role", help="memory, or model for a plain base.")] = ConvertOptions.role,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Compare with PyTorch. Default: where it is installed.")
    ] = ConvertOptions.verify,
    overwrite: Overwrite = ConvertOptions.overwrite,
    types: Types = ConvertOptions.types,
    json_: p.Json = False,
) -> None:
    """Turn a checkpoint folder into a GGUF, and prove that it computes the same."""
    options = ConvertOptions(directory, outfile, outtype.lower(), base, role, verify, overwrite, types)
    from memdec_edge.convert import convert as run_conversion

    report = run_conversion(options)
    for warning in report.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    print(f"{report.outfile}  {report.n_bytes / 1e6:.1f} MB  {report.outtype}")
    if found := report.verification:
        print(f"against PyTorch, {found.n_tokens} tokens: largest difference of log-probs {found.max_delta:.2g}, "
              f"KL {found.mean_kl:.2g} nats, same top token {found.same_top:.1%}")  # fmt: skip
    if report.quantized:
        _print_quality(report.quantized)
    if json_:
        print_json(asdict(report))


@spread
def quantize(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="GGUF in f32, f16 or bf16.")],
    outfile: Annotated[Path, typer.Argument(metavar="OUTFILE", help="GGUF to write.")],
    outtype: Annotated[
        str, typer.Argument(metavar="TYPE", help="As llama-quantize names it: Q4_K_M, Q6_K, IQ4_NL, ...")
    ],
    types: Types = QuantizeOptions.types,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a source that is quantised already.")
    ] = QuantizeOptions.allow_requantize,
    overwrite: Overwrite = QuantizeOptions.overwrite,
    json_: p.Json = False,
) -> None:
    """Quantise a GGUF with llama.cpp, and measure what is lost."""
    options = QuantizeOptions(source, outfile, replace(types, outtype=outtype.lower()), allow_requantize, overwrite)
    from memdec_edge.convert import quantize as run_quantization

    report = run_quantization(options)
    print(f"{report.outfile}  {report.n_bytes / 1e6:.1f} MB  {report.outtype}")
    _print_quality(report)
    if json_:
        print_json(asdict(report))


def _print_quality(report: "QuantizeReport") -> None:
    print("tensors: " + ", ".join(f"{count} {kind}" for kind, count in report.kinds.items()))
    if found := report.quality:
        print(f"against {report.reference}, {found.n_tokens} tokens: KL {found.mean_kl:.4f} nats, "
              f"same top token {found.same_top:.1%}")  # fmt: skip
