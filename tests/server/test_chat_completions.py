"""Chat completions as clients see them: OpenAI's own library, and what it does not show, over plain HTTP."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from memdec_edge.api import open_model
from memdec_edge.chat.prompt import ChatPrompt
from memdec_edge.options import ChatOptions, GenerationOptions, ServerOptions
from tests.server.conftest import LOAD, SOBER
from tests.support.chatty import TEMPLATE
from tests.support.web import Web, serving

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


# --- form -----------------------------------------------------------------------------------------------------------

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
        {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 1000}, {"stop": [""]}, {"tools": [{"type": "x"}]},
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
        assert problem["n_prompt_tokens"] == len(prompt_of(web, long).tokens)
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


# --- memories -------------------------------------------------------------------------------------------------------


def test_memories_are_chosen_and_weighed_for_each_request(web: Web) -> None:
    def first(memory: Any) -> dict[str, Any]:
        asked = {"messages": ASK, "max_tokens": 1, "memory": memory, "return_memory": True, "logprobs": True}
        done = web.post(PATH, asked)
        assert done.status == 200, done.body
        [found] = done.body["choices"][0]["memory"]
        return dict(found)

    assert first("none")["weights"] == first([])["weights"] == [1.0]
    assert first("none")["share"] == 0.0
    half = first([{"id": 0, "lambda": 0.5}])
    assert half["weights"] == [0.5, 0.5]
    assert math.exp(half["logprob"]) == pytest.approx(0.5 * sum(map(math.exp, half["logprobs"])), rel=1e-4)
    assert half["share"] == pytest.approx(0.5 * math.exp(half["logprobs"][1] - half["logprob"]), rel=1e-4)
    assert first([{"id": "memdec-padded", "lambda": 1.0}])["weights"] == [0.0, 1.0]
    assert first(0.4)["weights"] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    assert len(first("auto")["weights"]) == 3
    assert first("auto")["weights"] == first(None)["weights"]
    top = half["top"]
    assert len(top["mixture"]) == len(top["voices"][0]) == len(top["voices"][1]) == 5


def test_requests_with_different_memories_run_side_by_side(web: Web, client: OpenAI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    choices: list[Any] = ["none", [{"id": 0, "lambda": 0.9}], [{"id": 1, "lambda": 0.9}], "auto"]

    def answer(memory: Any) -> str:
        done = web.post(PATH, {"messages": ASK, "max_tokens": 24, "memory": memory})
        return str(done.body["choices"][0]["message"]["content"])

    alone = [answer(choice) for choice in choices]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, choices)) == alone
    assert len(set(alone)) > 1


# --- reasoning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(talker: Path) -> Iterator[Web]:
    """A template that begins the reasoning."""
    chat = ChatOptions(chat_template=TEMPLATE + "<think>\n")
    with serving(open_model(talker, [], LOAD), ServerOptions(), SOBER, chat) as served:
        yield served


def test_reasoning_is_told_apart_from_the_content(thinker: Web) -> None:
    asked = {"messages": ASK, "max_tokens": 40, "grammar": 'root ::= "so it is</think>\\n\\nyes"'}
    message = thinker.post(PATH, asked).body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("so it is", "yes")
    deltas = [event["choices"][0]["delta"] for event in thinker.events(PATH, asked)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so it is"
    assert "".join(delta.get("content") or "" for delta in deltas) == "yes"
    blocks = thinker.post("/v1/messages", asked).body["content"]
    assert [(block["type"], block.get("thinking", block.get("text"))) for block in blocks] == [
        ("thinking", "so it is"),
        ("text", "yes"),
    ]
    kinds = [event["type"] for event in thinker.events("/v1/messages", asked)]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    items = thinker.post("/v1/responses", asked | {"input": "Hm", "max_output_tokens": 40}).body["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [
        ("reasoning", "so it is"),
        ("message", "yes"),
    ]
