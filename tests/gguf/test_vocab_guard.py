"""memdec_edge.gguf.vocab_guard: what would end llama.cpp's process is refused, and sound vocabularies are not."""

import struct
from contextlib import closing
from pathlib import Path

import pytest

from memdec_edge.convert.tokenizer import built
from memdec_edge.convert.tokenizer_files import find
from memdec_edge.convert.vocabulary import CHARSMAP, read
from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.writer import Value, pack_entry
from memdec_edge.llama.model import Model
from tests.support.pieces import LLAMA, sentencepiece_folder, vocabulary_gguf


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Sound tokenizer blocks: SentencePiece BPE, and Unigram with a table of replacements (NFKC)."""
    folder = tmp_path_factory.mktemp("blocks")
    bpe = sentencepiece_folder(folder / "bpe", "bpe", 450, **LLAMA)
    unigram = sentencepiece_folder(folder / "unigram", "unigram", 180)
    return {"bpe": built(bpe, 450).entries, "unigram": built(unigram, 180).entries}


def opened(path: Path, entries: dict[str, bytes], **changes: Value) -> None:
    packed = {key: pack_entry(key, value) for key, value in changes.items()}
    with closing(Model(vocabulary_gguf(path, entries | packed), vocab_only=True)) as model:
        model.tokenize("日本 ﬁ é \0\x01 🙂")


def test_sound_vocabularies_are_opened(tmp_path: Path, blocks: dict[str, dict[str, bytes]]) -> None:
    for entries in blocks.values():
        opened(tmp_path / "v.gguf", entries)


def test_a_missing_byte_token_is_refused(tmp_path: Path, blocks: dict[str, dict[str, bytes]]) -> None:
    changed = {key: entry.replace(b"<0xE6>", b"<0xe6>") for key, entry in blocks["bpe"].items()}
    with pytest.raises(ModelFileError, match="no token for byte 230, which llama"):
        opened(tmp_path / "v.gguf", changed)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_adding_a_token_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": ["a b"],
        f"tokenizer.ggml.add_{name}_token": True,
    }
    with pytest.raises(ModelFileError, match=f"adds a token {name.upper()} that its vocabulary does not have"):
        opened(tmp_path / "v.gguf", {}, **keys)
    opened(tmp_path / "v.gguf", {}, **keys, **{f"tokenizer.ggml.{name}_token_id": 1})


def test_an_empty_token_with_the_name_of_another_is_refused(
    tmp_path: Path, blocks: dict[str, dict[str, bytes]]
) -> None:
    keys: dict[str, Value] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["[EMPTY_1]", ""]}
    with pytest.raises(ModelFileError, match="token 1 stands in the vocabulary twice"):
        opened(tmp_path / "v.gguf", {}, **keys)


def test_a_table_of_replacements_that_points_outside_itself_is_refused(
    tmp_path: Path, blocks: dict[str, dict[str, bytes]]
) -> None:
    key = pack_entry(CHARSMAP, b"")
    sound = blocks["unigram"][CHARSMAP][len(key) :]
    (size,) = struct.unpack_from("<I", sound)
    damaged = {
        "root": sound[:4] + struct.pack("<I", 0x7FFFFC00) + sound[8:],
        "replacements": sound[: 4 + size] + b"\0",
        "unterminated": sound[:-1] + b"x",
        "short": sound[:6],
        "size": struct.pack("<I", len(sound)) + sound[4:],
    }
    for name, table in damaged.items():
        with pytest.raises(ModelFileError, match=r"precompiled_charsmap points outside itself"):
            opened(tmp_path / f"{name}.gguf", blocks["unigram"], **{CHARSMAP: table})


def test_the_table_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "unigram", 180)
    (keys,) = read(find(folder)).variants
    assert built(folder, 180).entries[CHARSMAP] == pack_entry(CHARSMAP, keys[CHARSMAP])
