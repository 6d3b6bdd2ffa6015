"""lm-evaluation-harness over an engine: the model `memdec`.

    lm_eval.simple_evaluate(model=MemdecLM(base="base.gguf", memory="memdec-medicine.gguf"), tasks=[...])

Importing this module imports lm_eval, of the extra [eval]. Knows nothing of tasks.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import Field, fields
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from memdec_edge.api.streams import Request as Prompt
from memdec_edge.api.streams import Stream
from memdec_edge.chat import ChatTemplate
from memdec_edge.chat.prompt import special_names
from memdec_edge.engine import Engine
from memdec_edge.errors import BusyError, ModelFileError, OptionError
from memdec_edge.evaluation.likelihood import Request, Scorer
from memdec_edge.hub import gguf_of, local, memory_of
from memdec_edge.notes import warn
from memdec_edge.options import (
    ChatOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
    check_range,
)
from memdec_edge.progress import progress

NAME = "memdec"
SEQUENCES = 16  # in a batch, unless --batch_size says so
LOADING, MIXING = (
    {each.name: each for each in fields(kind) if each.name not in ("n_seq", "total")}
    for kind in (LoadOptions, MixtureOptions)
)
# lm-eval's names of sampling options that have the same meaning here
SAMPLING = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}
CONTROL = ("until", "do_sample", "temperature", "max_gen_toks")


@register_model(NAME)
class MemdecLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A base with memories and indexes, as a model of lm-eval. close() frees it.

    base: GGUF; memory: files of memories and indexes, one or a list; all are paths, or names on the Hub. lam: their
    weight together, 0 to 1, or "auto"; max_length: tokens of the longest request, at most those of the context;
    batch_size: sequences of a batch. Other arguments are fields of LoadOptions and MixtureOptions, such as n_ctx=8192.
    max_batch_size, device and trust_remote_code are lm-eval's, and mean nothing here. Raises OptionError, and as
    Engine.
    """

    def __init__(
        self,
        base: Path | str | None = None,
        memory: Sequence[Path | str] | Path | str = (),
        lam: float | str = "auto",
        max_length: int | None = None,
        batch_size: int | str = SEQUENCES,
        max_batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not base:
            raise OptionError("base", "missing", "give a GGUF as base=FILE in --model_args")
        for name in options:
            if name not in LOADING | MIXING:
                known = ", ".join(("base", "memory", "lam", "max_length", *LOADING, *MIXING))
                raise OptionError(name, options[name], f"the model {NAME} has no such argument; it has {known}")
        loading = LoadOptions(**_chosen(options, LOADING), n_seq=_sequences(batch_size))
        self._mixture = MixtureOptions(total=_lambda(lam), **_chosen(options, MIXING))
        files = memory if isinstance(memory, list | tuple) else [memory]
        if self._mixture.total is not None and not files:
            raise OptionError("lam", lam, "there is no memory to weigh; give one as memory=FILE")
        memories = [MemoryOptions(local(Path(str(file)), memory_of)) for file in files]
        self.engine = Engine(local(Path(str(base)), gguf_of), memories, loading)
        warn(self.engine.warnings)
        with ExitStack() as undo:
            undo.callback(self.engine.close)
            self.scorer = Scorer(self.engine, self._mixture)
            self.max_length = self.scorer.longest if max_length is None else max_length
            check_range("max_length", self.max_length, 2, self.scorer.longest)
            undo.pop_all()
        self._told: set[str] = set()

    def close(self) -> None:
        """Free the models."""
        self.engine.close()

    # --- text and tokens --------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document, -1 where the base has none."""
        return self.engine.base.eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context. Raises ModelFileError where the base has none."""
        base = self.engine.base
        found = base.bos if base.bos >= 0 else base.eos
        if found < 0:
            raise ModelFileError(base.path, "it names no token that begins or ends a text, and a task needs one")
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; names of control tokens are those tokens, as in transformers.

        add_special_tokens: begin with BOS, unless the text does; None: where the vocabulary adds it. EOS is not added.
        """
        base = self.engine.base
        ids = base.tokenize(string, add_special=False)
        adds = base.add_bos if add_special_tokens is None else add_special_tokens and base.bos >= 0
        return [base.bos, *ids] if adds and ids[:1] != [base.bos] else ids

    @cached_property
    def _template(self) -> ChatTemplate:
        base = self.engine.base
        return ChatTemplate.of(base.path, base.metadata, ChatOptions(), special_names(base))

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer and its template from others, for lm-eval's caches of prompts."""
        return self.engine.base.path.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the base's template. Raises TemplateError where it has none."""
        return self._template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as a prompt; without add_generation_prompt the last one stays open. Raises TemplateError."""
        options = ChatOptions(continue_final_message=not add_generation_prompt)
        return self._template.render(chat_history, options).text

    # --- likelihoods ------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked, shortened = [], 0
        for _, context, tokens in requests:
            room = self.max_length + 1 - len(tokens)  # the last token is not decoded
            shortened += len(context) > room
            asked.append(Request(tuple(context[-room:] if room > 0 else ()), tuple(tokens)))
        self._tell_shortened(shortened, len(requests))
        found = [(one.log_prob, one.greedy) for one in self.scorer.score(asked)]
        for (texts, *_), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _tell_shortened(self, count: int, total: int) -> None:
        if count:
            where = f"of {total} requests are longer than {self.max_length} tokens"
            warn([f"{count} {where}; their contexts lose the beginning"])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-prob of each text, nats, in lm-eval's windows: each is a request of its own."""
        windows = [self._windows(*request.args) for request in requests]
        found = iter(self.scorer.score([pair for pairs in windows for pair in pairs]))
        totals = [sum(next(found).log_prob for _ in pairs) for pairs in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[Request]:
        """A text in windows: the tokens that are new to each, after what it repeats."""
        every = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        return [Request(tuple(context), tuple(tokens)) for context, tokens in map(make_disjoint_window, every)]

    # --- generation -------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string or max_gen_toks.

        Side by side as far as slots and cells go. Sampling options that the engine lacks are named on stderr. Raises
        OptionError for options that cannot be.
        """
        prompts = [self._prompt(at, *request.args) for at, request in enumerate(requests)]
        self._tell_shortened(sum(shortened for _, shortened in prompts), len(prompts))
        waiting = deque(enumerate(prompt for prompt, _ in prompts))
        texts, running = [""] * len(requests), dict[int, Stream]()
        with progress("texts", len(requests), "texts") as advance, ExitStack() as undo:
            undo.callback(lambda: [stream.session.close() for stream in running.values()])
            while waiting or running:
                while waiting and (stream := self._opened(waiting[0][1], alone=not running)):
                    running[waiting.popleft()[0]] = stream
                start = perf_counter()
                steps = self.engine.step([stream.session for stream in running.values()])
                for (at, stream), samples in zip(list(running.items()), steps, strict=True):
                    texts[at] += "".join(chunk.text for chunk in stream.take(samples, perf_counter() - start))
                    if stream.over:
                        texts[at] += stream.end().text
                        running.pop(at).session.close()
                        self.cache_hook.add_partial("generate_until", requests[at].args, texts[at])
                        advance(1)
        return texts

    def _opened(self, prompt: Prompt, alone: bool) -> Stream | None:
        """The stream of one more prompt, None where slots or cells lack until another one ends."""
        try:
            return Stream(self.engine, prompt.open(self.engine))
        except BusyError:
            if alone:
                raise
            return None

    def _prompt(self, seed: int, context: str, gen_kwargs: Mapping[str, Any]) -> tuple[Prompt, bool]:
        """The end of a context that leaves room for the answer, how that is generated, and whether this is not all."""
        given = normalize_gen_kwargs(dict(gen_kwargs))
        n_predict = given["max_gen_toks"]
        check_range("max_gen_toks", n_predict, 1, self.max_length - 1)
        for name in given.keys() - {*CONTROL, *SAMPLING} - self._told:
            self._told.add(name)
            warn([f"the generation option {name} has no meaning here, and is left out"])
        chain: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_last_n": -1}  # nothing is cut
        chain |= {ours: given[name] for name, ours in SAMPLING.items() if name in given}
        temperature = given.get("temperature", 1.0) if given["do_sample"] else 0.0
        sampling = SamplingOptions(temperature=temperature, seed=seed, **chain)
        stop = tuple(text for text in given["until"] if text)
        # Without drafts the rounds do not depend on measured times, and a quantised model's rounding does not either.
        generation = GenerationOptions(n_predict=n_predict, stop=stop, draft=0)
        tokens, room = self.tok_encode(context) or [self.prefix_token_id], self.max_length - n_predict
        prompt = Prompt(tokens[-room:], None, sampling, generation, self.engine.mixture(self._mixture))
        return prompt, len(tokens) > room


def _lambda(lam: float | str) -> float | None:
    """What MixtureOptions.total takes. Raises OptionError."""
    if lam == "auto":
        return None
    try:
        check_range("lam", float(lam), 0.0, 1.0)
        return float(lam)
    except ValueError:
        raise OptionError("lam", lam, "must be auto or a number from 0 to 1") from None


def _sequences(batch_size: int | str) -> int:
    """lm-eval's batch size, which may be auto or auto:N. Raises OptionError."""
    if str(batch_size).startswith("auto"):
        return SEQUENCES
    try:
        check_range("batch_size", int(batch_size), 1, 256)
        return int(batch_size)
    except ValueError:
        raise OptionError("batch_size", batch_size, "must be auto or a whole number") from None


def _chosen(options: Mapping[str, Any], known: Mapping[str, Field[Any]]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in known}
