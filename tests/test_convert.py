"""memdec_edge.convert against PyTorch, llama.cpp, tokenizers and gguf.GGUFReader."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from memdec_edge import metadata
from memdec_edge.convert import ConvertReport, convert
from memdec_edge.convert.tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, built, copied
from memdec_edge.convert.verify import MAX_TOKENS, verify
from memdec_edge.errors import (
    ExistingOutputError,
    MissingExtraError,
    MissingFileError,
    ModelFileError,
    OptionError,
    OutputError,
)
from memdec_edge.header import Header
from memdec_edge.llama import Model
from memdec_edge.options import ConvertOptions
from tests.conftest import PADDING, RENAMED_TOKEN, Family
from tests.tiny import OTHER_TEXT, TEXT, tiny_checkpoint, tiny_tokenizer

IDS = [(7 * number * number + 13) % 400 for number in range(48)]
LogProbs = npt.NDArray[np.float64]


def log_probs(logits: npt.NDArray[np.float32]) -> LogProbs:
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    result: LogProbs = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    return result


def torch_log_probs(checkpoint: Path, n_tokens: int = 400) -> LogProbs:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return log_probs(network(torch.tensor([IDS])).logits[0, :, :n_tokens].numpy())


def llama_log_probs(gguf: Path) -> LogProbs:
    """Through llama-cpp-python's own class: float32 KV cache, flash attention off."""
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(gguf), n_ctx=64, logits_all=True, flash_attn=False, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
        n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    try:
        llama.eval(IDS)
        return log_probs(llama.scores[: len(IDS)])
    finally:
        llama.close()


def to_gguf(checkpoint: Path, outfile: Path, outtype: str = "f32", **options: Any) -> ConvertReport:
    return convert(ConvertOptions(checkpoint=checkpoint, outfile=outfile, outtype=outtype, **options))


