"""Every error that memdec-edge raises on purpose.

    MemdecError                     exit 1, HTTP 500
    ├── OptionError                 exit 2, HTTP 400   an option outside its range
    ├── MissingFileError            exit 1, HTTP 404   a file or folder that is not there
    ├── ExistingOutputError         exit 1, HTTP 409   an output path that exists
    ├── OutputError                 exit 1, HTTP 507   writing failed: no space, no permission
    ├── HubError                    exit 1, HTTP 502   the Hugging Face Hub refuses, or cannot be reached
    ├── ModelFileError              exit 1, HTTP 400   a GGUF or checkpoint that cannot be used
    ├── TemplateError               exit 1, HTTP 400   a chat template that is missing or cannot be used
    ├── SessionFileError            exit 1, HTTP 409   a saved session that is damaged or of other models
    ├── RoleError                   exit 1, HTTP 400   a memory given as base, or a base as memory
    ├── PairingError                exit 1, HTTP 400   base and memory speak different vocabularies
    ├── CorpusError                 exit 1, HTTP 400   text that cannot be read or is too short
    ├── TaskError                   exit 1, HTTP 400   a task of lm-eval that is not there or cannot run
    ├── StageError                  exit 1, HTTP 409   a stage folder made with other options, or damaged
    │   └── StageBusyError          exit 1, HTTP 409   another process is at work in it
    ├── ContextError                exit 1, HTTP 400   more tokens than the context holds
    ├── BusyError                   exit 1, HTTP 503   no slot or too few cells are free at the moment
    ├── OverloadError               exit 1, HTTP 429   as many requests wait as may
    ├── UnavailableError            exit 1, HTTP 503   a server that loads its model, or ends
    ├── NumericsError               exit 1, HTTP 500   NaN where numbers belong
    ├── MemoryLimitError            exit 1, HTTP 507   more memory than there is, on this machine or its GPU
    ├── DecodeError                 exit 1, HTTP 500   llama.cpp refused a batch
    ├── WorkerError                 exit 1, HTTP 500   a process that did the work ended without an answer
    ├── LibraryError                exit 1, HTTP 500   llama-cpp-python lays out its structs differently
    ├── MissingExtraError           exit 1, HTTP 501   an optional dependency is not installed
    └── Cancelled                   exit 130, HTTP 499 the user or a caller stopped the work

Each message names the culprit, the value and the next step, on one line. Classes carry their data as attributes.
Options are called by their fields, in backticks where they stand inside a message; spelled() gives them other names.
Knows nothing of where an error is shown: the CLI prints `Error: <message>`, the server the OpenAI error shape.
"""

import re
from collections.abc import Mapping
from pathlib import Path


class MemdecError(Exception):
    """Root of the tree. `str(error)` is one line, fit to be shown to a user."""

    exit_code = 1
    http_status = 500

    def spelled(self, names: Mapping[str, str]) -> str:
        """Return the message with each field called as `names` says; one that `names` lacks loses its backticks."""
        return spell(str(self), names)

    def __reduce__(self) -> tuple[object, ...]:
        """Let errors cross between processes: they are rebuilt from their attributes, not from their arguments."""
        return _rebuilt, (type(self), str(self), self.__dict__)


def plain(value: object) -> str:
    """Return a value as a message shows it: 200 for 200.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def spell(text: str, names: Mapping[str, str]) -> str:
    """Return `text` with each `field` in backticks called as `names` says, or bare where `names` lacks it."""
    return re.sub(r"`(\w+)`", lambda found: names.get(found[1], found[1]), text)


def _rebuilt(kind: type[MemdecError], message: str, attributes: dict[str, object]) -> MemdecError:
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error


class OptionError(MemdecError):
    """An option has a value outside its range."""

    exit_code = 2
    http_status = 400

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} is {plain(value)}: {allowed}")

    def spelled(self, names: Mapping[str, str]) -> str:
        """As MemdecError.spelled(); the field that the message begins with has no backticks."""
        return names.get(self.field, self.field) + super().spelled(names).removeprefix(self.field)


class MissingFileError(MemdecError):
    """A file or folder that the user named is not there."""

    http_status = 404

    def __init__(self, path: Path | str, what: str, advice: str = "check the path") -> None:
        self.path, self.what = Path(path), what
        super().__init__(f"{path}: no such {what}; {advice}")


class ExistingOutputError(MemdecError):
    """The output path exists and is not overwritten."""

    http_status = 409

    def __init__(self, path: Path | str, advice: str = "remove it or choose another path") -> None:
        self.path = Path(path)
        super().__init__(f"{path} exists and is not overwritten; {advice}")


class OutputError(MemdecError):
    """Writing failed. Nothing half-written stays under the final name."""

    http_status = 507

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path} could not be written: {reason}; nothing was left under that name")


class HubError(MemdecError):
    """The Hugging Face Hub does not give a model: it refuses, or it cannot be reached. `name` is the repository's."""

    http_status = 502

    def __init__(self, name: str, reason: str, advice: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}; {advice}")


class ModelFileError(MemdecError):
    """A GGUF file or an HF checkpoint that cannot be used."""

    http_status = 400

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}")


class TemplateError(MemdecError):
    """A chat template is broken, cannot render these messages, or is `missing`. `name` says whose template it is."""

    http_status = 400

    def __init__(self, name: str, reason: str, *, missing: bool = False) -> None:
        self.name, self.reason, self.missing = name, reason, missing
        super().__init__(f"{name}: {reason}; {'' if missing else 'mend it, or '}give `chat_template` chatml")


