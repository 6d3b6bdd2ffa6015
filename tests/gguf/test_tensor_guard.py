"""memdec_edge.gguf.tensor_guard: types that the tensor's use does not allow are refused, and all others decode."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import tensor_guard
from memdec_edge.gguf.header import Header
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions
from tests.conftest import Family
from tests.support.raw_gguf import ARCHITECTURES, SIZES, RawGguf, RawTensor, tiny

WIDE = {"E": 256, "F": 512, "heads": 4, "head": 64, "value": 64}  # rows of whole blocks in every type
F16, Q8_0, Q8_1, I32 = 1, 8, 9, 26


@pytest.fixture
def whole(family: Family) -> RawGguf:
    return tiny("llama", family.base, **WIDE)


def examined(path: Path) -> bool:
    with Header(path) as header:
        return tensor_guard.refuse_what_aborts(path, header.tensors)


def decoded(path: Path) -> None:
    with closing(Model(path)) as model, closing(Context(model, LoadOptions(threads=1), 32)) as context:
        context.feed([1, 2, 3])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tensors_of_every_architecture_are_covered(family: Family, tmp_path: Path, architecture: str) -> None:
    assert examined(tiny(architecture, family.base).write(tmp_path / "x.gguf"))


@pytest.mark.parametrize("kind", tensor_guard.MATRIX_TYPES, ids=tensor_guard.MATRIX_TYPES.values())
def test_matrices_of_every_type_decode(whole: RawGguf, tmp_path: Path, kind: int) -> None:
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        whole.retype(name, kind)
    path = whole.write(tmp_path / "x.gguf")
    assert examined(path)
    decoded(path)


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight", "blk.1.attn_k.weight"])
@pytest.mark.parametrize("kind", sorted(set(SIZES) - set(tensor_guard.MATRIX_TYPES) - {39, 40, 41, 42}))
def test_matrices_without_kernels_are_refused(whole: RawGguf, tmp_path: Path, name: str, kind: int) -> None:
    whole.retype(name, kind)
    with pytest.raises(ModelFileError, match=rf"{name} has the type {kind}; a matrix must be F32, F16"):
        Model(whole.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight"])
@pytest.mark.parametrize(("kind", "said"), [(F16, "F16"), (Q8_0, "Q8_0"), (Q8_1, "9"), (I32, "26")])
def test_norms_must_be_float32(whole: RawGguf, tmp_path: Path, name: str, kind: int, said: str) -> None:
    whole.retype(name, kind)
    with pytest.raises(ModelFileError, match=rf"{name} has the type {said}; a norm or bias must be F32"):
        Model(whole.write(tmp_path / "x.gguf"))


def test_biases_must_be_float32(family: Family, tmp_path: Path) -> None:
    file = tiny("qwen2", family.base)
    file.retype("blk.0.attn_q.bias", F16)
    with pytest.raises(ModelFileError, match=r"blk.0.attn_q.bias has the type F16; a norm or bias must be F32"):
        Model(file.write(tmp_path / "x.gguf"))


def test_tensors_and_types_that_no_rule_knows_need_a_trial(whole: RawGguf, tmp_path: Path) -> None:
    whole.retype("output.weight", 39)  # MXFP4
    assert not examined(whole.write(tmp_path / "x.gguf"))
    whole.retype("output.weight", 0)
    whole.tensors.append(RawTensor(b"blk.0.attn_q.scale", (1,), 0, bytes(4)))
    assert not examined(whole.write(tmp_path / "x.gguf"))


def change(tensor: str, **changes: object) -> Callable[[RawGguf], None]:
    def edit(file: RawGguf) -> None:
        at = next(at for at, old in enumerate(file.tensors) if old.name == tensor.encode())
        file.tensors[at] = replace(file.tensors[at], **changes)  # type: ignore[arg-type]

    return edit


LEFT_TO_LLAMA_CPP: dict[str, tuple[Callable[[RawGguf], None], str]] = {
    "shape": (change("blk.0.ffn_up.weight", shape=(512, 256)), "'blk.0.ffn_up.weight' has wrong shape"),
    "rows for another vocabulary": (
        change("token_embd.weight", shape=(256, 390), data=bytes(256 * 390 * 4)),
        "'token_embd.weight' has wrong shape",
    ),
    "offset": (change("blk.1.attn_v.weight", offset=2**40), "tensor 'blk.1.attn_v.weight' has offset 1099511627776"),
    "type": (change("output.weight", kind=99), "tensor 'output.weight' has invalid ggml type 99"),
    "block": (change("blk.0.attn_q.weight", kind=Q8_0, shape=(250, 256)), "not a multiple of block size"),
    "bytes": (change("blk.1.ffn_down.weight", data=b""), "data is not within the file bounds"),
    "missing": (change("blk.1.attn_norm.weight", name=b"blk.1.x"), "blk.1.attn_norm.weight"),
}


@pytest.mark.parametrize("name", LEFT_TO_LLAMA_CPP)
def test_what_llama_cpp_refuses_by_itself_is_told_in_its_words(whole: RawGguf, tmp_path: Path, name: str) -> None:
    edit, message = LEFT_TO_LLAMA_CPP[name]
    edit(whole)
    with pytest.raises(ModelFileError) as caught:
        decoded(whole.write(tmp_path / "x.gguf"))
    assert message in str(caught.value)
