"""Libraries that take a `llama_cpp.Llama`, each run with a MemoryLlama: the memory must take part, and nothing else.

Judged by lambda 0 and 1: a library that goes past the memories cannot give what it gives on the memory's own GGUF.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import instructor
import llama_cpp
import outlines
import pytest
from pydantic import BaseModel

from memdec_edge import MemoryLlama
from tests.conftest import Family
from tests.support.stock import PLAIN

QUESTION = "The heart is a muscle. How are you?"
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 120}
LLGUIDANCE = "llguidance"  # the backend of outlines that needs no numba
Ask = Callable[[llama_cpp.Llama], str]


class Organ(BaseModel):
    name: Literal["heart", "lung", "liver", "kidney", "brain", "skin", "stomach", "spleen"]
    pumps: bool
    weight: Literal["light", "heavy", "unknown"]


def outlines_choice(llama: llama_cpp.Llama) -> str:
    words = Literal["blood", "iron", "oxygen", "sugar", "fever", "a stroke", "bread"]
    return str(outlines.from_llamacpp(llama)(QUESTION, words, LLGUIDANCE, **GREEDY))


def outlines_json(llama: llama_cpp.Llama) -> str:
    generate = outlines.Generator(outlines.from_llamacpp(llama, chat_mode=False), Organ, LLGUIDANCE)
    return str(generate(QUESTION, **GREEDY))


def outlines_stream(llama: llama_cpp.Llama) -> str:
    letters = outlines.types.Regex("[a-z]{8} [a-z]{8}")
    return "".join(outlines.from_llamacpp(llama).stream(QUESTION, letters, LLGUIDANCE, **GREEDY))


def instructor_model(llama: llama_cpp.Llama) -> str:
    create = instructor.patch(create=llama.create_chat_completion_openai_v1, mode=instructor.Mode.TOOLS)
    organ = create(response_model=Organ, messages=[{"role": "user", "content": QUESTION}], **GREEDY)
    assert isinstance(organ, Organ)
    return organ.model_dump_json()


def openai_stream(llama: llama_cpp.Llama) -> str:
    """What instructor's streams are made of."""
    messages = [{"role": "user", "content": QUESTION}]
    chunks = llama.create_chat_completion_openai_v1(messages=messages, stream=True, temperature=0.0, max_tokens=12)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


TAKERS: list[Ask] = [outlines_choice, outlines_json, outlines_stream, instructor_model, openai_stream]


@pytest.fixture(scope="module")
def stock(family: Family) -> Iterator[tuple[llama_cpp.Llama, llama_cpp.Llama]]:
    """Base and memory, each as a model of its own."""
    with (
        closing(llama_cpp.Llama(str(family.base), **PLAIN)) as base,
        closing(llama_cpp.Llama(str(family.memory), **PLAIN)) as memory,
    ):
        yield base, memory


@pytest.mark.filterwarnings("ignore:llama_token_get_attr is deprecated")  # llguidance's own call
@pytest.mark.parametrize("ask", TAKERS, ids=lambda ask: ask.__name__)
def test_a_taker_gets_the_mixture(ask: Ask, stock: tuple[llama_cpp.Llama, llama_cpp.Llama], family: Family) -> None:
    base, memory = map(ask, stock)
    assert base != memory  # else this test could not tell
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=1.0, **PLAIN)) as llama:
        assert ask(llama) == memory
        mixed = llama.n_mixed
        assert mixed > 2
        llama.lam = 0.0
        assert ask(llama) == base
        assert llama.n_mixed == mixed
        llama.lam = 0.5
        assert ask(llama)
        assert llama.n_mixed > mixed + 2
