"""train/teacher.py: keys and log-probs of both runtimes against transformers in float32."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers

from memdec_edge.errors import ModelFileError, NumericsError
from memdec_edge.options import KEYS
from memdec_edge.train import llama_teacher
from memdec_edge.train.llama_teacher import LlamaTeacher
from memdec_edge.train.models import load_source
from memdec_edge.train.teacher import Teacher, TorchTeacher, gather_blocks, n_blocks
from memdec_edge.train.teachers import open_teacher
from tests.support.hf import hf_checkpoint
from tests.support.tiny import edit_tensors, tiny_checkpoint, tiny_gguf, tiny_tokenizer

CPU = torch.device("cpu")
BLOCK = 16
TOKENS = np.random.default_rng(0).integers(1, 300, 5 * BLOCK + 3).astype(np.uint32)


def truth(folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, log-probs of the next token and of every token, of every whole block, float32."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    caught: list[torch.Tensor] = []
    module = model.model.layers[-1].post_attention_layernorm if kind == "mlp_input" else model.model.norm
    module.register_forward_hook(lambda module, args, output: caught.append(output))
    ids = gather_blocks(TOKENS, range(5), BLOCK)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    own = logits.gather(2, ids[:, 1:, None]).flatten().numpy()
    return caught[0].flatten(0, 1).numpy(), own, logits.flatten(0, 1).numpy()


def test_blocks_do_not_overlap_and_each_needs_the_token_after_it() -> None:
    assert [n_blocks(TOKENS[:n], BLOCK) for n in (0, 1, 16, 17, 32, 33)] == [0, 0, 0, 1, 1, 2]
    assert gather_blocks(TOKENS, [1, 3], BLOCK).tolist() == [TOKENS[16:33].tolist(), TOKENS[48:65].tolist()]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_both_runtimes_give_the_keys_and_log_probs_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, architecture: Literal["llama", "qwen2"]
) -> None:
    monkeypatch.setattr(llama_teacher, "LLAMA_BATCH", 7)  # a block takes several passes
    folder = tiny_checkpoint(tmp_path / "model", architecture=architecture)
    keys, log_probs, every = truth(folder, kind)
    teachers = (open_teacher(folder, kind, CPU), open_teacher(tiny_gguf(tmp_path / "a.gguf", folder), kind, CPU))
    assert [type(teacher) for teacher in teachers] == [TorchTeacher, LlamaTeacher]
    told: list[int] = []
    for teacher in teachers:
        read = teacher.read(TOKENS, range(5), BLOCK, 2, told.append, scored=True, most=7)
        found, scores = read.keys, read.logprobs
        alone = teacher.read(TOKENS, range(1, 4), BLOCK, 2, told.append).keys
        assert (found.dtype, scores.dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(alone, found[BLOCK : 4 * BLOCK])
        assert np.square(found - keys).mean() < 0.002 * np.square(keys).mean()  # bfloat16 where the CPU has it
        assert np.abs(scores - log_probs).max() < 0.2
        assert (read.ids.dtype, read.probs.dtype, read.ids.shape) == (np.uint32, np.float16, (80, 7))
        assert np.abs(np.log(read.probs) - np.take_along_axis(every, read.ids.astype(int), 1)).max() < 0.4
        assert (
            np.exp(np.sort(every)[:, -7:]).sum(1) - read.probs.astype(float).sum(1) < 0.05
        ).all()  # they are the likeliest
        assert (teacher.name in ("model", "a"), teacher.width, teacher.n_ctx) == (True, 64, 512)
    assert told == [32, 32, 16, 32, 16] * 2
    assert np.abs(scores - log_probs).max() < 0.02  # llama.cpp on an F32 file


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("family", ["GPT2", "Qwen3", "GPTNeoX", "Gemma3", "Mistral"])
def test_every_family_gives_the_same_keys_in_both_runtimes(tmp_path: Path, kind: str, family: str) -> None:
    folder = hf_checkpoint(tmp_path / "model", family)
    gguf = tiny_gguf(tmp_path / "a.gguf", folder)
    one, other = (
        open_teacher(path, kind, CPU).read(TOKENS, range(3), BLOCK, 2, lambda done: None, scored=True)
        for path in (folder, gguf)
    )
    keys, log_probs = one.keys.astype(np.float32), one.logprobs
    assert np.square(other.keys - keys).mean() < 0.002 * np.square(keys).mean()
    assert np.abs(other.logprobs - log_probs).max() < 0.2


def test_teachers_of_one_model_speak_alike(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    teachers = [open_teacher(path, "hidden", CPU) for path in (folder, tiny_gguf(tmp_path / "a.gguf", folder))]
    text = "The heart is a muscle. <|endoftext|> It pumps 12 litres"
    assert len({str(teacher.encoder.encode([text])) for teacher in teachers}) == 1
    assert len({(teacher.encoder.bos, teacher.encoder.eos, teacher.n_vocab) for teacher in teachers}) == 1


@pytest.mark.parametrize("in_llama", [False, True])
def test_keys_beyond_float16_stop_the_work(tmp_path: Path, in_llama: bool) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    edit_tensors(folder, {"model.norm.weight": np.full(64, 1e6, np.float32)})
    path = tiny_gguf(tmp_path / "model.gguf", folder) if in_llama else folder
    with pytest.raises(NumericsError, match="teacher model: a key is NaN or too large for float16"):
        open_teacher(path, "hidden", CPU).read(TOKENS, [0], BLOCK, 1, lambda done: None)


def test_a_teacher_whose_logits_are_more_than_a_matrix_is_refused(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    tiny_tokenizer(tmp_path)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="the logits of Gemma2ForCausalLM are more than a matrix"):
        open_teacher(tmp_path, "hidden", CPU)


def test_a_kind_of_key_that_llama_cpp_does_not_compute_is_named(tmp_path: Path) -> None:
    teacher: Teacher = open_teacher(tiny_gguf(tmp_path / "a.gguf", tiny_checkpoint(tmp_path / "a")), "mlp_input", CPU)
    assert isinstance(teacher, LlamaTeacher)
    teacher._tap.name = "ffn_norm-7"
    teacher._tap._state.name = b"ffn_norm-7"
    with pytest.raises(ModelFileError, match=r"a\.gguf: llama\.cpp computes no ffn_norm-7 for it; choose another"):
        teacher.read(TOKENS, [0], BLOCK, 1, lambda done: None)


def test_the_tokenizer_of_a_gguf_has_the_ggufs_eos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of transformers name another token."""
    gguf = tiny_gguf(tmp_path / "teacher.gguf", tiny_checkpoint(tmp_path / "teacher"))
    known = load_source(gguf).tokenizer
    read = transformers.AutoTokenizer.from_pretrained

    def mistaken(*args: Any, **options: Any) -> Any:
        tokenizer = read(*args, **options)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(5)
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", mistaken)
    assert known.eos_token_id == load_source(gguf).encoder.eos != 5
    assert load_source(gguf).tokenizer.eos_token_id == known.eos_token_id
