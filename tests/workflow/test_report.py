"""The report: a page that stands alone, and a model card that gives nothing away."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.workflow.chart import HEIGHT, WIDTH, chart
from memdec_edge.workflow.report import VOICES, verdict, write_report
from tests.support.html import Page

Keys = tuple[Any, ...]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> & ``` \x1b[31m \udce4 {{ 7 * 7 }}"


def score(perplexity: float, error: float = 0.1) -> dict[str, float]:
    return {"perplexity": perplexity, "standard_error": error}


FOUND: dict[str, Any] = {
    "domain": "medicine",
    "name": "memdec-medicine",
    "license": "CC-BY-4.0",
    "helps": True,
    "lambda": 0.8,
    "tokens_scored": 6144,
    "documents": {
        "files": [{"path": "/private/clinic/a.pdf", "kind": "pdf", "documents": 3, "chars": 90210, "split": "train"}],
        "left_out": [{"path": "/private/clinic/scan.pdf", "reason": "has no text"}],
        "duplicates": 2,
        "documents": 120,
        "tokens": {"train": 20481, "valid": 3000, "test": 6144},
    },
    "stages": [{"name": "training", "estimated_seconds": 310, "seconds": 287.4}],
    "models": {
        "base": {"file": "/private/base.gguf", "bytes": 98_000_000, "name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "memory": {"file": "/private/memdec-medicine.gguf", "bytes": 105_500_000, "type": "q4_k_m"},
        "index": {"file": "/private/memdec-medicine-index.gguf", "bytes": 9_800_000},
    },
    "types": [{"type": "q8_0", "bytes": 145_000_000, "perplexity": 12.1}],
    "perplexity": dict(zip(VOICES, map(score, (13.48, 9.2, 8.0, 7.96, 7.46, 5.76)), strict=True)),
    "general": {"base": score(24.8), "memory": score(40.1), "mixture": score(24.73), "auto": score(23.78)},
    "curves": {
        "train": [[tokens, 3 - tokens / 30_000] for tokens in range(0, 40_000, 97)],
        "valid": [[0, 13.4], [20_000, 10.2], [40_000, 9.4]],
    },
    "speed": {"base": 31.2, "auto": 19.4},
    "continuations": [{"prompt": "A swollen knee", "truth": " is private.", "base": " is big.", "mixture": " is ill."}],
    "commands": {
        "run": "memdec-edge run -m /private/base.gguf -n 64",
        "chat": "memdec-edge chat -m /private/base.gguf",
    },
}


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The keys that lead to each value inside a dictionary."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*keys, key)
        if keys[:1] != ("curves",):
            yield from places(each, (*keys, key))


def at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def written(found: dict[str, Any], folder: Path) -> tuple[str, str]:
    """The page and the card."""
    page = write_report(found, folder)
    assert page == folder / "report.html"
    return page.read_text(encoding="utf-8"), (folder / "README.md").read_text(encoding="utf-8")


def test_the_page_is_valid_and_asks_no_network(tmp_path: Path) -> None:
    page, _ = written(FOUND, tmp_path)
    assert page.startswith("<!doctype html>")
    judged = Page(page)
    assert judged.faults == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in judged.elements}
    assert not re.findall(r"https?:|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


def test_the_judge_of_pages_sees_faults() -> None:
    wrong = '<table><tbody><tr><td>1</td></tr><tr><td>1</td><td>2</td></tr></tbody></table><p id="a"><b></p><i id="a">'
    faults = " ".join(Page(wrong + '<img src="x"><s aria-labelledby="b"></s>').faults)
    for fault in ("differ in length", "closes another", "never closed", "occurs twice", "makes a request", "id b"):
        assert fault in faults


def test_the_page_shows_every_figure(tmp_path: Path) -> None:
    text = " ".join(Page(written(FOUND, tmp_path)[0]).text.split())
    for shown in (
        "7.96", "± 0.10", "−40.9 %", "23.78", "fixed lambda 0.80", "31.2", "19.4", "6,144", "20,481", "5 min 10 s",
        "4 min 47 s", "105.5 MB", "q8_0", "12.10", "has no text", "a.pdf", "is private.", "is ill.", "CC-BY-4.0",
        "memdec-edge run -m /private/base.gguf -n 64", "word for word", "contains the documents",
    ):  # fmt: skip
        assert shown in text, shown
    assert text.count("not measured") == 2  # index and both on general text


def test_beginnings_that_stand_in_no_document_are_called_so(tmp_path: Path) -> None:
    own = [{"prompt": "A swollen knee", "truth": None, "base": " is big.", "mixture": " is ill."}]
    text = " ".join(Page(written({**FOUND, "continuations": own}, tmp_path)[0]).text.split())
    assert "The beginnings stand in no document." in text
    assert "the document" not in text.split("Beginnings, continued")[1].split("What it does not do")[0].lower()


def test_a_memory_that_does_not_help_is_called_so_before_all_else(tmp_path: Path) -> None:
    worse = {**FOUND, "helps": False, "perplexity": {"base": score(10.0), "auto": score(10.5)}}
    page, card = written(worse, tmp_path)
    said = "The memory does not help. On held-out documents, base and memory together have a perplexity of 10.50, "
    assert Page(page).text.split("memdec-medicine", 1)[1].strip().startswith(said)
    assert card.split("# memdec-medicine\n", 1)[1].strip().startswith(f"**{said}")
    assert verdict({}) == "Whether the memory helps was not measured."


@pytest.mark.parametrize("keys", [(), *places(FOUND)], ids=str)
def test_what_is_missing_or_none_is_not_measured(keys: Keys, tmp_path: Path) -> None:
    without: Any = copy.deepcopy(FOUND)
    if not keys:
        without.clear()
    elif isinstance(parent := at(without, keys[:-1]), dict):
        del parent[keys[-1]]
    none = copy.deepcopy(FOUND)
    if keys and isinstance(parent := at(none, keys[:-1]), dict):
        parent[keys[-1]] = None
    for found in (without, none):
        page, card = written(found, tmp_path)
        assert Page(page).faults == []
        assert "None" not in page + card
        assert "nan" not in re.findall(r"\w+", page + card)
    if not keys:
        assert written(without, tmp_path)[0].count("not measured") > 12


@pytest.mark.parametrize(
    "keys", [keys for keys in places(FOUND) if not isinstance(at(FOUND, keys), dict | list)], ids=str
)
def test_hostile_text_in_any_field_is_text(keys: Keys, tmp_path: Path) -> None:
    found = copy.deepcopy(FOUND)
    at(found, keys[:-1])[keys[-1]] = HOSTILE
    page, card = written(found, tmp_path)
    judged = Page(page)
    assert judged.faults == []
    assert "script" not in {tag for tag, _ in judged.elements}
    body = re.sub(r"^(`{3,})sh\n.*\n\1$", "", card, flags=re.MULTILINE)
    assert "<script" not in body.replace("\\<script", "")
    assert re.findall(r"[\x00-\x09\x0b-\x1f]", page + card) == []


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    found = copy.deepcopy(FOUND)
    found["continuations"][0]["mixture"] = HOSTILE
    shown = Page(written(found, tmp_path)[0]).of("dd")[2]
    assert shown == HOSTILE.replace("\x1b", "\ufffd").replace("\udce4", "\ufffd")


def test_the_card_is_the_hubs_and_holds_no_path_and_no_line_of_the_documents(tmp_path: Path) -> None:
    _, card = written(FOUND, tmp_path)
    assert ModelCard(card).data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "memdec-edge",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-generation",
        "tags": ["memory-decoder", "memdec-edge", "gguf"],
    }
    for secret in ("private", "clinic", "swollen", "is ill"):
        assert secret not in card
    assert "| Base + memory, weights follow the text | 7.96 ± 0.10 | 23.78 ± 0.10 |" in card
    assert "memdec-edge chat -m BASE.gguf -M memdec-medicine.gguf" in card


def test_a_licence_that_the_hub_does_not_know_gets_a_name(tmp_path: Path) -> None:
    _, card = written({**FOUND, "license": "Clinic: internal use"}, tmp_path)
    assert ModelCard(card).data["license"] == "other"
    assert ModelCard(card).data["license_name"] == "clinic-internal-use"
    assert "license" not in ModelCard(written({}, tmp_path)[1]).data.to_dict()


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=500))
def test_every_curve_stays_inside_its_picture(pairs: list[tuple[float, float]]) -> None:
    drawn = chart(pairs)
    if drawn is None:
        return
    numbers = [float(text) for text in re.findall(r"[-\d.e]+", drawn.path)]
    assert len(numbers) == 2 * len(drawn.points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    assert numbers[::2] == sorted(numbers[::2])
    for ticks in (drawn.x, drawn.y):
        assert 2 <= len(ticks) <= 8


def test_ticks_are_round_numbers_around_the_curve() -> None:
    drawn = chart([(0, 13.4), (40_000, 9.4)])
    assert drawn is not None
    assert [tick.label for tick in drawn.x] == ["0", "10k", "20k", "30k", "40k"]
    assert [tick.label for tick in drawn.y] == ["9", "10", "11", "12", "13", "14"]
    assert chart([(1, 2)]) is None
    assert chart(None) is None


def test_a_long_curve_is_drawn_by_means() -> None:
    drawn = chart([(x, x % 2) for x in range(1000)])
    assert drawn is not None
    assert len(drawn.points) == 200
    assert drawn.merged == 5
    assert drawn.points[0] == (2.0, 0.4)
