"""OpenAI's responses, with OpenAI's own library."""

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.support.web import Web

ASK = "What is the heart?"
TOOL = {
    "type": "function", "name": "look", "description": "Look something up",
    "parameters": {
        "type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"], "additionalProperties": False
    },
}  # fmt: skip


def chat(web: Web, messages: list[dict[str, Any]], **more: Any) -> str:
    done = web.post("/v1/chat/completions", {"messages": messages, "max_tokens": 6} | more)
    return str(done.body["choices"][0]["message"]["content"])


def test_a_response_says_what_a_chat_says(web: Web, client: OpenAI) -> None:
    expected = chat(web, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK}])
    done = client.responses.create(model="any", input=ASK, instructions="Be brief.", max_output_tokens=6)
    assert done.output_text == expected
    assert done.id.startswith("resp_")
    assert done.usage
    assert done.usage.output_tokens == 6
    assert done.status == "incomplete"
    assert done.incomplete_details
    assert done.incomplete_details.reason == "max_output_tokens"
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASK}]},
    ]
    assert client.responses.create(model="any", input=items, max_output_tokens=6).output_text == expected


def test_the_events_of_a_stream_are_numbered_and_tell_of_one_item_after_the_other(web: Web, client: OpenAI) -> None:
    whole = client.responses.create(model="any", input=ASK, max_output_tokens=6)
    events = list(client.responses.create(model="any", input=ASK, max_output_tokens=6, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"const": "a muscle"}}}
    with client.responses.stream(model="any", input=ASK, text=form, max_output_tokens=60) as stream:
        assert stream.get_final_response().output_text == '"a muscle"'


def test_a_forced_call_and_its_output_go_round(web: Web, client: OpenAI) -> None:
    tools: Any = [TOOL]
    done = client.responses.create(model="any", input=ASK, tools=tools, tool_choice="required", max_output_tokens=60)
    [call] = done.output
    assert call.type == "function_call"
    assert call.name == "look"
    assert set(json.loads(call.arguments)) == {"far"}
    assert done.status == "completed"
    history: Any = [
        {"role": "user", "content": ASK},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "A muscle."},
    ]
    after = client.responses.create(model="any", input=history, tools=tools, max_output_tokens=4)
    assert after.usage
    assert after.usage.input_tokens > (done.usage.input_tokens if done.usage else 0)
    kinds = [
        event.type
        for event in client.responses.create(
            model="any", input=ASK, tools=tools, tool_choice="required", max_output_tokens=60, stream=True
        )
    ]
    assert "response.function_call_arguments.done" in kinds
    assert kinds[-1] == "response.completed"


def test_a_schema_is_followed(web: Web, client: OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": TOOL["parameters"], "strict": True}}
    done = client.responses.create(model="any", input=ASK, text=form, max_output_tokens=60)
    assert set(json.loads(done.output_text)) == {"far"}


@pytest.mark.parametrize(
    "more",
    [{"previous_response_id": "resp_1"}, {"background": True}, {"input": [{"type": "computer_call"}]}, {"input": []},
     {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     {"tool_choice": "required"}],
    ids=str,
)  # fmt: skip
def test_what_needs_a_state_or_cannot_be_read_is_refused(web: Web, more: dict[str, Any]) -> None:
    done = web.post("/v1/responses", {"input": ASK, "max_output_tokens": 2} | more)
    assert (done.status, done.body["error"]["type"]) == (400, "invalid_request_error")


def test_tokens_of_an_input_are_counted(web: Web) -> None:
    count = web.post("/v1/responses/input_tokens", {"input": ASK}).body["input_tokens"]
    assert count == len(web.service.model.prompt([{"role": "user", "content": ASK}]).tokens)
