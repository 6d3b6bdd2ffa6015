"""A base's chat template, and messages rendered with it: the text, and which part of it is whose.

The text is the one that transformers' apply_chat_template gives. Knows nothing of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdec_edge.chat.marked import DATA, FIRST, TEMPLATE, Marked
from memdec_edge.chat.messages import Messages, checked, marked, plain_data
from memdec_edge.errors import OptionError, TemplateError
from memdec_edge.options.chat import ChatOptions

if TYPE_CHECKING:
    import jinja2

    from memdec_edge.chat.sandbox import Sandbox

KEY = "tokenizer.chat_template"
CHATML = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content | default('') + \
'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
PLAIN = """{% for message in messages %}{{ message.role | capitalize + ': ' + message.content | default('') }}\
{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
NAMED = {"chatml": (CHATML, "<|im_end|>"), "plain": (PLAIN, "\nUser:")}  # and what ends an answer
LONGEST = 1 << 20  # characters of a template
TAG = "<<HERE-THE-ANSWER-GOES-ON>> "  # at the end of a message that is continued; the blank shows whether it is trimmed


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered text. message: the index of that whose content it is; None: of none.

    template: whether the template's author wrote it, so that names of control tokens in it are those tokens.
    """

    text: str
    message: int | None
    template: bool


@dataclass(frozen=True)
class Rendered:
    """Messages as one text: `segments` in order, and the messages as the template saw them."""

    segments: tuple[Segment, ...]
    messages: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments)


class ChatTemplate:
    """One compiled template. Several threads may render with it.

    name: whose it is, for messages. stop: texts that end an answer where a vocabulary has no token for them. variables:
    names of special tokens, such as bos_token. Raises TemplateError for a template that cannot be compiled.
    """

    def __init__(
        self, source: str, name: str, *, stop: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self.source, self.name, self.stop = source, name, stop
        self._variables = {key: Marked(text, TEMPLATE) for key, text in (variables or {}).items()}
        if len(source) > LONGEST:
            raise TemplateError(name, f"{len(source):,} characters, more than {LONGEST:,}")
        try:
            _compiled(source)
        except Exception as error:  # Jinja's own, RecursionError, MemoryError of Python's parser
            raise TemplateError(name, f"no valid Jinja template ({_said(error)})") from error

    @classmethod
    def of(
        cls, path: Path, metadata: Mapping[str, Any], options: ChatOptions, variables: Mapping[str, str]
    ) -> "ChatTemplate":
        """The template that `options` name, else that of a GGUF's `metadata`. Raises TemplateError where none is."""
        given = options.chat_template
        if given in NAMED:
            source, end = NAMED[given]
            return cls(source, f"the template {given}", stop=(end,), variables=variables)
        if given:
            return cls(given, "the template that was given", variables=variables)
        own = metadata.get(f"{KEY}.tool_use") if options.tools else None
        found = own or own_template(metadata)
        if not isinstance(found, str) or not found:
            raise TemplateError(str(path), "it has no chat template", missing=True)
        return cls(found, f"the chat template of {path}", variables=variables)

    def render(self, messages: Messages, options: ChatOptions | None = None, *, whole: bool = False) -> Rendered:
        """Render messages, and after them the beginning of an answer, unless they are a chat that is `whole`.

        With options.continue_final_message the last message, which must be the assistant's, stays open instead. Raises
        OptionError for messages that cannot be (see messages.checked), TemplateError for what the template refuses.
        """
        options = options or ChatOptions()
        plain = checked(messages)
        goes_on = options.continue_final_message
        if goes_on and (plain[-1]["role"] != "assistant" or not plain[-1].get("content")):
            raise OptionError(
                "continue_final_message", True, "the last message must be the assistant's, with a content"
            )
        seen = marked(plain)
        if goes_on:
            seen[-1]["content"] += TAG
        text = self._run(
            self._variables
            | plain_data(dict(options.template_kwargs or {}), "template_kwargs")
            | {"messages": seen, "tools": plain_data(list(options.tools), "tools") or None, "documents": None}
            | {"add_generation_prompt": not goes_on and not whole}
        )
        if goes_on:
            text = self._open(text)
        segments = (
            Segment(part, ord(origin) - FIRST if origin > DATA else None, origin == TEMPLATE)
            for origin, part in text.spans()
        )
        return Rendered(tuple(segments), plain)

    def _open(self, text: Marked) -> Marked:
        """Cut a text where the last message ends; blanks at its end stay where the template keeps them."""
        at = text.rfind(TAG.rstrip())
        if at < 0:
            raise TemplateError(self.name, "it leaves out the message that is to be continued")
        return text[:at] if text.startswith(TAG, at) else text[:at].rstrip()

    def _run(self, variables: Mapping[str, Any]) -> Marked:
        sandbox, template = _compiled(self.source)
        try:
            return sandbox.run(template, variables)
        except Exception as error:  # whatever a stranger's template does: an undefined name, a recursion, a sum
            raise TemplateError(self.name, f"it does not render these messages ({_said(error)})") from error


def own_template(metadata: Mapping[str, Any]) -> str:
    """The chat template among the metadata of a GGUF, "" where it has none."""
    found = metadata.get(KEY) or metadata.get(f"{KEY}.default")
    return found if isinstance(found, str) and found.strip() else ""


@lru_cache(16)
def _compiled(source: str) -> "tuple[Sandbox, jinja2.Template]":
    """A sandbox of its own for each template, so that its budget is its own."""
    from memdec_edge.chat.sandbox import Sandbox

    sandbox = Sandbox()
    return sandbox, sandbox.from_string(source)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
