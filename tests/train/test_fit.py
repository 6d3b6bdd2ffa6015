"""train/knn/fit.py: caches whose neighbours an index finds."""

from dataclasses import replace
from pathlib import Path

import pytest

from memdec_edge.errors import StageError
from memdec_edge.train import build_cache
from tests.support.training import cache_options, flip, make_room


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


@pytest.mark.parametrize("search", ["ivfpq", "hnsw"])
def test_an_index_says_how_much_of_the_exact_answer_it_finds(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], search: str
) -> None:
    exact = build_cache(cache_options(room))
    capsys.readouterr()
    report = build_cache(cache_options(room, search=search, out=tmp_path / "cache"))
    assert (exact.search, exact.recall, report.search) == ("exact", None, search)
    assert report.recall is not None
    assert report.recall > 0.9
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(search)]
    assert len(said) == 1
    assert said[0].startswith(f"{search} finds {report.recall:.1%} of the exact kNN mass of ")
    assert report.knn_perplexity == pytest.approx(exact.knn_perplexity, rel=0.05)
    assert build_cache(cache_options(room, search=search, out=tmp_path / "cache")) == report
    assert capsys.readouterr() == ("", "")


def test_a_flipped_byte_of_an_index_is_named(room: Path, tmp_path: Path) -> None:
    options = cache_options(room, search="ivfpq", out=tmp_path / "cache")
    build_cache(options)
    flip(options.out / "index.faiss")
    with pytest.raises(StageError, match=r"index\.faiss: missing, or changed since it was written"):
        build_cache(options)
    assert build_cache(replace(options, fresh=True)).search == "ivfpq"


def test_a_small_datastore_is_searched_exactly_unless_something_else_is_asked_for(room: Path) -> None:
    assert build_cache(cache_options(room, search="auto")).search == "exact"
