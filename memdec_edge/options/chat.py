"""Options of chatting: which template, and how it is applied. Knows nothing of templates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memdec_edge.errors import OptionError
from memdec_edge.options.fields import Checked, about, option


@dataclass(frozen=True)
class ChatOptions(Checked):
    """How messages become a prompt.

    template_kwargs: variables for the template, such as enable_thinking. tools: JSON schemas of functions, for
    templates that know tools. parse_special: read names of control tokens in contents as those tokens, which lets the
    writer of a message end it and begin another.
    """

    chat_template: str = option(
        "",
        "--chat-template",
        metavar="NAME|JINJA",
        help="Chat template: chatml, plain, or a Jinja template. Default: the base's own.",
    )
    continue_final_message: bool = option(
        False, help="Continue the last message, of the assistant, instead of beginning another."
    )
    template_kwargs: Mapping[str, Any] | None = field(default=None, metadata=about(help="Variables for the template."))
    tools: tuple[Mapping[str, Any], ...] = field(default=(), metadata=about(help="Functions that the model may call."))
    parse_special: bool = option(False, help="Read names of control tokens in contents as those tokens.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template_kwargs is not None and not isinstance(self.template_kwargs, Mapping):
            raise OptionError("template_kwargs", self.template_kwargs, "must be a mapping of names to values")
        for tool in self.tools:
            if not isinstance(tool, Mapping):
                raise OptionError("tools", tool, "must be a JSON schema of a function, as a mapping")
