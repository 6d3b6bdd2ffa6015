"""The command bench: speed of base, memories and mixture. Knows nothing of how it is measured."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import print_json, warn
from memdec_edge.cli.parameters import (
    Base,
    Json,
    Memories,
    Scaled,
    Verbose,
    base_file,
    check_one,
    memory_files,
    memory_options,
    set_verbose,
)
from memdec_edge.options import BenchOptions, LoadOptions, MixtureOptions, SamplingOptions

if TYPE_CHECKING:
    from memdec_edge.bench import Report
    from memdec_edge.bench.figures import Figures, Speed

LEFT_OUT = Flags("repeat_last_n", "presence_penalty", "frequency_penalty", "grammar", "json_schema")


@spread
def bench(
    *,
    model: Base,
    memory: Memories = None,
    scaled: Scaled = None,
    weights: Given[MixtureOptions],
    text: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text that prompts are cut from; else -f, else a built-in one.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="PATH", help="The same: a file, a zip or a folder.")
    ] = None,
    measure: Given[BenchOptions],
    sampling: Annotated[Callable[..., SamplingOptions], LEFT_OUT],
    load: Given[LoadOptions],
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Measure the speed of base, memories and mixture.

    The mixture runs with drafts and without. All continue the same prompts in turns, without stopping at the end of a
    text. llama-cpp-python's Llama.generate runs the base alone too, with the same settings.
    """
    named, chosen = model(), memory_options(memory, scaled)
    options, mixture, sampler, loading = measure(), weights(), sampling(), load()
    check_one(text, file)
    set_verbose(verbose)
    from memdec_edge.bench import bench
    from memdec_edge.documents import read_documents

    documents = [text] if text is not None else read_documents(file) if file else None
    report = bench(base_file(named), memory_files(chosen), loading, sampler, options, documents, mixture)
    warn(report.warnings)
    _print_table(report)
    if json_:
        print_json(asdict(report))


def _print_table(report: "Report") -> None:
    options, sampling = report.options, report.sampling
    print(
        f"{options.repetitions} prompts of {options.prompt_tokens} tokens, {options.n_predict} new ones each, "
        f"temperature {sampling.temperature:g}, seed {sampling.seed}, context {report.n_ctx}, "
        f"{report.threads} threads (memories {report.memory_threads}), mixed by {report.mixes_with}"
    )
    print(
        f"{'tokens per second':24}{'prompt':>9}{'new':>9}   {'base':>6}{'memory':>8}{'mix+sample':>10}{'python':>8}"
        f"{'MB/token':>11}{'bandwidth':>11}"
    )
    _print_row("base, Llama.generate", report.base_llama_generate)
    _print_row("base, this engine", report.base_engine, report.base_engine)
    for number, found in enumerate(report.memories, 1):
        _print_row(f"memory {number}" if len(report.memories) > 1 else "memory", found, found)
    if report.mixture and report.drafted:
        _print_row("mixture", report.mixture, report.mixture)
        _print_row("mixture with drafts", report.drafted, report.drafted)
    if report.base_rows_ms:
        print("base, ms by rows:  " + "  ".join(f"{rows}: {ms:.1f}" for rows, ms in report.base_rows_ms.items()))
    if report.memory_step_ms is not None:
        print(f"memories, ms of one token: {report.memory_step_ms:.1f}")
    if report.base_rows_beside_memory_ms:
        beside = "  ".join(f"{rows}: {ms:.1f}" for rows, ms in report.base_rows_beside_memory_ms.items())
        print(f"both at the same time, ms by rows:  {beside}")
    if report.read_bytes_per_second:
        rate = report.read_bytes_per_second / 1e9
        print(f"memory bandwidth: {rate:.1f} GB/s at best, NumPy sums on {report.threads} threads")
    drafted = report.drafted
    if not drafted:
        return
    voices = list(zip(report.memory_files, report.lambdas, drafted.weights[1:], strict=True))
    for file, first, last in voices[: len(report.memories)]:
        print(f"memory {file} at lambda {first:.3g}, at the end of the texts {last:.3g}")
    for file, first, last in voices[len(report.memories) :]:
        print(f"index {file} at lambda {first:.3g} after its longest matches, at the end of the texts {last:.3g}")
    accepted = "nothing drafted" if drafted.acceptance is None else f"acceptance {drafted.acceptance:.2f}"
    lengths = "  ".join(f"{length}: {rounds}" for length, rounds in drafted.draft_lengths.items())
    print(f"drafts: {accepted}, {drafted.tokens_per_base_pass:.2f} tokens per base pass; rounds by length  {lengths}")
    if drafted.predicted_tps:
        print(
            f"costs and acceptance predict {drafted.predicted_tps:.1f} tokens/s (drafting {drafted.predicted_length}), "
            f"{drafted.predicted_share:.0%} reached"
        )
    print(f"with drafts {report.ratio_to_base:.2f}x the base alone, {report.ratio_to_mixture:.2f}x the mixture without")


def _print_row(name: str, speed: "Speed", found: "Figures | None" = None) -> None:
    line = f"{name:24}{speed.prompt_tps:9.1f}{speed.gen_tps:9.1f}"
    if found:
        split = found.time_split
        share = "" if found.bandwidth_share is None else f"{found.bandwidth_share:11.0%}"
        line += (
            f"   {split['base']:5.1f}%{split['memory']:7.1f}%{split['mix_and_sample']:9.1f}%{split['python']:7.1f}%"
            f"{found.model_bytes_per_token / 1e6:11.1f}{share}"
        )
    print(line)