def hf_checkpoint(path: Path, dtype: str = "float32", max_shard_size: str = "1GB", **config: Any) -> Path:
    """A llama of transformers' own making, every parameter random, biases and norms too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    network = LlamaForCausalLM(LlamaConfig(**(sizes | config)))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    network.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer(path)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    body = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(body | changes), encoding="utf-8")


def edit_tensors(checkpoint: Path, add: dict[str, Any] | None = None, remove: str = "") -> None:
    tensors = load_file(checkpoint / "model.safetensors") | (add or {})
    tensors.pop(remove, None)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def checkpoint(family: Family, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(family.memory_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "memdec-own.gguf"


@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_in_f32_are_those_of_pytorch(tmp_path: Path, out: Path, tied: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", tied=tied, layers=3, seed=11)
    report = to_gguf(checkpoint, out)
    assert report.n_tensors == 2 + (not tied) + 3 * 9
    assert report.n_bytes == out.stat().st_size
    assert report.warnings == ()
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


@pytest.mark.parametrize(("outtype", "kind", "max_kl"), [("f16", 1, 1e-4), ("bf16", 30, 3e-3), ("q8_0", 8, 0.03)])
def test_smaller_types_stay_near_pytorch(family: Family, out: Path, outtype: str, kind: int, max_kl: float) -> None:
    to_gguf(family.memory_checkpoint, out, outtype)
    mine, theirs = llama_log_probs(out), torch_log_probs(family.memory_checkpoint)
    kl = float((np.exp(theirs) * (theirs - mine)).sum(-1).mean())
    assert 1e-9 < kl < max_kl
    kinds = {tensor.name: tensor.kind for tensor in metadata.read(out)[1]}
    assert {kinds[name] for name in kinds if "norm" in name} == {0}
    assert {kinds[name] for name in kinds if "norm" not in name} == {kind}


@pytest.mark.parametrize(
    "config",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 32, "num_key_value_heads": 4, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
    ],
    ids=["biases", "wide heads", "linear rope", "llama3 rope"],
)  # fmt: skip
def test_variants_of_llama_are_those_of_pytorch(tmp_path: Path, out: Path, config: dict[str, Any]) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", **config)
    to_gguf(checkpoint, out)
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


def test_a_sharded_bf16_checkpoint_is_those_of_pytorch(tmp_path: Path, out: Path) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", dtype="bfloat16", max_shard_size="100KB")
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    assert to_gguf(checkpoint, out, "auto").outtype == "bf16"
    to_gguf(checkpoint, out.with_name("memdec-f32.gguf"))
    assert np.abs(llama_log_probs(out.with_name("memdec-f32.gguf")) - torch_log_probs(checkpoint)).max() < 1e-3


def test_auto_is_f16_for_an_f32_checkpoint(family: Family, out: Path) -> None:
    assert to_gguf(family.memory_checkpoint, out, "auto").outtype == "f16"


def test_rows_that_do_not_divide_into_blocks_stay_f16_and_are_reported(tmp_path: Path, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", hidden=48)
    report = to_gguf(checkpoint, out, "q8_0")
    kinds = {tensor.name: tensor.kind for tensor in metadata.read(out)[1]}
    assert (kinds["token_embd.weight"], kinds["blk.1.ffn_down.weight"]) == (1, 8)
    assert "token_embd.weight is F16: its rows of 48 do not divide into blocks of 32" in report.warnings
    assert np.isfinite(llama_log_probs(out)).all()


def test_the_reference_reader_finds_the_checkpoints_numbers(family: Family, out: Path) -> None:
    to_gguf(family.base_checkpoint, out, role="model")
    reader = GGUFReader(out)
    values = load_file(family.base_checkpoint / "model.safetensors")
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert np.array_equal(tensors["output.weight"], values["lm_head.weight"])
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], values["model.layers.1.mlp.down_proj.weight"])
    assert np.array_equal(tensors["blk.0.attn_norm.weight"], values["model.layers.0.input_layernorm.weight"])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["general.file_type"].contents() == 0
    assert not any(key.startswith("memdec_edge") for key in reader.fields)


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


def test_rows_that_the_base_does_not_have_are_dropped(tmp_path: Path, family: Family, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", seed=3, tied=False, vocab_extra=PADDING)
    report = to_gguf(checkpoint, out, base=family.base)
    assert "416 rows" in report.warnings[0]
    assert "400 tokens; the rows beyond are dropped" in report.warnings[0]
    assert metadata.read(out)[0]["llama.vocab_size"] == 400
    mine = llama_log_probs(out)
    assert mine.shape[1] == 400
    theirs = torch_log_probs(checkpoint, 400)
    assert np.abs(mine - theirs).max() < 1e-3


def test_padding_of_the_base_that_the_memory_does_not_have_is_cut(family: Family, out: Path) -> None:
    report = to_gguf(family.memory_checkpoint, out, base=family.padded)
    assert "416 tokens; its padding is cut" in report.warnings[0]
    with Header(out) as mine, Header(family.padded) as theirs:
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            assert mine.entries[key].count == 400
            start = theirs.entries[key].start
            length = mine.entries[key].end - mine.entries[key].start
            assert mine.raw(mine.entries[key].start, mine.entries[key].end) == theirs.raw(start, start + length)
    assert np.abs(llama_log_probs(out) - torch_log_probs(family.memory_checkpoint)).max() < 1e-3


def test_a_base_of_another_size_is_refused_with_both_numbers(tmp_path: Path, family: Family, out: Path) -> None:
    larger = tiny_checkpoint(tmp_path / "larger", vocab_extra=200)
    with pytest.raises(ModelFileError, match=r"600 rows and the tokenizer of .*base\.gguf 400 tokens"):
        to_gguf(larger, out, base=family.base)
    smaller = tiny_checkpoint(tmp_path / "smaller", n_tokens=390)
    with pytest.raises(ModelFileError, match=r"390 rows .* 400 tokens, which are no padding"):
        to_gguf(smaller, out, base=family.base)
    assert not out.exists()


def test_a_base_of_the_same_size_with_another_token_is_refused_by_name(family: Family, out: Path) -> None:
    with pytest.raises(ModelFileError, match=f"token {RENAMED_TOKEN} is .* and 'renamed-token' in "):
        to_gguf(family.memory_checkpoint, out, base=family.renamed)


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
    # Merges of digit runs, so that how digits are split shows.
    for pair in (["1", "2"], ["12", "3"], ["123", "4"], ["'", "s"]):
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
    TEXT, OTHER_TEXT, "123 1234 12345678 3.14", "don't DON'T we'Ve\r\n\r\n  x", "\t\ttabs  and   spaces   ", "a\n\n\nb ",
    "日本語のテキスト 한국어 العربية", "🙂👩‍🔬 café naïve", "def f(x):\n    return x**2  # ok\n", "½ Ⅷ ²", "",
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
    from tokenizers.processors import TemplateProcessing

    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(path))
    to_gguf(checkpoint, out)
    model = Model(out, vocab_only=True)
    assert (model.add_bos, model.bos, model.eos) == (True, 0, 0)
    assert model.tokenize("a fever") == tokenizer.encode("a fever").ids
    model.close()


def test_an_unknown_pre_tokenizer_asks_for_the_base(checkpoint: Path, family: Family, out: Path) -> None:
    edit_json(checkpoint / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(ModelFileError, match=r"\"Whitespace\"\} is none of gpt-2, .* --base"):
        to_gguf(checkpoint, out)
    to_gguf(checkpoint, out, base=family.base)


def test_a_folder_without_tokenizer_asks_for_the_base(checkpoint: Path, family: Family, out: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json; give the base's GGUF with --base"):
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
    for build in (lambda: built(folder, 400), lambda: copied(family.base, folder, 400)):
        try:
            assert len(build().tokens) == 400
        except ModelFileError as error:
            assert str(error).startswith(f"{folder}")


def test_a_tokenizer_without_eos_is_refused(checkpoint: Path, out: Path) -> None:
    (checkpoint / "tokenizer_config.json").unlink()
    edit_json(checkpoint / "config.json", eos_token_id=None)
    with pytest.raises(ModelFileError, match="names no EOS token"):
        to_gguf(checkpoint, out)


def test_a_tensor_without_place_is_named(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)})
    with pytest.raises(ModelFileError, match=r"the tensor model\.layers\.0\.self_attn\.q_norm\.weight has no place"):
        to_gguf(checkpoint, out)


def test_a_missing_tensor_is_named(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, remove="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelFileError, match=r"the tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        to_gguf(checkpoint, out)


def test_a_tensor_of_another_shape_is_named_with_both(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight is 32, config\.json makes it 64"):
        to_gguf(checkpoint, out)


def test_a_diverged_checkpoint_is_refused(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.norm.weight": np.full(64, np.nan, np.float32)})
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight holds NaN or infinity"):
        to_gguf(checkpoint, out)
    assert list(out.parent.iterdir()) == []


def test_a_weight_beyond_f16_is_refused_and_bf16_advised(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.layers.0.mlp.down_proj.weight": np.full((64, 128), 1e6, np.float32)})
    with pytest.raises(ModelFileError, match="exceeds the range of f16; use --outtype bf16"):
        to_gguf(checkpoint, out, "f16")
    assert to_gguf(checkpoint, out, "bf16").outtype == "bf16"


def test_an_existing_outfile_is_kept(family: Family, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(ExistingOutputError, match="exists and is not overwritten"):
        to_gguf(family.memory_checkpoint, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("length", [0, 4, 300, 100_000])
def test_truncated_weights_are_refused(checkpoint: Path, out: Path, length: int) -> None:
    os.truncate(checkpoint / "model.safetensors", length)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be read .* cut short"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_names_the_path(checkpoint: Path, out: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name}: no such"):
        to_gguf(checkpoint, out)


def test_a_missing_folder_and_a_missing_base_name_the_path(tmp_path: Path, family: Family, out: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere: no such checkpoint folder"):
        to_gguf(tmp_path / "nowhere", out)
    with pytest.raises(MissingFileError, match=r"nowhere\.gguf: no such GGUF file"):
        to_gguf(family.memory_checkpoint, out, base=tmp_path / "nowhere.gguf")


def test_pickled_weights_are_not_opened(checkpoint: Path, out: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="only pickled weights; save it as safetensors"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\xff", "[" * 100_000, '{"architectures": 3}', "{}"])
def test_a_garbage_config_is_refused(checkpoint: Path, out: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"config\.json"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the architecture is GPT2LMHeadModel; only LlamaForCausalLM"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "do not go with 3 key-value heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' cannot be converted"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"num_hidden_layers": 3}, r"the tensor model\.layers\.2\.input_layernorm\.weight is missing"),
        ({"vocab_size": 399}, "400 x 64, config.json makes it 399 x 64"),
    ],
)
def test_a_config_that_cannot_be_is_named(checkpoint: Path, out: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)


def test_an_unknown_outtype_is_an_option_error(family: Family, out: Path) -> None:
    with pytest.raises(OptionError, match="--outtype is q3_k"):
        to_gguf(family.memory_checkpoint, out, "q3_k")


def test_what_training_noted_goes_into_the_file(checkpoint: Path, family: Family, out: Path) -> None:
    notes = {
        "general.name": "Tiny medicine", "general.license": "cc-by-4.0", "general.datasets": ["one", "two"],
        "memdec_edge.domain": "medicine", "memdec_edge.train.beta": 0.5, "memdec_edge.train.tokens": 5_000_000_000,
        "memdec_edge.train.teacher": None, "memdec_edge.lambda": 1,
    }  # fmt: skip
    (checkpoint / "memdec.json").write_text(json.dumps(notes), encoding="utf-8")
    to_gguf(checkpoint, out, base=family.base)
    model = Model(out, vocab_only=True)
    meta = model.metadata
    model.close()
    facts = metadata.MemoryFacts.from_gguf(out, meta)
    assert (meta["general.name"], meta["general.license"]) == ("Tiny medicine", "cc-by-4.0")
    assert meta["general.base_model.0.name"] == family.base_checkpoint.name
    assert (facts.domain, facts.weight) == ("medicine", 1.0)
    assert facts.train == {"beta": "0.500000", "tokens": "5000000000"}
    fields = GGUFReader(out).fields
    assert fields["general.datasets"].contents() == ["one", "two"]
    assert fields["general.tags"].contents() == ["memory-decoder", "memdec-edge"]


@pytest.mark.parametrize(
    ("notes", "named"),
    [
        ({"llama.block_count": 3}, "llama.block_count cannot be set"),
        ({"memdec_edge.role": "model"}, "memdec_edge.role cannot be set"),
        ({"memdec_edge.train.k": {"a": 1}}, "memdec_edge.train.k is {'a': 1}"),
        ({"memdec_edge.lambda": 1.5}, "memdec_edge.lambda is 1.5"),
    ],
)
def test_notes_that_cannot_be_are_named(checkpoint: Path, out: Path, notes: dict[str, Any], named: str) -> None:
    (checkpoint / "memdec.json").write_text(json.dumps(notes), encoding="utf-8")
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)


def test_a_memorys_name_is_advised(family: Family, tmp_path: Path) -> None:
    assert to_gguf(family.memory_checkpoint, tmp_path / "law.gguf").warnings == (
        "the name of a memory should start with memdec-: memdec-law.gguf",
    )
    assert to_gguf(family.memory_checkpoint, tmp_path / "model.gguf", role="model").warnings == ()


def test_verify_reports_the_distance_from_pytorch(family: Family, out: Path) -> None:
    exact = to_gguf(family.memory_checkpoint, out, base=family.base, verify=True).verification
    assert exact is not None
    assert exact.max_delta < 1e-3
    assert (exact.n_tokens, exact.same_top, exact.same_tokens) == (MAX_TOKENS, 1.0, True)
    rough = to_gguf(family.memory_checkpoint, out.with_name("memdec-q8.gguf"), "q8_0", verify=True).verification
    assert rough is not None
    assert rough.max_delta > 10 * exact.max_delta


def test_verify_refuses_another_model(family: Family, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=99)
    with pytest.raises(ModelFileError, match="does not compute what PyTorch does"):
        verify(family.memory, other)


def test_a_full_disk_leaves_nothing(family: Family, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from memdec_edge.convert import convert; from memdec_edge.options import "
        "ConvertOptions; from memdec_edge.errors import OutputError\n"
        "try: convert(ConvertOptions(checkpoint=Path(sys.argv[1]), outfile=Path(sys.argv[2]), outtype='f32'))\n"
        "except OutputError as error: print(error)"
    )
    out = tmp_path / "full" / "memdec-own.gguf"
    found = subprocess.run(
        [sys.executable, "-c", script, str(family.memory_checkpoint), str(out)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{out} could not be written: " in found.stdout
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(family: Family, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        to_gguf(family.memory_checkpoint, tmp_path / "file" / "memdec-own.gguf")


def test_a_missing_extra_is_named(family: Family, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"safetensors is not installed; pip install 'memdec-edge\[convert\]'"):
        to_gguf(family.memory_checkpoint, out)
