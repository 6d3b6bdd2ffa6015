"""memdec_edge.convert.tokenizer: copied byte for byte, or built and compared with tokenizers on text."""

import json
import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from memdec_edge.convert.tokenizer import built, copied
from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.gguf.header import Header
from memdec_edge.llama.model import Model
from tests.conftest import PADDING, RENAMED_TOKEN, Family
from tests.support.tiny import OTHER_TEXT, TEXT, edit_json, edit_tensors, tiny_checkpoint, tiny_gguf, to_gguf


def test_the_tokenizer_of_the_base_is_copied_byte_for_byte(family: Family) -> None:
    with Header(family.base) as base, Header(family.memory) as memory:
        keys = [key for key in base.entries if key.startswith("tokenizer.")]
        assert keys == [key for key in memory.entries if key.startswith("tokenizer.")]
        assert {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"} <= set(keys)
        for key in keys:
            mine, theirs = memory.entries[key], base.entries[key]
            assert memory.raw(mine.entry, mine.end) == base.raw(theirs.entry, theirs.end)


def test_rows_without_a_token_become_padding(family: Family) -> None:
    with Header(family.padded) as header:
        tokens = header.strings("tokenizer.ggml.tokens")
    assert tokens[400:] == [b"[PAD%d]" % number for number in range(400, 400 + PADDING)]
    types = GGUFReader(family.padded).fields["tokenizer.ggml.token_type"].contents()
    assert types[400:] == [5] * PADDING  # unused
    assert types[:2] == [3, 1]  # control, normal


def test_padding_of_the_base_that_the_memory_does_not_have_is_cut(family: Family, out: Path) -> None:
    report = to_gguf(family.memory_checkpoint, out, base=family.padded)
    assert "416 tokens; its padding is cut" in report.warnings[0]
    with Header(out) as mine, Header(family.padded) as theirs:
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            assert mine.entries[key].count == 400
            start = theirs.entries[key].start
            length = mine.entries[key].end - mine.entries[key].start
            assert mine.raw(mine.entries[key].start, mine.entries[key].end) == theirs.raw(start, start + length)


def test_a_base_of_another_size_is_refused_with_both_numbers(tmp_path: Path, family: Family, out: Path) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", vocab_extra=200)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # nothing says that its rows are padding
        (larger / name).unlink()
    with pytest.raises(ModelFileError, match=r"600 rows and the tokenizer of .*base\.gguf 400 tokens"):
        to_gguf(larger, out, base=family.base)
    smaller = tiny_checkpoint(tmp_path / "smaller", n_tokens=390)
    with pytest.raises(ModelFileError, match=r"390 rows .* 400 tokens, which are no padding"):
        to_gguf(smaller, out, base=family.base)
    assert not out.exists()


def test_rows_that_no_token_has_are_dropped_however_many_and_added_tokens_are_named(
    tmp_path: Path, family: Family, out: Path
) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", vocab_extra=200)
    body = json.loads((larger / "tokenizer.json").read_text(encoding="utf-8"))
    added = [{"id": 400 + number, "content": f"<|new{number}|>", "special": True} for number in range(4)]
    edit_json(larger / "tokenizer.json", added_tokens=body["added_tokens"] + added)
    [warning] = to_gguf(larger, out, base=family.base).warnings
    assert warning.endswith("the rows beyond are dropped, those of <|new0|>, <|new1|>, <|new2|>, ... too")
    with Header(out) as header:
        assert header.entries["tokenizer.ggml.tokens"].count == 400


def test_a_base_that_lacks_a_token_of_the_text_is_refused(tmp_path: Path, family: Family, out: Path) -> None:
    smaller = tiny_gguf(tmp_path / "smaller.gguf", tiny_checkpoint(tmp_path / "smaller", n_tokens=390))
    with pytest.raises(ModelFileError, match=r"token 390 is .*, and .*smaller\.gguf has 390 tokens; give the base"):
        to_gguf(family.memory_checkpoint, out, base=smaller)


def test_padding_that_no_base_would_allow_is_refused(tmp_path: Path, family: Family, out: Path) -> None:
    wide = tiny_gguf(tmp_path / "wide.gguf", tiny_checkpoint(tmp_path / "wide", vocab_extra=129))
    with pytest.raises(ModelFileError, match=r"400 rows .* 529 tokens; at most 128 padding tokens may differ"):
        to_gguf(family.memory_checkpoint, out, base=wide)


def test_a_base_of_the_same_size_with_another_token_is_refused_by_name(family: Family, out: Path) -> None:
    with pytest.raises(ModelFileError, match=f"token {RENAMED_TOKEN} is .* and 'renamed-token' in "):
        to_gguf(family.memory_checkpoint, out, base=family.renamed)


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        None,
    ),
    "llama-bpe": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        None,
    ),
    "qwen2": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        normalizers.NFC(),
    ),
}


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def tokenizers_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of each kind that is recognised, and the GGUF vocabulary built from it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer, normalizer = PRE_TOKENIZERS[request.param]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    body = json.loads(tokenizer.to_str())
    # Merges of digit runs and across classes of characters, so that how they are split shows.
    for pair in (["1", "2"], ["12", "3"], ["123", "4"], ["'", "s"], ["Ċ", "Ċ"], ["(", "a"]):
        body["model"]["merges"].append(pair)
        body["model"]["vocab"]["".join(pair)] = len(body["model"]["vocab"])
    body["model"]["ignore_merges"] = request.param == "llama-bpe"
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    rows = len(body["model"]["vocab"])
    edit_json(checkpoint / "config.json", vocab_size=rows)
    edit_tensors(checkpoint, {"model.embed_tokens.weight": np.zeros((rows, 64), np.float32)})
    gguf = folder / "memdec-x.gguf"
    to_gguf(checkpoint, gguf)
    assert metadata.read(gguf)[0]["tokenizer.ggml.pre"] == request.param
    model = Model(gguf, vocab_only=True)
    yield Tokenizer.from_file(str(path)), model
    model.close()


