"""The Python API: open a base with memories, stream and generate text, chat.

    with open_model("base.gguf", ["memdec-medicine.gguf"]) as model:
        for chunk in model.stream("Anaemia is"):
            print(chunk.text, end="")
        print(model.chat([{"role": "user", "content": "What is anaemia?"}]).text)

What returns a whole text is a fold over what streams it; the command line calls the same functions. Knows nothing of
terminals or HTTP.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from memdec_edge.api.asynchronous import awhole, in_thread, whole
from memdec_edge.api.results import Chunk
from memdec_edge.api.streams import Request, generate, side_by_side
from memdec_edge.chat import ChatPrompt, ChatTemplate, Messages, Tokenizer
from memdec_edge.chat.prompt import special_names
from memdec_edge.chat.reasoning import Reasoning
from memdec_edge.engine import Engine, Index, Memory, MemoryMixture, Source
from memdec_edge.engine.blend import Voice
from memdec_edge.engine.state import restore, save
from memdec_edge.errors import OptionError
from memdec_edge.hub import gguf_of, local, memory_of
from memdec_edge.options import (
    ChatOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
)

LEARNING = MixtureOptions()  # weights that follow the text
Weights = Sequence[tuple[Voice | Path | str, float]]  # memories and indexes that are open, and the weight of each


class LanguageModel:
    """A base, its memories and indexes, ready to generate. Close it, or use it in a with-block.

    Threads may share it. Their calls take turns, step by step; a stream needs a slot of its own (LoadOptions.n_seq) and
    raises BusyError while other streams hold all of them.

    Arguments that all calls share: sampling, generation: see the options; mixture: how much the memories weigh, by
    default as the text shows, None: what they recommend; memories: which of the open ones take part, each with a fixed
    weight, instead of all; chat: how messages become a prompt.

    All calls raise ContextError when the prompt, or the prompt and an explicit n_predict, exceed the context;
    OptionError for an empty prompt; BusyError while other streams hold all slots or cells (without n_predict a stream
    reserves the whole context); Cancelled on Ctrl-C inside a decode; DecodeError once the model was closed. Those of
    chats raise TemplateError too, for a base without a template or one that refuses the messages.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def memories(self) -> list[Memory]:
        """The memories that are open."""
        return self.engine.memories

    @property
    def indexes(self) -> list[Index]:
        """The indexes that are open."""
        return self.engine.indexes

    # --- text -------------------------------------------------------------------------------------------------------

    def stream(
        self,
        prompt: str | list[int],
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        mixture: MixtureOptions | None = LEARNING,
        *,
        memories: Weights | None = None,
        parse_special: bool = True,
    ) -> Generator[Chunk, None, None]:
        """Continue `prompt` (text, or token ids) without a chat template, one chunk per token.

        parse_special: read names of control tokens in a text as those tokens. A chunk's token may have been decoded
        together with those of the next chunks.
        """
        tokens = self._tokens(prompt, parse_special)
        chosen = self._mixture(mixture, memories)
        yield from generate(
            self.engine,
            Request(tokens, None, sampling or SamplingOptions(), generation or GenerationOptions(), chosen),
        )

    generate = whole("generate", stream)
    astream = in_thread("astream", stream)
    agenerate = awhole("agenerate", astream)

    # --- chat -------------------------------------------------------------------------------------------------------

    def stream_chat(
        self,
        messages: Messages,
        *,
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        mixture: MixtureOptions | None = LEARNING,
        memories: Weights | None = None,
        chat: ChatOptions | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer the last of `messages`, one chunk per token: {"role": "user", "content": "What is anaemia?"}.

        Only contents of messages teach the weights, those of the assistant as generated text does.
        """
        prompt, request = self._chat(messages, sampling, generation, mixture, memories, chat)
        parts = Reasoning(prompt.thinks)
        with closing(generate(self.engine, request)) as chunks:
            for chunk in chunks:
                reasoning, text = parts.push(chunk.text)
                if chunk.finish_reason:
                    reasoning, text = (told + held for told, held in zip((reasoning, text), parts.flush(), strict=True))
                yield replace(chunk, text=text, reasoning=reasoning)

    chat = whole("chat", stream_chat)
    astream_chat = in_thread("astream_chat", stream_chat)
    achat = awhole("achat", astream_chat)

    def prompt(self, messages: Messages, chat: ChatOptions | None = None) -> ChatPrompt:
        """The tokens that the model reads for `messages`, and which of them are contents."""
        options = chat or ChatOptions()
        rendered = self.template(options).render(messages, options)
        return self._tokenizer.prompt(rendered, parse_special=options.parse_special)

    def template(self, chat: ChatOptions | None = None) -> ChatTemplate:
        """The template that `chat` names, else the base's own. Raises TemplateError where there is none."""
        base = self.engine.base
        return ChatTemplate.of(base.path, base.metadata, chat or ChatOptions(), special_names(base))

    def side_by_side(
        self,
        messages: Messages,
        *,
        sampling: SamplingOptions | None = None,
        generation: GenerationOptions | None = None,
        mixture: MixtureOptions | None = LEARNING,
        memories: Weights | None = None,
        chat: ChatOptions | None = None,
    ) -> Generator[tuple[int, Chunk], None, None]:
        """Answers of the base alone (0) and of the mixture (1) to `messages`, chunk by chunk, from one prefill.

        Takes two slots. Reasoning stays in the text.
        """
        _, request = self._chat(messages, sampling, generation, mixture, memories, chat)
        yield from side_by_side(self.engine, request)

    aside_by_side = in_thread("aside_by_side", side_by_side)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.engine.base)

    def _chat(
        self,
        messages: Messages,
        sampling: SamplingOptions | None,
        generation: GenerationOptions | None,
        mixture: MixtureOptions | None,
        memories: Weights | None,
        chat: ChatOptions | None,
    ) -> tuple[ChatPrompt, Request]:
        prompt = self.prompt(messages, chat)
        generation = generation or GenerationOptions()
        generation = replace(generation, stop=(*generation.stop, *self.template(chat).stop))
        rates = prompt.rates((mixture or LEARNING).generated)
        chosen = self._mixture(mixture, memories)
        return prompt, Request(prompt.tokens, rates, sampling or SamplingOptions(), generation, chosen)

    # --- shared -----------------------------------------------------------------------------------------------------

    def save_session(
        self, path: Path | str, prompt: str | list[int] | Messages, chat: ChatOptions | None = None
    ) -> int:
        """Read `prompt`, text, token ids or messages, and write what base and memories computed of it to a file.

        Returns the number of tokens in the file. Later calls whose prompt begins with them need not read them again,
        also in another process, after load_session(). Raises OutputError, and what the other calls raise.
        """
        if isinstance(prompt, str) or all(isinstance(token, int) for token in prompt):
            tokens, rates = self._tokens(prompt, True), None  # type: ignore[arg-type]  # a str, or ids
        else:
            chosen = self.prompt(prompt, chat)  # type: ignore[arg-type]  # messages
            tokens, rates = chosen.tokens, chosen.rates(LEARNING.generated)
        request = Request(
            tokens, rates, SamplingOptions(), GenerationOptions(n_predict=0), self._mixture(LEARNING, None)
        )
        return save(request.open(self.engine), Path(path))

    def load_session(self, path: Path | str) -> list[int]:
        """Take back what save_session() wrote, into a slot that is idle; return its tokens.

        Raises MissingFileError, SessionFileError for a file that is damaged or of other models, weights or cache types,
        BusyError where no slot is idle.
        """
        return restore(self.engine, Path(path))

    def _tokens(self, prompt: str | list[int], parse_special: bool) -> list[int]:
        if isinstance(prompt, str):
            return self.engine.base.tokenize(prompt, parse_special=parse_special)
        return list(prompt)

    def _mixture(self, mixture: MixtureOptions | None, memories: Weights | None) -> MemoryMixture:
        if memories is None:
            return self.engine.mixture(mixture)
        for field in fields(mixture or LEARNING):
            given = getattr(mixture or LEARNING, field.name)
            if given != getattr(LEARNING, field.name):
                raise OptionError(
                    field.name, given, "given beside `memories`, whose weights are fixed; give one of the two"
                )
        return MemoryMixture.of((self._opened(memory), weight) for memory, weight in memories)

    def _opened(self, memory: Voice | Path | str) -> Voice:
        if isinstance(memory, Memory | Index):
            return memory
        found = self.engine.find(memory)
        if found is None:
            raise OptionError("memories", memory, "it is not open; open the model with it, or add it to the engine")
        return found

    def quote(self, source: Source) -> str:
        """The passage of a document that a source names. Raises ModelFileError where its index was cut short meanwhile,
        and OptionError where it was removed."""
        index = next((index for index in self.indexes if index.path == source.index), None)
        if index is None:
            raise OptionError("memory", source.index, "it was removed; add it again")
        index.file.check_whole()
        tokens = index.file.tokens[source.after - (source.end - source.start) : source.after]
        return b"".join(self.engine.base.piece(int(token)) for token in tokens).decode("utf-8", "replace")

    def close(self) -> None:
        """Free the models."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(
    base: Path | str,
    memories: Iterable[Path | str | MemoryOptions] = (),
    options: LoadOptions | None = None,
) -> LanguageModel:
    """Open a base GGUF with memories and indexes (paths, or MemoryOptions with a weight).

    What is no path may be a name on the Hugging Face Hub (hub.gguf_of, hub.memory_of). Errors: see Engine, and there.
    """
    chosen = [memory if isinstance(memory, MemoryOptions) else MemoryOptions(Path(memory)) for memory in memories]
    chosen = [replace(memory, path=local(memory.path, memory_of)) for memory in chosen]
    return LanguageModel(Engine(local(Path(base), gguf_of), chosen, options))
