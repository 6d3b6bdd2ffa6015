"""memdec_edge.workflow.place: what is finished stays finished, and what was stopped is done again."""

import json
from pathlib import Path

import pytest

from memdec_edge.errors import ExistingOutputError, StageError
from memdec_edge.workflow.place import Journal, Place, slug

MADE_FROM = {"documents": "a" * 64, "budget": "5m"}


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    journal = Journal(path, MADE_FROM)
    journal.agree({"tokens": 7})
    assert journal.run("index", lambda: {"bytes": 3}) == {"bytes": 3}
    again = Journal(path, MADE_FROM)
    assert again.plan == {"tokens": 7}
    assert again.run("index", lambda: pytest.fail("done again")) == again.result("index") == {"bytes": 3}
    assert (again.seconds("index") or 0.0) >= 0.0


def test_a_stage_that_was_stopped_is_done_again_and_has_no_time(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"

    def stop() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal(path, MADE_FROM).run("training", stop)
    journal = Journal(path, MADE_FROM)
    assert not journal.is_done("training")
    assert journal.run("training", lambda: {"steps": 4}) == {"steps": 4}
    assert journal.seconds("training") is None  # part of it was in a run that is gone


def test_a_folder_made_from_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    Journal(path, MADE_FROM).agree({})
    with pytest.raises(StageError, match=r"made with other budget \(5m, now 45m\); use another output folder"):
        Journal(path, MADE_FROM | {"budget": "45m"})
    with pytest.raises(StageError, match=r"made with other documents; give the new documents by `add`"):
        Journal(path, MADE_FROM | {"documents": "b" * 64})


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 1}', json.dumps({"format": 9, "plan": None})])
def test_another_plan_json_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ExistingOutputError, match=r"it is no plan of memdec-edge learn; choose another `out`"):
        Journal(path, MADE_FROM)
    assert path.read_text() == text


def test_rounds_share_the_files_and_have_their_own_work() -> None:
    first = Place(Path("out"), "law")
    second = Place(Path("out"), "law", 2)
    assert (first.gguf, first.index) == (second.gguf, second.index)
    assert (first.corpus, second.corpus) == (Path("out/corpus"), Path("out/added-2/corpus"))
    assert [place.memory for place in second.earlier] == [Path("out/memory"), Path("out/added-1/memory")]


def test_names_of_files_are_letters_and_digits() -> None:
    assert [slug(text) for text in ("My Notes!", "../x", "法律", "")] == ["my-notes", "x", "法律", "documents"]
