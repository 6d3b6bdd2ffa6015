"""The page at `/`: what is served and to which requests, what stands in it, and what a browser does with it."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.options import MemoryOptions, ServerOptions
from memdec_edge.server.page import FILES
from memdec_edge.server.run import Server
from memdec_edge.server.service import Service
from tests.conftest import Family
from tests.server.conftest import LOAD, SOBER
from tests.support.web import Web, serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SCRIPTS = [name for name in FILES if name.endswith(".js")]
VOID = {"meta", "link", "input", "br", "hr", "img"}


def text(name: str) -> str:
    return FILES[name].read_text(encoding="utf-8")


# --- what is served -------------------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_under_a_strict_policy(web: Web) -> None:
    done = web.get("/", BROWSER)
    assert (done.status, done.body) == (200, text("index.html"))
    assert done.headers["content-type"] == "text/html; charset=utf-8"
    assert "Accept" in done.headers["vary"]
    policy = dict(part.split(" ", 1) for part in done.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:", done.headers["content-security-policy"])
    assert done.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_the_page_has_its_kind(web: Web, name: str) -> None:
    done = web.get(f"/page/{name}")
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    assert (done.status, done.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert done.body == text(name)


@pytest.mark.parametrize("name", ["__init__.py", "..%2fguard.py", "../guard.py", "none.js", ""])
def test_no_other_file_is_served(web: Web, name: str) -> None:
    assert web.get(f"/page/{name}").status == 404


@pytest.mark.parametrize("accept", [{}, {"Accept": "*/*"}, {"Accept": "application/json"}], ids=str)
def test_a_client_that_asks_for_no_html_learns_that_there_is_no_such_route(web: Web, accept: dict[str, str]) -> None:
    done = web.get("/", accept)
    assert (done.status, done.body["error"]["type"]) == (404, "not_found_error")


def test_the_page_needs_no_key_and_what_it_asks_does(talker: Path) -> None:
    with serving(open_model(talker, [], LOAD), ServerOptions(api_keys=("key",)), SOBER) as locked:
        assert locked.get("/", BROWSER).status == 200
        assert {locked.get(f"/page/{name}").status for name in FILES} == {200}
        for path in ("/", "/page/none.js", "/props", "/memories"):
            assert locked.get(path, None if path == "/" else BROWSER).status == 401


def test_the_page_comes_while_the_model_still_loads(talker: Path) -> None:
    go = threading.Event()

    def load() -> LanguageModel:
        go.wait(30)
        return open_model(talker, [], LOAD)

    server = Server(Service(load, ServerOptions(port=0, grace=5), SOBER))
    web = Web(server.service, int(server.url.rpartition(":")[2]))
    thread = threading.Thread(target=server.run_here, name="test-server")
    thread.start()
    try:
        assert web.get("/", BROWSER).status == 200
        assert web.get("/props").status == 503
    finally:
        go.set()
        server.stop()
        thread.join()


# --- what stands in it ----------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """The elements of a page; raises for one that is closed wrongly, or never."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None], bool]] = []  # tag, attributes, whether inside a label
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), "label" in self.open))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def values(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [value for _, attributes, _ in self.found if (value := attributes.get(name)) is not None]


def test_every_element_is_closed_and_every_id_is_single() -> None:
    outline = Outline(text("index.html"))
    ids = outline.values("id")
    assert len(ids) == len(set(ids)) > 10
    for name in ("for", "aria-labelledby"):
        assert set(outline.values(name)) <= set(ids)


def test_every_control_has_a_name() -> None:
    outline = Outline(text("index.html"))
    labelled = outline.values("for")
    controls = [(one, inside) for tag, one, inside in outline.found if tag in ("input", "select", "textarea")]
    assert len(controls) > 10
    assert [one for one, inside in controls if not inside and one.get("id") not in labelled] == []


def test_every_id_that_the_scripts_and_styles_use_exists() -> None:
    outline = Outline(text("index.html"))
    ids = set(outline.values("id"))
    classes = {word for each in outline.values("class") for word in each.split()}
    used = set()
    for name in SCRIPTS:
        used |= set(re.findall(r"""(?:\bat|getElementById|fresh)\("([\w-]+)"\)""", text(name)))
        for names in re.findall(r"\[([^\]]+)\]\.map\(at\)", text(name)):
            used |= set(re.findall(r'"([\w-]+)"', names))
        assert set(re.findall(r"""querySelector\("\.([\w-]+)"\)""", text(name))) <= classes, name
    assert {"question", "lambda", "memory", "alternatives"} <= used <= ids
    rules = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", text("page.css"), flags=re.DOTALL)
    assert {"turns"} <= set(re.findall(r"#([\w-]+)", rules)) <= ids


def test_nothing_comes_from_another_host_and_no_text_becomes_html() -> None:
    for name in FILES:
        assert not re.search(r"(?:https?:)?//[\w-]+\.\w", text(name)), name
        assert "@import" not in text(name)
    for name in SCRIPTS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", text(name)
        ), name
    page = Outline(text("index.html"))
    assert not [attributes for _, attributes, _ in page.found if any(key.startswith("on") for key in attributes)]
    assert page.values("style") == []


# --- what the page needs of the server ------------------------------------------------------------------------------


