"""A session's KV caches in a file, of base and memories, and back into a slot.

The file is an uncompressed .npz: what it was made with as JSON, the tokens, and for each model llama.cpp's state of the
sequence with the log-probs that the context noted. Knows nothing of text.
"""

import json
import tokenize
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdec_edge.engine.engine import Engine
from memdec_edge.engine.session import Session
from memdec_edge.errors import ContextError, DecodeError, MissingFileError, SessionFileError
from memdec_edge.files import atomic_path
from memdec_edge.llama.context import Context

VERSION = 1
NOTES = np.dtype([("position", np.int32), ("token", np.int32), ("log_prob", np.float64)])


def save(session: Session, path: Path) -> int:
    """Read what a session has not read, write its caches to `path`, and close it; return the number of tokens.

    Raises OutputError, and as Session.prefill().
    """
    with closing(session):
        while session.prefill(session.context.n_batch):
            pass  # other sessions may step meanwhile
        return _save(session, path)


def _save(session: Session, path: Path) -> int:
    with session.lock:
        length, contexts = session.n_cached, session.contexts
        for context in contexts:
            context.truncate(length, session.slot)
        arrays: dict[str, npt.NDArray[Any]] = {"tokens": np.array(session.tokens[:length], np.int32)}
        for index, context in enumerate(contexts):
            arrays[f"state{index}"], notes = context.state(session.slot)
            arrays[f"notes{index}"] = np.array(notes, NOTES)
    meta = {"version": VERSION, "models": [_described(context) for context in contexts]}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return length


def restore(engine: Engine, path: Path) -> list[int]:
    """Put what save() wrote into an idle slot, and return the tokens; a session that begins with them finds them there.

    Raises MissingFileError, SessionFileError, BusyError where no slot or too few cells are free, and ContextError.
    """
    if not path.is_file():
        raise MissingFileError(path, "session file")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = dict(file)
        meta = json.loads(arrays["meta"].tobytes())
        tokens: list[int] = arrays["tokens"].astype(np.int32).tolist()
        parts = [(arrays[f"state{index}"], arrays[f"notes{index}"]) for index in range(len(meta["models"]))]
        version, described = int(meta["version"]), [dict(model) for model in meta["models"]]
        whole = all(state.dtype == np.uint8 and notes.dtype == NOTES for state, notes in parts)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        MemoryError,
        RecursionError,
        zipfile.BadZipFile,
        zlib.error,
        tokenize.TokenError,  # of the parser of NumPy's headers
        NotImplementedError,
    ) as error:
        raise SessionFileError(path, "it is no session file, or damaged") from error
    if version != VERSION:
        raise SessionFileError(path, f"it is of version {version}, and this program reads {VERSION}")
    if not whole or not tokens or not parts:
        raise SessionFileError(path, "it is damaged")
    with engine.lock:
        contexts = [_found(engine, path, model, index) for index, model in enumerate(described)]
        if len(tokens) > engine.longest():
            raise ContextError(len(tokens), 0, engine.longest())
        holding = engine.cells.admit(len(tokens), tokens)
        try:
            for context, (state, notes) in zip(contexts, parts, strict=True):
                context.set_state(holding.slot, tokens, state, notes.tolist())
        except DecodeError as error:
            for context in contexts:
                context.truncate(0, holding.slot)
                if len(engine.cells.holdings) == 1:  # bytes that someone forged may fill cells that no slot has
                    context.clear()
            reason = "llama.cpp cannot take it: its cache types or flash attention differ, or it is damaged"
            raise SessionFileError(path, reason) from error
        finally:
            engine.cells.extend(holding, len(tokens))
            engine.cells.release(holding)
    return tokens


def _described(context: Context) -> dict[str, str]:
    return {"name": context.model.path.name, "fingerprint": context.fingerprint, "cache": context.kind}


def _found(engine: Engine, path: Path, described: dict[str, Any], index: int) -> Context:
    """The open context that a part of the file belongs to: the base's for the first."""
    name = str(described.get("name"))
    candidates = [engine.context] if index == 0 else [memory.context for memory in engine.memories]
    known = [context for context in candidates if context.fingerprint == described.get("fingerprint")]
    if not known:
        what = "base" if index == 0 else "memory"
        raise SessionFileError(path, f"the {what} {name} wrote it, which is not open, or has other weights")
    if known[0].kind != described.get("cache"):
        reason = f"{name} wrote it with the cache {described.get('cache')}, and it is open with {known[0].kind}"
        raise SessionFileError(path, reason, "open the models as then, or save the session again")
    return known[0]
