"""Messages and tools as a prompt: what clients send, brought to the form that templates take. Knows nothing of HTTP.

A last message of the assistant is continued, as in llama.cpp and Anthropic's interface.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memdec_edge.api import LanguageModel
from memdec_edge.chat.messages import checked
from memdec_edge.errors import OptionError
from memdec_edge.options import ChatOptions
from memdec_edge.server.schemas import ChatRequest
from memdec_edge.server.tools import BEGIN, Toolbox, told

ROLES = {"developer": "system"}  # of others -> ours
KINDS = ("text", "input_text", "output_text")  # of parts that are text


@dataclass(frozen=True)
class Prompted:
    """A chat as a prompt. rates: how much each token counts for the weights; stop: texts that end the answer."""

    text: str
    tokens: list[int]
    rates: list[float]
    stop: tuple[str, ...]
    thinks: bool
    box: Toolbox


def prompt_of(body: ChatRequest, model: LanguageModel, default: ChatOptions, generated: float, own: bool) -> Prompted:
    """The prompt of a chat. own: whether the request may bring a template. Raises OptionError and TemplateError."""
    box = Toolbox.of(body.tools, body.tool_choice)
    messages = _plain(body.messages)
    options = _options(body, default, own)
    template = model.template(replace(options, tools=box.tools))
    if "tools" in template.source:
        options = replace(options, tools=box.tools)
    else:
        messages = told(messages, box.tools)
    goes_on = _goes_on(body, messages)
    if goes_on and not messages[-1].get("content"):
        messages, goes_on = messages[:-1], False  # nothing to continue
    prompt = model.prompt(messages, replace(options, continue_final_message=goes_on))
    text, tokens, rates = prompt.text, list(prompt.tokens), prompt.rates(generated)
    if box.forced and not goes_on and (not options.tools or BEGIN in template.source):
        begun = model.engine.base.tokenize(BEGIN + "\n", add_special=False, parse_special=True)
        text, tokens, rates = text + BEGIN + "\n", tokens + begun, rates + [0.0] * len(begun)
    return Prompted(text, tokens, rates, template.stop, prompt.thinks, box)


def _options(body: ChatRequest, default: ChatOptions, own: bool) -> ChatOptions:
    if body.chat_template is not None and not own:
        raise OptionError("chat_template", "given", "this server takes no templates from requests; leave it out")
    kwargs = dict(default.template_kwargs or {}) | dict(body.chat_template_kwargs or {})
    if not isinstance(kwargs.get("enable_thinking", False), bool):
        raise OptionError("chat_template_kwargs", "enable_thinking", "must be true or false")
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    given = default.chat_template if body.chat_template is None else body.chat_template
    return replace(default, chat_template=given, template_kwargs=kwargs or None)


def _goes_on(body: ChatRequest, messages: list[dict[str, Any]]) -> bool:
    """Whether the last message, the assistant's, is to be continued."""
    last = [message.get("role") for message in messages[-2:]]
    if body.continue_final_message and body.add_generation_prompt:
        raise OptionError("continue_final_message", True, "given beside add_generation_prompt; give one of the two")
    if last == ["assistant", "assistant"]:
        raise OptionError("messages", "two assistant messages", "only one may stand at the end")
    if body.continue_final_message and last[-1:] != ["assistant"]:
        raise OptionError("continue_final_message", True, "the last message must be the assistant's")
    goes_on = last[-1:] == ["assistant"] and body.add_generation_prompt is not True
    return goes_on and not messages[-1].get("tool_calls") and body.continue_final_message is not False


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates take them: known roles, text, arguments of calls as objects."""
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise OptionError("messages", type(messages).__name__, "must be a list of messages with role and content")
    return checked([_message(message, f"messages[{index}]") for index, message in enumerate(messages)])


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = dict(message)
    if isinstance(found.get("role"), str):
        found["role"] = ROLES.get(found["role"], found["role"])
    content = found.get("content")
    if isinstance(content, list):
        found["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    if found.get("tool_calls"):
        if not isinstance(found["tool_calls"], list):
            raise OptionError(f"{where}.tool_calls", str(found["tool_calls"])[:80], "must be a list")
        found["content"] = found.get("content") or ""
        found["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(found["tool_calls"])]
    else:
        found.pop("tool_calls", None)
    return found


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in KINDS and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if isinstance(kind, str) and "image" in kind:
        raise OptionError(where, kind, "image input is not supported; send text")
    raise OptionError(where, kind, "only parts of type text are read")


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise OptionError(where, str(call)[:80], 'must be {"id": ..., "function": {"name": ..., "arguments": ...}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            read = arguments
        arguments = read if isinstance(read, dict) else arguments
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
