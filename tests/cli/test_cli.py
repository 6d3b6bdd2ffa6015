"""The command line as a user meets it: a child process, its exact output, error line and exit code."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.gguf.header import Header
from tests.conftest import RENAMED_TOKEN, Family
from tests.support.real import SMOLLM2

PROMPT = "The heart is"


def memdec(*arguments: object, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memdec_edge", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, **options)


def error_of(*arguments: object, code: int = 1, **options: Any) -> str:
    """The error line of a command that must fail with `code`, print nothing on stdout and one line on stderr."""
    done = memdec(*arguments, **options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def last_tensor(gguf: Path) -> str:
    """The name of the tensor that ends a GGUF."""
    with Header(gguf) as header:
        return max(header.tensors, key=lambda tensor: tensor.offset).name


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = "'torch', 'llama_cpp', 'fastapi', 'transformers', 'numpy'"
    for code in (
        f"import memdec_edge, sys; print([m for m in ({heavy}) if m in sys.modules])",
        "import sys; sys.argv = ['memdec-edge', '--help']\nfrom memdec_edge.cli import main\n"
        f"try: main()\nexcept SystemExit: print([m for m in ({heavy}) if m in sys.modules])",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_without_arguments_the_help_is_shown() -> None:
    done = memdec()
    assert done.returncode == 0
    assert "Commands:" in done.stdout


def test_run_streams_text_to_stdout_and_everything_else_to_stderr(family: Family) -> None:
    arguments = ["run", "-m", family.base, "-M", family.memory, "-p", PROMPT, "-n", 8, "-s", 0, "--ignore-eos"]
    done, as_json = memdec(*arguments), memdec(*arguments, "--json")
    found = last_json(as_json)
    assert done.stdout == f"{found['text']}\n"
    assert f"memory {family.memory} at lambda 0.6" in done.stderr
    assert "8 new" in done.stderr
    assert set(found) == {"text", "tokens", "finish_reason", "timings"}
    assert len(found["tokens"]) == 8  # type: ignore[arg-type]
    assert as_json.stdout.count("\n") == 1


def test_the_prompt_comes_from_an_option_a_file_or_stdin(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    common = ["run", "-m", family.base, "-n", 5, "--temp", 0, "--ignore-eos"]
    texts = {
        memdec(*common, "-p", PROMPT).stdout,
        memdec(*common, "-f", path).stdout,
        memdec(*common, stdin=PROMPT).stdout,
    }
    assert len(texts) == 1


def test_eval_prints_a_table_and_json(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(f"{PROMPT} a muscle that pumps blood. " * 20)
    arguments = ["eval", "-m", family.base, "-M", family.memory, path, "--window", 64, "--stride", 32, "--lambda", 0.3]
    found = last_json(memdec(*arguments, "--json"))
    assert set(found["perplexity"]) == {"base", "memory", "mixture"}  # type: ignore[call-overload]
    assert {"tokens", "bits_per_byte", "lambda_sweep", "standard_error"} <= set(found)
    assert found["lambda"] == 0.3


def test_check_says_yes_or_names_the_first_difference(family: Family) -> None:
    done = memdec("check", "-m", family.base, "-M", family.memory)
    assert (done.returncode, done.stdout) == (0, f"{family.memory} matches {family.base}: 400 shared tokens\n")
    error = error_of("check", "-m", family.base, "-M", family.renamed)
    assert error.startswith(f"{family.renamed} does not match {family.base}: token {RENAMED_TOKEN} is ")
    assert error.endswith("; use a memory trained for this model family, or --force to mix them anyway")


def test_show_prints_the_facts_of_a_memory(family: Family) -> None:
    done = memdec("show", family.memory, "--json")
    assert last_json(done)["memdec_edge.role"] == "memory"


def test_a_missing_base_is_one_line(family: Family) -> None:
    assert error_of("run", "-m", "no.gguf", "-p", "x") == "no.gguf: no such GGUF file; check the path"
    assert error_of("run", "-m", family.base, "-M", "no.gguf", "-p", "x").startswith("no.gguf: no such GGUF file")


def test_a_truncated_gguf_is_one_line(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(family.base.read_bytes()[:-1000])
    assert error_of("run", "-m", path, "-p", "x") == (
        f"{path}: llama.cpp cannot load it (tensor '{last_tensor(family.base)}' data is not within the file bounds, "
        "model is corrupted or incomplete)"
    )
    path.write_bytes(family.base.read_bytes()[:1000])
    assert re.fullmatch(
        rf"{path}: ends at byte 1000, inside \S+; the file is cut short, download or make it again",
        error_of("run", "-m", path, "-p", "x"),
    )


def test_a_memory_of_another_tokenizer_is_one_line_with_the_first_differing_token(family: Family) -> None:
    with Header(family.base) as base, Header(family.stranger) as stranger:
        pairs = zip(base.strings("tokenizer.ggml.tokens"), stranger.strings("tokenizer.ggml.tokens"), strict=False)
        number, mine, theirs = next((i, a.decode(), b.decode()) for i, (a, b) in enumerate(pairs) if a != b)
    assert error_of("run", "-m", family.base, "-M", family.stranger, "-p", "x") == (
        f"{family.stranger} does not match {family.base}: token {number} is {mine!r} in the base and {theirs!r} in the "
        "memory; use a memory trained for this model family, or --force to mix them anyway"
    )


def test_force_mixes_strangers_with_a_warning(family: Family) -> None:
    done = memdec("run", "-m", family.base, "-M", family.stranger, "-p", PROMPT, "-n", 3, "--ignore-eos", "--force")
    assert done.returncode == 0
    assert "mixed by force" in done.stderr


def test_base_and_memory_in_each_others_place_are_one_line(family: Family) -> None:
    assert error_of("run", "-m", family.memory, "-M", family.memory, "-p", "x") == (
        f"{family.memory} is a memory, not a base model; give it with -M, and its base with -m"
    )
    assert error_of("run", "-m", family.base, "-M", family.base, "-p", "x") == (
        f"{family.base} is a plain model, not a memory; give a file made by memdec-edge convert, or --force to mix it"
    )


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_lambda_outside_its_range_is_one_line(family: Family, value: str) -> None:
    error = error_of("run", "-m", family.base, "-M", family.memory, f"--lambda={value}", "-p", "x", code=2)
    assert error == f"--lambda is {float(value)}: must be from 0.0 to 1.0"


def test_literal_lambdas_over_one_are_one_line(family: Family) -> None:
    scaled = [f"--memory-scaled={family.memory}:0.7", f"--memory-scaled={family.padded}:0.4"]
    error = error_of("run", "-m", family.base, *scaled, "-p", "x", code=2)
    assert error == "the sum of the memories' lambdas is 0.7 + 0.4 = 1.1: must be at most 1"


@pytest.mark.parametrize("text", ["file.gguf", "file.gguf:", "file.gguf:much"])
def test_a_scaled_memory_without_a_number_is_one_line(family: Family, text: str) -> None:
    error = error_of("run", "-m", family.base, "--memory-scaled", text, "-p", "x", code=2)
    assert error == f"--memory-scaled is {text}: must be FILE:LAMBDA, such as memdec-law.gguf:0.4"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-n", -2], "--predict is -2: must be from -1 to 16777216"),
        (["--temp", -1], "--temp is -1.0: must be from 0.0 to 100.0"),
        (["-s", 2**32], "--seed is 4294967296: must be from -1 to 4294967294"),
        (["-ctk", "q3"], "--cache-type-k is q3: must be one of f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl"),
        (["-fa", "maybe"], "--flash-attn is maybe: must be one of on, off, auto"),
        (["-b", 0], "--batch-size is 0: must be from 1 to 65536"),
        (["--stop", ""], "--stop is an empty string: give at least one character"),
    ],
)
def test_absurd_options_are_one_line(family: Family, arguments: list[object], line: str) -> None:
    assert error_of("run", "-m", family.base, "-p", "x", *arguments, code=2) == line


def test_contexts_that_overflow_name_the_numbers(family: Family) -> None:
    long = error_of("run", "-m", family.base, "-p", "heart " * 300, "-c", 256)
    assert long.endswith(
        "do not fit the context of 256; raise -c as far as the models were trained, shorten the prompt or lower -n"
    )
    more = error_of("run", "-m", family.base, "-p", PROMPT, "-n", 600)
    assert "and 600 new ones do not fit the context of 512" in more


def test_empty_and_broken_prompts_are_one_line(family: Family) -> None:
    assert error_of("run", "-m", family.base, "-p", "", code=2) == "prompt is empty: give some text to continue"
    path = family.base.parent / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert error_of("run", "-m", family.base, "-f", path) == (
        f"{path}: not UTF-8: byte 0xe9 at offset 3; convert it to UTF-8"
    )
    assert "not UTF-8 at character 3" in error_of(
        "run", "-m", family.base, "-p", b"caf\xe9".decode("utf8", "surrogateescape")
    )


def test_a_corpus_that_cannot_be_used_is_one_line(family: Family, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = error_of("eval", "-m", family.base, tmp_path / "empty")
    assert empty == f"{tmp_path / 'empty'}: no text in it; give .txt, .md or .jsonl files with some"
    train = ["train", "--teacher", family.base_checkpoint, "--out", tmp_path / "out", "--corpus"]
    assert error_of(*train, tmp_path / "empty") == empty
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve café ".encode("latin-1") * 500)
    assert error_of(*train, latin) == f"{latin}: not UTF-8: byte 0xef at offset 2; convert it to UTF-8"
    missing = tmp_path / "none.txt"
    assert error_of(*train, missing) == f"{missing}: no such text file or folder; check the path"


def corpus(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [{"text": f"Document {i}: the heart pumps blood number {i * 7} through the body. " * 6} for i in range(30)]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_k_beyond_the_datastore_is_one_line(family: Family, tmp_path: Path) -> None:
    error = error_of(
        "cache", "--teacher", family.base_checkpoint, "--corpus", corpus(tmp_path / "c"), "--out", tmp_path / "o",
        "--k", 999_999, "--block", 32, code=2,
    )  # fmt: skip
    found = re.fullmatch(r"--k is 999999: the datastore has (\d+) keys, so a key has (\d+) neighbours", error)
    assert found
    assert int(found[1]) == int(found[2]) + 1


def test_the_road_from_text_to_a_memory_that_answers(family: Family, tmp_path: Path) -> None:
    """train -> convert -> check -> eval -> run, all through the command line, and outputs that exist are kept."""
    text, out, gguf = corpus(tmp_path / "c"), tmp_path / "out", tmp_path / "memdec-heart.gguf"
    train = [
        "train", "--teacher", family.base_checkpoint, "--corpus", text, "--out", out, "--k", 16, "--block", 32,
        "--epochs", 3, "--lr", 0.003, "--domain", "hearts", "--license", "MIT",
    ]  # fmt: skip
    assert last_json(memdec(*train, "--json"))["steps"]
    convert = ["convert", out, "--outfile", gguf, "--outtype", "q8_0", "--base", family.base]
    done = memdec(*convert, "--verify", "--json")
    assert last_json(done)["outfile"] == str(gguf)
    assert error_of(*convert) == f"{gguf} exists and is not overwritten; remove it or choose another path"
    assert memdec("check", "-m", family.base, "-M", gguf).returncode == 0
    facts = last_json(memdec("show", gguf, "--json"))
    assert facts["memdec_edge.domain"] == "hearts"
    assert facts["general.license"] == "MIT"
    assert "verbatim" in str(facts["general.description"])
    found = last_json(memdec("eval", "-m", family.base, "-M", gguf, text, "--window", 64, "--stride", 32, "--json"))
    scores = found["perplexity"]
    assert scores["mixture"] < 0.7 * scores["base"]  # type: ignore[index]
    assert memdec("run", "-m", family.base, "-M", gguf, "-p", "Document", "-n", 4).returncode == 0


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_no_space_left_is_one_line_and_leaves_nothing(family: Family, tmp_path: Path) -> None:
    gguf = tmp_path / "memdec-x.gguf"
    error = error_of("convert", family.memory_checkpoint, "--outfile", gguf, preexec_fn=_small_files)
    assert error == f"{gguf} could not be written: File too large; nothing was left under that name"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line_with_code_130() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "memdec_edge", "run", "-m", str(SMOLLM2), "-p", "The", "-n", "3000", "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.read(10)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err.splitlines()[-1] == "Error: stopped"


def test_a_reader_that_goes_away_is_no_traceback(family: Family) -> None:
    command = f"{sys.executable} -m memdec_edge run -m {family.base} -p x -n 400 --ignore-eos | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert b"Traceback" not in done.stderr
