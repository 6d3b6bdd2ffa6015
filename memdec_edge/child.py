"""A function in a process of its own, spawned with its own environment, that never outlives its parent.

    report = run_in_child("memdec_edge.train:train", options, environment={"OMP_WAIT_POLICY": "PASSIVE"})

Arguments, result and errors cross the border pickled, a typed error with its class, attributes and message. The child
writes to the same stderr. It runs until its stdin ends: the parent closes that to stop it, and so does the kernel when
the parent dies, even by SIGKILL. The end of stdin is a KeyboardInterrupt in the function, which may save its work.

A terminal sends Ctrl-C to parent and child. The child ignores it there and hears of it once, from its parent. The
parent waits for the child's last words; a second Ctrl-C kills the child. Knows nothing of what the function does.
"""

import _thread
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from memdec_edge.errors import Cancelled, MemdecError, WorkerError

PATIENCE = 300.0  # seconds that a child whose parent is gone may take to save its work
_COMMAND = "from memdec_edge.child import serve; serve()"


def run_in_child(function: str, *arguments: Any, environment: Mapping[str, str]) -> Any:
    """What `module:name` returns for `arguments`; `environment` is added to this process's.

    Raises what the function raises, WorkerError where the child ends without an answer, and what interrupts this
    process while it waits; Cancelled takes the place of an interrupt where the child answers with it.
    """
    # -P: a file in the working directory must not take the place of a library
    command, surroundings = [sys.executable, "-P", "-c", _COMMAND], {**os.environ, **environment}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings) as child:
        assert child.stdin
        assert child.stdout
        try:
            try:
                pickle.dump((function, arguments), child.stdin)
                child.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended already, and says why on stderr
            answer = child.stdout.read()
        except BaseException as interrupt:
            answer = _stop(child)
            if answer and isinstance(error := pickle.loads(answer)[1], Cancelled):
                raise error from interrupt
            raise
    if not answer:
        raise WorkerError(child.returncode)
    done, value = pickle.loads(answer)
    if done:
        return value
    raise value


def _stop(child: subprocess.Popen[bytes]) -> bytes:
    """Ask the child to end; return its answer, empty where it was killed."""
    assert child.stdin
    assert child.stdout
    try:
        child.stdin.close()
        return child.stdout.read()
    except BrokenPipeError:
        return b""
    except BaseException:
        child.kill()
        raise


def serve() -> NoReturn:
    """The child: take a function and its arguments from stdin, run it, answer on what was stdout."""
    stop = _Stop()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2 if sys.stderr else os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):  # the parent was stopped before it had said what to do
            os._exit(1)
        threading.Thread(target=stop.when_stdin_ends, daemon=True).start()
        try:
            module, _, attribute = name.partition(":")
            answer = True, getattr(importlib.import_module(module), attribute)(*arguments)
        except KeyboardInterrupt:
            answer = False, Cancelled()
        except (MemdecError, OSError, MemoryError) as error:  # the parent says it in one line
            answer = False, error
        except Exception as error:  # a fault of ours: the traceback is of use only here
            traceback.print_exc()
            answer = False, error
        stop.ignored = True
        answers.write(_pickled(answer))
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(0)  # at once: no thread that a library left behind, or that waits for stdin, keeps the process


def _pickled(answer: tuple[bool, Any]) -> bytes:
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)
        return data
    except Exception:  # an exception of a library that cannot be rebuilt from its arguments
        return pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


class _Stop:
    """Turns the first reason to stop into a KeyboardInterrupt of the main thread, and ignores the others."""

    def __init__(self) -> None:
        self.ignored = False
        for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to the parent too
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if not self.ignored:
            self.ignored = True
            raise KeyboardInterrupt

    def when_stdin_ends(self) -> None:
        """Wait for that in a thread of its own, then interrupt the main thread."""
        sys.stdin.buffer.read()
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # ends a blocking call too
        else:
            _thread.interrupt_main(signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)