class SessionFileError(MemdecError):
    """A file of a saved session is damaged, or other models wrote it."""

    http_status = 409

    def __init__(self, path: Path | str, reason: str, advice: str = "save the session again") -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}; {advice}")


class RoleError(MemdecError):
    """A memory stands where a base belongs, or the other way round."""

    http_status = 400

    def __init__(self, path: Path | str, found: str, wanted: str, advice: str) -> None:
        self.path, self.found, self.wanted = Path(path), found, wanted
        super().__init__(f"{path} is a {found}, not a {wanted}; {advice}")


class PairingError(MemdecError):
    """A memory or an index does not share the base's vocabulary. `difference` names the first thing that differs."""

    http_status = 400

    def __init__(
        self,
        base: Path | str,
        memory: Path | str,
        difference: str,
        advice: str = "use a memory trained for this model family, or `force` to mix them anyway",
    ) -> None:
        self.base, self.memory, self.difference = Path(base), Path(memory), difference
        super().__init__(f"{memory} does not match {base}: {difference}; {advice}")


class CorpusError(MemdecError):
    """Text that cannot be read, or of which there is not enough."""

    http_status = 400

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}")


class TaskError(MemdecError):
    """lm-evaluation-harness refuses its arguments or a task, or fails in one. `reason` is what it says."""

    http_status = 400

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"lm-eval: {reason}")


class StageError(MemdecError):
    """A folder of intermediate results was made with other inputs or options, or is damaged."""

    http_status = 409

    def __init__(
        self, path: Path | str, reason: str, advice: str = "use another output folder, or `fresh` to redo it"
    ) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}; {advice}")


class StageBusyError(StageError):
    """Another process is at work in a folder of intermediate results. `holder` names it and its machine."""

    def __init__(self, path: Path | str, holder: str) -> None:
        self.holder = holder
        super().__init__(path, f"{holder} is at work in this folder", "wait until it has ended, or stop it first")


class ContextError(MemdecError):
    """More tokens than the context holds."""

    http_status = 400

    def __init__(self, prompt: int, wanted: int, n_ctx: int) -> None:
        self.prompt, self.wanted, self.n_ctx = prompt, wanted, n_ctx
        need = f"a prompt of {prompt} tokens" + (f" and {wanted} new ones" if wanted else "")
        super().__init__(
            f"{need} do not fit the context of {n_ctx}; "
            "raise `n_ctx` as far as the models were trained, shorten the prompt or lower `n_predict`"
        )


class BusyError(MemdecError):
    """An engine has no room for another session until one that is open is closed. `kind`: slots or cells."""

    http_status = 503

    def __init__(self, kind: str, wanted: int, free: int, total: int) -> None:
        self.kind, self.wanted, self.free, self.total = kind, wanted, free, total
        super().__init__(
            f"{wanted} {kind} wanted and {free} of {total} are free; wait until another session is closed, "
            f"or open the engine with more of them ({'`n_seq`' if kind == 'slots' else '`n_ctx`'})"
        )


class OverloadError(MemdecError):
    """As many requests wait as may. retry_after: seconds after which another try makes sense."""

    http_status = 429

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.waiting, self.retry_after = waiting, retry_after
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} s")


class UnavailableError(MemdecError):
    """A server cannot answer now: it loads its model, or it ends."""

    http_status = 503

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; try again later")


class NumericsError(MemdecError):
    """NaN, or no possible token, where a distribution belongs."""


class MemoryLimitError(MemdecError):
    """There is not enough memory for what was asked for."""

    http_status = 507

    def __init__(self, work: str, advice: str) -> None:
        self.work, self.advice = work, advice
        super().__init__(f"out of memory: {work}; {advice}")


class DecodeError(MemdecError):
    """llama.cpp refused a batch."""


class WorkerError(MemdecError):
    """A process that did the work ended without an answer; `returncode` is negative where a signal ended it."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode
        if returncode == -9:  # SIGKILL, which no process sends to itself
            how = "was killed, most likely because memory ran out; close other programs, or choose a smaller model"
        else:
            how = f"ended with {returncode} and no answer; what it said last stands above"
        super().__init__(f"the process that did the work {how}; what was finished is kept")


class LibraryError(MemdecError):
    """llama-cpp-python declares a struct differently from what the C code was built for. `found` is its version."""

    def __init__(self, found: str, difference: str) -> None:
        from importlib.metadata import version

        self.found, self.difference = found, difference
        super().__init__(
            f"llama-cpp-python {found} does not fit memdec-edge {version('memdec-edge')}: {difference}; "
            "pip install 'llama-cpp-python>=0.3.36,<0.4'"
        )


class MissingExtraError(MemdecError):
    """An optional dependency is not installed."""

    http_status = 501

    def __init__(self, module: str, extra: str) -> None:
        self.module, self.extra = module, extra
        super().__init__(f"{module} is not installed; pip install 'memdec-edge[{extra}]'")


class Cancelled(MemdecError):  # noqa: N818 - it is no failure
    """The user (Ctrl-C) or a caller stopped the work; what was finished is kept."""

    exit_code = 130
    http_status = 499

    def __init__(self, advice: str = "") -> None:
        super().__init__("stopped" + (f"; {advice}" if advice else ""))
