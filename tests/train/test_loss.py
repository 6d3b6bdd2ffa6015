"""train/loss.py against the dense formula and autograd in float64."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memdec_edge.errors import ModelFileError
from memdec_edge.train import loss as loss_module
from memdec_edge.train.loss import Objective, check_head, predict
from memdec_edge.train.targets import Support

N_VOCAB, BATCH, LENGTH = 160, 3, 20
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": N_VOCAB}
WIDE: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": None}
MODELS = {
    "llama, tied": transformers.LlamaConfig(**WIDE, tie_word_embeddings=True),
    "qwen2, untied": transformers.Qwen2Config(**WIDE, tie_word_embeddings=False),
    "qwen3, tied": transformers.Qwen3Config(**WIDE, head_dim=8, tie_word_embeddings=True),
    "gpt2, tied": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=N_VOCAB, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "gpt_neox, untied": transformers.GPTNeoXConfig(**SHAPE, intermediate_size=64),
    "gemma3, tied": transformers.Gemma3TextConfig(**WIDE, head_dim=8, layer_types=["full_attention"] * 2),
    "phi, head with a bias": transformers.PhiConfig(**SHAPE, intermediate_size=64),
}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model whose logits are spread."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="eager").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.train()


def batch(seed: int = 0) -> tuple[Tensor, Support, Tensor]:
    """Token ids; p_kNN with up to 12 tokens at a position, at every seventh none; the same p_kNN dense."""
    generator = torch.Generator().manual_seed(seed)
    n = BATCH * LENGTH
    ids = torch.randint(0, N_VOCAB, (BATCH, LENGTH + 1), generator=generator)
    knn = torch.rand(n, N_VOCAB, generator=generator, dtype=torch.float64).topk(12)
    counts = torch.randint(1, 13, (n,), generator=generator)
    counts[::7] = 0
    rows, tokens, probs = [], [], []
    dense = torch.zeros(n, N_VOCAB, dtype=torch.float64)
    for row in range(n):
        chosen = knn.indices[row, : counts[row]].sort().values
        weights = torch.rand(len(chosen), generator=generator) + 0.01
        rows.append(len(chosen))
        tokens.append(chosen)
        probs.append(weights / weights.sum())
        dense[row, chosen] = probs[-1].double()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(rows).cumsum(0)])
    return ids, Support(offsets, torch.cat(tokens), torch.cat(probs)), dense


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


@pytest.fixture(params=[1, 7, BATCH * LENGTH], ids=lambda tokens: f"chunks of {tokens}")
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", request.param * N_VOCAB * 8)


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
    monkeypatch.setattr(loss_module, "CHUNK", 16 * N_VOCAB * 2)
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


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("name", ["qwen2, untied", "phi, head with a bias"])
def test_a_prediction_is_the_loss_of_the_next_token_and_the_likeliest_ones(name: str) -> None:
    model, ids = model_of(name), batch()[0]
    predicted = predict(model, ids, most=3)
    found = predicted.losses
    logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(
        found, torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").float()
    )
    probs, likeliest = logits.softmax(1).sort(descending=True)
    torch.testing.assert_close(predicted.probs, probs[:, :3].float())
    assert predicted.ids.tolist() == likeliest[:, :3].tolist()


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
    monkeypatch.setattr(loss_module, "CHUNK", 10 * N_VOCAB * 4)
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


REFUSED = {
    "Gemma2ForCausalLM": transformers.Gemma2Config(**WIDE, head_dim=8),  # caps its logits at 30
    "CohereForCausalLM": transformers.CohereConfig(**WIDE),  # scales them
    "GraniteForCausalLM": transformers.GraniteConfig(**WIDE, logits_scaling=8.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_more_than_a_matrix_is_refused_by_name(name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(REFUSED[name]).train()
    with pytest.raises(ModelFileError) as caught:
        check_head(model)
    assert f"the logits of {name} are more than a matrix on its last hidden state" in str(caught.value)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_head_that_is_a_matrix_passes_and_the_model_stays_as_it_was(name: str, dtype: torch.dtype) -> None:
    model, ids = model_of(name, dtype), batch()[0]
    before = model(input_ids=ids).logits
    check_head(model)
    assert model.training
    assert torch.equal(model(input_ids=ids).logits, before)
