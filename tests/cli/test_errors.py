"""Whatever a user gets wrong, one line on stderr names the culprit, the value and the next step."""

import re
from pathlib import Path

import pytest

from memdec_edge.documents import NO_TEXT
from memdec_edge.gguf.header import Header
from tests.conftest import RENAMED_TOKEN, Family
from tests.support.command import error_of, memdec
from tests.support.tiny import edit_gguf


def last_tensor(gguf: Path) -> str:
    """The name of the tensor that ends a GGUF."""
    with Header(gguf) as header:
        return max(header.tensors, key=lambda tensor: tensor.offset).name


def test_a_missing_base_is_named(family: Family) -> None:
    for name in ("no.gguf", "user/tiny"):
        assert error_of("run", "-m", name, "-p", "x") == (
            f"{name}: no such GGUF file; check the path, or download a base by --hf-repo"
        )
    assert error_of("run", "-m", family.base, "-M", "no.gguf", "-p", "x").startswith("no.gguf: no such GGUF file")


def test_a_base_is_named_once_by_its_file_or_by_its_name_on_the_hub(family: Family) -> None:
    assert error_of("run", "-p", "x", code=2) == (
        "--model is not given: give the GGUF of a base, or its name on the Hub by --hf-repo"
    )
    assert error_of("eval", "-m", family.base, "-hf", "user/tiny", "no.txt", code=2) == (
        "--hf-repo is user/tiny: given beside --model; give one of the two"
    )
    assert error_of("chat", "-hff", "tiny.gguf", code=2) == (
        "--hf-file is tiny.gguf: names a file of --hf-repo; give that too"
    )
    for name in ("tiny", "user/tiny:", "a/b/c", "../tiny", "user/tiny:q8_0:q4_0", "user /tiny"):
        assert error_of("index", "no", "--out", "no", "-hf", name, code=2) == (
            f"--hf-repo is {name}: must be user/repo, user/repo:quant or user/repo@revision"
        )


