"""train/head.py against whole logits, and the models that it refuses."""

import pytest
import torch
import transformers

from memdec_edge.errors import ModelFileError
from memdec_edge.train.head import check_head, predict
from tests.support.causal import MODELS, WIDE, batch, model_of


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
