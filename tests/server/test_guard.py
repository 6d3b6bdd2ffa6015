"""Who is let in: keys, hosts, origins, sizes; and what every answer says."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AuthenticationError, OpenAI

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.errors import MissingFileError, OptionError
from memdec_edge.options import ServerOptions
from memdec_edge.server.app import make_app
from memdec_edge.server.guard import KEYS, Guard, is_private, keys_of
from memdec_edge.server.service import Service
from tests.server.conftest import LOAD, SOBER
from tests.support.web import Web, serving

ASK = {"prompt": "Anaemia", "max_tokens": 1}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def locked(talker: Path) -> Iterator[Web]:
    """With two keys, a page of another host that may call, and bodies of at most 2,000 bytes."""
    options = ServerOptions(api_keys=("first", "second,third"), origins=("https://pages.example",), max_body=2000)
    with serving(open_model(talker, [], LOAD), options, SOBER) as served:
        yield served


@pytest.mark.parametrize("key", ["first", "second", "third"])
def test_each_key_lets_in_by_either_header(locked: Web, key: str) -> None:
    assert locked.post(PATH, ASK, {"Authorization": f"Bearer {key}"}).status == 200
    assert locked.post(PATH, ASK, {"X-Api-Key": key}).status == 200
    with OpenAI(api_key=key, base_url=f"{locked.url}/v1", max_retries=0) as client:
        assert client.models.list().data


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer fourth"}, {"Authorization": "Basic first"},
                                    {"Authorization": "Bearer first second"}, {"X-Api-Key": ""}], ids=str)  # fmt: skip
@pytest.mark.parametrize("path", [PATH, "/metrics", "/slots", "/props", "/memories", "/v1/models", "/nowhere"])
def test_without_a_key_there_is_nothing_but_health(locked: Web, header: dict[str, str], path: str) -> None:
    done = locked.post(path, ASK, header) if path == PATH else locked.get(path, header)
    assert (done.status, done.body["error"]["type"]) == (401, "authentication_error")
    assert locked.get("/health", header).status == 200


def test_openais_library_knows_the_error(locked: Web) -> None:
    with (
        OpenAI(api_key="wrong", base_url=f"{locked.url}/v1", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.models.list()
    done = locked.post("/v1/messages", {"messages": [], "max_tokens": 1})
    assert (done.status, done.body["type"], done.body["error"]["type"]) == (401, "error", "authentication_error")


def test_keys_come_from_options_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# of friends\nthree\n\n four \n")
    monkeypatch.setenv(KEYS, "five, six")
    assert keys_of(ServerOptions(api_keys=("one,two",), api_key_file=file)) == [
        "one",
        "two",
        "five",
        "six",
        "three",
        "four",
    ]
    file.write_text("# none\n")
    with pytest.raises(OptionError, match="has no key"):
        keys_of(ServerOptions(api_key_file=file))
    with pytest.raises(MissingFileError):
        keys_of(ServerOptions(api_key_file=tmp_path / "absent"))


def test_a_body_that_is_too_long_is_refused_with_and_without_its_length(locked: Web) -> None:
    key = {"X-Api-Key": "first"}
    long = {"prompt": "x" * 3000, "max_tokens": 1}
    done = locked.post(PATH, long, key)
    assert (done.status, done.body["error"]["type"]) == (413, "invalid_request_error")
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=30)
    pieces = (b'{"prompt": "' + b"x" * 500 if not number else b"x" * 500 for number in range(20))
    connection.request("POST", PATH, pieces, key | {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 1500, b'{"prompt": NaN}', b""], ids=str)
def test_a_body_that_is_no_json_object_is_a_wrong_request(locked: Web, body: bytes) -> None:
    done = locked.post(PATH, body, {"X-Api-Key": "first"})
    assert (done.status, done.body["error"]["type"]) == (400, "invalid_request_error")


# --- pages of other hosts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://localhost", "http://localhost:8080", "http://127.0.0.1:3000", "http://[::1]:9",
                                    "https://pages.example"])  # fmt: skip
def test_pages_of_this_machine_and_those_that_are_named_may_call(locked: Web, origin: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization, Content-Type"}
    before = locked.ask("OPTIONS", PATH, None, asked | {"Origin": origin})
    assert before.status == 200
    assert before.headers["access-control-allow-origin"] == origin
    done = locked.post(PATH, ASK, {"Origin": origin, "X-Api-Key": "first"})
    assert (done.status, done.headers["access-control-allow-origin"]) == (200, origin)
    assert locked.post(PATH, ASK, {"Origin": origin}).headers["access-control-allow-origin"] == origin  # the 401 too


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost.evil.example", "http://notlocalhost", "null",
     "http://pages.example", "file://"],
)  # fmt: skip
def test_pages_of_strangers_may_not(locked: Web, origin: str) -> None:
    before = locked.ask("OPTIONS", PATH, None, {"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in before.headers
    done = locked.post(PATH, ASK, {"Origin": origin, "X-Api-Key": "first"})
    assert (done.status, done.body["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""])
def test_a_name_that_points_to_this_machine_is_refused(locked: Web, host: str) -> None:
    done = locked.post(PATH, ASK, {"Host": host, "X-Api-Key": "first"})
    assert done.status in (400, 403)  # a request without any host is refused by the library
    assert locked.get("/health", {"Host": "LOCALHOST:1"}).status == 200


@pytest.mark.parametrize(
    ("keys", "hosts", "host", "served"),
    [((), (), "evil.example", False), ((), (), "192.168.0.7", True), ((), (), "[fe80::1]", True),
     ((), (), "localhost", True), ((), ("model.example",), "model.example", True),
     (("key",), (), "model.example", True),
     (("key",), ("model.example",), "other.example", False)],
)  # fmt: skip
def test_a_public_address_without_keys_is_not_served_under_the_name_of_a_stranger(
    keys: tuple[str, ...], hosts: tuple[str, ...], host: str, served: bool
) -> None:
    def load() -> LanguageModel:
        raise AssertionError

    service = Service(load, ServerOptions(host="0.0.0.0", api_keys=keys, hosts=hosts))
    assert Guard(make_app(service), service)._serves(host) == served


def test_addresses_of_this_machine_are_known() -> None:
    assert [is_private(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1")] == [True] * 4
    assert [is_private(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org")] == [False] * 4


def test_every_answer_has_an_id_and_is_neither_framed_nor_sniffed(locked: Web) -> None:
    answers = [locked.get("/health"), locked.get("/nowhere"), locked.post(PATH, ASK, {"X-Api-Key": "first"})]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


def test_a_line_in_the_log_names_the_request_and_holds_no_text(web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):  # the line follows the answer, and pytest loses what is written while it reads
        done = web.post(PATH, {"prompt": "A secret disease", "max_tokens": 2})
        time.sleep(0.3)
        said = capfd.readouterr().err
        if done.headers["x-request-id"] in said:
            break
    [line] = [line for line in said.splitlines() if done.headers["x-request-id"] in line]
    assert f"POST {PATH} 200" in line
    assert "secret" not in line


def test_prompts_stand_in_the_log_where_that_is_asked_for(talker: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(open_model(talker, [], LOAD), ServerOptions(log_prompts=True), SOBER) as web:
        web.post(PATH, {"prompt": "A secret\ndisease", "max_tokens": 2})
    assert "A secret\\ndisease" in capfd.readouterr().err


def test_a_route_that_is_none_and_a_method_that_is_none(web: Web) -> None:
    done = web.get("/v1/nothing")
    assert (done.status, done.body["error"]["type"]) == (404, "not_found_error")
    assert web.get("/v1/completions").status == 405
