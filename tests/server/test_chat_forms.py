"""Chat completions: the form of an answer, and what is refused."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.support.web import Web

ASK: list[Any] = [{"role": "user", "content": "What is the heart?"}]
PATH = "/v1/chat/completions"


COLOUR = {
    "type": "object",
    "properties": {"red": {"type": "boolean"}},
    "required": ["red"],
    "additionalProperties": False,
}
FORMS = {
    "nested": {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}},
    "flat": {"type": "json_schema", "name": "colour", "schema": COLOUR},
    "object with schema": {"type": "json_object", "schema": COLOUR},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_answer_follows_its_schema(web: Web, form: dict[str, Any]) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 40, "response_format": form})
    assert done.status == 200, done.body
    assert done.body["choices"][0]["finish_reason"] == "stop"
    assert json.loads(done.body["choices"][0]["message"]["content"]) in ({"red": True}, {"red": False})


def test_any_object_may_be_asked_for(web: Web) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 20, "response_format": {"type": "json_object"}}).body
    assert done["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "sound"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": 123}},
        {"type": "json_object", "schema": {"type": "hiccup"}},
        {"type": "json_schema", "schema": {"type": "array", "uniqueItems": True}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_followed_is_refused_and_never_gives_free_text(
    web: Web, form: Any, stream: bool
) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 20, "response_format": form, "stream": stream})
    assert done.status == 400
    assert done.body["error"]["type"] == "invalid_request_error"
    assert done.body["error"]["param"] == "response_format"


def test_a_grammar_is_followed_and_a_broken_one_refused(web: Web) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 9, "grammar": 'root ::= "a"{5,5}'}).body
    assert done["choices"][0]["message"]["content"] == "aaaaa"
    assert web.post(PATH, {"messages": ASK, "grammar": "root ::= ("}).status == 400


# --- what is refused, and what is not -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"suffix": "end"}, {"best_of": 3}, {"functions": [{"name": "f"}]}, {"mirostat": 2}, {"typical_p": 0.5},
        {"n": 0}, {"n": 1000}, {"temperature": -1}, {"temperature": "warm"}, {"top_p": 7}, {"max_tokens": "many"},
        {"messages": None}, {"messages": []}, {"messages": "hello"}, {"messages": [{}]}, {"messages": [3]},
        {"messages": [{"role": "cook", "content": "x"}]}, {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": -1},
        {"logprobs": True, "top_logprobs": 1000}, {"stop": [""]}, {"tools": [{"type": "x"}]},
        {"tool_choice": "required"}, {"memory": [{"id": 77, "lambda": 0.5}]}, {"memory": 3.0}, {"memory": "much"},
        {"chat_template": "{{ messages }}"}, {"logit_bias": {"900000": 1}}, {"logit_bias": {"5": True}},
        {"stop": ["x"] * 65}, {"stop": "x" * 1001}, {"logit_bias": [[10**30, 1]]},
        {"messages": [{"role": "user", "content": "\ud800"}]}, {"tool_choice": "\udfff"}, {"repeat_last_n": 10**30},
        {"add_generation_prompt": True, "continue_final_message": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_would_change_the_answer_and_cannot_be_followed_is_refused(web: Web, field: dict[str, Any]) -> None:
    done = web.post(PATH, {"messages": ASK, "max_tokens": 2} | field)
    assert done.status == 400, done.body
    assert set(done.body["error"]) >= {"message", "type", "param", "code"}
    assert done.body["error"]["type"] == "invalid_request_error"


def test_fields_that_change_nothing_are_ignored_and_null_counts_as_absent(web: Web) -> None:
    asked = {"messages": ASK, "max_tokens": 6}
    nulls = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "seed", "tools", "response_format", "logit_bias", "suffix")
    )
    more = {
        "user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
        "cache_prompt": True, "id_slot": 0, "best_of": 1, "typical_p": 1.0, "modalities": ["text"], "whatever": [1],
    }  # fmt: skip
    plain, full = web.post(PATH, asked), web.post(PATH, asked | nulls | more)
    assert full.status == 200, full.body
    assert full.body["choices"] == plain.body["choices"]


def test_the_model_is_a_hint_and_the_route_works_without_v1(web: Web) -> None:
    done = web.post("/chat/completions", {"model": "gpt-4o", "messages": ASK, "max_tokens": 2})
    assert (done.status, done.body["model"]) == (200, "tiny")


def test_a_prompt_that_is_too_long_is_told_with_numbers_in_both_dialects(web: Web, client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "heart " * 600}]
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(model="any", messages=long)
    assert error.value.code == "context_length_exceeded"
    for stream in (False, True):
        done = web.post(PATH, {"messages": long, "stream": stream})
        problem = done.body["error"]
        assert done.status == 400
        assert (problem["type"], problem["code"]) == ("exceed_context_size_error", "context_length_exceeded")
        assert problem["n_prompt_tokens"] == len(web.service.model.prompt(long).tokens)
        assert problem["n_ctx"] == 512
        assert "maximum context length is 512" in problem["message"]


def test_an_answer_that_was_begun_goes_on(web: Web) -> None:
    begun = [*ASK, {"role": "assistant", "content": "The heart"}]
    asked = {"messages": begun, "max_tokens": 4}
    done = web.post(PATH, asked).body
    prompt = web.post("/apply-template", {"messages": begun}).body["prompt"]
    assert prompt.endswith("[assistant]\nThe heart")
    raw = web.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, "memory": "none"}).body
    alone = web.post(PATH, asked | {"memory": "none"}).body
    assert alone["choices"][0]["message"]["content"] == raw["choices"][0]["text"]
    assert done["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    twice = [*begun, {"role": "assistant", "content": "again"}]
    assert web.post(PATH, {"messages": twice}).status == 400


def test_timings_are_in_the_names_of_llama_cpp(web: Web) -> None:
    names = {
        "prompt_n",
        "prompt_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_second",
        "cache_n",
    }
    asked = {"messages": ASK, "max_tokens": 4, "ignore_eos": True}
    assert names <= set(web.post(PATH, asked).body["timings"])
    events = web.events(PATH, asked)
    assert [("timings" in event) for event in events] == [False] * (len(events) - 1) + [True]
    each = web.events(PATH, asked | {"timings_per_token": True})
    counts = [event["timings"]["predicted_n"] for event in each if "timings" in event]
    assert counts == [1, 2, 3, 4, 4]


def test_a_second_question_finds_the_first_in_the_cache_and_says_so(web: Web) -> None:
    first = web.post(PATH, {"messages": ASK, "max_tokens": 3}).body
    again = web.post(PATH, {"messages": ASK, "max_tokens": 3}).body
    read = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == read - 1
    assert again["timings"]["prompt_n"] == 1


def test_progress_of_a_prompt_is_told_while_it_is_read(web: Web) -> None:
    asked = {"messages": [{"role": "user", "content": "A fever is a symptom. " * 20}], "max_tokens": 2}
    told = [
        event["prompt_progress"]
        for event in web.events(PATH, asked | {"return_progress": True})
        if "prompt_progress" in event
    ]
    assert told[0]["processed"] == told[0]["cache"] < told[0]["total"]
    assert [one["processed"] for one in told] == sorted({one["processed"] for one in told})
    assert len(told) > 2
    assert told[-1]["processed"] == told[-1]["total"]
