"""train/loss.py against the dense formula and autograd in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memdec_edge.train import head
from memdec_edge.train.head import predict
from memdec_edge.train.loss import Objective
from memdec_edge.train.targets import Support
from tests.support.causal import BATCH, LENGTH, MODELS, N_VOCAB, batch, model_of


def dense_loss(logits: Tensor, labels: Tensor, knn: Tensor, beta: float) -> Tensor:
    """2508.09874, eq. 5, written down as it stands."""
    logprobs = logits.log_softmax(1)
    kl = torch.nn.functional.kl_div(logprobs, knn, reduction="batchmean")
    return beta * kl + (1 - beta) * torch.nn.functional.nll_loss(logprobs, labels)


def dense_gradients(model: Any, ids: Tensor, knn: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every weight's gradient by autograd through whole logits."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    found = dense_loss(logits, ids[:, 1:].flatten(), knn, beta)
    model.zero_grad()
    torch.autograd.backward(found)
    return found.detach(), gradients(model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_weights_gradient_equal_the_dense_formula(name: str, beta: float) -> None:
    model = model_of(name)
    ids, support, knn = batch()
    expected, wanted = dense_gradients(model, ids, knn, beta)
    model.zero_grad()
    loss, ce, kl = Objective(model)(ids, support, beta)
    (loss / 4).backward()  # as where gradients are accumulated
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    with torch.no_grad():
        logits, labels = model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()
    assert ce.item() == pytest.approx(dense_loss(logits, labels, knn, 0.0).item(), rel=1e-12)
    assert kl.item() == pytest.approx(dense_loss(logits, labels, knn, 1.0).item(), rel=1e-12)
    assert not ce.requires_grad
    assert not kl.requires_grad
    for key, found in gradients(model).items():
        assert torch.allclose(found * 4, wanted[key], rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, untied"])
def test_float32_and_bfloat16_are_close_to_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 16 * N_VOCAB * 2)
    ids, support, knn = batch()
    for dtype, precision in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        model = model_of(name, dtype)
        exact = copy.deepcopy(model).double()
        expected, wanted = dense_gradients(exact, ids, knn, 0.5)
        loss = Objective(model)(ids, support, 0.5)[0]
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=precision)
        for key, found in gradients(model).items():
            assert found.dtype == dtype
            assert (found - wanted[key]).norm() < 3 * precision * wanted[key].norm(), key


def test_without_targets_the_loss_is_cross_entropy() -> None:
    model = model_of("llama, tied", torch.float32)
    ids = batch()[0]
    loss, ce, kl = Objective(model)(ids, Support.empty(BATCH * LENGTH), 0.0)
    expected = torch.nn.functional.cross_entropy(
        model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (ce.item(), kl.item()) == (loss.item(), 0)


def test_large_logits_stay_finite() -> None:
    model = model_of("qwen2, untied", torch.float32)
    model.lm_head.weight.data *= 30_000
    ids, support, _ = batch()
    loss = Objective(model)(ids, support, 0.5)[0]
    loss.backward()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert predict(model, ids).losses.isfinite().all()


def test_a_logit_that_is_no_number_makes_the_loss_no_number() -> None:
    model = model_of("qwen2, untied", torch.float32)
    model.lm_head.weight.data[5, 0] = torch.nan
    ids, support, _ = batch()
    assert Objective(model)(ids, support, 0.5)[0].isnan()
    assert predict(model, ids).losses.isnan().all()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        self.elements = max([self.elements, *(tensor.numel() for tensor in made if isinstance(tensor, Tensor))])
        return result


def test_tokens_times_vocabulary_never_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 10 * N_VOCAB * 4)
    model = model_of("llama, tied", torch.float32)
    ids, support, knn = batch()
    with Largest() as dense:  # type: ignore[no-untyped-call]
        dense_gradients(model, ids, knn.float(), 0.5)
    with Largest() as ours:  # type: ignore[no-untyped-call]
        Objective(model)(ids, support, 0.5)[0].backward()
        predict(model, ids)
    assert dense.elements == BATCH * LENGTH * N_VOCAB
    assert ours.elements == 32 * N_VOCAB  # the head


def test_a_second_backward_is_refused_rather_than_wrong() -> None:
    model = model_of("llama, tied", torch.float32)
    ids, support, _ = batch()
    loss = Objective(model)(ids, support, 0.5)[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
