"""A chat that goes on: what is kept and what is taken back after interrupts and errors."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.conversation import Conversation
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.options import GenerationOptions, SamplingOptions
from tests.conftest import Family
from tests.support.chatty import chatty
from tests.support.plain import ONE_THREAD

LIMIT = GenerationOptions(n_predict=8, ignore_eos=True, draft=0)


@pytest.fixture(scope="module")
def model(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    base = chatty(family.base, tmp_path_factory.mktemp("talk") / "chat.gguf")
    with open_model(base, [family.memory], replace(ONE_THREAD, n_seq=2)) as opened:
        yield opened


@pytest.fixture
def talk(model: LanguageModel) -> Conversation:
    return Conversation(model, SamplingOptions(temperature=1, seed=3), LIMIT)


def asked(talk: Conversation, text: str) -> str:
    return "".join(chunk.text for chunk in talk.ask(text))


def test_questions_and_answers_are_kept_and_the_next_turn_knows_them(talk: Conversation) -> None:
    first, second = asked(talk, "one"), asked(talk, "two")
    assert [message["content"] for message in talk.messages] == ["one", first, "two", second]
    done = talk.model.chat(talk.messages[:3], sampling=talk.sampling, generation=LIMIT)
    assert done.tokens == talk.messages[3]["tokens"]


def test_what_came_before_an_interrupt_is_the_answer(talk: Conversation) -> None:
    with closing(talk.ask("one")) as chunks:
        text = next(chunks).text + next(chunks).text
    assert [message["content"] for message in talk.messages] == ["one", text]
    talk.model.engine.cells.require_idle()
    with closing(talk.ask("two")):
        pass
    assert len(talk.messages) == 2


def test_an_error_takes_the_question_back_and_an_old_answer_stays(talk: Conversation) -> None:
    answer = asked(talk, "one")
    with pytest.raises(ContextError):
        asked(talk, "heart " * 600)
    assert len(talk.messages) == 2
    talk.generation = replace(LIMIT, n_predict=600)
    with pytest.raises(ContextError):
        list(talk.regenerate())
    assert talk.messages[1]["content"] == answer
    talk.generation = LIMIT
    assert "".join(chunk.text for chunk in talk.regenerate()) == talk.messages[1]["content"] != answer


def test_nothing_asked_is_nothing_to_answer_again(talk: Conversation) -> None:
    with pytest.raises(OptionError, match="nothing was asked"):
        list(talk.regenerate())


def test_the_oldest_turn_goes_with_its_answer(talk: Conversation) -> None:
    asked(talk, "one")
    asked(talk, "two")
    assert talk.drop_oldest() == 2
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[0]["content"] == "two"
    assert (talk.drop_oldest(), talk.drop_oldest()) == (2, 0)
    assert talk.fits_alone("three")
    assert not talk.fits_alone("heart " * 600)


def test_a_comparison_keeps_the_answer_of_the_mixture(talk: Conversation) -> None:
    texts = {0: "", 1: ""}
    for number, chunk in talk.compare("one"):
        texts[number] += chunk.text
    assert talk.messages[1]["content"] == texts[1]


def test_a_saved_chat_goes_on_with_the_same_tokens(talk: Conversation, tmp_path: Path) -> None:
    asked(talk, "one")
    talk.system = "Be brief."
    talk.save(tmp_path / "chat.json")
    other = Conversation(talk.model, talk.sampling, LIMIT)
    other.load(tmp_path / "chat.json")
    assert (other.system, other.messages) == (talk.system, talk.messages)
    assert asked(other, "two") == asked(talk, "two")
