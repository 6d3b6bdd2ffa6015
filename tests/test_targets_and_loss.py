"""train/targets.py and train/loss.py against dense formulas in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import StageError
from memdec_edge.options import DEFAULT_LAMBDA
from memdec_edge.train.loss import hybrid_loss
from memdec_edge.train.stage import open_stage
from memdec_edge.train.targets import Support, Targets, aggregate, choose_temperature

N_VOCAB = 40


def neighbours(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    distances = np.sort(random.gamma(2.0, 3.0, (n, k)), axis=1).astype(np.float32)
    return distances, random.integers(0, N_VOCAB, (n, k)).astype(np.uint32)


def dense(distances: np.ndarray, values: np.ndarray, tau: float) -> np.ndarray:
    """p_kNN, float64 [n, N_VOCAB]."""
    result: np.ndarray = np.zeros((len(distances), N_VOCAB))
    for row in range(len(distances)):
        for distance, value in zip(distances[row], values[row], strict=True):
            result[row, value] += np.exp(-float(distance) / tau)
    result /= result.sum(1, keepdims=True)
    return result


def support_of(tmp_path: Path, seed: int, n: int, k: int, tau: float) -> tuple[Support, torch.Tensor]:
    """Targets that went to disk and back, and the same ones dense."""
    distances, values = neighbours(seed, n, k)
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    stage.begin()
    stage.write("a.safetensors", aggregate(distances, values, tau))
    support = Targets(stage, ["a.safetensors"]).rows([0], n)
    return support, torch.from_numpy(dense(distances, values, tau))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), k=st.integers(1, 30), tau=st.floats(0.5, 50))
def test_aggregated_neighbours_equal_the_dense_formula(seed: int, n: int, k: int, tau: float) -> None:
    distances, values = neighbours(seed, n, k)
    csr, truth = aggregate(distances, values, tau), dense(distances, values, tau)
    assert csr["probs"].dtype == np.float16
    assert csr["ids"].dtype == np.uint32
    for row in range(n):
        pairs = slice(csr["offsets"][row], csr["offsets"][row + 1])
        ids, probs = csr["ids"][pairs], csr["probs"][pairs]
        assert (np.diff(ids.astype(int)) > 0).all()
        assert (probs > 0).all()
        found = np.zeros(N_VOCAB)
        found[ids] = probs
        np.testing.assert_allclose(found, truth[row], rtol=6e-4, atol=6e-8)  # float16


def test_distances_far_from_zero_do_not_underflow() -> None:
    csr = aggregate(np.array([[5000.0, 5000.0, 6000.0]], np.float32), np.array([[3, 1, 2]], np.uint32), 1.0)
    assert csr["ids"].tolist() == [1, 3]  # exp(-1000) is left out
    assert csr["probs"].tolist() == [0.5, 0.5]


def test_rows_read_back_sum_to_one_across_shards(tmp_path: Path) -> None:
    distances, values = neighbours(5, 12, 20)
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    stage.begin()
    stage.write("a.safetensors", aggregate(distances[:8], values[:8], 4.0))
    stage.write("b.safetensors", aggregate(distances[8:], values[8:], 4.0))
    targets = Targets(stage, ["a.safetensors", "b.safetensors"])
    support = targets.rows([8, 4, 0], 4)
    truth = dense(distances, values, 4.0)[[8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]]
    for row in range(12):
        pairs = slice(int(support.offsets[row]), int(support.offsets[row + 1]))
        found = np.zeros(N_VOCAB)
        found[support.ids[pairs].numpy()] = support.probs[pairs].numpy()
        assert support.probs[pairs].sum().item() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(found, truth[row], rtol=1e-3, atol=1e-6)


def test_a_flipped_byte_in_a_target_shard_is_never_read(tmp_path: Path) -> None:
    support_of(tmp_path, 0, 4, 5, 1.0)
    path = tmp_path / "stage" / "a.safetensors"
    stage = open_stage(tmp_path / "stage", "test", {}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        Targets(stage, ["a.safetensors"])
    assert str(caught.value).startswith(f"{path}: damaged (its content does not match its digest); use another output")


def test_the_chosen_temperature_has_the_least_perplexity() -> None:
    distances, values = neighbours(3, 200, 16)
    random = np.random.default_rng(4)
    labels = np.array([random.choice(N_VOCAB, p=row) for row in dense(distances, values, 3.0)])  # 3 is the truth
    teacher = np.log(random.uniform(0.01, 0.3, 200)).astype(np.float32)
    chosen = choose_temperature(distances, values == labels[:, None], teacher, None)

    def perplexity(tau: float) -> float:
        knn = dense(distances, values, tau)[np.arange(200), labels]
        return float(
            np.exp(-np.log(DEFAULT_LAMBDA * knn + (1 - DEFAULT_LAMBDA) * np.exp(teacher.astype(float))).mean())
        )

    assert chosen.knn == pytest.approx(perplexity(chosen.tau), rel=1e-5)
    assert 1 < chosen.tau < 9
    assert all(chosen.knn <= perplexity(chosen.tau * factor) * 1.00001 for factor in (0.25, 2**-0.5, 2**0.5, 4))
    assert chosen.teacher == pytest.approx(float(np.exp(-teacher.astype(float).mean())), rel=1e-5)
    given_tau = choose_temperature(distances, values == labels[:, None], teacher, 7.0)
    assert given_tau.tau == 7.0
    assert given_tau.knn == pytest.approx(perplexity(7.0), rel=1e-5)


def dense_loss(logits: torch.Tensor, labels: torch.Tensor, knn: torch.Tensor, beta: float) -> torch.Tensor:
    """2508.09874, eq. 5, written down as it stands."""
    logprobs = logits.log_softmax(1)
    kl = torch.nn.functional.kl_div(logprobs, knn, reduction="batchmean")
    return beta * kl + (1 - beta) * torch.nn.functional.nll_loss(logprobs, labels)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_loss_and_gradient_equal_the_dense_formula(tmp_path: Path, beta: float) -> None:
    n = 300  # more rows than one pass takes
    support, knn = support_of(tmp_path, 1, n, 12, 5.0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, N_VOCAB, generator=generator, dtype=torch.float64).mul_(4).requires_grad_()
    labels = torch.randint(0, N_VOCAB, (n,), generator=generator)
    knn = torch.zeros_like(knn)
    rows = torch.repeat_interleave(torch.arange(n), support.offsets.diff())
    knn[rows, support.ids] = support.probs.double()  # as rounded on disk

    expected = dense_loss(logits, labels, knn, beta)
    (wanted,) = torch.autograd.grad(expected, logits)
    loss, ce, kl = hybrid_loss(logits, labels, support, beta)
    (found,) = torch.autograd.grad(loss * 3, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ce.item() == pytest.approx(dense_loss(logits, labels, knn, 0.0).item(), rel=1e-6)
    assert kl.item() == pytest.approx(dense_loss(logits, labels, knn, 1.0).item(), rel=1e-6)
    torch.testing.assert_close(found, wanted * 3, rtol=1e-5, atol=1e-9)


def test_bfloat16_logits_give_a_bfloat16_gradient_close_to_the_exact_one(tmp_path: Path) -> None:
    support, knn = support_of(tmp_path, 2, 50, 12, 5.0)
    exact = torch.randn(50, N_VOCAB, generator=torch.Generator().manual_seed(0)).mul_(4).bfloat16().double()
    labels = torch.arange(50) % N_VOCAB
    exact.requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    (wanted,) = torch.autograd.grad(dense_loss(exact, labels, knn, 0.5), exact)
    loss = hybrid_loss(rounded, labels, support, 0.5)[0]
    (found,) = torch.autograd.grad(loss, rounded)
    assert found.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=2e-5)


def test_without_targets_the_loss_is_cross_entropy() -> None:
    logits = torch.randn(9, N_VOCAB, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(9)
    loss, ce, kl = hybrid_loss(logits, labels, Support.empty(9), 0.0)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ce.item() == loss.item()
    assert kl.item() == 0
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_large_logits_stay_finite(tmp_path: Path) -> None:
    support, _ = support_of(tmp_path, 2, 4, 12, 5.0)
    logits = torch.full((4, N_VOCAB), -30_000.0)
    logits[:, 0] = 30_000.0
    loss = hybrid_loss(logits.requires_grad_(), torch.zeros(4, dtype=torch.int64), support, 0.5)[0]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
