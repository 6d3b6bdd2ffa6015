"""Clients that leave: what they asked for stops, wherever it stands, and nothing stays taken."""

import json
import socket
import threading
from typing import Any

import pytest
from openai import APIStatusError, OpenAI, RateLimitError

from tests.support.web import Web

LONG = {"prompt": "Anaemia is a lack", "n_predict": 180, "ignore_eos": True}
PATH = "/completion"


def endless(stream: bool) -> dict[str, Any]:
    return {"prompt": "Blood carries oxygen", "ignore_eos": True, "stream": stream}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_a_running_answer_frees_its_slot(web: Web, stream: bool) -> None:
    before = web.service.scheduler.totals.cancelled
    with web.open_request(PATH, endless(stream)):
        web.until(lambda scheduler: scheduler.active and not scheduler.active[0].reading, "a running stream")
    web.until_idle()
    assert web.service.scheduler.totals.cancelled == before + 1


def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_slot(web: Web) -> None:
    before = web.service.scheduler.totals.cancelled
    prompt = "The heart is a muscle that pumps blood through the body. " * 14
    with web.open_request(PATH, {"prompt": prompt, "memory": "auto"}):
        web.until(lambda scheduler: scheduler.active and scheduler.active[0].reading, "a prompt that is read")
    web.until_idle()
    assert web.service.scheduler.totals.cancelled == before + 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_while_it_waits_is_taken_from_the_queue(small: Web, stream: bool) -> None:
    before = small.service.scheduler.totals.cancelled
    with small.frozen():
        with small.open_request(PATH, endless(stream)):
            small.until(lambda scheduler: len(scheduler.waiting) == 1, "one that waits")
        small.until(lambda scheduler: scheduler.waiting[0].cancelled, "its end")
    small.until_idle()
    assert small.service.scheduler.totals.cancelled == before + 1


def test_one_too_many_is_told_to_come_again(small: Web) -> None:
    with OpenAI(api_key="x", base_url=f"{small.url}/v1", max_retries=0) as client, small.frozen():
        with small.open_request(PATH, endless(True)), small.open_request(PATH, endless(True)):
            with small.open_request(PATH, endless(False)):
                small.until(lambda scheduler: len(scheduler.waiting) == 3, "three that wait")
                done = small.post(PATH, endless(False))
                assert (done.status, done.body["error"]["type"]) == (429, "rate_limit_error")
                assert int(done.headers["retry-after"]) >= 1
                with pytest.raises(RateLimitError):
                    client.completions.create(model="any", prompt="x")
    small.until_idle()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completion", "/v1/messages"])
def test_a_stream_that_is_silent_sends_comments(web: Web, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdec_edge.server.events.PING", 0.02)
    asked = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "max_tokens": 2, "stream": True}
    with web.frozen(), web.open_request(path, asked) as connection:
        answer = connection.getresponse()
        lines = [answer.readline() for _ in range(12)]
    assert lines.count(b": ping\n") > 2
    web.until_idle()


def test_an_openai_stream_that_is_closed_frees_its_slot(web: Web, client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "any", "prompt": "Blood", "stream": True, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**asked)
    next(iter(stream))
    stream.close()
    web.until_idle()


def test_a_connection_that_is_torn_down_in_the_middle_of_a_body_hurts_nothing(web: Web) -> None:
    for sent in (
        b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{",
        b"GET",
        b"\0\1\2\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", web.port)) as connection:
            connection.sendall(sent)
    assert web.get("/health").status == 200
    web.until_idle()


def test_many_streams_that_need_more_cells_than_there_are_all_come_to_their_end(small: Web) -> None:
    found: list[int] = []

    def ask() -> None:
        try:
            answer = small.post(PATH, LONG | {"n_predict": 120})
            found.append(len(answer.body["content"]) if answer.status == 200 else -answer.status)
        except OSError:
            found.append(0)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert len({length for length in found if length > 0}) == 1, found
    small.until_idle()


def test_an_error_in_the_middle_of_a_stream_is_an_event_of_its_own(web: Web, client: OpenAI) -> None:
    narrow = {str(token): -1e30 for token in range(400)} | {"0": False}
    asked = {"prompt": "Blood", "max_tokens": 5, "logit_bias": dict.fromkeys(map(str, range(400)), False)}
    assert narrow
    lines = web.lines("/v1/completions", asked)
    last = json.loads(lines[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert web.post("/v1/completions", asked).status == 500
    with pytest.raises(APIStatusError):
        client.completions.create(model="any", prompt="Blood", logit_bias=asked["logit_bias"])  # type: ignore[call-overload]
    web.until_idle()
