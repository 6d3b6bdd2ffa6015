"""Completions: texts and token ids that go on, echo, and log-probs in the older shape."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from memdec_edge.api import open_model
from memdec_edge.options import GenerationOptions, ServerOptions
from tests.server.conftest import LOAD, SOBER
from tests.support.web import Web, serving

TEXT = "Anaemia is a lack"
PATH = "/v1/completions"


def tokens_of(web: Web, text: str) -> list[int]:
    return web.service.model.engine.base.tokenize(text)


def test_a_text_goes_on_as_in_the_python_api_and_a_stream_joins_to_it(web: Web, client: OpenAI) -> None:
    done = client.completions.create(model="any", prompt=TEXT, max_tokens=16)
    model = web.service.model
    expected = model.generate(TEXT, web.service.defaults.sampling, GenerationOptions(n_predict=16))
    assert done.choices[0].text == expected.text
    assert done.id.startswith("cmpl-")
    assert done.usage
    assert done.usage.prompt_tokens == len(tokens_of(web, TEXT))
    chunks = list(client.completions.create(model="any", prompt=TEXT, max_tokens=16, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_prompts_are_texts_and_ids_and_lists_of_both(web: Web) -> None:
    ids = tokens_of(web, TEXT)
    asked = {"max_tokens": 5}
    one = web.post(PATH, asked | {"prompt": TEXT}).body["choices"][0]["text"]
    assert web.post(PATH, asked | {"prompt": ids}).body["choices"][0]["text"] == one
    several = web.post(PATH, asked | {"prompt": [TEXT, "A fever", TEXT]}).body
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    assert several["choices"][0]["text"] == several["choices"][2]["text"] == one != several["choices"][1]["text"]
    assert several["usage"]["prompt_tokens"] == 2 * len(ids) + len(tokens_of(web, "A fever"))
    lists = web.post(
        PATH, asked | {"prompt": [ids, tokens_of(web, "A fever")], "n": 2, "temperature": 2, "seed": 1}
    ).body
    assert [choice["index"] for choice in lists["choices"]] == [0, 1, 2, 3]
    assert lists["usage"]["prompt_tokens"] == len(ids) + len(tokens_of(web, "A fever"))


@pytest.mark.parametrize(
    "field",
    [{"prompt": [400_000]}, {"prompt": [-1]}, {"prompt": {}}, {"prompt": None}, {"prompt": [[]]}, {"suffix": "x"},
     {"best_of": 2}, {"logprobs": 1000}, {"logprobs": -1, "echo": True}, {"prompt": [1.5]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_prompt_is_refused(web: Web, field: dict[str, Any]) -> None:
    done = web.post(PATH, {"prompt": TEXT, "max_tokens": 1} | field)
    assert (done.status, done.body["error"]["type"]) == (400, "invalid_request_error")


def test_log_probs_have_the_older_shape(client: OpenAI, web: Web) -> None:
    done = client.completions.create(model="any", prompt=TEXT, max_tokens=8, logprobs=3, temperature=0).choices[0]
    found = done.logprobs
    assert found
    assert found.tokens
    assert found.token_logprobs
    assert found.top_logprobs
    assert found.text_offset
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 8
    for token, log_prob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == log_prob == max(top.values())
        assert len(top) == 3
    assert found.text_offset[0] == 0
    warm = {
        "prompt": TEXT,
        "max_tokens": 8,
        "logprobs": 1,
        "temperature": 9,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "seed": 3,
    }
    choice = web.post(PATH, warm).body["choices"][0]["logprobs"]
    for token, log_prob, top in zip(choice["tokens"], choice["token_logprobs"], choice["top_logprobs"], strict=True):
        assert top[token] == log_prob  # an unlikely token is told beside the likeliest
        assert len(top) == (1 if log_prob == max(top.values()) else 2)


def test_an_echo_scores_the_prompt_and_its_first_token_has_no_log_prob(web: Web) -> None:
    ids = tokens_of(web, TEXT)
    asked = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    done = web.post(PATH, asked).body["choices"][0]
    found = done["logprobs"]
    assert done["text"].startswith(TEXT)
    assert len(found["tokens"]) == len(ids) + 1
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    assert all(value <= 0 for value in found["token_logprobs"][1:])
    for token, log_prob, top in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True))[
        1:
    ]:
        assert top[token] == log_prob <= max(top.values())
    assert "".join(found["tokens"]) == done["text"]
    # what a token is worth after a text is what the text's last score says
    for at in (4, len(ids) - 1):
        shorter = web.post(PATH, asked | {"prompt": ids[: at + 1]}).body["choices"][0]["logprobs"]
        assert shorter["token_logprobs"][at] == pytest.approx(found["token_logprobs"][at], abs=1e-3)
    nothing = web.post(PATH, asked | {"max_tokens": 0}).body["choices"][0]
    assert nothing["text"] == TEXT
    assert nothing["logprobs"]["token_logprobs"] == pytest.approx(found["token_logprobs"][:-1], abs=1e-3, nan_ok=True)


def test_scores_of_an_echo_are_those_of_the_base_where_no_memory_takes_part(web: Web) -> None:
    import numpy as np

    from memdec_edge.llama.context import Context
    from memdec_edge.llama.model import Model
    from tests.support.plain import ONE_THREAD

    ids = tokens_of(web, TEXT)
    done = web.post(PATH, {"prompt": ids, "max_tokens": 0, "logprobs": 0, "echo": True, "memory": "none"}).body
    model = Model(web.service.model.engine.base.path)
    context = Context(model, ONE_THREAD, 128)
    try:
        for at in range(1, len(ids)):
            row = context.feed(ids[:at]).astype(np.float64)
            expected = row[ids[at]] - np.logaddexp.reduce(row)
            assert done["choices"][0]["logprobs"]["token_logprobs"][at] == pytest.approx(expected, abs=1e-3)
    finally:
        context.close()
        model.close()


def test_an_echo_may_be_streamed_and_have_no_log_probs(web: Web) -> None:
    asked = {"prompt": TEXT, "max_tokens": 4, "echo": True}
    whole = web.post(PATH, asked).body["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in web.events(PATH, asked)) == whole
    assert whole.startswith(TEXT)
    assert len(whole) > len(TEXT)
    scored = web.events(PATH, asked | {"logprobs": 1})
    tokens = [token for event in scored if (found := event["choices"][0]["logprobs"]) for token in found["tokens"]]
    assert "".join(tokens) == whole


def test_the_command_line_limits_what_a_request_may_ask_for(talker: Path) -> None:
    defaults = replace(SOBER, generation=GenerationOptions(n_predict=3), most=5)
    with serving(open_model(talker, [], LOAD), ServerOptions(), defaults) as web:
        for asked, got in ((None, 3), (4, 4), (-1, 3), (9, 5)):
            body = {"prompt": TEXT, "max_tokens": asked, "ignore_eos": True}
            assert web.post(PATH, body).body["usage"]["completion_tokens"] == got
    unlimited = replace(SOBER, most=5)
    with serving(open_model(talker, [], LOAD), ServerOptions(), unlimited) as web:
        assert web.post(PATH, {"prompt": TEXT, "ignore_eos": True}).body["usage"]["completion_tokens"] == 5