def test_a_truncated_gguf_is_named(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(family.base.read_bytes()[:-1000])
    assert error_of("run", "-m", path, "-p", "x") == (
        f"{path}: llama.cpp cannot load it (tensor '{last_tensor(family.base)}' data is not within the file bounds, "
        "model is corrupted or incomplete)"
    )
    path.write_bytes(family.base.read_bytes()[:1000])
    assert re.fullmatch(
        rf"{path}: ends at byte 1000, inside \S+; the file is cut short; download or make it again",
        error_of("run", "-m", path, "-p", "x"),
    )


def test_a_memory_of_another_tokenizer_is_refused_by_the_first_differing_token(family: Family) -> None:
    with Header(family.base) as base, Header(family.stranger) as stranger:
        pairs = zip(base.strings("tokenizer.ggml.tokens"), stranger.strings("tokenizer.ggml.tokens"), strict=False)
        number, mine, theirs = next((i, a.decode(), b.decode()) for i, (a, b) in enumerate(pairs) if a != b)
    assert error_of("run", "-m", family.base, "-M", family.stranger, "-p", "x") == (
        f"{family.stranger} does not match {family.base}: token {number} is {mine!r} in the base and {theirs!r} in the "
        "memory; use a memory trained for this model family, or --force to mix them anyway"
    )


def test_check_names_the_first_difference_and_no_flag_that_it_lacks(family: Family) -> None:
    error = error_of("check", "-m", family.base, "-M", family.renamed)
    assert error.startswith(f"{family.renamed} does not match {family.base}: token {RENAMED_TOKEN} is ")
    assert error.endswith("; use a memory trained for this model family")


def test_base_and_memory_in_each_others_place_are_told_where_they_belong(family: Family) -> None:
    assert error_of("run", "-m", family.memory, "-M", family.memory, "-p", "x") == (
        f"{family.memory} is a memory, not a base model; give it as --memory, and its base as --model"
    )
    assert error_of("run", "-m", family.base, "-M", family.base, "-p", "x") == (
        f"{family.base} is a plain model, not a memory; give a file made by memdec-edge convert, or --force to mix it"
    )


def test_a_checkpoint_given_as_memory_is_told_of_convert(family: Family) -> None:
    error = error_of("run", "-m", family.base, "-M", family.memory_checkpoint, "-p", "x")
    assert error.startswith(f"{family.memory_checkpoint}")
    assert "convert" in error


def test_a_weight_behind_a_memory_is_told_of_its_flag(family: Family) -> None:
    assert error_of("run", "-m", family.base, "-M", f"{family.memory}:0.5", "-p", "x", code=2) == (
        f"--memory is {family.memory}:0.5: no file has that name; a memory with its weight is given by --memory-scaled"
    )


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_lambda_outside_its_range_is_refused(family: Family, value: str) -> None:
    error = error_of("run", "-m", family.base, "-M", family.memory, f"--lambda={value}", "-p", "x", code=2)
    assert error == f"--lambda is {value}: must be from 0 to 1"


def test_literal_lambdas_over_one_are_refused_with_their_sum(family: Family) -> None:
    scaled = [f"--memory-scaled={family.memory}:0.7", f"--memory-scaled={family.padded}:0.4"]
    error = error_of("run", "-m", family.base, *scaled, "-p", "x", code=2)
    assert error == "the sum of the memories' lambdas is 0.7 + 0.4 = 1.1: must be at most 1"


def test_a_lambda_without_a_memory_is_refused(family: Family) -> None:
    error = error_of("run", "-m", family.base, "--lambda", 0.5, "-p", "x", code=2)
    assert error == "--lambda is 0.5: there is no memory to weigh; give at least one"


@pytest.mark.parametrize("text", ["file.gguf", "file.gguf:", "file.gguf:much"])
def test_a_scaled_memory_without_a_number_is_refused(text: str) -> None:
    error = error_of("run", "-m", "any.gguf", "--memory-scaled", text, "-p", "x", code=2)
    assert error == f"--memory-scaled is {text}: must be FILE:LAMBDA, such as memdec-law.gguf:0.4"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-n", -2], "--predict is -2: must be from -1 to 16777216"),
        (["--temp", 200], "--temp is 200: must be from 0 to 100"),
        (["-s", 2**32], "--seed is 4294967296: must be from -1 to 4294967294"),
        (["-ctk", "q3"], "--cache-type-k is q3: must be one of f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl"),
        (["-fa", "maybe"], "--flash-attn is maybe: must be one of on, off, auto"),
        (["-b", 0], "--batch-size is 0: must be from 1 to 65536"),
        (["--stop", ""], "--stop is an empty string: give at least one character"),
        (["--draft", "many"], "--draft is many: must be auto or a whole number from 0 to 16"),
        (["--grammar", "a", "-j", "b"], "--json-schema is given beside --grammar: give one of the two"),
        (["-f", "no.txt"], "--file is no.txt: given beside --prompt; give one of the two"),
        (["--grammar", "a", "--grammar-file", "b"], "--grammar-file is b: given beside --grammar; give one of the two"),
        (["-cnv"], "No such option: -cnv"),
        (["-sm", "row"], "No such option: -sm"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_file_is_looked_for(arguments: list[object], line: str) -> None:
    assert error_of("run", "-m", "no.gguf", "-M", "no.gguf", "-p", "x", *arguments, code=2) == line


def test_contexts_that_overflow_name_the_numbers(family: Family) -> None:
    long = error_of("run", "-m", family.base, "-p", "heart " * 300, "-c", 256)
    assert long.endswith(
        "do not fit the context of 256; raise --ctx-size as far as the models were trained, shorten the prompt or "
        "lower --predict"
    )
    more = error_of("run", "-m", family.base, "-p", "The heart is", "-n", 600)
    assert "and 600 new ones do not fit the context of 512" in more


def test_empty_prompts_are_refused(family: Family) -> None:
    for arguments, stdin in ((["-p", ""], b""), ([], b""), ([], b"\n")):
        error = error_of("run", "-m", family.base, *arguments, code=2, stdin=stdin)
        assert error == "prompt is empty: give some text to continue"


def test_prompts_that_are_not_utf8_are_refused(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    line = "not UTF-8: byte 0xe9 at offset 3; convert it to UTF-8"
    assert error_of("run", "-m", family.base, "-f", path) == f"{path}: {line}"
    assert error_of("run", "-m", family.base, stdin=b"caf\xe9") == f"stdin: {line}"


@pytest.mark.parametrize("content", ["", "\n", " \n\n"])
def test_an_empty_grammar_file_is_no_absence_of_a_grammar(family: Family, tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.gbnf"
    path.write_text(content)
    error = error_of("run", "-m", family.base, "-p", "x", "--grammar-file", path, code=2)
    assert error == f"--grammar-file is {path}: is empty; give a file with a grammar"


def test_prompt_files_that_cannot_be_read_are_refused(family: Family, tmp_path: Path) -> None:
    none = tmp_path / "none.txt"
    assert error_of("run", "-m", family.base, "-f", none) == f"{none}: no such text file; check the path"
    assert error_of("run", "-m", family.base, "-f", tmp_path) == f"{tmp_path}: is a folder; give a text file"


def test_a_corpus_that_cannot_be_used_is_refused(family: Family, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = error_of("eval", "-m", family.base, tmp_path / "empty")
    assert empty == f"{tmp_path / 'empty'}: {NO_TEXT}"
    train = ["train", "--teacher", family.base_checkpoint, "--out", tmp_path / "out", "--corpus"]
    assert error_of(*train, tmp_path / "empty") == empty
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve café ".encode("latin-1") * 500)
    assert error_of(*train, latin) == f"{latin}: not UTF-8: byte 0xef at offset 2; convert it to UTF-8"
    missing = tmp_path / "none.txt"
    assert error_of(*train, missing) == f"{missing}: no such text file or folder; check the path"


def test_k_beyond_the_datastore_is_refused(family: Family, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the heart pumps blood through the body. " * 300)
    error = error_of(
        "cache", "--teacher", family.base_checkpoint, "--corpus", tmp_path / "a.txt", "--out", tmp_path / "out",
        "--k", 999_999, "--block", 32, code=2,
    )  # fmt: skip
    found = re.fullmatch(r"--k is 999999: the datastore has (\d+) keys, so a key has (\d+) neighbours", error)
    assert found
    assert int(found[1]) == int(found[2]) + 1


def test_an_output_that_exists_is_told_of_overwrite(family: Family, tmp_path: Path) -> None:
    out = tmp_path / "memdec-mine.gguf"
    out.write_text("mine")
    line = f"{out} exists and is not overwritten; give --overwrite to replace it, or choose another path"
    assert error_of("convert", family.memory_checkpoint, "--outfile", out) == line
    assert error_of("quantize", family.memory, out, "q8_0") == line
    assert out.read_text() == "mine"


def test_a_prompt_that_an_instruct_model_ends_at_once_is_explained(family: Family, tmp_path: Path) -> None:
    chat = edit_gguf(family.base, tmp_path / "chat.gguf", {"tokenizer.chat_template": "{{ messages[0].content }}"})
    at_once = ["-p", "What is it?", "--grammar", 'root ::= ""']
    for flags in ([], ["--json"]):
        done = memdec("run", "-m", chat, *at_once, *flags)
        assert done.returncode == 0
        assert f"{chat} has a chat template, and run continues raw text without it" in done.stderr
    assert "chat template" not in memdec("run", "-m", family.base, *at_once).stderr
    assert "chat template" not in memdec("run", "-m", chat, "-p", "What is it?", "-n", 0).stderr
