"""A whole chat as the tokens that a model learns or is scored on, and which of them are answers.

A prompt of the same chat has the same tokens (prompt.py): an answer begins where a prompt ends, and a later prompt
holds it as it was written. Knows nothing of training and of scores.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdec_edge.chat.prompt import Tokenizer, special_names
from memdec_edge.chat.template import ChatTemplate
from memdec_edge.errors import OptionError, TemplateError
from memdec_edge.llama.model import Model
from memdec_edge.options.chat import ChatOptions

LONGEST = 200  # messages: longer chats take a template's time without need


@dataclass(frozen=True)
class Transcript:
    """Token ids, and for each whether it is of an answer, or is the token that ends one."""

    tokens: list[int]
    answers: list[bool]


class Transcriber:
    """Writes chats with the template of a GGUF, for models with its tokenizer.

    Raises MissingFileError and ModelFileError as Model does, and TemplateError for a GGUF without a template, or with
    one that cannot be compiled.
    """

    def __init__(self, base: Path) -> None:
        self.model = Model(base, vocab_only=True)
        self._template = ChatTemplate.of(base, self.model.metadata, ChatOptions(), special_names(self.model))
        self._tokenizer = Tokenizer(self.model)

    def close(self) -> None:
        """Give the vocabulary back."""
        self.model.close()

    def write(self, turns: Sequence[tuple[str, str]]) -> Transcript | None:
        """The transcript of turns, each a role and a text; None for what the template or a chat cannot have.

        Blanks around an answer are left out: no model writes them.
        """
        if len(turns) > LONGEST:
            return None
        messages = [self._message(role.lower(), text) for role, text in turns]
        try:
            prompt = self._tokenizer.prompt(self._template.render(messages, whole=True))
        except (OptionError, TemplateError):
            return None
        answers = [source is not None and prompt.roles[source] == "assistant" for source in prompt.sources]
        return Transcript(prompt.tokens, list(self._with_ends(prompt.tokens, answers)))

    def _message(self, role: str, text: str) -> dict[str, Any]:
        if role != "assistant":
            return {"role": role, "content": text}
        answer = text.strip()
        return {"role": role, "content": answer, "tokens": self.model.encode([answer])[0]}

    def _with_ends(self, tokens: Sequence[int], answers: Iterable[bool]) -> Iterator[bool]:
        """The answers, each with the control token right behind it: that ends it when a model writes."""
        before = False
        for token, answer in zip(tokens, answers, strict=True):
            yield answer or (before and self.model.is_control(token))
            before = answer
