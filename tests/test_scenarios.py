"""examples/scenarios: the paper's task lists load, local tasks are made, the table says what is kept. No network."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra [eval]")

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from memdec_edge.evaluation.pmi import PmiTask
from tests.conftest import Family
from tests.support.training import words

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"
OF_LM_EVAL = ("glue", "super_glue", "unitxt", "nq_open", "pubmedqa", "medqa")  # its folders with the paper's tasks
PAPER = {  # scenario -> its tasks, in lm-eval or here
    "paper_zero_shot": ["sst2", "cb", "rte", "ag_news", "yahoo_answers_topics"],
    "paper_questions": ["nq_open"],
    "paper_domains": ["pubmedqa", "medqa_4options", "unfair_tos"],
    "paper_dcpmi": ["sst2_dcpmi", "cb_dcpmi", "rte_dcpmi"],
}
# a row with the columns of the data set, and the prompt, the choices and the premise that it becomes
PROMPTS: dict[str, tuple[dict[str, Any], str, list[str], str]] = {
    "sst2_dcpmi": (
        {"sentence": "a joy ", "label": 1, "idx": 0}, "a joy It was", ["terrible", "great"], " It was",
    ),
    "cb_dcpmi": (
        {"premise": "It rains.", "hypothesis": "it is wet", "label": 0, "idx": 0},
        ' question: Given that "It rains." Is "it is wet" true, false, or neither?\n answer:',
        ["true", "false", "neither"], " the answer is:",
    ),
    "rte_dcpmi": (
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0, "idx": 0},
        " It rains.\n question: It is wet. true or false?\n answer:", ["true", "false"], " true or false?\n answer:",
    ),
}  # fmt: skip


def test_the_papers_task_lists_name_tasks_that_lm_eval_has_and_that_load() -> None:
    of_lm_eval = Path(lm_eval.tasks.__file__).parent
    folders = [str(SCENARIOS / "paper"), *(str(of_lm_eval / name) for name in OF_LM_EVAL)]
    index = TaskManager(include_path=folders, include_defaults=False).task_index
    for group, tasks in PAPER.items():
        entry = index[group]
        assert entry.cfg is not None
        assert entry.cfg["task"] == tasks
        for task in tasks:
            path = index[task].yaml_path
            assert path is not None
            assert load_yaml(path, resolve_func=True)["task"] == task


def test_the_table_has_the_papers_24_tasks_and_those_of_the_lists() -> None:
    text = (SCENARIOS / "README.md").read_text(encoding="utf-8").partition("| task | in lm-eval |")[2]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 24
    assert all(len(row) == 6 and row[2].strip() and row[5].strip() for row in rows)
    named = {task.strip() for row in rows for task in row[1].split(",") if task.strip()}
    assert named == {task for tasks in PAPER.values() for task in tasks}


@pytest.mark.parametrize("name", PROMPTS)
def test_tasks_of_the_papers_rule_have_the_papers_prompts(name: str, tmp_path: Path) -> None:
    row, prompt, choices, premise = PROMPTS[name]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row) + "\n")
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {
        "data_files": {"train": str(data), "validation": str(data)}, "cache_dir": str(tmp_path),
    }}  # fmt: skip
    task = PmiTask(config=load_yaml(SCENARIOS / "paper" / f"{name}.yaml") | local)
    requests = task.construct_requests(row, task.fewshot_context(row, 0), metadata=(name, 0, 1))
    expected = [(context, f" {choice}") for context in (prompt, premise) for choice in choices]
    assert [request.args for request in requests] == expected
    assert choices[task.doc_to_target(row)] == choices[row["label"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks made of a small corpus whose terms build on each other."""
    folder = tmp_path_factory.mktemp("scenarios")
    corpus = folder / "corpus"
    corpus.mkdir()
    fillers = [text.replace(".", "") for text in words(90, 3)]
    letters = [f"{chr(97 + at % 26)}{chr(97 + at // 26)}" for at in range(90)]
    terms = [f"Beta{pair} syndrome" if at % 2 else f"Alpha{pair} disorder" for at, pair in enumerate(letters)]
    train = []
    for at, term in enumerate(terms):
        inner = f", which comes with {terms[at - 1]} in most of those who have it" if at % 2 else ""
        train.append(f"{term}\nA rare condition of the {fillers[at][:60]} in adults{inner}. It is mild.")
    held_out = [f"{term}\n{text} and ends with blood. More." for term, text in zip(terms, fillers, strict=True)]
    for split, texts in (("train", train), ("test", held_out)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (corpus / f"{split}.jsonl").write_text("".join(lines))
    reviews = "".join(f"{at}\t{(-1) ** at * 2.5}\tA film number {at}.\n" for at in range(60))
    (folder / "reviews.txt").write_text(reviews)
    questions = ({"question": f"Which? {at}", "choices": ["a", "b"], "answer": at % 2} for at in range(50))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    script(
        "make_tasks", folder / "tasks", "--corpus", f"medicine={corpus}", "--corpus", f"licences={corpus}",
        "--sentiment", folder / "reviews.txt", "--diseases", folder / "questions.jsonl", "--items", 6,
    )  # fmt: skip
    return folder / "tasks"


def script(name: str, *arguments: object) -> None:
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(SCENARIOS / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.test.jsonl").read_text().splitlines()]


def test_local_tasks_ask_what_the_text_says(made: Path) -> None:
    for name in ("sentiment", "diseases", "recall", "two_hop"):
        for row in rows(made, name):
            assert len(set(row["choices"])) == len(row["choices"])
            assert row["choices"][row["answer"]] not in row["text"]
    for row in rows(made, "sentiment"):
        number = int(row["text"].split()[-1][:-1])
        assert row["choices"][row["answer"]] == ("terrible" if number % 2 else "great")
    for row in rows(made, "cloze_medicine"):
        assert row["word"] == " blood"
        assert len(row["text"].split()) >= 20
    shown = {row["text"] for row in map(json.loads, (made / "recall.train.jsonl").read_text().splitlines())}
    assert not shown & {row["text"] for row in rows(made, "recall")}  # no example is a question too


def test_the_table_says_what_is_kept(family: Family, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(
        "table", "--include-path", made, "--tasks", "recall", "cloze_medicine", "--shots", 0, 2, "--limit", 5,
        "--system", f"base: base={family.base}", "--system", f"same: base={family.base},memory={family.memory},lam=0",
        "--system", f"memory: base={family.base},memory={family.memory},lam=1",
    )  # fmt: skip
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    found = {(row["task"], row["shots"], row["metric"]): row for row in report["rows"]}
    assert {key[:2] for key in found} == {(task, shots) for task in ("recall", "cloze_medicine") for shots in (0, 2)}
    for row in found.values():
        assert row["items"] == 5
        assert row["same"]["gain"] == 0.0
        assert row["same"]["verdict"] == "kept"
    far = found["cloze_medicine", 0, "log-prob"]
    assert far["memory"]["gain"] == pytest.approx(far["memory"]["mean"] - far["base"]["mean"])
    assert far["base"]["standard_error"] > 0


def test_a_task_with_too_few_examples_has_no_row_and_is_named(
    family: Family, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = len((made / "recall.train.jsonl").read_text().splitlines())
    script(
        "table", "--include-path", made, "--tasks", "recall", "--shots", given, given + 1, "--limit", 1,
        "--system", f"base: base={family.base},threads=1",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert {row["shots"] for row in json.loads(out.splitlines()[-1])["rows"]} == {given}
    assert f"recall has {given} examples: no row with {given + 1}" in err
