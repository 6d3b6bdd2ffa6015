"""Tool calls: what a model is told, what its text becomes, and calls that a grammar enforces."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.errors import OptionError
from memdec_edge.server.tools import BEGIN, END, CallReader, Toolbox, joined, told
from tests.support.web import Web

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"wet": {"type": "boolean"}, "place": {"$ref": "#/$defs/place"}},
            "required": ["wet", "place"],
            "additionalProperties": False,
            "$defs": {"place": {"enum": ["here", "there"]}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '{"name": "weather", "arguments": {"wet": true}}'
ASK: list[Any] = [{"role": "user", "content": "Does it rain?"}]
PATH = "/v1/chat/completions"


def read(pieces: list[str], box: Toolbox) -> tuple[str, list[tuple[str, str]]]:
    reader = CallReader(box)
    found = [reader.push(piece) for piece in pieces] + [reader.flush()]
    calls = joined(call for _, some in found for call in some)
    return "".join(content for content, _ in found), [(call.name, call.arguments) for call in calls]


FREE = Toolbox((WEATHER, NOW))
TEXTS = {
    "no call": ("It rains.", "It rains.", []),
    "a call": (f"{BEGIN}\n{CALL}\n{END}", "", [("weather", '{"wet": true}')]),
    "after a text": (f"Let me look.\n{BEGIN}{CALL}{END}", "Let me look.", [("weather", '{"wet": true}')]),
    "two calls": (
        f'{BEGIN}{CALL}{END}\n{BEGIN}{{"name": "now"}}{END}',
        "",
        [("weather", '{"wet": true}'), ("now", "{}")],
    ),
    "cut short": (f"{BEGIN}\n{CALL}", "", [("weather", '{"wet": true}')]),
    "half a call": (f'A {BEGIN}\n{{"name": "wea', f'A {BEGIN}\n{{"name": "wea', []),
    "of no tool": (f'{BEGIN}{{"name": "cook"}}{END} x', f'{BEGIN}{{"name": "cook"}}{END} x', []),
    "plain JSON": (CALL, "", [("weather", '{"wet": true}')]),
    "parameters": ('{"name": "weather", "parameters": {"wet": false}}', "", [("weather", '{"wet": false}')]),
    "a list": (f"[{CALL}]", "", [("weather", '{"wet": true}')]),
    "other JSON": ('{"answer": 3}', '{"answer": 3}', []),
    "a number beyond all": (
        '[{"name": "now", "arguments": {"x": 1e999}}]',
        "",
        [("now", '{"x": 1.7976931348623157e+308}')],
    ),
    "no number": ('[{"name": "now", "arguments": {"x": NaN}}]', '[{"name": "now", "arguments": {"x": NaN}}]', []),
    "half of the arguments": (f'{BEGIN}{{"name": "now", "arguments": {{"x": "a', "", [("now", '{"x": "a')]),
    "brackets and tags in a string": (
        f'{BEGIN}{{"name":"now","arguments":{{"x": "}}\\"{END}{{", "y": [{{}}]}}}}{END} x',
        "x",
        [("now", f'{{"x": "}}\\"{END}{{", "y": [{{}}]}}')],
    ),
    "arguments as a text": (f'{BEGIN}{{"name": "now", "arguments": "{{}}"}}{END}', "", [("now", "{}")]),
    "more than a call": (f'{BEGIN}{{"name": "now", "arguments": {{}}, "id": 3}}{END} x', "x", [("now", "{}")]),
    "a call without an end": (f'{BEGIN}{{"name": "now", "arguments": {{}}}} x', "x", [("now", "{}")]),
    "words behind plain JSON": ('{"name": "now", "arguments": {}}\nx', "x", [("now", "{}")]),
    "half a tag": ("a < b and <tool", "a < b and <tool", []),
}


@pytest.mark.parametrize(("text", "content", "calls"), TEXTS.values(), ids=TEXTS)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_a_text_becomes_content_and_calls_however_it_is_cut(
    text: str, content: str, calls: list[tuple[str, str]], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    assert read(pieces, FREE) == (content, calls)


def test_without_tools_every_text_is_content() -> None:
    assert read([f"{BEGIN}{CALL}", END], Toolbox()) == (f"{BEGIN}{CALL}{END}", [])


@pytest.mark.parametrize("choice", ["sometimes", {"type": "function", "function": {"name": "cook"}}, {"type": "x"}, 3])
def test_a_choice_that_names_no_tool_is_refused(choice: Any) -> None:
    with pytest.raises(OptionError, match="tool_choice"):
        Toolbox.of([WEATHER], choice)


@pytest.mark.parametrize(("given_", "kept"), [(None, False), (True, True), (False, False)])
def test_a_forced_call_has_no_arguments_that_its_schema_does_not_know(given_: bool | None, kept: bool) -> None:
    parameters: dict[str, Any] = {"type": "object", "properties": {"x": {"type": "integer"}}}
    parameters |= {} if given_ is None else {"additionalProperties": given_}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    schema = Toolbox.of(tools, "required").schema
    assert schema
    assert schema["properties"]["arguments"]["additionalProperties"] is kept


def test_a_template_without_tools_is_told_of_them_in_the_system_message() -> None:
    calls = [{"id": "1", "function": {"name": "now", "arguments": {}}}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": "wet"},
    ]
    plain = told(messages, [NOW])
    assert [message["role"] for message in plain] == ["system", "user", "assistant", "user"]
    assert plain[0]["content"].startswith("Be brief.")
    assert '{"name": "now"}' in plain[0]["content"]
    assert plain[2]["content"] == f'{BEGIN}\n{{"name": "now", "arguments": {{}}}}\n{END}'
    assert plain[3]["content"].count("<tool_response>") == 2
    assert told(ASK, []) == ASK


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come_comes_and_follows_its_schema(web: Web, choice: Any) -> None:
    asked = {"messages": ASK, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 120}
    choice_made = web.post(PATH, asked).body["choices"][0]
    [call] = choice_made["message"]["tool_calls"]
    assert choice_made["finish_reason"] == "tool_calls"
    assert choice_made["message"]["content"] is None
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    given_ = json.loads(call["function"]["arguments"])
    assert set(given_) == {"wet", "place"}
    assert given_["place"] in ("here", "there")


def test_the_deltas_of_a_call_carry_the_index_always_and_name_and_id_once(web: Web) -> None:
    asked = {"messages": ASK, "tools": [WEATHER, NOW], "tool_choice": "required", "max_tokens": 120}
    events = web.events(PATH, asked)
    deltas = [one for event in events for one in event["choices"][0]["delta"].get("tool_calls", [])]
    assert [delta["index"] for delta in deltas] == [0] * len(deltas)
    assert ["id" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert ["name" in delta["function"] for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    json.loads("".join(delta["function"]["arguments"] for delta in deltas))
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_arguments_are_told_as_they_are_written(web: Web) -> None:
    asked = {"messages": ASK, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 120}
    deltas = [one for event in web.events(PATH, asked) for one in event["choices"][0]["delta"].get("tool_calls", [])]
    assert len(deltas) > 4
    anthropic = asked | {"tools": [{"name": "weather", "input_schema": WEATHER["function"]["parameters"]}]}
    events = web.events("/v1/messages", anthropic | {"tool_choice": {"type": "any"}})
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    blocks = [event["type"] for event in events if event["type"] in ("content_block_start", "content_block_stop")]
    responses = asked | {"input": ASK, "tools": [{"type": "function", **WEATHER["function"]}]}
    told = web.events("/v1/responses", responses)
    written = [event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"]
    [done] = [event for event in told if event["type"] == "response.function_call_arguments.done"]
    assert blocks == ["content_block_start", "content_block_stop"]
    assert len(pieces) > 3
    assert len(written) > 3
    assert "".join(written) == done["arguments"]
    assert set(json.loads("".join(pieces))) == set(json.loads(done["arguments"])) == {"wet", "place"}


def test_a_call_that_is_cut_before_its_arguments_is_no_call_and_one_that_is_cut_there_is_half_a_call(web: Web) -> None:
    asked = {"messages": ASK, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 3}
    made = web.post(PATH, asked).body["choices"][0]
    assert made["finish_reason"] == "length"
    assert "tool_calls" not in made["message"]
    whole = web.post(PATH, asked | {"max_tokens": 120}).body
    [call] = whole["choices"][0]["message"]["tool_calls"]
    made = web.post(PATH, asked | {"max_tokens": whole["usage"]["completion_tokens"] - 4}).body["choices"][0]
    [half] = made["message"]["tool_calls"]
    assert made["finish_reason"] == "length"
    assert call["function"]["arguments"].startswith(half["function"]["arguments"])


def test_none_hides_the_tools_from_the_model(web: Web) -> None:
    def prompt(**more: Any) -> str:
        return str(web.post("/apply-template", {"messages": ASK, "tools": [NOW]} | more).body["prompt"])

    assert "now" in prompt()
    assert "now" not in prompt(tool_choice="none")


def test_a_call_and_its_result_in_the_history_are_part_of_the_prompt(web: Web) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is noon."},
    ]
    done = web.post(PATH, {"messages": history, "tools": [NOW], "max_tokens": 2})
    assert done.status == 200, done.body
    assert "It is noon." in web.post("/apply-template", {"messages": history, "tools": [NOW]}).body["prompt"]
