"""memdec_edge.workflow.plan: what is planned for a text, a machine and a time; no model is opened."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.documents import Corpus, Divided, Document, File
from memdec_edge.errors import CorpusError, MemoryLimitError, OptionError, OutputError
from memdec_edge.options import LearnOptions
from memdec_edge.workflow.gather import Gathered
from memdec_edge.workflow.plan import Plan, make_plan, plan_of
from memdec_edge.workflow.probe import Machine
from memdec_edge.workflow.recipes import BLOCK, LEAST_TOKENS, PLAIN, RETRIEVER, SCORED

OUT = Path("learned")
LAPTOP = Machine(
    cpus=2, device="cpu", training=340, reading=1_000, scoring=300, decoding=100, products=2e11, writing=3e8,
    starting=25, warming=1, parameters=135_000_000, context=2_048, free_memory=18 << 30, free_disk=40 << 30,
)  # fmt: skip

LARGE = replace(LAPTOP, free_disk=1 << 40)  # the keys of 100 million tokens take 160 GB


def text_of(tokens: int, held_out: int | None = None) -> Gathered:
    """A corpus of so many training tokens; no words of it matter to a plan."""
    held_out = tokens // 18 if held_out is None else held_out
    counts = {"train": tokens, "valid": held_out, "test": held_out}
    splits = {split: [Document("x", "notes.txt")] for split in counts}
    corpus = Corpus(OUT, {"train": [File(OUT, PurePosixPath("notes.txt"))]})
    return Gathered(Divided(corpus, splits, 0), counts, seconds=tokens * 1e-5, seconds_a_token=1e-5)


def planned(tokens: int, budget: str = "", machine: Machine = LAPTOP, **changes: Any) -> Plan:
    options = LearnOptions(Path("notes"), Path("base.gguf"), budget=budget, **changes)
    return make_plan(options, OUT, text_of(tokens), machine, planning=30.0)


def test_without_a_budget_all_text_is_read_by_the_best_recipe() -> None:
    small, large = planned(25_000), planned(RETRIEVER.least, machine=LARGE)
    assert (small.recipe, small.tokens, small.epochs, small.beta) == (PLAIN.name, 25_000, 2, 0)
    assert (large.recipe, large.tokens, large.epochs, large.beta) == (RETRIEVER.name, RETRIEVER.least, 3, 0.5)
    assert set(small.stages) == {"index", "training", "file", "tuning", "measuring", "continuing"}


def test_less_time_first_takes_the_retriever_then_passes_then_text() -> None:
    plans = [planned(RETRIEVER.least, budget, LARGE) for budget in ("5000h", "300h", "130h", "50h", "2h")]
    assert [plan.recipe for plan in plans] == [RETRIEVER.name, *[PLAIN.name] * 4]
    assert [plan.epochs for plan in plans] == [3, 2, pytest.approx(1.4, abs=0.4), 1, 1]
    assert plans[2].tokens == RETRIEVER.least > plans[3].tokens > plans[4].tokens > LEAST_TOKENS


@given(st.integers(3_000, 3_000_000), st.integers(4, 600), st.floats(0.1, 10))
def test_a_plan_keeps_to_its_budget_and_a_larger_one_trains_no_less(tokens: int, minutes: int, speed: float) -> None:
    machine = replace(LAPTOP, training=340 * speed, reading=1_000 * speed, scoring=300 * speed)
    try:
        plan = planned(tokens, f"{minutes}m", machine)
    except OptionError as error:
        need = int(error.allowed.rpartition("need ")[2].removesuffix("m"))
        assert need > minutes
        assert planned(tokens, f"{need}m", machine).seconds <= 60 * need
        return
    assert plan.seconds <= 60 * minutes
    more = planned(tokens, f"{minutes + 5}m", machine)
    assert more.tokens * more.epochs >= plan.tokens * plan.epochs * 0.8  # a larger one may measure more, too
    assert plan.tokens <= tokens
    assert plan.scored in SCORED


def test_a_budget_too_short_for_anything_says_what_is_needed() -> None:
    with pytest.raises(OptionError, match=r"^budget is 1m: too short for anything: 8,192 tokens, the least") as error:
        planned(100_000, "1m")
    assert planned(100_000, error.value.allowed.rpartition(" ")[2]).tokens >= LEAST_TOKENS
    with pytest.raises(OptionError, match="3,000 tokens, all there are, need"):
        planned(3_000, "1m")


def test_too_small_a_disk_and_too_little_memory_are_refused() -> None:
    with pytest.raises(OutputError, match=r"^learned could not be written: 4\.\d GB are needed and 3\.0 GB free"):
        planned(25_000, machine=replace(LAPTOP, free_disk=3_000_000_000))
    large = replace(LAPTOP, parameters=7_000_000_000)
    with pytest.raises(MemoryLimitError, match=r"7,000 million weights takes 169\.5 GB.*`teacher`"):
        planned(25_000, machine=large)
    planned(25_000, machine=replace(large, free_memory=None, free_disk=1 << 40))  # where nothing says what is free


def test_a_short_text_gets_short_blocks_and_a_shorter_one_is_refused() -> None:
    assert [planned(tokens).block for tokens in (1_100, 1_000, 300, 70)] == [BLOCK, 128, 64, 16]
    assert planned(25_000, machine=replace(LAPTOP, context=100)).block == 64
    with pytest.raises(CorpusError, match="60 training tokens are too few to learn from"):
        planned(60)


def test_without_validation_text_nothing_is_chosen_by_it() -> None:
    options = LearnOptions(Path("notes"), Path("base.gguf"))
    plan = make_plan(options, OUT, text_of(5_000, held_out=100), LAPTOP, 30.0)
    assert plan.stages["tuning"] == []
    assert [label for label, _ in plan.stages["file"]] == ["converting"]


def test_the_recipe_may_be_asked_for() -> None:
    assert planned(25_000, retriever=True).recipe == RETRIEVER.name
    assert planned(5_000_000, retriever=False).recipe == PLAIN.name
    assert planned(100_000, max_tokens=20_000).tokens == 20_000


def test_a_plan_survives_json() -> None:
    import json
    from dataclasses import asdict

    plan = planned(25_000, "10m")
    assert plan_of(json.loads(json.dumps(asdict(plan)))) == plan


@pytest.mark.parametrize(
    ("budget", "seconds"), [("45m", 2700), ("1h30m", 5400), ("90s", 90), ("2h", 7200), ("1H5S", 3605), ("", None)]
)
def test_budgets_are_times(budget: str, seconds: float | None) -> None:
    assert LearnOptions(Path("notes"), Path("base.gguf"), budget=budget).seconds == seconds


@pytest.mark.parametrize("budget", ["45", "m", "0m", "soon", "-5m", "5m30", "1.5h"])
def test_what_is_no_time_is_no_budget(budget: str) -> None:
    with pytest.raises(OptionError, match=r"budget is .*: must be a time such as 90s, 45m or 1h30m"):
        LearnOptions(Path("notes"), Path("base.gguf"), budget=budget)


@pytest.mark.parametrize(
    ("given", "field"),
    [("", "documents"), ("documents", "base"), ("add", "out"), ("add out documents", "add")],
)
def test_either_documents_and_base_are_given_or_more_documents_and_a_folder(given: str, field: str) -> None:
    arguments: dict[str, Any] = dict.fromkeys(given.split(), OUT)
    with pytest.raises(OptionError) as error:
        LearnOptions(**arguments)
    assert error.value.field == field
