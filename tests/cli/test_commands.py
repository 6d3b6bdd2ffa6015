"""The commands as a user meets them: what is on stdout and what on stderr, and the road from text to an answer."""

import json
import re
from pathlib import Path

import pytest

from memdec_edge.gguf import metadata
from tests.conftest import Family
from tests.support.command import last_json, memdec
from tests.support.tiny import edit_gguf

PROMPT = "The heart is"
SENTENCE = "The heart is a muscle that pumps blood.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 20)
    return path


def test_without_arguments_the_help_is_shown() -> None:
    done = memdec()
    assert done.returncode == 0
    assert "Commands:" in done.stdout


def test_run_streams_text_to_stdout_and_everything_else_to_stderr(family: Family) -> None:
    arguments = ["run", "-m", family.base, "-M", family.memory, "-p", PROMPT, "-n", 8, "-s", 0, "--ignore-eos"]
    done, as_json = memdec(*arguments), memdec(*arguments, "--json")
    found = last_json(as_json)
    assert done.stdout == f"{found['text']}\n"
    assert f"memory {family.memory} at lambda auto, from 0.5" in done.stderr
    assert "8 new" in done.stderr
    assert set(found) == {"text", "tokens", "finish_reason", "timings", "sources"}
    assert len(found["tokens"]) == 8
    assert as_json.stdout.count("\n") == 1


def test_the_prompt_comes_from_an_option_a_file_or_stdin(family: Family, tmp_path: Path) -> None:
    path, windows = tmp_path / "prompt.txt", tmp_path / "windows.txt"
    path.write_text(f"{PROMPT}\nthe\n")
    windows.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    common = ["run", "-m", family.base, "-n", 5, "--temp", 0, "--ignore-eos"]
    texts = {
        memdec(*common, "-p", rf"{PROMPT}\nthe").stdout,
        memdec(*common, "-p", f"{PROMPT}\nthe", "--no-escape").stdout,
        memdec(*common, "-f", path).stdout,
        memdec(*common, "-f", windows).stdout,
        memdec(*common, stdin=path.read_bytes()).stdout,
    }
    assert len(texts) == 1
    assert texts != {memdec(*common, "-p", rf"{PROMPT}\nthe", "--no-escape").stdout}


def test_stop_strings_may_be_escaped(family: Family) -> None:
    common = ["run", "-m", family.base, "-p", PROMPT, "-n", 20, "--grammar", r'root ::= "ab\ncd"', "--json"]
    assert last_json(memdec(*common, "-r", r"\n"))["text"] == "ab"
    assert last_json(memdec(*common, "-r", r"\n", "--no-escape"))["text"] == "ab\ncd"
    assert last_json(memdec(*common, "-r", r"\x63d"))["text"] == "ab\n"


def test_names_of_control_tokens_may_be_plain_text(family: Family) -> None:
    common = ["run", "-m", family.base, "-p", "<|endoftext|>", "-n", 1, "--ignore-eos", "--json"]
    read = last_json(memdec(*common))["timings"]["prompt_n"]
    plain = last_json(memdec(*common, "--no-special"))["timings"]["prompt_n"]
    assert read == 1 < plain


def test_force_mixes_strangers_with_a_warning(family: Family) -> None:
    done = memdec("run", "-m", family.base, "-M", family.stranger, "-p", PROMPT, "-n", 3, "--ignore-eos", "--force")
    assert done.returncode == 0
    assert "mixed by force" in done.stderr


def test_eval_prints_a_table_and_json(family: Family, text: Path) -> None:
    arguments = ["eval", "-m", family.base, "-M", family.memory, text, "--window", 64, "--stride", 32, "--lambda", 0.3]
    done = memdec(*arguments, "--json")
    found = last_json(done)
    assert set(found["perplexity"]) == {"base", "memory", "mixture", "auto"}
    assert set(found["worse_share"]) == {"mixture", "auto"}
    assert {"tokens", "bits_per_byte", "lambda_sweep", "standard_error"} <= set(found)
    assert [entry["lambda"] for entry in found["lambda_sweep"]] == [i / 10 for i in range(11)]
    assert found["lambda"] == 0.3
    assert done.stdout.count(" ± ") == len(found["perplexity"]) + 1  # and of auto against the mixture


def test_one_window_has_no_standard_error(family: Family, text: Path) -> None:
    one = [text, "--window", 512, "--stride", 256, "--max-tokens", 1]
    done = memdec("eval", "-m", family.base, "-M", family.memory, *one, "--json")
    assert last_json(done)["standard_error"]["base"] is None
    assert "±" not in done.stdout
    assert "nan" not in done.stdout


