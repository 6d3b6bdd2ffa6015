"""Chat completions as clients see them: OpenAI's own library, and what it does not show, over plain HTTP."""

import json
import math
from typing import Any

import pytest
from openai import OpenAI

from memdec_edge.chat.prompt import ChatPrompt
from memdec_edge.options import GenerationOptions
from tests.support.web import Web

ASK: list[Any] = [{"role": "user", "content": "What is the heart?"}]
PATH = "/v1/chat/completions"


def prompt_of(web: Web, messages: list[Any]) -> ChatPrompt:
    return web.service.model.prompt(messages)


def test_an_answer_is_what_the_python_api_gives(web: Web, client: OpenAI) -> None:
    done = client.chat.completions.create(model="any", messages=ASK, max_tokens=12)
    model = web.service.model
    limit = GenerationOptions(n_predict=12)
    expected = model.chat(ASK, sampling=web.service.defaults.sampling, generation=limit)
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].message.role == "assistant"
    assert (done.object, done.model) == ("chat.completion", "tiny")
    assert done.id.startswith("chatcmpl-")
    assert done.usage
    assert done.usage.prompt_tokens == len(prompt_of(web, ASK).tokens)
    assert done.usage.completion_tokens == len(expected.tokens)
    assert done.choices[0].finish_reason == expected.finish_reason


def test_a_stream_joins_to_the_whole_answer_and_begins_with_the_role(web: Web, client: OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=ASK, max_tokens=12).choices[0]
    chunks = list(client.chat.completions.create(model="any", messages=ASK, max_tokens=12, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.model == "tiny" and chunk.object == "chat.completion.chunk" for chunk in chunks)


def test_a_stream_ends_with_done_and_tells_usage_only_where_it_is_asked_for(web: Web) -> None:
    plain = web.lines(PATH, {"messages": ASK, "max_tokens": 3})
    assert plain[-1] == "data: [DONE]"
    assert all("usage" not in line for line in plain)
    asked = web.lines(PATH, {"messages": ASK, "max_tokens": 3, "stream_options": {"include_usage": True}})
    assert asked[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in asked[:-1]]
    assert [event["choices"] == [] for event in events] == [False] * (len(events) - 1) + [True]
    assert ["usage" in event for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert events[-1]["id"] == events[0]["id"] != ""
    assert events[-1]["model"] == "tiny"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_limit_ends_the_answer_by_its_length_whatever_it_is_called(web: Web, name: str) -> None:
    body = web.post(PATH, {"messages": ASK, name: 4, "ignore_eos": True}).body
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (4, "length")


def test_a_token_id_of_thousands_of_digits_is_a_wrong_request(web: Web) -> None:
    assert web.post(PATH, {"messages": ASK, "max_tokens": 2, "logit_bias": {"9" * 5000: 1}}).status == 400


def test_a_limit_beyond_all_contexts_is_no_error(web: Web) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 10**20, "stop": "e"})
    assert done.status == 200, done.body


def test_the_newer_name_of_the_limit_wins(web: Web) -> None:
    asked = {"messages": ASK, "max_tokens": 9, "max_completion_tokens": 2, "ignore_eos": True}
    assert web.post(PATH, asked).body["usage"]["completion_tokens"] == 2


def test_a_stop_string_ends_the_answer_and_is_left_out(web: Web, client: OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=ASK, max_tokens=30).choices[0].message.content
    assert whole
    stop = whole[6:9]
    for given in (stop, [stop, "never said"]):
        done = client.chat.completions.create(model="any", messages=ASK, max_tokens=30, stop=given).choices[0]
        assert (done.message.content, done.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_gives_the_same_answer_and_zero_is_a_seed(client: OpenAI) -> None:
    def answer(seed: int) -> str | None:
        done = client.chat.completions.create(
            model="any", messages=ASK, max_tokens=20, temperature=2.0, top_p=1.0, seed=seed
        )
        return done.choices[0].message.content

    assert answer(0) == answer(0) != answer(1)
    assert answer(2**40) == answer(2**40)


def test_several_answers_have_numbers_and_seeds_of_their_own(web: Web, client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "any", "messages": ASK, "max_tokens": 12, "temperature": 2.0}
    asked["extra_body"] = {"ignore_eos": True}
    done = client.chat.completions.create(**asked, n=3, seed=5)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in done.choices]
    assert len(set(texts)) == 3
    alone = client.chat.completions.create(**asked, seed=6)
    assert alone.choices[0].message.content == texts[1]
    assert done.usage
    assert done.usage.prompt_tokens == len(prompt_of(web, ASK).tokens)
    assert done.usage.completion_tokens == 36
    streamed = client.chat.completions.create(**asked, n=3, seed=5, stream=True)
    joined = ["", "", ""]
    for chunk in streamed:
        joined[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert joined == texts


# --- log-probs ------------------------------------------------------------------------------------------------------


def test_the_log_prob_of_a_token_is_the_number_that_stands_among_the_likeliest(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="any", messages=ASK, max_tokens=10, temperature=0, logprobs=True, top_logprobs=4
    ).choices[0]
    assert done.logprobs
    assert done.logprobs.content
    for one in done.logprobs.content:
        assert one.logprob == one.top_logprobs[0].logprob == max(top.logprob for top in one.top_logprobs)
        assert one.token == one.top_logprobs[0].token
        assert len(one.top_logprobs) == 4
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1.001
    spoken = b"".join(bytes(one.bytes or []) for one in done.logprobs.content)
    assert spoken.decode("utf-8", "replace") == done.message.content


def test_log_probs_without_likeliest_ones_and_in_a_stream(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=ASK, max_tokens=6, logprobs=True).choices[0]
    assert whole.logprobs
    assert whole.logprobs.content
    assert all(one.top_logprobs == [] for one in whole.logprobs.content)
    found = []
    for chunk in client.chat.completions.create(model="any", messages=ASK, max_tokens=6, logprobs=True, stream=True):
        if chunk.choices[0].logprobs and chunk.choices[0].logprobs.content:
            found += chunk.choices[0].logprobs.content
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in whole.logprobs.content], abs=1e-3)


def test_a_bias_forbids_a_token_by_its_id(web: Web, client: OpenAI) -> None:
    first = client.chat.completions.create(
        model="any", messages=ASK, max_tokens=1, logprobs=True, top_logprobs=2
    ).choices[0]
    assert first.logprobs
    assert first.logprobs.content
    [token] = web.post(PATH, {"messages": ASK, "max_tokens": 1, "logprobs": True}).body["choices"][0]["logprobs"][
        "content"
    ]
    other = client.chat.completions.create(
        model="any", messages=ASK, max_tokens=1, logprobs=True, logit_bias={str(token["id"]): -100}
    ).choices[0]
    assert other.logprobs
    assert other.logprobs.content
    assert other.logprobs.content[0].token == first.logprobs.content[0].top_logprobs[1].token
