"""What happens in a chat in the terminal: lines are read, commands carried out, questions answered.

Knows nothing of how lines are edited (lines.py) and how answers are shown (answers.py).
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from memdec_edge.api.conversation import Conversation
from memdec_edge.api.results import Chunk
from memdec_edge.cli.answers import Answers
from memdec_edge.cli.flags import flags_of
from memdec_edge.cli.lines import Lines, Typed
from memdec_edge.cli.output import note
from memdec_edge.cli.parameters import memory_file
from memdec_edge.cli.process import Terminated
from memdec_edge.cli.voices import explain_weights, tell_voices
from memdec_edge.errors import ContextError, MemdecError, OptionError
from memdec_edge.options import ChatOptions, GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions
from memdec_edge.options.fields import check_text

FLAGS = flags_of(LoadOptions, GenerationOptions, MemoryOptions, ChatOptions, MixtureOptions)
HELP = """
/memory off|on            answer without memories and indexes, or with them again
/memory FILE[:LAMBDA]     let one more memory or index take part
/lambda X|auto            weight of memories and indexes together; auto: it follows the text
/system TEXT              text before all messages; without TEXT: none
/regenerate               answer the last question again
/save FILE, /load FILE    write the chat to a file, take one from a file
/clear                    forget the chat
/bye                      leave; Ctrl-D does too
\"\"\"                       begins and ends a message of several lines
Ctrl-C                    stops the answer
""".strip()


class Dialogue:
    """Reads and answers until /bye or the end of the input.

    An error of one message is told, and a person may go on; where the input is no terminal it ends the command.
    """

    def __init__(
        self, conversation: Conversation, answers: Answers, side_by_side: bool, context_shift: bool, verbose: bool
    ) -> None:
        self.conversation, self.context_shift, self.verbose = conversation, context_shift, verbose
        self.side_by_side = side_by_side
        self.lines, self.answers = Lines(), answers
        self._weak = False  # whether it was said that the memory does not help
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help, "?": self._help, "memory": self._memory, "lambda": self._lambda,
            "system": self._system, "save": self._save, "load": self._load, "regenerate": self._regenerate,
            "clear": self._clear,
        }  # fmt: skip

    def run(self) -> None:
        """Raises what no person is there to answer, and Terminated."""
        if self.lines.interactive:
            note("type a message, /help for help, /bye to leave")
        self.answers.legend()
        while (line := self.lines.read()) is not None:
            if not line.quoted and line.text.strip() in ("/bye", "/exit", "/quit"):
                return
            if not line.text.strip():
                continue
            try:
                self._answer(line)
            except MemdecError as error:
                self.answers.stop()
                if not self.lines.interactive:
                    raise
                note(f"Error: {error.spelled(FLAGS)}")
            except Terminated:
                raise
            except KeyboardInterrupt:
                if not self.lines.interactive:
                    raise
                self.answers.stop()
                note("stopped")

    def _answer(self, line: Typed) -> None:
        check_text("message", line.text)
        if line.text.startswith("/") and not line.quoted:
            name, _, rest = line.text[1:].partition(" ")
            if name not in self._commands:
                raise OptionError("command", line.text.split()[0], "no such command; type /help")
            self._commands[name](rest.strip())
            return
        while True:
            try:
                self._ask(line.text)
                return
            except ContextError as error:
                fits = self.conversation.fits_alone(line.text, 2 if self.side_by_side else 1)
                if not (fits and self._makes_room(error)):
                    raise

    def _ask(self, text: str) -> None:
        if self.side_by_side:
            with closing(self.conversation.compare(text)) as both:
                last = self.answers.show_both(both)
        else:
            with closing(self.conversation.ask(text)) as chunks:
                last = self.answers.show(chunks)
        self._tell(last)

    def _makes_room(self, error: ContextError) -> bool:
        """Whether the oldest turn was dropped, as --context-shift or a person says."""
        if not self.conversation.messages:
            return False
        if not self.context_shift:
            if not self.lines.interactive:
                return False
            note(f"{error.prompt} tokens of chat and {error.wanted} new ones do not fit the context of {error.n_ctx}")
            if not self.lines.agrees("drop the oldest turn?"):
                return False
        note(f"dropped the oldest turn, {self.conversation.drop_oldest()} messages")
        return True

    def _tell(self, last: Chunk) -> None:
        helps = last.helps or self._weak
        explain_weights(last.weights, last.matched, helps, self.verbose, "/memory off answers without it")
        self._weak = self._weak or not helps

    # --- commands ---------------------------------------------------------------------------------------------------

    def _help(self, rest: str) -> None:
        for line in HELP.splitlines():
            note(line)

    def _memory(self, rest: str) -> None:
        if rest in ("on", "off"):
            self.conversation.remembers = rest == "on"
        elif rest:
            path, colon, weight = rest.rpartition(":")
            literal = _number(weight) if colon else None
            file = Path(rest if literal is None else path).expanduser()
            self.conversation.open_memory(memory_file(file), literal)
        mixture = self.conversation.mixture
        weighed = self.conversation.model.engine.mixture(mixture)
        tell_voices(weighed, mixture.total, self.verbose, off=not self.conversation.remembers)
        if not weighed.voices:
            note("no memory or index is open; /memory FILE opens one")

    def _lambda(self, rest: str) -> None:
        total = None if rest == "auto" else _number(rest)
        if total is None and rest != "auto":
            raise OptionError("total", rest or "missing", "must be auto or a number from 0 to 1")
        mixture = replace(self.conversation.mixture, total=total)
        self.conversation.model.engine.mixture(mixture)  # refuses what cannot be
        self.conversation.mixture, self.conversation.remembers = mixture, True

    def _system(self, rest: str) -> None:
        self.conversation.system = rest

    def _save(self, rest: str) -> None:
        self.conversation.save(_file(rest))
        note(f"saved to {rest}")

    def _load(self, rest: str) -> None:
        self.conversation.load(_file(rest))
        note(f"{len(self.conversation.messages)} messages from {rest}")

    def _regenerate(self, rest: str) -> None:
        with closing(self.conversation.regenerate()) as chunks:
            last = self.answers.show(chunks)
        self._tell(last)

    def _clear(self, rest: str) -> None:
        self.conversation.messages.clear()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _file(rest: str) -> Path:
    if not rest:
        raise OptionError("file", "missing", "give its name")
    return Path(rest).expanduser()
