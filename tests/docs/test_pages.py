"""The documents against the code: the command line's page, flags of examples, make targets, links, paths."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.cli_page import commands, help_of, page
from tests.docs.pages import CLI, PAGES, ROOT, fences, prose, read

HOUSE = ("memdec_edge", "train", "convert", "native", "tests", "benchmarks", "examples", "docs", ".ci")  # in the root
README_LINES = 160


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_page_of_the_command_line_is_what_the_program_says() -> None:
    assert read(CLI) == page(), "run: python -m tests.docs.cli_page"


def test_every_command_stands_in_an_example_and_every_flag_of_an_example_exists() -> None:
    examples = [words for path in PAGES for fence in fences(path, "sh") for words in fence.commands()]
    examples = [words for words in examples if words[0] == "memdec-edge"]
    assert {words[1] for words in examples} == set(commands())
    for words in examples:
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(words[1]), re.IGNORECASE))
        assert {word for word in words if re.match(r"--?[a-zA-Z]", word)} <= known, words


def test_flags_in_running_text_exist() -> None:
    known = {flag for command in commands() for flag in re.findall(r"--[a-z][a-z-]*", help_of(command))}
    texts = {path: re.findall(r"`([^`]+)`", prose(path)) for path in PAGES if path != CLI}
    other = ("pytest", "make", "python", "ruff", "accelerate", "pip")  # commands with flags of their own
    found = {
        (name(path), flag)
        for path, codes in texts.items()
        for code in codes
        if code.split()[0] not in other
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)
    }
    assert {(where, flag) for where, flag in found if flag not in known} == set()


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/LOG.md"], ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(path)):
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (heading and heading not in anchors(linked)):
            broken.append(target)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_paths_and_make_targets_exist(path: Path) -> None:
    code = [
        *re.findall(r"`([^`\n]+)`", prose(path)),
        *(line for fence in fences(path, "sh") for line in fence.text.splitlines()),
    ]
    house = [text for text in code if re.fullmatch(r"[\w./*-]+", text) and "/" in text and text.split("/")[0] in HOUSE]
    top = [text for text in code if re.fullmatch(r"Makefile|[A-Z]+\.md|pyproject\.toml|constraints\.txt", text)]
    assert [text for text in house + top if not list(ROOT.glob(text.rstrip("/")))] == []
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    named = {word for text in code if text.startswith("make ") for word in text.split("#")[0].split()[1:]}
    assert {word for word in named if re.fullmatch(r"[a-z-]+", word)} <= targets


def test_messages_that_the_troubleshooting_page_quotes_are_those_of_the_code() -> None:
    said = "\n".join(text for folder in ("memdec_edge", "train", "convert") for text in literals(ROOT / folder))
    quoted = re.findall(r'^\*\*"(.+?)"[.*]', read(ROOT / "docs/troubleshooting.md"), re.MULTILINE)
    assert len(quoted) > 15
    # a quote has numbers, options and ... where the code has a value
    parts = {text: re.split(r"\s*(?:\.\.\.|--[a-z-]+|\d+)\s*", text) for text in quoted}
    assert [text for text, fixed in parts.items() if any(part not in said for part in fixed)] == []


def literals(folder: Path) -> Iterator[str]:
    """The strings in a folder's modules; a line break stands for a value in the middle of one."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_page_is_linked_from_the_readme() -> None:
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", prose(ROOT / "README.md")))
    assert {name(path) for path in PAGES} - {"README.md"} <= links


def test_the_readme_stays_short() -> None:
    assert read(ROOT / "README.md").count("\n") <= README_LINES
