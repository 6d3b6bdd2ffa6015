"""Search, loss and training on a CUDA card, against float64 on the CPU. Without a card nothing here runs.

    python -m pytest tests/train/test_cuda.py

Where llama_cpp is not installed, --noconftest leaves the other tests' fixtures alone.
"""

import copy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memdec_edge.options import CacheOptions, TrainOptions
from memdec_edge.train.feed import Data
from memdec_edge.train.knn.exact import Exact, Neighbours
from memdec_edge.train.loop import accelerator
from memdec_edge.train.loss import Objective
from memdec_edge.train.step import Learner
from memdec_edge.train.validation import Validation
from tests.support.causal import BATCH, LENGTH, MODELS, N_VOCAB, batch, model_of
from tests.support.training import ONCE, make_room, metrics
from tests.train.test_exact import KINDS, check
from tests.train.test_loss import dense_gradients, gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
CARD = torch.device("cuda")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_keys_are_those_of_brute_force(kind: str, own: bool) -> None:
    random = np.random.default_rng(0)
    keys = KINDS[kind](random.standard_normal((3000, 16)), random).astype(np.float16)
    first = 1000 if own else None
    queries = keys[1000:1300] if own else random.standard_normal((300, 16)).astype(np.float16)
    found = Exact([keys[:1700], keys[1700:]], CARD).search(torch.from_numpy(queries), 64, first)
    check(Neighbours(found.distances.cpu(), found.indices.cpu()), queries, keys, 64, first)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_close_to_float64(name: str, dtype: torch.dtype) -> None:
    precision = 1e-4 if dtype == torch.float32 else 0.02
    ids, support, knn = batch()
    model = model_of(name, dtype)
    expected, wanted = dense_gradients(copy.deepcopy(model).double(), ids, knn, 0.5)
    model.to(CARD)
    loss = Objective(model)(ids.to(CARD), support.to(CARD), 0.5)[0]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=precision)
    for key, found in gradients(model).items():
        assert (found.cpu() - wanted[key]).norm() < 3 * precision * wanted[key].norm(), key


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, untied"])
def test_a_graph_of_the_body_teaches_what_the_plain_body_does(name: str, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, 600).astype(np.uint16)
    cache = CacheOptions(tmp_path, tmp_path, tmp_path, block=LENGTH, batch=BATCH)
    options, data = TrainOptions(cache, tmp_path, accumulate=2), Data(tokens, None, Validation(tokens, LENGTH), LENGTH)
    found = []
    for graphed in (True, False):
        model = model_of(name, torch.float32)
        model.set_attn_implementation("sdpa")
        learner = Learner(options, model, data, accelerator())
        assert learner._objective.body.is_graph
        if not graphed:
            before = torch.cuda.memory_reserved()
            learner._objective.body.release()
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() < before
        losses = []
        for number in range(12):
            losses.append(learner.gradients(number).known().loss)
            learner.update(3e-3)
        learner.close()
        assert not learner._objective.body.is_graph
        found.append((losses, {key: weight.cpu() for key, weight in learner.weights.items()}))
    (losses, ours), (expected, theirs) = found
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses[-1] < 0.9 * losses[0]
    for key, weight in theirs.items():
        assert (ours[key] - weight).norm() < 0.02 * weight.norm(), key


def test_a_killed_training_ends_like_one_that_is_not(tmp_path: Path) -> None:
    """Sums on a card have no fixed order, so to rounding and not to the last bit."""
    room = make_room(tmp_path / "room")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    command: list[str | Path] = [sys.executable, "-c", ONCE, room]
    subprocess.run([*command, straight], check=True)
    lines = broken / "memory" / "metrics.jsonl"
    with subprocess.Popen([*command, broken]) as process:
        while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") >= 20):
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    subprocess.run([*command, broken], check=True)
    losses = [[line["loss"] for line in metrics(folder / "memory")] for folder in (straight, broken)]
    assert len(losses[0]) == 120
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    one, other = (load_file(folder / "memory" / "model.safetensors") for folder in (straight, broken))
    for name, weight in one.items():
        assert (other[name] - weight).norm() < 0.02 * weight.norm(), name
