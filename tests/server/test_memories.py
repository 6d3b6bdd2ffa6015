"""Memories loaded, unloaded and weighed over HTTP, while requests run; and files that no request reaches."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.api import open_model
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.llama.model import Model
from memdec_edge.options import MemoryOptions, ServerOptions
from tests.conftest import Family
from tests.server.conftest import LOAD, SOBER
from tests.support.indexes import index_file
from tests.support.web import Web, serving

TEXT = "Anaemia is a lack"


@pytest.fixture
def loader(family: Family, tmp_path: Path) -> Iterator[Web]:
    """One memory, and a folder with another, with one that does not fit, and with a way out."""
    folder = tmp_path / "memories"
    folder.mkdir()
    shutil.copyfile(family.padded, folder / "memdec-padded.gguf")
    shutil.copyfile(family.stranger, folder / "memdec-stranger.gguf")
    shutil.copyfile(family.memory, tmp_path / "memdec-outside.gguf")
    (folder / "memdec-link.gguf").symlink_to(tmp_path / "memdec-outside.gguf")
    (folder / "notes.txt").write_text("no memory")
    model = open_model(family.base, [MemoryOptions(family.memory)], LOAD)
    with serving(model, ServerOptions(memory_dir=folder), SOBER) as served:
        yield served
        served.until_idle()


def names(web: Web) -> list[str]:
    return [memory["name"] for memory in web.get("/memories").body["data"]]


def test_a_memory_comes_and_goes_while_a_stream_that_mixes_it_runs_on(loader: Web) -> None:
    listed = loader.get("/v1/memories").body
    assert (listed["auto"], listed["files"]) == (
        True,
        ["memdec-link.gguf", "memdec-padded.gguf", "memdec-stranger.gguf"],
    )
    assert [(one["id"], one["name"], one["kind"]) for one in listed["data"]] == [(0, "memdec-tiny", "memory")]
    with loader.open_request("/completion", {"prompt": TEXT, "n_predict": 300, "ignore_eos": True}) as running:
        loader.until(lambda scheduler: scheduler.active)
        added = loader.post("/memories", {"load": "memdec-padded.gguf"}).body
        assert [one["id"] for one in added["data"]] == [0, 1]
        assert loader.post("/memories", {"unload": 0}).body["data"][0]["name"] == "memdec-padded"
        asked = {
            "prompt": TEXT,
            "n_predict": 1,
            "memory": [{"id": "memdec-padded", "lambda": 0.5}],
            "return_memory": True,
        }
        assert loader.post("/completion", asked).body["memory"][0]["weights"] == [0.5, 0.5]
        assert loader.post("/completion", asked | {"memory": [{"id": 0, "lambda": 0.5}]}).status == 400
        answer = running.getresponse()
        assert answer.status == 200
        answer.read()
    loader.post("/memories", {"unload": "memdec-padded"})
    assert names(loader) == []
    assert loader.post("/completion", {"prompt": TEXT, "n_predict": 2}).status == 200


def test_a_file_is_opened_while_streams_step_and_takes_its_turn_only_to_join_them(loader: Web) -> None:
    with ThreadPoolExecutor() as pool:
        with loader.frozen():
            assert loader.post("/memories", {"load": "memdec-stranger.gguf"}).status == 400  # found without a turn
            asked = pool.submit(loader.post, "/memories", {"load": "memdec-padded.gguf"})
            loader.until(lambda scheduler: scheduler._calls, "a memory that waits for its turn")
            assert names(loader) == ["memdec-tiny"]
        assert [one["name"] for one in asked.result().body["data"]] == ["memdec-tiny", "memdec-padded"]


def test_weights_of_new_requests_change_and_a_wrong_one_changes_nothing(loader: Web) -> None:
    def weights() -> list[float]:
        asked = {"prompt": TEXT, "n_predict": 1, "return_memory": True}
        return list(loader.post("/completion", asked).body["memory"][0]["weights"])

    changed = loader.post("/memories", {"weights": [{"id": 0, "lambda": 0.3}]}).body
    assert (changed["data"][0]["lambda"], changed["auto"]) == (0.3, False)
    assert weights() == [0.7, 0.3]
    assert loader.post("/memories", {"weights": [{"id": 0, "lambda": 1.5}]}).status == 400
    assert loader.post("/memories", {"weights": [{"id": 0, "lambda": 0.1}, {"id": 9, "lambda": 0.1}]}).status == 400
    assert weights() == [0.7, 0.3]
    assert loader.post("/memories", {"weights": [{"id": 0, "lambda": None}]}).body["auto"] is True


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("../memdec-outside.gguf", 400), ("memdec-link.gguf", 400), ("/etc/passwd", 400), ("notes.txt", 400),
        ("..", 400), ("", 400), ("memdec-absent.gguf", 404), ("memdec-stranger.gguf", 400), ("a\0.gguf", 400),
        ("sub/../../memdec-outside.gguf", 400),
    ],
)  # fmt: skip
def test_no_file_outside_of_the_folder_is_opened_and_errors_show_no_path(loader: Web, name: str, status: int) -> None:
    done = loader.post("/memories", {"load": name})
    assert done.status == status, done.body
    assert names(loader) == ["memdec-tiny"]
    if name != "/etc/passwd":
        folder = loader.service.options.memory_dir
        assert folder
        assert str(folder.parent) not in done.body["error"]["message"]


@pytest.mark.parametrize("body", [{}, {"load": "a.gguf", "unload": 0}, {"unload": 7}, {"weights": 3}, []], ids=str)
def test_a_change_that_is_none_is_refused(loader: Web, body: Any) -> None:
    assert loader.post("/memories", body).status == 400


def test_without_a_folder_nothing_is_loaded(web: Web, family: Family) -> None:
    for name in ("memdec-tiny.gguf", str(family.memory)):
        done = web.post("/memories", {"load": name})
        assert (done.status, done.body["error"]["param"]) == (400, "load")
        assert "--memory-dir" in done.body["error"]["message"]


def test_an_index_is_one_more_voice_and_names_its_source(family: Family, tmp_path: Path) -> None:
    tokens = Model(family.base, vocab_only=True)
    text = tokens.tokenize("Anaemia is a lack of red blood cells, or of the iron that they need", add_special=False)
    tokens.close()
    digest, n_vocab = tokenizer_of(family.base)
    path = index_file(tmp_path / "memdec-notes-index.gguf", [text], n_vocab, digest=digest, trust=[1.0] * 8)
    model = open_model(family.base, [MemoryOptions(family.memory), MemoryOptions(path)], LOAD)
    with serving(model, ServerOptions(), SOBER) as web:
        listed = web.get("/memories").body["data"]
        assert [(one["name"], one["kind"]) for one in listed] == [("memdec-tiny", "memory"), (path.stem, "index")]
        asked = {
            "prompt": text[:10],
            "n_predict": 5,
            "return_memory": True,
            "memory": [{"id": path.stem, "lambda": 0.999}],
        }
        found = web.post("/completion", asked).body["memory"]
        assert [one["id"] for one in found] == text[10:15]
        assert all(one["share"] > 0.9 for one in found)
        assert found[-1]["source"] == {"memory": path.stem, "document": "0.txt", "start": 0, "end": 15}
        echo = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0, "memory": asked["memory"]}
        scores = web.post("/v1/completions", echo).body["choices"][0]["logprobs"]["token_logprobs"]
        assert min(scores[10:]) > -0.1  # what stands in the document is certain
