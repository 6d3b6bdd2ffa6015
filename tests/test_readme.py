"""README.md and CONTRIBUTING.md against the code: help texts, snippets, make targets, paths, example commands.

`python tests/test_readme.py --write` puts the present help texts into README.md.
"""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
COMMANDS = ("run", "eval", "bench", "check", "show", "cache", "train", "convert", "quantize", "demo")
# what stands in the root: a name in `code` that begins with one of these is a path of this repository
HOUSE = ("memdec_edge", "train", "convert", "native", "tests", "benchmarks", ".ci")
HELP = re.compile(r"<!-- help:(?P<command>[a-z]+) -->\n(?P<text>.*?)<!-- /help -->", re.DOTALL)


@cache
def help_block(command: str) -> str:
    """What `memdec-edge COMMAND --help` prints on a terminal of 100 columns, as a fenced block."""
    program = Path(sys.executable).with_name("memdec-edge")
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [program, command, "--help"], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    return "\n".join(["```text", *lines, "```", ""])


def with_help(readme: str) -> str:
    """The README with the present help texts in its blocks."""
    return HELP.sub(lambda m: f"<!-- help:{m['command']} -->\n{help_block(m['command'])}<!-- /help -->", readme)


def fenced(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def example_commands() -> list[list[str]]:
    lines = "".join(fenced(README, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("memdec-edge ")]


def test_every_command_has_its_help_text_in_the_readme() -> None:
    assert tuple(m["command"] for m in HELP.finditer(README.read_text(encoding="utf-8"))) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_are_the_present_ones(command: str) -> None:
    shown = {m["command"]: m["text"] for m in HELP.finditer(README.read_text(encoding="utf-8"))}
    assert shown[command] == help_block(command), "run: python tests/test_readme.py --write"


def test_commands_of_the_readme_are_those_of_the_program() -> None:
    program = Path(sys.executable).with_name("memdec-edge")
    text = subprocess.run([program, "--help"], capture_output=True, encoding="utf-8", check=True).stdout
    assert set(re.findall(r"^  ([a-z]+)  ", text.partition("Commands:")[2], re.MULTILINE)) == set(COMMANDS)


def test_example_commands_use_flags_that_exist() -> None:
    examples = example_commands()
    assert {words[1] for words in examples} == set(COMMANDS)
    for words in examples:
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_block(words[1]), re.IGNORECASE))
        assert {word for word in words if re.match(r"--?[a-zA-Z]", word)} <= known, words


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_python_snippets_compile(path: Path) -> None:
    for snippet in fenced(path, "python"):
        compile(snippet, path.name, "exec")


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = "\n".join([*re.findall(r"`([^`\n]+)`", prose(path)), *fenced(path, "sh")])
    named = set(re.findall(r"^make ([a-z][a-z-]*)", code, re.MULTILINE))
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", [README, CONTRIBUTING], ids=lambda path: path.name)
def test_paths_exist(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose(path))
    code = re.findall(r"`([\w./-]+)`", prose(path))
    house = [name for name in code if "/" in name and name.split("/")[0] in HOUSE]
    top = [name for name in code if re.fullmatch(r"Makefile|[A-Z]+\.md|pyproject\.toml|constraints\.txt", name)]
    assert links + house + top
    assert [name for name in links + house + top if not (ROOT / name).exists()] == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    README.write_text(with_help(README.read_text(encoding="utf-8")), encoding="utf-8")
