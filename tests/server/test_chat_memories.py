"""Chat completions: memories of a request, and reasoning apart from the content."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.api import open_model
from memdec_edge.options import ChatOptions, ServerOptions
from tests.server.conftest import LOAD, SOBER
from tests.support.chatty import TEMPLATE
from tests.support.web import Web, serving

ASK: list[Any] = [{"role": "user", "content": "What is the heart?"}]
PATH = "/v1/chat/completions"


def test_memories_are_chosen_and_weighed_for_each_request(web: Web) -> None:
    def first(memory: Any) -> dict[str, Any]:
        asked = {"messages": ASK, "max_tokens": 1, "memory": memory, "return_memory": True, "logprobs": True}
        done = web.post(PATH, asked)
        assert done.status == 200, done.body
        [found] = done.body["choices"][0]["memory"]
        return dict(found)

    assert first("none")["weights"] == first([])["weights"] == [1.0]
    assert first("none")["share"] == 0.0
    half = first([{"id": 0, "lambda": 0.5}])
    assert half["weights"] == [0.5, 0.5]
    assert math.exp(half["logprob"]) == pytest.approx(0.5 * sum(map(math.exp, half["logprobs"])), rel=1e-4)
    assert half["share"] == pytest.approx(0.5 * math.exp(half["logprobs"][1] - half["logprob"]), rel=1e-4)
    assert first([{"id": "memdec-padded", "lambda": 1.0}])["weights"] == [0.0, 1.0]
    assert first(0.4)["weights"] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    assert len(first("auto")["weights"]) == 3
    assert first("auto")["weights"] == first(None)["weights"]
    top = half["top"]
    assert len(top["mixture"]) == len(top["voices"][0]) == len(top["voices"][1]) == 5


def test_requests_with_different_memories_run_side_by_side(web: Web) -> None:
    choices: list[Any] = ["none", [{"id": 0, "lambda": 0.9}], [{"id": 1, "lambda": 0.9}], "auto"]

    def answer(memory: Any) -> str:
        done = web.post(PATH, {"messages": ASK, "max_tokens": 24, "memory": memory})
        return str(done.body["choices"][0]["message"]["content"])

    alone = [answer(choice) for choice in choices]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, choices)) == alone
    assert len(set(alone)) > 1


# --- reasoning ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(talker: Path) -> Iterator[Web]:
    """A template that begins the reasoning."""
    chat = ChatOptions(chat_template=TEMPLATE + "<think>\n")
    with serving(open_model(talker, [], LOAD), ServerOptions(), SOBER, chat) as served:
        yield served


def test_reasoning_is_told_apart_from_the_content(thinker: Web) -> None:
    asked = {"messages": ASK, "max_tokens": 40, "grammar": 'root ::= "so it is</think>\\n\\nyes"'}
    message = thinker.post(PATH, asked).body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("so it is", "yes")
    deltas = [event["choices"][0]["delta"] for event in thinker.events(PATH, asked)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so it is"
    assert "".join(delta.get("content") or "" for delta in deltas) == "yes"
    blocks = thinker.post("/v1/messages", asked).body["content"]
    assert [(block["type"], block.get("thinking", block.get("text"))) for block in blocks] == [
        ("thinking", "so it is"),
        ("text", "yes"),
    ]
    kinds = [event["type"] for event in thinker.events("/v1/messages", asked)]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    items = thinker.post("/v1/responses", asked | {"input": "Hm", "max_output_tokens": 40}).body["output"]
    assert [(item["type"], item["content"][0]["text"]) for item in items] == [
        ("reasoning", "so it is"),
        ("message", "yes"),
    ]