SPECIMENS = [
    TEXT, OTHER_TEXT, "123 1234 12345678 3.14", "don't DON'T we'Ve\r\n\r\n  x", "\t\ttabs  and   spaces   ",
    "a\n\n\nb ", "日本語のテキスト 한국어 العربية", "🙂👩‍🔬 café naïve", "def f(x):\n    return x**2  # ok\n", "½ Ⅷ ²",
    "",
]  # fmt: skip


@pytest.mark.parametrize("text", SPECIMENS)
def test_built_tokenizers_split_as_hugging_face_does(tokenizers_pair: Any, text: str) -> None:
    reference, model = tokenizers_pair
    assert model.tokenize(text, add_special=False) == reference.encode(text, add_special_tokens=False).ids


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab Zé'sS1234½ \n\t\r.,!?-_()日🙂'tlL"), max_size=40))
def test_built_tokenizers_split_any_text_as_hugging_face_does(tokenizers_pair: Any, text: str) -> None:
    reference, model = tokenizers_pair
    assert model.tokenize(text, add_special=False) == reference.encode(text, add_special_tokens=False).ids


def test_bos_is_added_where_the_tokenizer_adds_it(checkpoint: Path, out: Path) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(path))
    to_gguf(checkpoint, out)
    model = Model(out, vocab_only=True)
    assert (model.add_bos, model.bos, model.eos) == (True, 0, 0)
    assert model.tokenize("a fever") == tokenizer.encode("a fever").ids
    model.close()


@pytest.mark.parametrize(
    ("post", "settings", "adds"),
    [
        (None, {}, False),
        (processors.ByteLevel(), {}, False),
        (processors.TemplateProcessing("$A", None, []), {}, False),
        (processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)]), {}, True),
        (processors.TemplateProcessing("a $A", None, [("a", 65)]), {}, False),
        (None, {"add_bos_token": True}, True),
        (
            processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)]),
            {"add_bos_token": False},
            False,
        ),
    ],
)
def test_add_bos_follows_post_processor_and_settings(
    checkpoint: Path, post: Any, settings: dict[str, Any], adds: bool
) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    if post is not None:
        tokenizer.post_processor = post
    tokenizer.save(str(path))
    edit_json(checkpoint / "tokenizer_config.json", **settings)
    entry = built(checkpoint, 400).entries["tokenizer.ggml.add_bos_token"]
    assert entry[-1] == adds


@pytest.mark.parametrize(
    "template", ["{{ x }}", [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ x }}"}]]
)
def test_the_chat_template_is_kept(checkpoint: Path, out: Path, template: Any) -> None:
    edit_json(checkpoint / "tokenizer_config.json", chat_template=template)
    to_gguf(checkpoint, out)
    assert metadata.read(out)[0]["tokenizer.chat_template"] == "{{ x }}"
    (checkpoint / "chat_template.jinja").write_text("{{ y }}", encoding="utf-8")  # where newer folders keep it
    assert b"{{ y }}" in built(checkpoint, 400).entries["tokenizer.chat_template"]


