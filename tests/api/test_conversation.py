"""A chat that goes on: what is kept and what is taken back after interrupts and errors."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.api.conversation import Conversation
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.chatty import chatty
from tests.support.indexes import index_file
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


def test_a_comparison_without_the_memories_is_twice_the_base(talk: Conversation) -> None:
    texts = {0: "", 1: ""}
    talk.remembers = False
    for number, chunk in talk.compare("one"):
        texts[number] += chunk.text
    base = talk.model.chat(talk.messages[:1], sampling=talk.sampling, generation=LIMIT, memories=()).text
    assert texts == {0: base, 1: base}


@pytest.mark.parametrize(("n_predict", "wanted"), [(100, 200), (-1, 128)])
def test_a_comparison_without_room_for_both_answers_names_the_numbers(
    family: Family, tmp_path: Path, n_predict: int, wanted: int
) -> None:
    base, generation = chatty(family.base, tmp_path / "chat.gguf"), replace(LIMIT, n_predict=n_predict)
    with open_model(base, [family.memory], replace(ONE_THREAD, n_ctx=300, n_seq=2)) as model:
        talk = Conversation(model, SamplingOptions(temperature=0), generation)
        texts = ["heart " * count for count in range(300)]
        at = next(at for at, text in enumerate(texts) if len(model.prompt([user(text)]).tokens) > 300 - wanted)
        with pytest.raises(ContextError) as caught:
            list(talk.compare(texts[at]))
        assert (caught.value.wanted, caught.value.n_ctx) == (wanted, 300)
        assert (talk.fits_alone(texts[at]), talk.fits_alone(texts[at], 2)) == (True, False)
        if n_predict > 0:
            with pytest.raises(ContextError):
                list(model.side_by_side([user(texts[at])], generation=generation))
        answers: list[int] = [number for number, _ in talk.compare(texts[at - 1])]
        assert answers.count(0) == answers.count(1) >= wanted // 2
        model.engine.cells.require_idle()


def test_a_memory_that_is_open_gets_another_weight_however_its_file_is_spelled(
    talk: Conversation, family: Family, tmp_path: Path
) -> None:
    engine = talk.model.engine
    digest, n_vocab = tokenizer_of(engine.base.path)
    index = index_file(tmp_path / "index.gguf", [list(range(50))], n_vocab, digest=digest)
    added = engine.add(MemoryOptions(index))
    try:
        for file, voice in ((index, added), (family.memory, engine.memories[0])):
            talk.open_memory(file.parent / ".." / file.parent.name / file.name, 0.3)
            assert (len(engine.memories), len(engine.indexes)) == (1, 1)
            assert voice.options.weight == 0.3
            spelled = os.path.relpath(file)
            assert talk.model.chat([user("one")], generation=LIMIT, memories=[(spelled, 0.5)]).tokens
    finally:
        engine.remove(added)
        engine.reweight(engine.memories[0], None)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_saved_chat_goes_on_with_the_same_tokens(talk: Conversation, tmp_path: Path) -> None:
    asked(talk, "one")
    talk.system = "Be brief."
    talk.save(tmp_path / "chat.json")
    other = Conversation(talk.model, talk.sampling, LIMIT)
    other.load(tmp_path / "chat.json")
    assert (other.system, other.messages) == (talk.system, talk.messages)
    assert asked(other, "two") == asked(talk, "two")
