"""memdec_edge.convert.probe and pretokenizer: what is compared, and that a difference is found and named."""

import json
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from memdec_edge.convert.probe import HARD, ORDINARY, Reference, compare_tokenizers
from memdec_edge.convert.tokenizer import built
from memdec_edge.convert.tokenizer_files import find
from memdec_edge.convert.vocabulary import PRE_TOKENIZERS
from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.writer import pack_entry
from memdec_edge.llama.model import Model
from tests.conftest import Family
from tests.support.pieces import vocabulary_gguf
from tests.support.tiny import edit_json


def test_the_probe_is_composed_since_llama_cpp_does_not_compose() -> None:
    for text in (*ORDINARY, *HARD):
        assert unicodedata.is_normalized("NFC", text), text


def compared(checkpoint: Path, path: Path, rows: int = 400, **changes: str) -> str:
    entries = built(checkpoint, rows).entries
    entries |= {key: pack_entry(key, value) for key, value in changes.items()}
    with closing(Model(vocabulary_gguf(path, entries), vocab_only=True)) as model:
        found: str = compare_tokenizers(model, checkpoint)
        return found


def test_a_right_vocabulary_shows_no_difference(checkpoint: Path, tmp_path: Path) -> None:
    assert compared(checkpoint, tmp_path / "v.gguf") == ""


def test_another_pre_tokenizer_is_noticed_and_the_text_named(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    model["vocab"]["33"] = 400
    edit_json(path, model=model | {"merges": [*model["merges"], ["3", "3"]]})  # its digits are split one by one
    assert compared(checkpoint, tmp_path / "v.gguf", 401) == ""
    found = compared(checkpoint, tmp_path / "v.gguf", 401, **{"tokenizer.ggml.pre": "gpt-2"})
    assert found.startswith("llama.cpp splits '3 33 333")
    three, space = (model["vocab"][text] for text in ("3", "Ġ"))
    ours, theirs = [400, space, 400, three], [three, three, space, three]
    assert found.endswith(f" into tokens {ours} and {path} into {theirs}")


def test_added_runs_of_spaces_are_found_as_the_checkpoint_finds_them(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"  # GPT-NeoX has such tokens
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([" " * length for length in range(24, 1, -1)])
    tokenizer.save(str(path))
    assert compared(checkpoint, tmp_path / "v.gguf", 423) == ""


def test_a_special_token_that_takes_spaces_with_it_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    body = path.read_text(encoding="utf-8")
    assert '"lstrip": false' in body
    path.write_text(body.replace('"lstrip": false', '"lstrip": true', 1), encoding="utf-8")
    assert "<|endoftext|>" in compared(checkpoint, tmp_path / "v.gguf")


def test_a_checkpoint_without_tokenizer_has_nothing_to_compare(family: Family, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with closing(Model(family.memory, vocab_only=True)) as model:
        assert compare_tokenizers(model, checkpoint) == ""


def test_truncation_and_padding_of_tokenizer_json_do_not_matter(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(path))
    assert compared(checkpoint, tmp_path / "v.gguf") == ""


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_knows_every_pre_tokenizer_that_is_tried(checkpoint: Path, tmp_path: Path, name: str) -> None:
    entries = built(checkpoint, 400).entries | {"tokenizer.ggml.pre": pack_entry("tokenizer.ggml.pre", name)}
    Model(vocabulary_gguf(tmp_path / "v.gguf", entries), vocab_only=True).close()


def test_a_panic_inside_tokenizers_is_an_error_in_one_line(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    edit_json(path, model=model | {"continuing_subword_prefix": "##"})
    files = find(checkpoint)
    assert files is not None
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: cannot be read \(") as caught:
        Reference(files).encode("a fever")
    assert "\n" not in str(caught.value)
