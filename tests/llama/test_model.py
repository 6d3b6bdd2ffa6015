"""llama.cpp's models behind llama.py: opening, hostile files, tokens."""

import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import CorpusError, DecodeError, MissingFileError, ModelFileError
from memdec_edge.llama.model import Model
from tests.conftest import Family
from tests.support.real import SMOLLM2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.gguf: no such GGUF file"):
        Model(tmp_path / "no.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("hello, I am no model")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        Model(path)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.999])
def test_a_truncated_gguf_is_refused_and_nothing_reaches_stderr(
    family: Family, tmp_path: Path, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = family.base.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelFileError, match=r"cut\.gguf: llama\.cpp cannot load it \(.+\)"):
        Model(path)
    assert capfd.readouterr() == ("", "")


def test_hostile_ggufs_never_abort_the_process(family: Family, tmp_path: Path) -> None:
    """Random bytes flipped in the header; a child process opens them all and must end by itself."""
    whole = bytearray(family.memory.read_bytes())
    random = np.random.default_rng(0)
    for index in range(60):
        mutant = bytearray(whole)
        for position in random.integers(4, 3000, 3):
            mutant[position] = random.integers(256)
        (tmp_path / f"{index}.gguf").write_bytes(mutant)
    code = (
        "import pathlib, sys\n"
        "from memdec_edge.errors import MemdecError\n"
        "from memdec_edge.llama.context import Context\n"
        "from memdec_edge.llama.model import Model\n"
        "from memdec_edge.options import LoadOptions\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.gguf')):\n"
        "    try:\n"
        "        model = Model(path)\n"
        "        context = Context(model, LoadOptions(threads=1), min(64, model.n_ctx_train))\n"
        "        context.feed(model.tokenize('The heart is a muscle'))\n"
        "        context.close(), model.close()\n"
        "    except MemdecError: pass\n"
        "print('done')\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert child.stdout == "done\n", child.stderr[-500:]


def test_tokens_and_pieces_are_those_of_llama_cpp_python(smollm2: Model) -> None:
    judge = llama_cpp.Llama(str(SMOLLM2), vocab_only=True, verbose=False)
    text = "Don't panic: naïve café, 12,345 東京 🙂\n\n\tend<|im_end|>"
    tokens = smollm2.tokenize(text)
    assert tokens == judge.tokenize(text.encode(), add_bos=True, special=True)
    assert b"".join(smollm2.piece(token, special=True) for token in tokens).decode() == text
    judge.close()


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_survives_tokenizing(model: Model, text: str) -> None:
    tokens = model.tokenize(text, parse_special=False)
    assert b"".join(model.piece(token) for token in tokens).decode() == text


def test_text_with_lone_surrogates_is_refused(model: Model) -> None:
    with pytest.raises(CorpusError, match="not UTF-8 at character 2"):
        model.tokenize("ab\udcff")


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused_before_llama_cpp_sees_them(model: Model, token: int) -> None:
    for call in (model.piece, model.token_text):
        with pytest.raises(DecodeError):
            call(token)


def test_a_context_length_that_is_no_length_is_refused(family: Family, tmp_path: Path) -> None:
    data, key = bytearray(family.base.read_bytes()), b"llama.context_length"
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"context_length is 2147483648; it must be a whole number"):
        Model(path)
