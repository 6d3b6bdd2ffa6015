"""Options check themselves, name their fields, and describe themselves completely."""

from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from memdec_edge import options as package
from memdec_edge.errors import OptionError
from memdec_edge.options import (
    CacheOptions,
    EvalOptions,
    GenerationOptions,
    LearnOptions,
    LoadOptions,
    MemoryOptions,
    QuantTypes,
    SamplingOptions,
    TrainOptions,
)
from memdec_edge.options.fields import Checked

ALL: list[Any] = [
    kind for name in package.__all__ if isinstance(kind := getattr(package, name), type) and issubclass(kind, Checked)
]
EVERY_FIELD = [(kind, each) for kind in ALL for each in fields(kind)]
CACHE = CacheOptions(Path("teacher"), Path("corpus"), Path("out"))


def refusal(make: Any) -> str:
    with pytest.raises(OptionError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 200}, "temperature is 200: must be from 0 to 100"),
        ({"temperature": float("nan")}, "temperature is nan: must be from 0 to 100"),
        ({"temperature": "hot"}, "temperature is hot: must be a number"),
        ({"top_k": 10**20}, "top_k is 100000000000000000000: must be from 0 to 2147483647"),
        ({"top_k": 1.5}, "top_k is 1.5: must be a whole number"),
        ({"top_k": True}, "top_k is True: must be a whole number"),
        ({"grammar": "caf\udce9"}, r"grammar is caf\udce9: not UTF-8 at character 3; give valid text"),
        ({"grammar": b"root"}, "grammar is b'root': must be text"),
        ({"grammar": "a", "json_schema": "b"}, "json_schema is given beside `grammar`: give one of the two"),
    ],
)
def test_a_sampling_option_that_cannot_be_names_field_value_and_range(changes: dict[str, Any], message: str) -> None:
    assert refusal(lambda: SamplingOptions(**changes)) == message


def test_items_of_a_tuple_are_checked_one_by_one() -> None:
    assert refusal(lambda: EvalOptions(lambdas=(0.5, 1.5))) == "lambdas is 1.5: must be from 0 to 1"
    assert refusal(lambda: GenerationOptions(stop="end")) == "stop is end: must be a tuple"  # type: ignore[arg-type]
    assert refusal(lambda: GenerationOptions(stop=("a", ""))) == "stop is an empty string: give at least one character"
    assert "not UTF-8 at character 0" in refusal(lambda: GenerationOptions(stop=("\udcff",)))


def test_choices_are_listed() -> None:
    assert refusal(lambda: LoadOptions(flash_attn="maybe")) == "flash_attn is maybe: must be one of on, off, auto"
    assert refusal(lambda: QuantTypes(output_tensor="q9")).startswith("output_tensor is q9: must be one of f32, f16, ")


def test_what_stands_for_a_default_is_no_number_out_of_range() -> None:
    assert replace(CACHE, knn_temp=None).knn_temp is None
    assert refusal(lambda: replace(CACHE, knn_temp=0.0)).startswith("knn_temp is 0: must be from 1e-06 to ")
    assert LoadOptions(memory_gpu_layers=None).memory_gpu_layers is None
    assert "memory_gpu_layers is -1" in refusal(lambda: LoadOptions(memory_gpu_layers=-1))


def test_a_path_is_a_path() -> None:
    assert refusal(lambda: MemoryOptions("memory.gguf")) == (  # type: ignore[arg-type]
        "path is memory.gguf: must be a Path"
    )


def test_a_folder_that_libraries_write_into_is_utf8() -> None:
    assert refusal(lambda: replace(CACHE, out=Path("caf\udce9"))).startswith(
        r"out is caf\udce9: not UTF-8 at character 3"
    )
    assert replace(CACHE, corpus=Path("caf\udce9")).corpus.name == "caf\udce9"  # only read, by our own code


def test_a_stride_leaves_context_in_its_window() -> None:
    assert refusal(lambda: EvalOptions(window=64, stride=64)) == "stride is 64: must be from 1 to 63"


@pytest.mark.parametrize(("kind", "each"), EVERY_FIELD, ids=lambda item: getattr(item, "name", None))
def test_every_option_says_what_it_is_and_every_number_has_a_range(kind: type, each: Field[Any]) -> None:
    if isinstance(each.type, type) and issubclass(each.type, Checked):
        return  # options within options
    kinds = get_args(each.type) or (each.type,)
    assert each.metadata["help"].endswith((".", "..."))
    assert ("low" in each.metadata and "high" in each.metadata) == (int in kinds or float in kinds)
    if word := each.metadata.get("none"):
        assert type(None) in kinds
        assert word in each.metadata["metavar"]


@pytest.mark.parametrize("kind", ALL)
def test_every_default_lies_in_its_range(kind: type) -> None:
    needed = {each.name for each in fields(kind) if each.default is MISSING}
    needed |= {"documents", "base"} if kind is LearnOptions else set()  # those, or `add` and `out`
    known = {"cache": CACHE, "training": TrainOptions(CACHE, Path())} | dict.fromkeys(
        ("path", "teacher", "corpus", "out", "source", "outfile", "checkpoint", "documents", "base", "memory", "to"),
        Path(),
    )
    kind(**{name: value for name, value in known.items() if name in needed})


def test_batch_seed_and_fresh_have_one_home() -> None:
    assert {"batch", "seed", "fresh"} <= {each.name for each in fields(CacheOptions)}
    assert not {"batch", "seed", "fresh"} & {each.name for each in fields(TrainOptions)}
