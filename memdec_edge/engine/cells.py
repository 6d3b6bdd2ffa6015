"""Slots and cells that the sessions of an engine share: which session may hold how many tokens, and where.

A cell of a KV cache stores one token. The contexts of base and memories have the same slots; a token of a session takes
one cell in each context that the session uses. Every session reserves the cells of all tokens that it may come to hold,
so no decode ever lacks one; it may reserve more later. Forks store their common prefix once, and it counts once. Knows
nothing of sampling.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from threading import RLock
from typing import Any, TypeVar, cast

from memdec_edge.errors import BusyError
from memdec_edge.llama.context import Context


class Holding:
    """What one session has of the cells.

    slot: its place in every context. family: the number that a session shares with its forks. limit: tokens that it may
    hold. numbers: one for each token; forks have equal numbers for what they store once.
    """

    def __init__(self, slot: int, family: int, limit: int) -> None:
        self.slot, self.family, self.limit = slot, family, limit
        self.numbers: list[int] = []


class Cells:
    """Admission: hands out slots, counts cells, empties what closed sessions left.

    n_ctx: cells of the base's context. contexts: returns all open contexts, the base's first. `lock` guards the
    contexts and everything that describes them; every method that touches either holds it.
    """

    def __init__(self, n_ctx: int, n_seq: int, contexts: Callable[[], list[Context]]) -> None:
        self.n_ctx, self.n_seq = n_ctx, n_seq
        self.lock = RLock()
        self.holdings: list[Holding] = []  # of open sessions
        self._contexts = contexts
        self._idle = list(range(n_seq))  # slots, the longest unused first
        self._numbers, self._families = count(), count()

    def admit(self, limit: int, tokens: Sequence[int] = (), fork_of: Holding | None = None, shared: int = 0) -> Holding:
        """A holding for a session of at most `limit` tokens, in the idle slot that holds most of the start of `tokens`.

        A fork joins the family of `fork_of` and stores `shared` tokens once with it. Raises BusyError where no slot is
        idle or fewer than limit - shared cells are free.
        """
        if not self._idle:
            raise BusyError("slots", 1, 0, self.n_seq)
        self.require(limit - shared)
        base = self._contexts()[0]
        slot = max(self._idle, key=lambda idle: base.shared(tokens, idle))
        self._idle.remove(slot)
        self._make_room(limit - shared)
        family = next(self._families) if fork_of is None else fork_of.family
        self.holdings.append(Holding(slot, family, limit))
        return self.holdings[-1]

    def release(self, holding: Holding) -> None:
        """Take a holding back. What its slot holds stays there until another session needs the cells."""
        self.holdings.remove(holding)
        self._idle.append(holding.slot)
        self._make_room()  # while a fork was open, its cells counted once

    @property
    def free(self) -> int:
        """Cells that nothing reserves."""
        return self.n_ctx - self._reserved()

    def grow(self, holding: Holding, limit: int) -> None:
        """Let a session hold up to `limit` tokens. Raises BusyError where too few cells are free."""
        more = max(limit - holding.limit, 0)
        self.require(more)
        self._make_room(more)
        holding.limit = limit

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """Empty a slot of all that is no beginning of `tokens`, also in contexts that its session does not use."""
        for context in self._contexts():
            context.truncate(context.shared(tokens, slot), slot)

    def share(self, holding: Holding, lender: Holding, n_tokens: int) -> None:
        """Count the first `n_tokens` of a new session as stored once with those of another session."""
        holding.family = lender.family
        holding.numbers[:n_tokens] = lender.numbers[:n_tokens]

    def extend(self, holding: Holding, n_tokens: int) -> None:
        """Count `n_tokens` more tokens of a session as its own."""
        holding.numbers += [next(self._numbers) for _ in range(n_tokens)]

    def disown(self, holding: Holding) -> None:
        """Count all tokens of a session as its own: a memory that is new to it decodes them for it alone.

        Raises BusyError where the session shares more tokens with forks than cells are free.
        """
        shared = self.shared(holding)
        self.require(shared)
        if shared:
            n_tokens, holding.numbers = len(holding.numbers), []
            self.extend(holding, n_tokens)

    def shared(self, holding: Holding, start: int = 0) -> int:
        """How many tokens from `start` on a session stores together with forks."""
        family = [other.numbers for other in self.holdings if other.family == holding.family and other is not holding]
        return len(set(holding.numbers[start:]) & set().union(*family)) if family else 0

    def require(self, wanted: int) -> None:
        """Raise BusyError unless `wanted` more cells can be reserved."""
        if wanted and wanted > self.free:
            raise BusyError("cells", wanted, self.free, self.n_ctx)

    def require_idle(self) -> None:
        """Raise BusyError while a session is open: some work needs the contexts for itself."""
        if self.holdings:
            raise BusyError("slots", self.n_seq, len(self._idle), self.n_seq)

    def _reserved(self) -> int:
        """Cells that the open sessions hold or may come to need."""
        families: dict[int, list[Holding]] = {}
        for holding in self.holdings:
            families.setdefault(holding.family, []).append(holding)
        reserved = 0
        for family in families.values():
            reserved += sum(holding.limit - len(holding.numbers) for holding in family)
            reserved += len(set().union(*(holding.numbers for holding in family)))
        return reserved

    def _make_room(self, wanted: int = 0) -> None:
        """Empty idle slots until all reserved cells and `wanted` more are free."""
        reserved = self._reserved()
        for idle in self._idle:
            if reserved + wanted + sum(self._held(other) for other in self._idle) <= self.n_ctx:
                break
            for context in self._contexts():
                context.truncate(0, idle)

    def _held(self, slot: int) -> int:
        return max(len(context.tokens[slot]) for context in self._contexts())


Method = TypeVar("Method", bound=Callable[..., Any])


def exclusive(method: Method) -> Method:
    """A method that first waits for the `lock` of its object: threads may share an engine, and take turns."""

    @wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast(Method, locked)
