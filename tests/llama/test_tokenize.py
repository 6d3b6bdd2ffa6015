"""Model.tokenize: runs that overflow the usual C stack, special tokens, several threads at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from memdec_edge.errors import CorpusError, MemoryLimitError
from memdec_edge.gguf.metadata import LAMBDA, MemoryMetadata
from memdec_edge.llama.model import Model
from memdec_edge.llama.stack import LONGEST_RUN, SHORT, call_with_stack, refuse_long_runs, stack_for
from tests.conftest import Family
from tests.support.tiny import END_OF_TEXT, TEXT, edit_gguf

PRE, EOS = "tokenizer.ggml.pre", "tokenizer.ggml.eos_token_id"
# One of each set of regular expressions with which llama.cpp calls std::regex, and qwen2, which it splits by hand.
PRETOKENIZERS = (
    "default", "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "falcon", "bloom", "viking",
    "tekken", "gpt-4o", "granite-embed-multi-97m", "tiny_aya", "superbpe", "bailingmoe", "seed-coder", "ufakzeka",
    "afmoe", "exaone-moe", "minicpm5", "jais-2", "qwen2",
)  # fmt: skip
RUNS = ("a", "A", "=", " ", "\n", "一", "a ", "the quick brown fox ")
LONG, LONG_RUNS = ("tekken", "deepseek-llm", "exaone-moe", "bloom"), ("a", "=", " ")
TOKENIZE = """
import json, sys
from memdec_edge.llama.model import Model
length, runs, *paths = sys.argv[1:]
for path in paths:
    model = Model(path, vocab_only=True)
    for run in json.loads(runs):
        text = (run * int(length))[: int(length)]
        ids = model.tokenize(text, parse_special=False)
        assert b"".join(map(model.piece, ids)).decode() == text, run
    model.close()
    print("spelled", flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenize")


def spelled(family: Family, folder: Path, names: Sequence[str], length: int, runs: Sequence[str]) -> dict[str, str]:
    """What became of the runs under each pre-tokenizer: "spelled", or how the process ended that tried it.

    One process tries all of them, since its start takes longer than that. After an end another one tries the rest.
    """
    left, found = list(names), dict[str, str]()
    while left:
        paths = [edit_gguf(family.base, folder / f"{name}.gguf", {PRE: name}) for name in left]
        command = [sys.executable, "-c", TOKENIZE, str(length), json.dumps(runs), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800)
        answers = done.stdout.split()
        if len(answers) < len(left):
            answers.append(f"ended with {done.returncode}: {done.stderr[-300:]}")
        found |= zip(left, answers, strict=False)
        left = left[len(answers) :]
    return found


@pytest.fixture(scope="module")
def of_30000(family: Family, folder: Path) -> dict[str, str]:
    return spelled(family, folder, PRETOKENIZERS, 30_000, RUNS)


@pytest.fixture(scope="module")
def of_300000(family: Family, folder: Path) -> dict[str, str]:
    return spelled(family, folder, LONG, 300_000, LONG_RUNS)


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_runs_of_30000_characters_become_ids_that_spell_them(of_30000: dict[str, str], pre: str) -> None:
    assert of_30000[pre] == "spelled"


@pytest.mark.parametrize("pre", LONG)
def test_runs_of_300000_characters_too(of_300000: dict[str, str], pre: str) -> None:
    assert of_300000[pre] == "spelled"


def test_what_no_stack_holds_is_refused_with_its_place() -> None:
    fine = "word " * LONGEST_RUN
    refuse_long_runs(fine, "tekken")
    with pytest.raises(CorpusError, match=rf"1,048,577 characters .* from character {len(fine):,} on \('aaaa"):
        refuse_long_runs(fine + "a" * (LONGEST_RUN + 1), "tekken")
    with pytest.raises(CorpusError, match="without a break from character 0"):
        refuse_long_runs(fine, "exaone-moe")  # of which one match spans letters and blanks


@pytest.mark.parametrize(("pre", "run", "most"), [("superbpe", "7", 5_000), ("jais-2", " ", 50_000)])
def test_runs_that_would_take_hours_are_refused(family: Family, folder: Path, pre: str, run: str, most: int) -> None:
    path = edit_gguf(family.base, folder / f"{pre}.gguf", {PRE: pre})
    with closing(Model(path, vocab_only=True)) as model:
        assert model.tokenize("x" + run * most + "x")
        with pytest.raises(CorpusError, match=f"{most + 1:,} characters without a break from character 1 on"):
            model.tokenize("x" + run * (most + 1))


def test_a_stack_that_the_system_does_not_give_is_a_typed_error() -> None:
    before = threading.stack_size()
    with pytest.raises(MemoryLimitError, match="a stack of 4398046511104 MiB"):
        call_with_stack(lambda: None, 1 << 62)
    assert threading.stack_size() == before


def test_short_texts_pay_no_thread_and_long_ones_leave_the_stack_size_as_it_was() -> None:
    before = threading.stack_size()
    assert call_with_stack(threading.get_ident, stack_for("a" * SHORT)) == threading.get_ident()
    assert call_with_stack(threading.get_ident, stack_for("a" * (SHORT + 1))) != threading.get_ident()
    assert threading.stack_size() == before


def test_what_the_call_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        call_with_stack(lambda: 1 // 0, 1 << 20)


class AlarmError(Exception):
    """Raised by a signal handler."""


def test_a_signal_is_raised_after_the_call_that_uses_the_models_memory() -> None:
    finished = threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGALRM)
        finished.wait(0.3)
        finished.set()

    def handler(number: int, frame: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(AlarmError):
            call_with_stack(work, 1 << 20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert finished.is_set()


def test_threads_that_tokenize_and_ask_for_pieces_at_once_get_what_one_gets(smollm2: Model) -> None:
    texts = [TEXT[start:] * 2 for start in range(0, 1200, 50)]
    expected = [smollm2.tokenize(text) for text in texts]

    def work(index: int) -> bool:
        ids = smollm2.tokenize(texts[index])
        return ids == expected[index] and b"".join(map(smollm2.piece, ids)).decode() == texts[index]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, list(range(len(texts))) * 4))


# --- special tokens -----------------------------------------------------------------------------------------------


@pytest.fixture
def without_eos(family: Family, folder: Path) -> Iterator[Model]:
    changes: dict[str, object] = {EOS: None, "tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True}
    path = edit_gguf(family.base, folder / "without.gguf", changes)
    with closing(Model(path, vocab_only=True)) as model:
        yield model


def test_an_end_that_the_file_does_not_name_is_none_and_not_the_token_11(without_eos: Model) -> None:
    assert llama_cpp.llama_vocab_eos(without_eos.vocab) == 11  # what llama.cpp makes of it
    assert (without_eos.bos, without_eos.eos, without_eos.add_bos) == (-1, -1, False)
    assert without_eos.eog_tokens == {0}  # <|endoftext|>, which llama.cpp knows by its name
    assert without_eos.tokenize("a fever") == without_eos.tokenize("a fever", add_special=False)


def test_bos_and_eos_are_added_where_the_file_says_so(family: Family, folder: Path) -> None:
    keys = {"tokenizer.ggml.bos_token_id": 5, EOS: 6, "tokenizer.ggml.add_bos_token": True}
    path = edit_gguf(family.base, folder / "both.gguf", keys | {"tokenizer.ggml.add_eos_token": True})
    with closing(Model(path, vocab_only=True)) as model:
        bare = model.tokenize("a fever", add_special=False)
        assert model.tokenize("a fever") == [5, *bare, 6]
        assert {6} <= model.eog_tokens
    path = edit_gguf(family.base, folder / "one.gguf", keys | {"tokenizer.ggml.add_eos_token": True, EOS: None})
    with closing(Model(path, vocab_only=True)) as model:
        assert model.tokenize("a fever") == [5, *bare]


def test_names_of_special_tokens_are_tokens_only_where_they_are_parsed(model: Model) -> None:
    assert model.tokenize(f"fever{END_OF_TEXT}")[-1] == 0
    plain = model.tokenize(f"fever{END_OF_TEXT}", parse_special=False)
    assert 0 not in plain
    assert b"".join(map(model.piece, plain)).decode() == f"fever{END_OF_TEXT}"


def test_more_names_of_control_tokens_than_llama_cpp_has_time_for_are_refused(model: Model) -> None:
    text = END_OF_TEXT * 20_001
    with pytest.raises(CorpusError, match=r"names control tokens such as <\|endoftext\|> over 20,000 times"):
        model.tokenize(text)
    assert len(model.tokenize(END_OF_TEXT * 2_000 + "a" * 90_000)) > 2_000
    assert 0 not in model.tokenize(text, parse_special=False)


def test_a_bos_that_is_typed_and_added_is_a_warning(family: Family, folder: Path) -> None:
    path = edit_gguf(family.base, folder / "bos.gguf", {"tokenizer.ggml.add_bos_token": True})
    with closing(Model(path, vocab_only=True)) as model:
        assert model.prompt_warning(model.tokenize("fever")) == ""
        doubled = model.tokenize(f"{END_OF_TEXT}fever")
        assert doubled[:2] == [0, 0]
        assert model.prompt_warning(doubled).startswith(f"the prompt begins with {END_OF_TEXT} twice")


# --- metadata -----------------------------------------------------------------------------------------------------


def test_numbers_of_the_header_keep_their_types_and_digits(family: Family, folder: Path) -> None:
    """llama.cpp prints six decimals, with a comma where the process has such a locale."""
    path = edit_gguf(family.memory, folder / "memdec-digits.gguf", {LAMBDA: 0.123456789})
    with closing(Model(path, vocab_only=True)) as model:
        assert model.metadata[LAMBDA] == np.float32(0.123456789)
        assert model.metadata["llama.block_count"] == 2
        assert model.metadata["general.architecture"] == "llama"
        assert MemoryMetadata.from_gguf(path, model.metadata).weight == pytest.approx(0.123456789, abs=1e-8)
