"""llama.cpp's contexts: the KV cache of a model, several timelines in it, decoding, rows of logits, rolling back.

Beside model.py the only module that calls llama.cpp's model and context API. It checks beforehand what would end the
process: token ids, batch sizes, cells, slots, rows, and threads that do not take turns. Knows nothing of mixing and of
what a timeline is for.
"""

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import Cancelled, ContextError, DecodeError, ModelFileError, OptionError
from memdec_edge.gguf.fingerprint import fingerprint
from memdec_edge.llama.abort import AbortFlag
from memdec_edge.llama.batch import Batch
from memdec_edge.llama.library import Owned, forget_reasons, reason
from memdec_edge.llama.model import Model
from memdec_edge.llama.tap import Tap
from memdec_edge.machine import usable_cpus
from memdec_edge.mixture.rows import Row
from memdec_edge.options import CACHE_TYPES, LoadOptions

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
ABORTED = 2  # of llama_decode
NO_ROPE = -1  # enum llama_rope_type
UNQUANTISED, BLOCK = ("f32", "f16", "bf16"), 32  # cache types; numbers that the others keep together


def default_threads() -> int:
    """One thread for each CPU that this process may run on."""
    return usable_cpus()


def common_length(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists have in common from the start."""
    if others[: len(tokens)] == tokens:  # the usual case, without a Python loop
        return len(tokens)
    for length, (mine, theirs) in enumerate(zip(tokens, others, strict=False)):
        if mine != theirs:
            return length
    return min(len(tokens), len(others))


class Context:
    """One KV cache of a model, shared by `n_seq` timelines ("slots"), and the token ids that each has in it.

    Cells belong to all slots together, and a prefix that one slot copies from another is stored once. Threads take
    turns: a call raises DecodeError while another thread's is at work; only cancel() and close() may come at any time.
    `tokens[slot]` is what the cache holds of a slot; `can_roll_back` whether truncate() is cheap.
    """

    def __init__(
        self,
        model: Model,
        options: LoadOptions,
        n_ctx: int,
        abort: AbortFlag | None = None,
        *,
        n_seq: int = 1,
        tap: Tap | None = None,
    ) -> None:
        """`n_ctx` cells; `abort` may be shared with other contexts, so that whichever decodes is stopped; `tap` copies
        a tensor of each pass.

        Raises ModelFileError when llama.cpp cannot make the context (memory, cache types), OptionError when it would
        end the process.
        """
        if options.flash_attn == "off" and options.cache_type_k not in UNQUANTISED and model.head_length % BLOCK:
            allowed = (
                f"{model.path} has heads of {model.head_length} numbers, and without flash attention {BLOCK} must "
            )
            raise OptionError("cache_type_k", options.cache_type_k, f"{allowed}divide them; use {UNQUANTISED[1]}")
        self.model = model
        self.kind = f"{options.cache_type_k}/{options.cache_type_v}"  # of what the cells hold
        self.tokens: list[list[int]] = [[] for _ in range(n_seq)]
        self._notes: list[list[tuple[int, float] | None]] = [[] for _ in range(n_seq)]  # see note(), by position
        self._owned: Owned | None = None
        self._lock = threading.RLock()  # held by the thread at work
        self._end = 0  # tokens of the last batch
        self.n_decoded = 0  # tokens, since it was made
        self._abort = abort or AbortFlag()
        threads = options.threads or default_threads()
        self._threads = (threads, options.threads_batch or threads)  # of one row, of several
        self._lent = 0
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = max(min(options.n_batch, n_ctx), n_seq)
        params.n_seq_max = n_seq
        params.kv_unified = True  # else each slot has n_ctx / n_seq cells, and a prefix cannot be copied
        params.n_threads, params.n_threads_batch = self._threads
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.type_k = CACHE_TYPES[options.cache_type_k]
        params.type_v = CACHE_TYPES[options.cache_type_v]
        params.abort_callback = ctypes.cast(self._abort.callback, llama_cpp.ggml_abort_callback)
        params.abort_callback_data = self._abort.data
        if tap:
            params.cb_eval, params.cb_eval_user_data = tap.callback, tap.data
        forget_reasons()
        weights = model.weights
        handle = llama_cpp.llama_init_from_model(weights.pointer, params)
        if not handle:
            raise ModelFileError(model.path, f"no context of {n_ctx} tokens could be made ({reason('out of memory?')})")
        # llama.cpp uses the weights, the flag and the tap as long as the context lives.
        self._owned = Owned(handle, llama_cpp.llama_free, weights, self._abort, tap)
        self.n_ctx: int = llama_cpp.llama_n_ctx(handle)
        self.n_batch: int = llama_cpp.llama_n_batch(handle)
        self._cells = llama_cpp.llama_get_memory(handle)
        self._window: int = llama_cpp.llama_model_n_swa(model.handle)  # of sliding attention; 0: none
        stateful = llama_cpp.llama_model_is_recurrent(model.handle) or llama_cpp.llama_model_is_hybrid(model.handle)
        # A recurrent state has no earlier one to go back to, and cells that left a sliding window may be taken by
        # another slot: truncate() then empties a slot, which is right but too dear for speculation.
        self.can_roll_back: bool = not stateful and (self._window == 0 or n_seq == 1)
        # Positions are rows of a table where no rotation tells them: beyond its end llama.cpp would end the process.
        table = not stateful and llama_cpp.llama_model_rope_type(model.handle) == NO_ROPE
        self._longest = min(self.n_ctx, model.n_ctx_train) if table else self.n_ctx
        self._batch = Batch(self.n_batch, n_seq)

    # --- decoding ---------------------------------------------------------------------------------------------------

    def prefill(self, tokens: Sequence[int], slot: int = 0) -> None:
        """Make a slot hold `tokens`: what it shares with them from the start is kept, the rest is decoded.

        Decodes in batches of n_batch. Raises ContextError when there are more tokens than cells, Cancelled on cancel(),
        DecodeError when llama.cpp refuses, and what a signal handler raises meanwhile (KeyboardInterrupt on Ctrl-C);
        the slot then holds what was decoded so far.
        """
        self._read(tokens, slot, len(tokens))

    def feed(self, tokens: Sequence[int], slot: int = 0) -> Row:
        """As prefill(), and return the logits after the last token, float32 [n_vocab].

        The row is a view of llama.cpp's buffer, valid until the next decode.
        """
        if not tokens:
            raise DecodeError(f"{self.model.path}: nothing to decode; give at least one token")
        self._read(tokens, slot, len(tokens) - 1)
        row: Row = self.rows(-1)[0]
        return row

    def _read(self, tokens: Sequence[int], slot: int, most: int) -> None:
        """Keep what a slot shares with `tokens`, at most `most` of them, and decode the rest."""
        with self._alone():
            self.use_threads(0)
            self.truncate(min(self.shared(tokens, slot), most), slot)
            for start in range(len(self.tokens[slot]), len(tokens), self.n_batch):
                self._decode([(slot, tokens[start : start + self.n_batch])], [1])
            self.wait()

    def feed_rows(self, tokens: Sequence[int], slot: int = 0, most: int = 1 << 30) -> Iterator[Row]:
        """Decode `tokens` after what a slot holds; yield the logits after each, in order, as feed() does.

        `most`: tokens of a batch at most, for llama.cpp keeps the logits of all its rows.
        """
        self.use_threads(0)
        step = min(self.n_batch, most)
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            self.decode([(slot, chunk)])
            yield from self.rows(0, len(chunk))

    def decode(self, parts: Sequence[tuple[int, Sequence[int]]], wanted: Sequence[int] | None = None) -> None:
        """Decode one batch: for each (slot, tokens) the tokens go after what the slot holds, with logits after each.

        At most n_batch tokens. Row i of rows() belongs to the i-th token of the batch. wanted: for each part, how many
        of its last tokens get logits, see wanted_rows(); None: all of them. Raises as prefill(); every slot then holds
        what it held.
        """
        self._decode(parts, [len(tokens) for _, tokens in parts] if wanted is None else wanted)

    def wait(self) -> None:
        """Let a GPU end its work, which it goes on with after a decode: times are to count all of it."""
        with self._alone() as owned:
            llama_cpp.llama_synchronize(owned.pointer)

    def use_threads(self, count: int) -> None:
        """Decode with `count` threads from here on; 0: with as many as the options say, as prefill() does."""
        if count != self._lent:
            self._lent = count
            one, several = (count, count) if count else self._threads
            with self._alone() as owned:
                llama_cpp.llama_set_n_threads(owned.pointer, one, several)

    def rows(self, first: int, count: int = 1) -> Row:
        """Logits of `count` rows of the last batch, float32 [count, n_vocab]: a view, valid until the next decode.

        `first` counts tokens from the batch's start; -1 is its last one. llama.cpp keeps the rows of tokens that have
        logits in the order of the batch, side by side. Raises DecodeError for rows that the batch has no logits of.
        """
        with self._alone() as owned:
            address = ctypes.cast(llama_cpp.llama_get_logits_ith(owned.pointer, first), ctypes.c_void_p).value
        held = int(self._batch.wanted[first if first >= 0 else self._end - 1 : self._end].sum())
        if address is None or not 1 <= count <= held:
            raise DecodeError(f"{self.model.path}: llama.cpp kept no logits of {count} rows from {first} on")
        floats = (ctypes.c_float * (count * self.model.n_vocab)).from_address(address)
        floats.owner = owned  # type: ignore[attr-defined]  # a view outlives close()
        return np.frombuffer(memoryview(floats).cast("B"), np.float32).reshape(count, -1)

    def wanted_rows(self) -> Row:
        """Logits of all tokens of the last batch that have some, as rows(). Raises DecodeError where none has."""
        wanted = self._batch.wanted[: self._end]
        return self.rows(int(wanted.argmax()) if self._end else 0, int(wanted.sum()))

    def _decode(self, parts: Sequence[tuple[int, Sequence[int]]], wanted: Sequence[int]) -> None:
        with self._alone() as owned:
            self._end = 0
            end = self._fill(parts, wanted)
            forget_reasons()
            status = llama_cpp.llama_decode(owned.pointer, self._batch.struct)
            if status == 0:
                self._end = end
                self.n_decoded += end
                for slot, tokens in parts:
                    self.tokens[slot].extend(tokens)
                return
            for slot, _ in parts:  # whatever part of the batch was done is not wanted
                self.truncate(len(self.tokens[slot]) if self.can_roll_back else 0, slot)
        abort = self._abort.take()
        if abort or status == ABORTED:  # another context that was stopped too may have lowered the flag
            raise abort or Cancelled()
        raise DecodeError(f"{self.model.path}: llama.cpp could not decode {end} tokens "
                          f"(status {status}: {reason('no reason given')})")  # fmt: skip

    def _fill(self, parts: Sequence[tuple[int, Sequence[int]]], wanted: Sequence[int]) -> int:
        """Put tokens into the batch, with logits of the last `wanted` of each part; return how many there are."""
        end = 0
        for (slot, tokens), count in zip(parts, wanted, strict=True):
            self._check_slot(slot)
            held = len(self.tokens[slot])
            if not tokens:
                raise DecodeError(f"{self.model.path}: nothing to decode; give at least one token")
            if end + len(tokens) > self.n_batch:
                raise DecodeError(f"{self.model.path}: a batch of more than {self.n_batch} tokens; raise `n_batch`")
            if held + len(tokens) > self._longest:
                raise ContextError(held + len(tokens), 0, self._longest)
            if min(tokens) < 0 or max(tokens) >= self.model.n_vocab:
                raise DecodeError(f"{self.model.path}: a token id is outside its vocabulary of {self.model.n_vocab}")
            end = self._batch.put(end, slot, tokens, held, count)
        if not end:
            raise DecodeError(f"{self.model.path}: nothing to decode; give at least one token")
        return end

    @contextmanager
    def _alone(self) -> Iterator[Owned]:
        """llama.cpp's context, for this thread alone and not freed meanwhile."""
        if not self._lock.acquire(blocking=False):
            raise DecodeError(f"a context of {self.model.path} is at work in another thread; take turns")
        try:
            owned = self._owned
            if not owned:
                raise DecodeError(f"{self.model.path} is closed; open it again")
            yield owned
        finally:
            self._lock.release()

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self.tokens):  # llama.cpp takes -1 for all of them
            raise DecodeError(f"a context of {len(self.tokens)} slots has no slot {slot}")

    # --- slots ------------------------------------------------------------------------------------------------------

    def shared(self, tokens: Sequence[int], slot: int = 0) -> int:
        """How many tokens from the start a slot shares with `tokens`."""
        return common_length(self.tokens[slot], tokens)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Roll a slot back to its first `length` tokens; one that cannot is emptied (prefill() fills it again)."""
        self._check_slot(slot)
        with self._alone():
            needed = max(0, length - self._window + 1)  # the oldest position that the window still sees from there
            lost = self._window and llama_cpp.llama_memory_seq_pos_min(self._cells, slot) > needed
            if lost or not llama_cpp.llama_memory_seq_rm(self._cells, slot, length, -1):
                llama_cpp.llama_memory_seq_rm(self._cells, slot, -1, -1)
                length = 0
            del self.tokens[slot][length:], self._notes[slot][length + 1 :]

    def note(self, slot: int, position: int, token: int, log_prob: float) -> None:
        """Keep with a slot the log-prob, nats, that its first `position` tokens give to `token` as the next one."""
        notes = self._notes[slot]
        notes += [None] * (position + 1 - len(notes))
        notes[position] = (token, log_prob)

    def noted(self, slot: int, position: int, token: int) -> float | None:
        """What note() kept of `token` after the slot's first `position` tokens; None: nothing, or of another token."""
        found = self._notes[slot][position] if position < len(self._notes[slot]) else None
        return found[1] if found and found[0] == token else None

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Make a slot hold what another holds; cells are shared, nothing is decoded.

        length: only so many tokens from the start, where the context can roll back; None: all.
        """
        self._check_slot(source)
        if source == target:
            return
        with self._alone():
            self.truncate(0, target)
            end = -1 if length is None else length
            llama_cpp.llama_memory_seq_cp(self._cells, source, target, -1, end)
            self.tokens[target] = self.tokens[source][:length]
            self._notes[target] = self._notes[source][: None if length is None else length + 1]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the model's files."""
        return fingerprint(self.model.path)

    def state(self, slot: int) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int, float]]]:
        """What a slot holds, in llama.cpp's own form, and what note() kept: (position, token, log_prob) each."""
        self._check_slot(slot)
        with self._alone() as owned:
            size = llama_cpp.llama_state_seq_get_size(owned.pointer, slot)
            data = np.empty(size, np.uint8)
            written = llama_cpp.llama_state_seq_get_data(owned.pointer, _bytes_of(data), size, slot)
        if written != size:
            raise DecodeError(f"{self.model.path}: llama.cpp gave {written} of the {size} bytes of a slot")
        notes = enumerate(self._notes[slot][: len(self.tokens[slot]) + 1])
        return data, [(position, *note) for position, note in notes if note]

    def set_state(
        self, slot: int, tokens: Sequence[int], data: npt.NDArray[np.uint8], notes: Sequence[tuple[int, int, float]]
    ) -> None:
        """Make a slot hold what state() gave, of `tokens`. Raises DecodeError for what llama.cpp does not take.

        The slot is empty then.
        """
        self.truncate(0, slot)
        with self._alone() as owned:
            data = np.ascontiguousarray(data)
            read = llama_cpp.llama_state_seq_set_data(owned.pointer, _bytes_of(data), len(data), slot)
            last = llama_cpp.llama_memory_seq_pos_max(self._cells, slot)
            if read != len(data) or last != len(tokens) - 1:
                llama_cpp.llama_memory_seq_rm(self._cells, slot, -1, -1)
                raise DecodeError(f"{self.model.path}: llama.cpp does not take the state of a slot")
            self.tokens[slot] = list(tokens)
        for position, token, log_prob in notes:
            if 0 <= position <= len(tokens):
                self.note(slot, position, token, log_prob)

    def clear(self) -> None:
        """Empty all slots."""
        with self._alone():
            llama_cpp.llama_memory_clear(self._cells, True)
            for slot in range(len(self.tokens)):
                self.tokens[slot], self._notes[slot] = [], []

    def cancel(self) -> None:
        """Stop a decode that runs in another thread: it raises Cancelled."""
        self._abort.set()

    def close(self) -> None:
        """Free the KV cache, once a call that is at work in another thread has ended."""
        self._owned = None


def _bytes_of(data: npt.NDArray[np.uint8]) -> Any:
    """A pointer for ctypes, valid as long as the array lives."""
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
