"""The command convert: a checkpoint folder becomes a GGUF. Knows nothing of how it is written."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import print_json, warn
from memdec_edge.cli.parameters import Json
from memdec_edge.cli.quantize import print_quality
from memdec_edge.files import refuse_existing
from memdec_edge.options import ConvertOptions, QuantTypes


@spread
def convert(
    *,
    conversion: Given[ConvertOptions],
    types: Annotated[Callable[..., QuantTypes], Flags("outtype")],
    json_: Json = False,
) -> None:
    """Turn a checkpoint folder into a GGUF, and prove that it computes the same."""
    options = conversion(types=types())
    refuse_existing(options.outfile, options.overwrite)  # before a download
    from memdec_edge.convert import convert as run_conversion
    from memdec_edge.hub import checkpoint_of, local

    folder = local(options.checkpoint, checkpoint_of)
    report = run_conversion(
        replace(options, checkpoint=folder, lora_base=options.lora_base and local(options.lora_base, checkpoint_of))
    )
    warn(report.warnings)
    print(f"{report.outfile}  {report.n_bytes / 1e6:.1f} MB  {report.outtype}")
    if found := report.verification:
        print(f"against PyTorch, {found.n_tokens} tokens: largest difference of log-probs {found.max_delta:.2g}, "
              f"KL {found.mean_kl:.2g} nats, same top token {found.same_top:.1%}")  # fmt: skip
    if report.quantized:
        print_quality(report.quantized)
    if json_:
        print_json(asdict(report))
