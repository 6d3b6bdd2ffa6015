"""memdec_edge.gguf.hparams_guard: numbers with which llama.cpp would end the process are refused by key and value."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import hparams_guard
from memdec_edge.gguf.header import STRING, Header
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions
from tests.conftest import Family
from tests.support.raw_gguf import ARCHITECTURES, BOOL, FLOAT64, INT32, UINT64, tiny

Sizes = dict[str, int]
STOCK = """
import sys, llama_cpp
llama = llama_cpp.Llama(sys.argv[1], n_ctx=32, n_threads=1, verbose=False)
llama.eval([1, 2, 3])
print("survived")
"""


def examined(path: Path) -> bool:
    with Header(path) as header:
        return hparams_guard.refuse_what_aborts(header)


@pytest.fixture
def build(family: Family, tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny model: `build("llama", {"block_count": 0}, heads=3)`; a value may be (value, type)."""

    def write(architecture: str, changes: dict[str, Any], **sizes: int) -> Path:
        file = tiny(architecture, family.base, **sizes)
        for key, value in changes.items():
            file.set(f"{architecture}.{key}", *(value if isinstance(value, tuple) else (value,)))
        return file.write(tmp_path / "x.gguf")

    return write


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sound_models_are_covered_and_decode(build: Callable[..., Path], architecture: str) -> None:
    path = build(architecture, {})
    assert examined(path)
    with closing(Model(path)) as model, closing(Context(model, LoadOptions(threads=1), 32)) as context:
        assert context.feed([1, 2, 3]).std() > 0.5


