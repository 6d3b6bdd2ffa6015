"""train/layers.py against plain transformers: which blocks a model can do without."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from memdec_edge.train import train
from memdec_edge.train.layers import choose_layers
from memdec_edge.train.models import blocks_of, load_source
from memdec_edge.train.student import make_memory
from tests.support.hf import hf_checkpoint
from tests.support.tiny import tiny_checkpoint
from tests.support.training import make_room, train_options

CPU = torch.device("cpu")
IDS = torch.randint(1, 300, (2, 33), generator=torch.Generator().manual_seed(0))


def loss(model: Any) -> float:
    """Mean cross-entropy, by the model's own forward."""
    with torch.no_grad():
        logits = model(input_ids=IDS[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).item()


def test_the_block_whose_absence_costs_least_is_left_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdec_edge.train.models.work_dtype", lambda device: torch.float32)
    source = load_source(tiny_checkpoint(tmp_path / "a", layers=5))
    for scale, block in zip((1.0, 30.0, 1.0, 30.0, 1.0), blocks_of(source.model)[1], strict=True):
        block.mlp.down_proj.weight.data *= scale  # so that blocks differ
    kept = list(range(5))
    for size in (4, 3, 2):
        losses = {gone: loss(make_memory(source, [i for i in kept if i != gone], None, 0)) for gone in kept}
        kept.remove(min(losses, key=losses.__getitem__))
        assert choose_layers(source, size, IDS, CPU) == kept
    assert choose_layers(source, 5, IDS, CPU) == list(range(5))
    assert loss(source.model) == loss(make_memory(source, None, None, 0))  # the source is as it was


@pytest.mark.parametrize("family", ["GPT2", "Qwen3", "GPTNeoX", "Gemma3", "Mistral"])
def test_blocks_of_every_family_can_be_left_out(tmp_path: Path, family: str) -> None:
    source = load_source(hf_checkpoint(tmp_path / "model", family))
    total = source.model.config.num_hidden_layers
    kept = choose_layers(source, total - 1, IDS, CPU)
    assert len(kept) == total - 1
    memory = make_memory(source, kept, None, 0)
    assert torch.tensor(loss(memory)).isfinite()


def test_a_trained_memory_has_the_chosen_layers_and_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    room = make_room(tmp_path)
    train(train_options(room, tmp_path / "memory", layers=1, lr=0.0, steps=1))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "memory", dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(room / "teacher", dtype=torch.float32)
    assert model.config.num_hidden_layers == 1
    mine = model.model.layers[0].mlp.down_proj.weight
    assert any(torch.equal(mine, block.mlp.down_proj.weight) for block in theirs.model.layers)
