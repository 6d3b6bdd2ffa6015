"""Every option of every command: its flag, its range, its text, from the one place that describes it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from memdec_edge.cli.flags import Given, spread
from memdec_edge.options import (
    BaseOptions,
    BenchOptions,
    CacheOptions,
    ConvertOptions,
    DemoOptions,
    EvalOptions,
    GenerationOptions,
    IndexOptions,
    LearnOptions,
    LoadOptions,
    QuantTypes,
    SamplingOptions,
    TrainOptions,
)
from tests.support.command import error_of, memdec

REQUIRED = {
    "run": ["-m", "no.gguf"],
    "eval": ["-m", "no.gguf", "no.txt"],
    "bench": ["-m", "no.gguf"],
    "cache": ["--teacher", "no", "--corpus", "no", "--out", "no"],
    "train": ["--teacher", "no", "--corpus", "no", "--out", "no"],
    "convert": ["no", "--outfile", "no"],
    "quantize": ["no", "no", "q8_0"],
    "index": ["no", "-m", "no.gguf", "--out", "no"],
    "learn": ["no", "-m", "no.gguf"],
    "demo": [],
}
USED = [
    *(("run", kind) for kind in (BaseOptions, GenerationOptions, SamplingOptions, LoadOptions)),
    *(("eval", kind) for kind in (EvalOptions, LoadOptions)),
    *(("bench", kind) for kind in (BenchOptions, LoadOptions)),
    ("cache", CacheOptions),
    *(("train", kind) for kind in (CacheOptions, TrainOptions)),
    ("convert", ConvertOptions),
    ("index", IndexOptions),
    ("quantize", QuantTypes),
    ("learn", LearnOptions),
    ("demo", DemoOptions),
]
FLAGS = [
    (command, next(flag for flag in each.metadata["flags"] if flag.startswith("--")), each)
    for command, kind in USED
    for each in fields(kind)
    if each.metadata.get("flags") and (command, each.name) != ("eval", "n_ctx")
]
NUMBERS = [(command, flag) for command, flag, each in FLAGS if "low" in each.metadata]
TEXTS = [(command, flag) for command, flag, each in FLAGS if each.type in (str, tuple[str, ...])]


@pytest.mark.parametrize(("command", "flag"), NUMBERS)
def test_a_number_beyond_everything_is_one_line_that_names_the_flag(command: str, flag: str) -> None:
    for value in ("9" * 30, "-" + "9" * 30):
        error = error_of(command, *REQUIRED[command], f"{flag}={value}", code=2)
        assert re.match(rf"{flag} is -?(9{{30}}|1e\+30): must be from ", error)
    assert flag in error_of(command, *REQUIRED[command], f"{flag}=many", code=2)


@pytest.mark.parametrize(("command", "flag"), [*TEXTS, ("run", "--prompt"), ("bench", "--prompt")])
def test_text_that_is_not_utf8_is_refused_before_any_file_is_looked_for(command: str, flag: str) -> None:
    assert error_of(command, *REQUIRED[command], f"{flag}=caf\udce9", code=2) == (
        rf"{flag} is caf\udce9: not UTF-8 at character 3; give valid text"
    )


@pytest.mark.parametrize("command", REQUIRED)
def test_help_spells_flags_and_no_fields(command: str) -> None:
    assert "`" not in memdec(command, "--help").stdout


def test_a_command_gets_what_was_given_and_may_change_it() -> None:
    got: list[GenerationOptions] = []

    @spread
    def command(*, generation: Given[GenerationOptions]) -> None:
        got.extend([generation(), generation(n_predict=1)])

    command(n_predict=5, ignore_eos=True, stop=["a"], draft="auto")
    assert got == [GenerationOptions(5, True, ("a",), None), GenerationOptions(1, True, ("a",), None)]


def test_a_value_may_be_the_word_for_none_or_a_number() -> None:
    got: list[CacheOptions] = []

    @spread
    def command(*, caching: Given[CacheOptions]) -> None:
        got.append(caching())

    # as Typer gives them: a default of None is the word for it
    given = {
        each.name: each.metadata.get("none") if each.default is None else each.default
        for each in fields(CacheOptions)
        if each.metadata["flags"]
    }
    given |= dict.fromkeys(("teacher", "corpus", "out"), Path("x"))
    command(**given | {"knn_temp": "2.5", "key": "HIDDEN"})
    command(**given | {"knn_temp": "auto"})
    assert [(options.knn_temp, options.key) for options in got] == [(2.5, "hidden"), (None, "mlp_input")]
