"""A chat that goes on: its messages, its settings, and questions answered one after the other.

Knows nothing of terminals. One thread at a time.
"""

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memdec_edge.api.model import LEARNING, LanguageModel
from memdec_edge.api.results import Chunk, message_of
from memdec_edge.chat.messages import checked
from memdec_edge.errors import ContextError, MissingFileError, OptionError, OutputError, SessionFileError
from memdec_edge.files import write_text
from memdec_edge.options import ChatOptions, GenerationOptions, MemoryOptions, MixtureOptions, SamplingOptions

VERSION = 1
ROOM = 64  # tokens that an answer finds at least, where n_predict names no number


@dataclass
class Conversation:
    """Settings may change between two answers; `system` stands before all messages.

    messages: what was asked and answered so far, without `system`. remembers: whether memories and indexes take
    part.
    """

    model: LanguageModel
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    mixture: MixtureOptions = LEARNING
    chat: ChatOptions = field(default_factory=ChatOptions)
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    remembers: bool = True

    def ask(self, text: str) -> Generator[Chunk, None, None]:
        """Answer `text`, one chunk per token, and keep both.

        What an interrupt leaves of an answer is kept as the answer. Without any, the question is taken back, and so it
        is before an error. Raises ContextError where the context has no room for an answer, and as stream_chat().
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        yield from self._answer(before)

    def compare(self, text: str) -> Generator[tuple[int, Chunk], None, None]:
        """As ask(), with the base's own answer beside it (0); that of the mixture (1) is kept."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        yield from self._kept(self._side_by_side(), before)

    def regenerate(self) -> Generator[Chunk, None, None]:
        """Answer the last question again, with another seed; without any answer the old one stays.

        Raises OptionError where nothing was asked, and as ask().
        """
        before = list(self.messages)
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if not self.messages:
            raise OptionError("messages", "empty", "nothing was asked that could be answered again")
        if self.sampling.seed >= 0:
            self.sampling = replace(self.sampling, seed=(self.sampling.seed + 1) % (2**32 - 1))
        yield from self._answer(before)

    def _answer(self, before: list[dict[str, Any]]) -> Generator[Chunk, None, None]:
        with closing(self._kept(self._stream(), before)) as kept:
            for _, chunk in kept:
                yield chunk

    def _kept(
        self, answers: Generator[tuple[int, Chunk], None, None], before: list[dict[str, Any]]
    ) -> Generator[tuple[int, Chunk], None, None]:
        """Keep the chunks of number 1 as the answer to the last message; where none came, go back to `before`."""
        chunks: list[Chunk] = []
        try:
            with closing(answers):
                for number, chunk in answers:
                    chunks += [chunk] if number else []
                    yield number, chunk
        finally:
            if any(chunk.text or chunk.reasoning for chunk in chunks):
                self.messages.append(message_of(chunks))
            else:
                self.messages[:] = before

    def _stream(self) -> Generator[tuple[int, Chunk], None, None]:
        self._check_room(self._whole())
        with closing(self.model.stream_chat(self._whole(), **self._settings())) as chunks:
            for chunk in chunks:
                yield 1, chunk

    def _side_by_side(self) -> Generator[tuple[int, Chunk], None, None]:
        self._check_room(self._whole(), n_answers=2)
        yield from self.model.side_by_side(self._whole(), **self._settings())

    def _settings(self) -> dict[str, Any]:
        """Arguments of a call, as they are set now."""
        return {
            "sampling": self.sampling, "generation": self.generation, "chat": self.chat,
            "mixture": self.mixture if self.remembers else None, "memories": None if self.remembers else (),
        }  # fmt: skip

    def _whole(self, messages: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + (self.messages if messages is None else messages)

    def fits_alone(self, text: str, n_answers: int = 1) -> bool:
        """Whether `text` with that many answers would find room without the messages before it."""
        try:
            self._check_room(self._whole([{"role": "user", "content": text}]), n_answers)
        except ContextError:
            return False
        return True

    def _check_room(self, messages: list[dict[str, Any]], n_answers: int = 1) -> None:
        length = len(self.model.prompt(messages, self.chat).tokens)
        wanted = self.generation.n_predict if self.generation.n_predict >= 0 else ROOM
        self.model.engine.require_room(length, wanted, n_answers, None if self.remembers else ())

    def drop_oldest(self) -> int:
        """Forget the oldest question with its answer; return how many messages that were, 0 where none is left."""
        starts = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        count = starts[1] if len(starts) > 1 else len(self.messages)
        del self.messages[:count]
        return count

    def open_memory(self, path: Path, weight: float | None) -> None:
        """Let one more memory or index take part, or one that is open with another weight. Errors: see Engine.add()."""
        engine = self.model.engine
        opened = engine.find(path)
        if opened is None:
            engine.add(MemoryOptions(path, weight))
        else:
            engine.reweight(opened, weight)
        self.remembers = True

    def save(self, path: Path) -> None:
        """Write messages and system text as JSON. Raises OutputError."""
        found = {"version": VERSION, "system": self.system, "messages": self.messages}
        try:
            write_text(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        except UnicodeEncodeError as error:
            raise OutputError(path, "the chat holds text that is not UTF-8") from error

    def load(self, path: Path) -> None:
        """Take messages and system text from what save() wrote. Raises MissingFileError and SessionFileError."""
        if not path.is_file():
            raise MissingFileError(path, "file of a chat")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, system, messages = found["version"], found["system"], found["messages"]
            if not isinstance(system, str) or version != VERSION:
                raise ValueError("another version")
            plain = checked(messages) if messages else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OptionError) as error:
            raise SessionFileError(path, f"it is no saved chat ({error})", "give a file that /save wrote") from error
        self.system, self.messages = system, plain