# Architecture, keys, sizes, and the message: each of these ends stock llama.cpp.
ENDING: dict[str, tuple[str, dict[str, Any], Sizes, str]] = {
    "no block": ("llama", {"block_count": 0}, {}, "block_count is 0; it must be a whole number (u32) from 1 to 512"),
    "too many blocks": ("qwen2", {"block_count": 513}, {}, "qwen2.block_count is 513; it must be"),
    "negative epsilon": ("llama", {"attention.layer_norm_rms_epsilon": -1e-5}, {}, "epsilon is -9.99999974737875"),
    "epsilon NaN": ("gpt2", {"attention.layer_norm_epsilon": float("nan")}, {}, "epsilon is nan; it must be a number"),
    "unknown rope scaling": ("llama", {"rope.scaling.type": "su"}, {}, "rope.scaling.type is 'su'; it must be one of"),
    "experts unused": ("llama", {"expert_count": 4}, {}, "expert_used_count is 0; it must be from 1 to"),
    "used, without experts": ("qwen3", {"expert_used_count": 2}, {}, "expert_used_count is 2; it must be from 0 to"),
    "as many groups as experts": (
        "llama", {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 4}, {},
        "llama.expert_group_count is 4; it must be less than llama.expert_count, which is 4",
    ),
    "heads without keys in a block": (
        "llama", {"attention.head_count_kv": ([2, 0], INT32)}, {}, "llama.attention.head_count_kv is 0; it must be"
    ),
    "blocks of unlike heads": (
        "qwen3", {"attention.head_count_kv": ([2, 4], INT32)}, {}, "head_count_kv is [2, 4]; it must be the same in"
    ),
    "heads that cannot share keys": (
        "llama", {}, {"heads": 4, "kv": 3}, "_kv is 3; it must be a divisor of attention.head_count, which is 4"
    ),
    "values of another length": (
        "llama", {}, {"value": 8}, "attention.value_length is 8; it must be the length of keys, which is 16"
    ),
    "heads beside the embedding": (
        "qwen2", {"attention.key_length": 32, "attention.value_length": 32, "attention.head_count_kv": 1}, {},
        "qwen2.attention.head_count is 4; it must be embedding_length / length of keys, which is 64 / 32",
    ),
    "an odd head": ("llama", {}, {"head": 15, "value": 15}, "rope.dimension_count is 15; it must be even, and 15"),
    "a rotation of more than a head": ("gptneox", {"rope.dimension_count": 18}, {}, "count is 18; it must be even"),
    "a rotation of a part": ("qwen3", {"rope.dimension_count": 8}, {}, "is 8; it must be even, and 16, the length"),
    "a window for no block": (
        "gemma3", {"attention.sliding_window_pattern": 1}, {}, "sliding_window_pattern is [1]; it must be such that one"
    ),
    "a window for no block, by an array": (
        "gemma3", {"attention.sliding_window_pattern": ([False, False], BOOL)}, {}, "it must be such that one block"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDING)
def test_what_ends_llama_cpp_is_refused_by_key_and_value(build: Callable[..., Path], name: str) -> None:
    architecture, changes, sizes, message = ENDING[name]
    path = build(architecture, changes, **sizes)
    stock = subprocess.run(
        [sys.executable, "-c", STOCK, str(path)], capture_output=True, text=True, check=False,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
    assert stock.returncode < 0, "llama.cpp survives it: the rule is too strict"
    with pytest.raises(ModelFileError) as caught:
        Model(path)
    assert message in str(caught.value)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a string": ("llama", {"block_count": "2"}, "llama.block_count is '2'; it must be a whole number (u32)"),
    "another whole number": ("llama", {"block_count": (2, UINT64)}, "block_count is 2; it must be a whole"),
    "a wide float": ("llama", {"rope.freq_base": (1e4, FLOAT64)}, "freq_base is 10000.0; it must be a number (f32)"),
    "an array": ("llama", {"block_count": ([2], INT32)}, "llama.block_count is an array; it must be a whole number"),
    "an array of strings": (
        "llama", {"attention.head_count": (["4", "4"], STRING)}, "head_count is an array; it must be a whole number"
    ),
    "groups that are no number": ("llama", {"expert_group_count": float("nan")}, "expert_group_count is nan"),
    "no context": ("llama", {"context_length": 0}, "llama.context_length is 0; it must be a whole number (u32) from 1"),
    "nothing where true or false belongs": ("gptneox", {"use_parallel_residual": 1}, "is 1; it must be true or false"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_types_and_ranges_are_refused(build: Callable[..., Path], name: str) -> None:
    architecture, changes, message = REFUSED[name]
    with pytest.raises(ModelFileError) as caught:
        examined(build(architecture, changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "feed_forward_length", "attention.head_count"])
def test_a_missing_size_is_refused(family: Family, tmp_path: Path, key: str) -> None:
    file = tiny("llama", family.base)
    file.entries = [old for old in file.entries if old.key != f"llama.{key}".encode()]
    with pytest.raises(ModelFileError, match=rf"llama.{key} is missing; it must be a whole number \(u32\) from 1"):
        examined(file.write(tmp_path / "x.gguf"))


ACCEPTED: dict[str, tuple[str, dict[str, Any], Sizes]] = {
    "heads by block": ("llama", {"attention.head_count_kv": ([2, 2], INT32),
                                 "feed_forward_length": ([96, 96], INT32)}, {}),
    "linear rope": ("qwen2", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    "yarn": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                       "rope.scaling.original_context_length": 64}, {}),
    "one head of keys": ("llama", {}, {"kv": 1}),
    "an odd head without rotation": ("gpt2", {}, {"head": 15, "value": 15, "E": 60}),
    "windows by a period": ("gemma3", {"attention.sliding_window_pattern": 2}, {}),
    "windows by an array": ("gemma3", {"attention.sliding_window_pattern": ([True, False], BOOL)}, {}),
    "no window": ("gemma3", {"attention.sliding_window": 0}, {}),
    "no experts": ("llama", {"expert_count": 0, "expert_used_count": 0}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_llama_cpp_takes_is_taken(build: Callable[..., Path], name: str) -> None:
    architecture, changes, sizes = ACCEPTED[name]
    path = build(architecture, changes, **sizes)
    examined(path)
    with closing(Model(path)) as model, closing(Context(model, LoadOptions(threads=1), 32)) as context:
        context.feed([1, 2, 3])


def test_keys_and_architectures_that_no_rule_knows_need_a_trial(build: Callable[..., Path]) -> None:
    assert not examined(build("llama", {"attention.causal": False}))
    file = build("llama", {})
    renamed = (
        file.read_bytes().replace(b"llama.", b"other.").replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0other")
    )
    file.write_bytes(renamed)
    assert not examined(file)
