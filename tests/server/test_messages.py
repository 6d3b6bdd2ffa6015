"""Anthropic's messages, with Anthropic's own library."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError

from tests.support.web import Web

ASK: list[Any] = [{"role": "user", "content": "What is the heart?"}]
TOOL: Any = {
    "name": "look", "description": "Look something up",
    "input_schema": {
        "type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"], "additionalProperties": False
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def anthropic(web: Web) -> Iterator[Anthropic]:
    with Anthropic(api_key="none", base_url=web.url, max_retries=0, timeout=60) as made:
        yield made


def test_a_message_says_what_a_chat_says(web: Web, anthropic: Anthropic) -> None:
    done = anthropic.messages.create(model="any", messages=ASK, system="Be brief.", max_tokens=6)
    chat = [{"role": "system", "content": "Be brief."}, *ASK]
    expected = web.post("/v1/chat/completions", {"messages": chat, "max_tokens": 6}).body
    [block] = done.content
    assert block.type == "text"
    assert block.text == expected["choices"][0]["message"]["content"]
    assert (done.type, done.role, done.model, done.stop_reason) == ("message", "assistant", "tiny", "max_tokens")
    used = done.usage.input_tokens + (done.usage.cache_read_input_tokens or 0)
    assert (used, done.usage.output_tokens) == (expected["usage"]["prompt_tokens"], 6)


def test_a_stream_is_blocks_with_numbers(anthropic: Anthropic) -> None:
    whole = anthropic.messages.create(model="any", messages=ASK, max_tokens=6).content[0]
    with anthropic.messages.stream(model="any", messages=ASK, max_tokens=6) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert whole.type == final.content[0].type == "text"
    assert final.content[0].text == whole.text
    assert final.stop_reason == "max_tokens"
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert final.usage.output_tokens == 6


def test_a_stop_sequence_is_named(anthropic: Anthropic) -> None:
    whole = anthropic.messages.create(model="any", messages=ASK, max_tokens=30).content[0]
    assert whole.type == "text"
    stop = whole.text[5:8]
    done = anthropic.messages.create(model="any", messages=ASK, max_tokens=30, stop_sequences=["zzz", stop])
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", stop)
    assert done.content[0].type == "text"
    assert done.content[0].text == whole.text[: whole.text.index(stop)]


def test_a_forced_tool_is_used_and_its_result_goes_back(anthropic: Anthropic) -> None:
    done = anthropic.messages.create(
        model="any", messages=ASK, max_tokens=100, tools=[TOOL], tool_choice={"type": "any"}
    )
    [block] = done.content
    assert block.type == "tool_use"
    assert (block.name, set(block.input), done.stop_reason) == ("look", {"far"}, "tool_use")
    history: list[Any] = [
        *ASK,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, block.to_dict()]},
        {"role": "user", "content": [
            {"type": "text", "text": "Here:"},
            {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "A muscle."}]},
        ]},
    ]  # fmt: skip
    after = anthropic.messages.create(model="any", messages=history, max_tokens=4, tools=[TOOL])
    assert after.content
    with anthropic.messages.stream(
        model="any", messages=ASK, max_tokens=100, tools=[TOOL], tool_choice={"type": "tool", "name": "look"}
    ) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.type == "tool_use"
    assert streamed.input == block.input


def test_a_number_that_is_larger_than_any_stays_a_number(web: Web) -> None:
    text = '{"name": "look", "arguments": {"far": -1e999}}'
    asked = {"messages": ASK, "max_tokens": 100, "tools": [TOOL], "grammar": f"root ::= {json.dumps(text)}"}
    done = web.post("/v1/messages", asked)
    assert done.status == 200, done.body
    assert done.body["content"][0]["input"] == {"far": -sys.float_info.max}


def test_tokens_are_counted(web: Web, anthropic: Anthropic) -> None:
    counted = anthropic.messages.count_tokens(model="any", messages=ASK)
    assert counted.input_tokens == len(web.service.model.prompt(ASK).tokens)


def test_errors_have_anthropics_shape(web: Web, anthropic: Anthropic) -> None:
    with pytest.raises(BadRequestError) as error:
        anthropic.messages.create(model="any", messages=[{"role": "user", "content": "heart " * 600}], max_tokens=4)
    body: Any = error.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert "maximum context length" in body["error"]["message"]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    done = web.post("/v1/messages", {"messages": [{"role": "user", "content": [image]}], "max_tokens": 3})
    assert done.status == 400
    assert "image input is not supported" in done.body["error"]["message"]
    assert web.post("/v1/messages", {"messages": ASK}).status == 400  # without max_tokens
