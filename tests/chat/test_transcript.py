"""Whole chats as tokens: those of the prompts at run time, and answers that are told from all else."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.api import open_model
from memdec_edge.chat import ChatTemplate, Tokenizer, Transcriber
from memdec_edge.chat.prompt import special_names
from memdec_edge.errors import TemplateError
from memdec_edge.llama.model import Model
from memdec_edge.options import ChatOptions
from tests.support.chatty import chatty
from tests.support.real import SMOLLM2

PIECES = st.sampled_from(
    ["Hello", " a", "\n\n", "What's 12?", "é", "🙂", "<|im_end|>", "<|im_start|>user\n", "|>", "."]
)
TEXT = st.lists(PIECES, min_size=1, max_size=5).map("".join).filter(str.strip)
TURNS = (("User", "What is anaemia?"), ("Assistant", "A lack of cells."), ("User", "Why?"), ("Assistant", "Of iron."))


@pytest.fixture(scope="module")
def transcriber() -> Iterator[Transcriber]:
    with closing(Transcriber(SMOLLM2)) as found:
        yield found


def prompt_of(model: Model, messages: list[dict[str, Any]]) -> list[int]:
    """What chat, serve and Python feed for messages."""
    template = ChatTemplate.of(model.path, model.metadata, ChatOptions(), special_names(model))
    return Tokenizer(model).prompt(template.render(messages)).tokens


@settings(max_examples=60, deadline=None)
@given(question=TEXT, answer=TEXT, again=TEXT)
def test_a_transcript_is_the_prompt_the_answer_and_the_next_prompt(
    transcriber: Transcriber, question: str, answer: str, again: str
) -> None:
    model = transcriber.model
    found = transcriber.write([("User", question), ("Assistant", answer), ("User", again), ("Assistant", "Yes.")])
    assert found
    ids = model.encode([answer.strip()])[0]
    asked: list[dict[str, Any]] = [{"role": "user", "content": question}]
    first = prompt_of(model, asked)
    assert found.tokens[: len(first) + len(ids)] == first + ids
    asked += [{"role": "assistant", "content": answer.strip(), "tokens": ids}, {"role": "user", "content": again}]
    second = prompt_of(model, asked)
    assert found.tokens[: len(second)] == second
    end = model.token_of("<|im_end|>")
    learned = [token for token, counts in zip(found.tokens, found.answers, strict=True) if counts]
    assert learned == [*ids, end, *model.encode(["Yes."])[0], end]
    assert not any(found.answers[: len(first)])


def test_the_model_itself_is_asked_by_the_same_tokens(transcriber: Transcriber) -> None:
    found = transcriber.write(TURNS)
    assert found
    with open_model(SMOLLM2) as model:
        prompt = model.prompt([{"role": "user", "content": TURNS[0][1]}]).tokens
    assert found.tokens[: len(prompt)] == prompt


def test_what_a_template_refuses_is_no_transcript(family: Any, tmp_path: Path) -> None:
    refuses = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template = f"{{% for m in messages %}}{refuses}{{{{ m.content }}}}{{% endfor %}}"
    with closing(Transcriber(chatty(family.base, tmp_path / "base.gguf", template))) as transcriber:
        assert transcriber.write(TURNS)
        assert transcriber.write([("System", "Be brief."), *TURNS]) is None
        assert transcriber.write([("Narrator", "It rains."), *TURNS]) is None
        assert transcriber.write(TURNS * 100) is None  # of a length that takes a template's time


def test_a_base_without_a_template_is_named(family: Any) -> None:
    with pytest.raises(TemplateError, match="it has no chat template"):
        Transcriber(family.base)