def test_eval_of_a_training_split_is_a_warning(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": SENTENCE * 20}))
    arguments = ["eval", "-m", family.base, path, "--window", 64, "--stride", 32]
    assert "this is a training split" in memdec(*arguments, "-M", family.memory).stderr
    assert "training split" not in memdec(*arguments).stderr  # the base alone has not seen it


def test_check_says_that_files_fit(family: Family) -> None:
    done = memdec("check", "-m", family.base, "-M", family.memory)
    assert (done.returncode, done.stdout) == (0, f"{family.memory} matches {family.base}: 400 shared tokens\n")


def test_show_prints_what_a_memory_says_about_itself(family: Family) -> None:
    done = memdec("show", family.memory, "--json")
    assert last_json(done)["memdec_edge.role"] == "memory"


def test_show_lets_no_file_steer_the_terminal(family: Family, tmp_path: Path) -> None:
    hostile = {"memdec_edge.domain": "law\x1b]0;mine\x07", "general.description": "one\ntwo\u202ereversed"}
    done = memdec("show", edit_gguf(family.memory, tmp_path / "hostile.gguf", hostile), "--json")
    assert r"law\x1b]0;mine\x07" in done.stdout
    assert r"one\ntwo\u202ereversed" in done.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert last_json(done)["memdec_edge.domain"] == hostile["memdec_edge.domain"]


def test_the_road_from_text_to_a_memory_that_answers(family: Family, tmp_path: Path) -> None:
    """train -> convert -> check -> eval -> run, all through the command line."""
    text, out, gguf = tmp_path / "corpus", tmp_path / "out", tmp_path / "memdec-heart.gguf"
    text.mkdir()
    lines = [{"text": f"Document {i}: the heart pumps blood number {i * 7} through the body. " * 6} for i in range(30)]
    (text / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train = [
        "train", "--teacher", family.base_checkpoint, "--corpus", text, "--out", out, "--k", 16, "--beta", 0.5,
        "--block", 32, "--finetune-teacher", 0.5, "--epochs", 3, "--lr", 0.003, "--domain", "hearts",
        "--license", "MIT",
    ]  # fmt: skip
    done = memdec(*train, "--json")
    trained = last_json(done)
    assert f"next: memdec-edge convert {out} --outfile memdec-out.gguf" in done.stderr.splitlines()
    done = memdec("convert", out, "--outfile", gguf, "--outtype", "Q8_0", "--base", family.base, "--verify", "--json")
    assert last_json(done)["outfile"] == str(gguf)
    assert memdec("check", "-m", family.base, "-M", gguf).returncode == 0
    found = last_json(memdec("show", gguf, "--json"))
    assert found["memdec_edge.domain"] == "hearts"
    assert found["general.license"] == "MIT"
    assert "verbatim" in str(found["general.description"])
    scoring = ["eval", "-m", family.base, "-M", gguf, "--window", 64, "--stride", 32]
    done = memdec(*scoring, text, "--json")
    scores = last_json(done)["perplexity"]
    assert scores["mixture"] < 0.7 * scores["base"]
    assert f"{gguf} was trained on {text / 'text.jsonl'}, so its perplexity there says little" in done.stderr
    refused = memdec(*scoring, out)
    assert refused.stderr == (
        f"Error: {out}: holds what training made, not documents; give text, such as {out / 'cache' / 'test.jsonl'}\n"
    )
    held_out = memdec(*scoring, out / "cache")
    assert (held_out.returncode, "was trained on" in held_out.stderr) == (0, False)
    weight, origin = trained["mixture_lambda"], "training found it best on validation text, mixed with base"
    assert found["memdec_edge.lambda"] == pytest.approx(weight)
    assert f"lambda: {origin}\n" in memdec("show", gguf).stderr
    done = memdec("run", "-m", family.base, "-M", gguf, "-p", "Document", "-n", 4, "-v")
    assert re.search(rf"memory {re.escape(str(gguf))} at lambda .* \({re.escape(origin)}\)\n", done.stderr)
    metadata.patch(gguf, {metadata.LAMBDA: 0.123})
    assert "lambda: set after training\n" in memdec("show", gguf).stderr


def test_flags_of_a_retriever_that_is_not_imitated_are_named(family: Family, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The heart pumps blood through the body. " * 200)
    train = ["train", "--teacher", family.base_checkpoint, "--corpus", text, "--block", 32, "--steps", 1, "--lr", 0.001]
    done = memdec(*train, "--out", tmp_path / "a", "--k", 16, "--target", "knn", "--finetune-teacher", 0)
    expected = "Warning: --target, --k: no retriever is imitated, so this has no effect; --beta 0.5 imitates one"
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count(expected) == 1
    assert not (tmp_path / "a" / "cache" / "keys").exists()
    assert "no effect" not in memdec(*train, "--out", tmp_path / "b").stderr
