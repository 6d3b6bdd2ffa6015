"""SentencePiece vocabularies: llama.cpp's tokens against sentencepiece's and tokenizers' own, and what is refused."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from memdec_edge.convert.probe import compare_tokenizers
from memdec_edge.convert.tokenizer import TokenizerBlock, built, copied
from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.llama.model import Model
from tests.support.pieces import LLAMA, llama_merges, sentencepiece_folder, sentencepiece_model, vocabulary_gguf
from tests.support.tiny import TEXT, tiny_checkpoint, to_gguf

GEMMA: dict[str, Any] = LLAMA | {
    "add_dummy_prefix": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "user_defined_symbols": ["<start_of_turn>", "\n\n", "▁▁", "▁▁▁▁"],
}
AS_IT_IS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,  # with it llama.cpp reads a text of nothing but spaces otherwise
}
FAMILIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "llama": ("bpe", 450, LLAMA),
    "gemma": ("bpe", 450, GEMMA),
    "unigram": (
        "unigram",
        180,
        {},
    ),  # normalises (NFKC) and merges spaces, as SentencePiece does when not told otherwise
    "unigram as it is": ("unigram", 180, AS_IT_IS),
}
Pair = tuple[SentencePieceProcessor, Model, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """SentencePiece's tokenizer, llama.cpp's of the block built from it, and its folder."""
    kind, n_tokens, options = FAMILIES[request.param]
    folder = sentencepiece_folder(tmp_path_factory.mktemp("pieces"), kind, n_tokens, **options)
    block = built(folder, n_tokens)
    assert block.warnings == ()
    with closing(Model(vocabulary_gguf(folder / "vocabulary.gguf", block.entries), vocab_only=True)) as model:
        yield SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), model, folder


def test_llama_cpp_splits_the_probe_as_sentencepiece_does(pair: Pair) -> None:
    assert compare_tokenizers(pair[1], pair[2]) == ""


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("ab Zé'sS1234½ \n\t.,!?-_()日🙂'tlLﬁ"), max_size=40))
def test_llama_cpp_splits_any_text_as_sentencepiece_does(pair: Pair, text: str) -> None:
    reference, model, _ = pair
    assert model.tokenize(text, add_special=False, parse_special=False) == reference.encode(text)


def test_pieces_scores_and_types_are_sentencepieces_own(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, rows=460, **GEMMA)
    reader = GGUFReader(vocabulary_gguf(tmp_path / "v.gguf", built(folder, 460).entries))
    fields = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in reader.fields.items()}
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    assert (fields["model"], fields["pre"]) == ("llama", "default")
    assert (fields["add_space_prefix"], fields["remove_extra_whitespaces"]) == (False, False)
    assert (fields["add_bos_token"], fields["add_eos_token"], fields["unknown_token_id"]) == (True, False, 0)
    spelled = [piece.piece.replace("▁", " ") if piece.type == 4 else piece.piece for piece in proto.pieces]
    assert fields["tokens"] == [*spelled, *(f"[PAD{number}]" for number in range(450, 460))]
    assert fields["token_type"] == [*(piece.type for piece in proto.pieces), *[5] * 10]
    assert fields["scores"] == pytest.approx([*(piece.score for piece in proto.pieces), *[-10000.0] * 10])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"byte_fallback": False}, "its BPE has no byte tokens"),
        ({"normalization_rule_name": "nfkc"}, "llama.cpp lacks its normaliser"),
        ({"remove_extra_whitespaces": True}, "llama.cpp lacks its normaliser"),
        ({"treat_whitespace_as_suffix": True}, "llama.cpp lacks its normaliser"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    n_tokens = 450 if options.get("byte_fallback", True) else 200
    folder = sentencepiece_folder(tmp_path, "bpe", n_tokens, **LLAMA | options)
    with pytest.raises(ModelFileError, match=f"tokenizer.model: {reason}.* `base`"):
        built(folder, n_tokens)


def test_unigram_with_byte_fallback_is_accepted_with_a_warning(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "unigram", 450, byte_fallback=True)
    block = built(folder, 450)
    (warning,) = block.warnings
    assert warning.startswith("llama.cpp has no byte fallback for Unigram: characters outside the vocabulary")
    with closing(Model(vocabulary_gguf(tmp_path / "v.gguf", block.entries), vocab_only=True)) as model:
        assert "into tokens [0" in compare_tokenizers(model, folder)
        text = TEXT.splitlines()[0]
        assert model.tokenize(text, add_special=False) == SentencePieceProcessor(
            model_file=str(folder / "tokenizer.model")
        ).encode(text)


def llama_json(folder: Path) -> Tokenizer:
    """tokenizer.json of the BPE model in `folder`, in the form of Llama 2: no pre-tokenizer, spaces by a normaliser."""
    ids, merges = llama_merges((folder / "tokenizer.model").read_bytes())
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", mix_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("both", [True, False])
def test_a_llama_tokenizer_json_works_with_and_without_tokenizer_model(tmp_path: Path, both: bool) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, **LLAMA)
    tokenizer = llama_json(folder)
    if not both:
        (folder / "tokenizer.model").unlink()
    block = built(folder, 450)
    with closing(Model(vocabulary_gguf(tmp_path / "v.gguf", block.entries), vocab_only=True)) as model:
        assert compare_tokenizers(model, folder) == ""
        assert model.tokenize("a <s>fever</s>", add_special=False) == tokenizer.encode("a <s>fever</s>").ids


def test_a_space_before_the_first_word_alone_is_accepted_and_the_difference_named(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, **LLAMA)
    tokenizer = llama_json(folder)
    tokenizer.normalizer = None  # the form of newer Llama tokenizers; llama.cpp puts one after special tokens too
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    block = built(folder, 450)
    with closing(Model(vocabulary_gguf(tmp_path / "v.gguf", block.entries), vocab_only=True)) as model:
        assert compare_tokenizers(model, folder).startswith("llama.cpp splits '  x  ")  # a text that begins with spaces
        text = "the heart<s>blood"
        assert model.tokenize(text, add_special=False) == tokenizer.encode("the heart<s> blood").ids
        assert model.tokenize(text, add_special=False) != tokenizer.encode(text).ids


def test_a_unigram_tokenizer_json_works_without_tokenizer_model(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "unigram", 180, **AS_IT_IS)
    path = folder / "tokenizer.model"
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.add_special_tokens([AddedToken("<unk>", normalized=False)])  # it stays what unknown text becomes
    tokenizer.save(str(folder / "tokenizer.json"))
    path.unlink()
    block = built(folder, 180)
    with closing(Model(vocabulary_gguf(tmp_path / "v.gguf", block.entries), vocab_only=True)) as model:
        assert compare_tokenizers(model, folder) == ""


def test_added_tokens_stand_in_other_files_where_there_is_no_tokenizer_json(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, rows=454, **LLAMA)
    (folder / "added_tokens.json").write_text(json.dumps({"<user>": 450, "▁▁▁": 451, "<image>": 460}), encoding="utf-8")
    settings = {"added_tokens_decoder": {"452": {"content": "<end>", "special": True}}, "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    block = built(folder, 454)
    assert block.tokens[450:] == [b"<user>", b"   ", b"<end>", b"[PAD453]"]
    assert block.warnings == ("added tokens without a row in the embedding are left out: <image>",)
    with closing(Model(vocabulary_gguf(tmp_path / "v.gguf", block.entries), vocab_only=True)) as model:
        assert model.eos == 452
        assert model.tokenize("<end><user>", add_special=False) == [452, 450]


def renamed_piece(folder: Path, number: int) -> None:
    path = folder / "tokenizer.model"
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    proto.pieces[number].piece = "renamed"
    path.write_bytes(proto.SerializeToString())


def test_a_base_is_compared_with_tokenizer_model_before_its_block_is_copied(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, **LLAMA)
    block: TokenizerBlock = built(folder, 450)
    base = vocabulary_gguf(tmp_path / "base.gguf", block.entries)
    assert copied(base, folder, 450).entries == block.entries
    renamed_piece(folder, 300)
    with pytest.raises(ModelFileError, match=r"tokenizer\.model: token 300 is 'renamed' and .* in .*base\.gguf"):
        copied(base, folder, 450)


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path, "bpe", 450, **LLAMA)
    (folder / "tokenizer.model").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelFileError, match=r"tokenizer\.model: is no SentencePiece model"):
        built(folder, 450)


def test_a_checkpoint_with_tokenizer_model_is_converted_and_verified(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", vocab_extra=60)
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(sentencepiece_model("bpe", 450, **LLAMA))
    report = to_gguf(checkpoint, tmp_path / "memdec-x.gguf", verify=True)
    assert report.verification is not None
    assert report.verification.token_difference == ""
    values, _ = metadata.read(report.outfile)
    assert values[metadata.TOKENIZER_N_TOKENS] == 450  # of 460 rows
    assert values["llama.vocab_size"] == 460
