"""A request as the options of this package: sampling, generation, mixture. Knows nothing of prompts and answers."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.engine.blend import Voice
from memdec_edge.errors import OptionError
from memdec_edge.options import GenerationOptions, MixtureOptions, SamplingOptions
from memdec_edge.server.schemas import Common, MemoryChoice

ENDLESS = 1 << 24  # tokens: more than any context has
STOPS, STOP = 64, 1000  # stop strings, each of which every token is compared with, and characters of one
SEEDS = 2**32 - 1  # a larger seed stands for its remainder
DIRECT = (  # fields that requests and SamplingOptions call the same
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "grammar",
)  # fmt: skip
FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
NAMES = {"n_predict": "max_tokens", "json_schema": "response_format", "logprobs": "top_logprobs"}  # in messages


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing. most: new tokens that it may ask for at most; -1: any number."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    mixture: MixtureOptions = field(default_factory=MixtureOptions)
    most: int = -1


def sampling_of(body: Common, engine: Engine, default: SamplingOptions) -> SamplingOptions:
    """The sampler chain that a request asks for. Raises OptionError, as all of these do."""
    given: dict[str, Any] = {name: getattr(body, name) for name in DIRECT if getattr(body, name) is not None}
    given |= {name: float(given[name]) for name in FLOATS if name in given}
    if body.repetition_penalty is not None:
        given["repeat_penalty"] = float(body.repetition_penalty)
    if body.seed is not None:
        given["seed"] = body.seed % SEEDS if body.seed >= 0 else -1
    if body.logit_bias:
        given["logit_bias"] = tuple(_biases(body.logit_bias, engine))
    schema = _schema_of(body)
    if schema is not None:
        given["json_schema"] = json.dumps(schema)
    if "grammar" in given and "json_schema" not in given:
        given["json_schema"] = ""
    elif "json_schema" in given and "grammar" not in given:
        given["grammar"] = ""
    return replace(default, **given)


def generation_of(
    body: Common, defaults: Defaults, *, most: int | None, stop: Iterable[str] = (), logprobs: int = 0
) -> GenerationOptions:
    """How far a request may go. most: new tokens that it asks for; stop: further texts that end the answer."""
    default = defaults.generation
    asked = default.n_predict if most is None or most < 0 else min(most, ENDLESS)
    if defaults.most >= 0:
        asked = min(asked, defaults.most) if asked >= 0 else defaults.most
    own = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(own) > STOPS or any(len(text) > STOP for text in own):
        raise OptionError("stop", f"{len(own)} texts", f"must be at most {STOPS} of {STOP} characters")
    return replace(
        default,
        n_predict=asked,
        stop=tuple(dict.fromkeys([*default.stop, *own, *stop])),
        ignore_eos=default.ignore_eos if body.ignore_eos is None else body.ignore_eos,
        logprobs=logprobs,
    )


def mixture_of(choice: MemoryChoice, engine: Engine, default: MixtureOptions) -> MemoryMixture:
    """Which memories take part, and how much they weigh: "auto", "none", one weight for all, or those of a list."""
    if choice is None or (choice == "auto" and default.total is None):
        return engine.mixture(default)
    if choice == "auto":
        return engine.mixture(replace(default, total=None))
    if choice == "none":
        return MemoryMixture.of(())
    if isinstance(choice, float):
        return engine.mixture(replace(default, total=choice))
    assert isinstance(choice, list)
    voices = [voice_of(one.id, engine) for one in choice]
    weights = [one.weight for one in choice if one.weight is not None]
    if len(weights) == len(voices):
        return MemoryMixture.of(zip(voices, weights, strict=True))
    if weights:
        raise OptionError("memory", "a lambda for some", "give one for each, or for none: then they follow the text")
    return engine.mixture(replace(default, total=None), voices)


def voice_of(number: int | str, engine: Engine) -> Voice:
    """The memory or index of that number or name. Raises OptionError."""
    voices: list[Voice] = [*engine.memories, *engine.indexes]
    found = [voice for voice in voices if number in (voice.number, name_of(voice))]
    if len(found) != 1:
        known = ", ".join(f"{voice.number} ({name_of(voice)})" for voice in voices) or "none"
        raise OptionError("memory", number, f"no memory that is loaded has that id; there are: {known}")
    return found[0]


def name_of(voice: Voice) -> str:
    """What requests may call a memory: its file's name without the ending."""
    return voice.path.stem


def _schema_of(body: Common) -> Any:
    """The JSON schema that the answer follows; None: none."""
    if body.json_schema is not None:
        return body.json_schema
    wanted = body.response_format
    if wanted is None:
        return None
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return wanted.get("schema", {"type": "object"})
    if kind == "json_schema":
        inner = wanted.get("json_schema", wanted)
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if schema is None:
            raise OptionError("response_format", "json_schema", "has no `schema`; give one")
        return schema
    raise OptionError("response_format", kind, "must be text, json_object or json_schema")


def _biases(given: Any, engine: Engine) -> Iterable[tuple[int, float]]:
    """Token ids and what is added to their logits; a text stands for all of its tokens, false for never."""
    found: dict[int, float] = {}
    for key, amount in given.items() if isinstance(given, dict) else given:
        text = key if isinstance(key, str) else ""
        number = key if isinstance(key, int) else int(text[:10]) if re.fullmatch("[0-9]+", text) else None
        if number is not None and not 0 <= number < engine.base.n_vocab:
            raise OptionError("logit_bias", str(number)[:20], f"ids must be from 0 to {engine.base.n_vocab - 1}")
        ids = [number] if number is not None else engine.base.tokenize(text, add_special=False, parse_special=True)
        if amount is True:
            raise OptionError("logit_bias", "true", "must be a number, or false for a token that is never sampled")
        for token in ids:
            found[token] = float("-inf") if amount is False else float(amount)
    return sorted(found.items())