def test_memories_are_listed_with_what_their_files_say(web: Web) -> None:
    facts = [memory["facts"] for memory in web.get("/memories").body["data"]]
    assert [(one["layers"], one["n_ctx_train"], one["temperature"]) for one in facts] == [(2, 512, 1.0)] * 2


def test_some_memories_by_name_follow_the_text_as_all_do(web: Web) -> None:
    def weights(memory: Any) -> list[float]:
        asked = {"prompt": "Anaemia is a", "max_tokens": 6, "memory": memory, "return_memory": True}
        done = web.post("/v1/completions", asked)
        assert done.status == 200, done.body
        return [each for one in done.body["choices"][0]["memory"] for each in one["weights"]]

    assert weights([{"id": 0}, {"id": 1, "lambda": None}]) == pytest.approx(weights("auto"))
    one = weights([{"id": 1}])
    assert len(one) == 2 * 6
    assert one[0::2] != [one[0]] * 6  # they change from token to token
    for wrong in ([{"id": 0}, {"id": 1, "lambda": 0.5}], [{"id": 0}, {"id": 0}], [{"id": 9}]):
        asked = {"prompt": "Anaemia", "max_tokens": 1, "memory": wrong}
        assert web.post("/v1/completions", asked).body["error"]["param"] == "memory"


# --- in a browser ---------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def served(family: Family, talker: Path) -> Iterator[Web]:
    model = open_model(talker, [MemoryOptions(family.memory), MemoryOptions(family.padded)], LOAD)
    with serving(model, ServerOptions(alias="tiny", api_keys=("secret",)), SOBER) as web:
        yield web
        web.until_idle()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_asks_and_sees_both_answers_and_what_else_could_stand_there(served: Web) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(PATIENCE)
        asked: list[dict[str, Any]] = []
        troubles: list[str] = []
        page.on("request", lambda request: asked.append(json.loads(request.post_data or "null")))
        page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))

        page.goto(served.url)
        page.wait_for_selector("#key:focus")
        assert "API key" in page.inner_text("#error")  # it asks for the key, in words
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("#ask:enabled")
        troubles.clear()  # the refusal
        assert page.inner_text("#model").startswith("tiny")

        page.click("#panel > summary")
        page.fill("#most", "12")
        page.fill("#seed", "5")
        page.focus("#question")
        page.keyboard.type("What is <b>the heart</b>?")
        page.keyboard.press("Enter")
        page.wait_for_selector("#anew:enabled")
        base, mixed = (one for one in asked if one and "messages" in one)
        assert {"memory": base.pop("memory"), "with": mixed.pop("memory")} == {"memory": "none", "with": "auto"}
        assert base == mixed
        assert (mixed["stream"], mixed["seed"], mixed["max_tokens"]) == (True, 5, 12)
        assert page.inner_text(".asked") == "What is <b>the heart</b>?"
        for number, body in ((0, base | {"memory": "none"}), (1, mixed | {"memory": "auto"})):
            plain = served.post("/v1/chat/completions", body | {"stream": False}, {"X-Api-Key": "secret"}).body
            shown = page.locator(".answer").nth(number).evaluate("answer => answer.textContent")
            assert shown == plain["choices"][0]["message"]["content"]
        assert re.search(
            r"12 tokens · [\d.]+ tokens/s · share [\d.]+ % · seed 5", page.locator(".figures").nth(1).inner_text()
        )

        page.locator(".answer").nth(1).locator(".token").first.focus()
        page.keyboard.press("ArrowRight")
        titles = page.locator("#alternatives h4").all_inner_texts()
        assert titles == ["Base", "tiny", "padded", "Mixture"]
        assert page.locator("#alternatives li").count() == 4 * 5
        assert (
            page.locator(".answer").nth(1).locator(".token").nth(1).get_attribute("aria-describedby") == "alternatives"
        )
        page.keyboard.press("Escape")
        assert page.locator("#alternatives").is_hidden()

        page.focus("#lambda")
        page.keyboard.press("ArrowRight")
        page.locator("#memories input").nth(1).uncheck()
        page.fill("#question", "And the river?")
        page.click("#ask")
        page.wait_for_selector("#anew:enabled")
        last = asked[-1]
        assert last["memory"] == [{"id": 0, "lambda": 0.55}]
        answered = page.locator(".answer").nth(1).evaluate("answer => answer.textContent")
        assert [one["content"] for one in last["messages"]] == ["What is <b>the heart</b>?", answered, "And the river?"]

        with served.frozen():  # no answer ends by itself
            page.fill("#question", "More")
            page.click("#ask")
            page.click("#stop")
            page.wait_for_selector("#anew:enabled")
            assert page.locator(".figures").last.inner_text() == "0 tokens · seed 5 · stopped"
        served.until_idle()

        key = {"X-Api-Key": "secret"}
        served.post("/memories", {"weights": [{"id": 0, "lambda": 0.3}, {"id": 1, "lambda": 0.2}]}, key)
        page.reload()  # the tab keeps the key
        page.wait_for_selector("#ask:enabled")
        page.click("#panel > summary")
        assert page.inner_text("#auto-label") == "as the server was told"
        page.uncheck("#compare")
        page.fill("#question", "What is the heart?")
        page.click("#ask")
        page.wait_for_selector("#anew:enabled")
        assert "memory" not in asked[-1]
        assert page.locator(".side").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert troubles == []
        browser.close()
