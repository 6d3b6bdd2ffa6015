"""Weights that follow the text, as a user meets them: run, show, eval, bench and tune."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from memdec_edge.gguf import metadata
from tests.conftest import Family
from tests.support.command import Done, error_of, last_json, memdec
from tests.support.tiny import OTHER_TEXT, TEXT

USELESS = "this memory does not help here: it never weighed a tenth; try one of the text's own domain\n"
SMALL = ("--window", 64, "--stride", 32, "-t", 1)


@pytest.fixture
def memory(family: Family, tmp_path: Path) -> Path:
    path = tmp_path / "memdec-own.gguf"
    shutil.copy(family.memory, path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return path


def run(family: Family, memory: Path, *more: object) -> Done:
    return memdec("run", "-m", family.base, "-M", memory, "-n", 4, "-t", 1, "-s", 1, "--ignore-eos", *more)


def test_run_says_once_that_a_memory_does_not_help(family: Family, memory: Path) -> None:
    prompt = ("-p", "The heart is a muscle")
    assert USELESS not in run(family, memory, *prompt).stderr
    metadata.patch(memory, {metadata.ONLINE_LAMBDA: 0.02, metadata.ONLINE_ETA: 0.0, metadata.ONLINE_SHARE: 0.0})
    for more in ((), ("--json",), ("-v",)):
        assert run(family, memory, *prompt, *more).stderr.count(USELESS) == 1
    assert run(family, memory, *prompt, "--lambda", "0.05").stderr.count(USELESS) == 1
    assert USELESS not in memdec("run", "-m", family.base, *prompt, "-n", 4).stderr  # there is none


def test_show_says_how_the_weight_learns(memory: Path) -> None:
    line = "where the weight follows the text: it begins with {}, eta {}, share {} ({})\n"
    assert line.format(0.5, 0.05, 0.002, "not tuned") in memdec("show", memory).stderr
    metadata.patch(memory, {metadata.LAMBDA: 0.7})
    assert line.format(0.7, 0.05, 0.002, "not tuned") in memdec("show", memory).stderr
    metadata.patch(memory, dict(zip(metadata.ONLINE, (0.35, 0.1, 0.005), strict=True)))
    assert line.format(0.35, 0.1, 0.005, "tuned") in memdec("show", memory).stderr


def test_bench_shows_the_weights_beside_the_acceptance(family: Family, memory: Path) -> None:
    short = ("--prompt-tokens", 24, "-n", 8, "--repetitions", 1, "-t", 1, "-s", 3, "--draft", 2)
    done = memdec("bench", "-m", family.base, "-M", memory, *short, "--json")
    drafted = last_json(done)["drafted"]
    assert len(drafted["weights"]) == 2
    assert sum(drafted["weights"]) == pytest.approx(1)
    assert f"at lambda 0.5, at the end of the texts {drafted['weights'][1]:.3g}\n" in done.stdout
    fixed = last_json(memdec("bench", "-m", family.base, "-M", memory, *short, "--lambda", "0.3", "--json"))
    assert fixed["drafted"]["weights"] == pytest.approx([0.7, 0.3])


def test_tune_writes_what_it_found_into_the_file_and_dry_run_does_not(family: Family, memory: Path, text: Path) -> None:
    before = memory.read_bytes()
    words = ("tune", "-m", family.base, "-M", memory, text, *SMALL, "--max-tokens", 512, "--json")
    found = last_json(memdec(*words, "--dry-run"))
    assert memory.read_bytes() == before
    assert last_json(memdec(*words)) == found
    values, _ = metadata.read(memory)
    assert values[metadata.LAMBDA] == pytest.approx(found["fixed"])
    assert [values[key] for key in metadata.ONLINE] == pytest.approx(
        [found["rule"][name] for name in ("initial", "eta", "share")]
    )
    shown = last_json(memdec("eval", "-m", family.base, "-M", memory, text, *SMALL, "--json"))
    assert shown["lambda"] == pytest.approx(found["fixed"])


def test_general_text_in_another_language_is_as_good_as_any(
    family: Family, memory: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "anders.jsonl"
    other.write_text(json.dumps({"text": OTHER_TEXT * 3 + "心臓は血液を送り出す筋肉である。" * 20}), encoding="utf-8")
    words = ("tune", "-m", family.base, "-M", memory, text, "--general", other, *SMALL, "--max-tokens", 512)
    done = memdec(*words, "--dry-run")
    assert done.returncode == 0
    assert "better than the defaults" in done.stdout or "the defaults stay" in done.stdout


def test_a_memory_of_nan_is_named_wherever_it_is_read(family: Family, memory: Path, text: Path) -> None:
    [offset] = [tensor.data_offset for tensor in GGUFReader(memory).tensors if tensor.name == "token_embd.weight"]
    with memory.open("r+b") as file:
        file.seek(offset)
        file.write(np.full(400 * 8, np.nan, np.float32).tobytes())
    line = rf"{re.escape(str(memory))}: the logit of token \d+ is nan.*"
    words = ("-m", family.base, "-M", memory)
    assert re.fullmatch(line, error_of("eval", *words, text, *SMALL))
    assert re.fullmatch(line, error_of("tune", *words, text, *SMALL))
    done = run(family, memory, "-p", "The heart is a muscle")
    assert done.returncode == 1
    assert re.fullmatch(f"Error: {line}", done.stderr.splitlines()[-1])


def test_text_that_is_missing_or_too_short_is_named(family: Family, memory: Path, text: Path, tmp_path: Path) -> None:
    before = memory.read_bytes()
    words = ("tune", "-m", family.base, "-M", memory)
    assert error_of(*words, text, "--general", "no.txt").startswith("no.txt: ")
    short = tmp_path / "short.txt"
    short.write_text("a b c", encoding="utf-8")
    tokens = r" tokens are fewer than four windows of 64; give a longer one"
    assert error_of(*words, short, *SMALL).endswith(tokens)
    assert error_of(*words, text, "--general", short, *SMALL).startswith("the general text: ")
    assert memory.read_bytes() == before
    scores = last_json(memdec("eval", "-m", family.base, "-M", memory, short, *SMALL, "--json"))["perplexity"]
    assert scores["auto"] > 0  # five tokens are scored nevertheless
    wide = memdec(*words, text, "--window", 1024)
    assert (wide.returncode, wide.stdout) == (2, "")
    assert wide.stderr.endswith("Error: --window is 1024: the context is 512 tokens; use at most that\n")