def test_a_special_token_that_is_left_empty_is_no_token(checkpoint: Path, out: Path) -> None:
    path = checkpoint / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    model["vocab"]["None"] = 400
    edit_json(path, model=model)
    edit_json(checkpoint / "tokenizer_config.json", unk_token=None, pad_token=None)
    assert (
        not {"tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"}
        & built(checkpoint, 401).entries.keys()
    )


def test_a_tokenizer_with_marks_on_subwords_is_refused_and_the_base_asked_for(checkpoint: Path, out: Path) -> None:
    path = checkpoint / "tokenizer.json"
    edit_json(path, model=json.loads(path.read_text(encoding="utf-8"))["model"] | {"continuing_subword_prefix": "##"})
    with pytest.raises(ModelFileError, match=r"its model is BPE with continuing_subword_prefix; .* `base`"):
        to_gguf(checkpoint, out)


def test_a_pre_tokenizer_that_llama_cpp_lacks_is_refused_and_the_base_asked_for(
    checkpoint: Path, family: Family, out: Path
) -> None:
    edit_json(checkpoint / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(ModelFileError, match=r"no pre-tokenizer of llama\.cpp fits \(llama\.cpp splits .* `base`"):
        to_gguf(checkpoint, out)
    to_gguf(checkpoint, out, base=family.base)


def test_a_folder_without_a_whole_tokenizer_is_refused_and_the_base_asked_for(
    checkpoint: Path, family: Family, out: Path
) -> None:
    in_parts(checkpoint, "GPT2Tokenizer")
    (checkpoint / "merges.txt").unlink()
    with pytest.raises(
        ModelFileError,
        match=r"has no tokenizer\.json, no tokenizer\.model, no vocab\.json with merges\.txt; give the base's GGUF",
    ):
        to_gguf(checkpoint, out)
    assert to_gguf(checkpoint, out, base=family.base, verify=True).verification is not None


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a JSON value, without the inside of long lists and objects."""
    found = [path] if path else []
    if isinstance(value, dict | list) and len(value) < 50:
        for key in value if isinstance(value, dict) else range(len(value)):
            found += spots(value[key], (*path, key))
    return found


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_tokenizer_is_read_or_refused(
    family: Family, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    body = json.loads((family.memory_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    *parents, last = data.draw(st.sampled_from(spots(body)))
    place = body
    for key in parents:
        place = place[key]
    place[last] = data.draw(st.sampled_from([None, -1, 2**70, "x", [], {}, [1], {"a": []}, [["a"]], {"a": 2**40}]))
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    shutil.copy(family.memory_checkpoint / "config.json", folder)
    with suppress(ModelFileError):
        assert len(built(folder, 400).tokens) == 400
    with suppress(ModelFileError):
        assert len(copied(family.base, folder, 400).tokens) == 400


def test_a_tokenizer_without_eos_is_refused(checkpoint: Path, out: Path) -> None:
    (checkpoint / "tokenizer_config.json").unlink()
    edit_json(checkpoint / "config.json", eos_token_id=None)
    with pytest.raises(ModelFileError, match="names no EOS token"):
        to_gguf(checkpoint, out)


def in_parts(checkpoint: Path, tokenizer_class: str) -> None:
    """Leave vocab.json and merges.txt in place of tokenizer.json, as older versions of transformers saved it."""
    path = checkpoint / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    (checkpoint / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (checkpoint / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    path.unlink()


@pytest.mark.parametrize("tokenizer_class", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_vocabulary_and_merges_without_tokenizer_json_split_text_as_transformers_does(
    checkpoint: Path, out: Path, tokenizer_class: str
) -> None:
    from transformers import AutoTokenizer

    in_parts(checkpoint, tokenizer_class)
    report = to_gguf(checkpoint, out, verify=True)
    assert report.verification is not None
    assert report.verification.token_difference == ""
    reference = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    with closing(Model(out, vocab_only=True)) as model:
        for text in TEXT.splitlines():
            assert model.tokenize(text, add_special=False) == reference.encode(text, add_special_tokens=False)


def test_parts_of_which_transformers_makes_no_tokenizer_are_named(checkpoint: Path, out: Path) -> None:
    in_parts(checkpoint, "GPT2Tokenizer")
    (checkpoint / "merges.txt").write_text("#version: 0.2\nno such\n", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"vocab\.json: transformers makes no tokenizer of it and merges\.txt \("):
        to_gguf(checkpoint, out)


def test_an_empty_tokenizer_json_is_named(checkpoint: Path, out: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: is empty; give the base's GGUF as `base`"):
        to_gguf(checkpoint, out)
