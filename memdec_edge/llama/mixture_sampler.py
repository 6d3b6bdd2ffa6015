"""The mixture for a llama.cpp sampler chain of the caller's: a sampler in C that stands first in it.

    mixer = MixtureSampler(n_vocab, Mixture((0.6,), (1.0,)))
    llama_cpp.llama_sampler_chain_add(chain, mixer.sampler)    # the chain owns it from now on
    ...                                                       # decode base and memory
    mixer.set_rows([memory_row])
    token = llama_cpp.llama_sampler_sample(chain, base_context, -1)
    mixer.check()

The chain's other samplers then work on the mixed row. With a rule the weights learn from each token that the chain
accepts, as llama_sampler_sample does. Knows nothing of models; the engine does not need it.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import llama_cpp

from memdec_edge import _native
from memdec_edge.errors import LibraryError, NumericsError, OptionError
from memdec_edge.mixture.rows import Row
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import check_range

_FAILURES = {  # md_status of native/mix.h
    1: "a row held NaN or +inf, no finite logit, or a token id outside the vocabulary",
    2: "no rows of memories were set; call set_rows() after each decode and keep the MixtureSampler",
}


class MixtureSampler:
    """A llama_sampler that turns the base's logits into the mixture's, see mixing.mix.

    n_vocab: length of the base's row. rule: how the weights learn from accepted tokens; None: they stay as they are.
    The candidates may come in any order; ids that are absent count as impossible for the base. Keep the object as long
    as the chain is used: it holds the arrays that the chain reads. Like every sampler of llama.cpp it serves one thread
    at a time.

    Raises OptionError for n_vocab and for a mixture with indexes, ValueError for a rule of another number of memories,
    and LibraryError where llama-cpp-python's structs are not those that the C code was built for.
    """

    def __init__(self, n_vocab: int, mixture: Mixture, rule: SoftBayes | None = None) -> None:
        check_range("n_vocab", n_vocab, 1, 2**31 - 1)
        if mixture.n_indexes:
            raise OptionError("indexes", mixture.n_indexes, "a llama.cpp chain mixes memories alone; leave them out")
        interface, init = ctypes.pointer(_interface()), _address(llama_cpp.llama_sampler_init)
        numbers = None if rule is None else rule.numbers
        self._state = _native.sampler_new(n_vocab, mixture.weights, mixture.temperatures, numbers, init)
        self.sampler: Any = llama_cpp.llama_sampler_init(interface, _native.sampler_context(self._state))
        self._rows: list[Row | None] = [None] * len(mixture.weights)

    @classmethod
    def of(cls, sampler: Any) -> Self:
        """The handle of a MixtureSampler's clone, which starts with copies of the rows of its original.

        sampler: pointer to llama_sampler, as `llama_sampler_chain_get(clone_of_chain, 0)` gives it. A handle of the
        original is another one: rows set there do not reach the clone. Raises TypeError for any other sampler.
        """
        if ctypes.addressof(sampler.contents.iface.contents) != ctypes.addressof(_interface()):
            raise TypeError(f"{llama_cpp.llama_sampler_name(sampler)!r} is not a MixtureSampler")
        self = cls.__new__(cls)
        self._state = _native.sampler_hold(sampler.contents.ctx)
        self.sampler = sampler
        self._rows = [None] * len(self.mixture.weights)
        return self

    @property
    def mixture(self) -> Mixture:
        """Weights and temperatures of the next row. A reset of the chain brings a rule's initial weights back."""
        return Mixture(*_native.sampler_mixture(self._state))

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Give the memories' logits of this position, float32 [any length], C-contiguous, in the order of weights.

        The chain reads them when it is applied and copies nothing: an array that llama.cpp or the caller overwrites in
        place need not be given again. With a rule the chain reads them once more when it accepts the token, so leave
        them as they are until then. Raises TypeError and ValueError for other arrays.
        """
        if len(rows) != len(self._rows):
            raise ValueError(f"{len(rows)} rows for a sampler of {len(self._rows)} memories")
        for index, row in enumerate(rows):
            _native.sampler_set_row(self._state, index, row)
            self._rows[index] = row

    def check(self) -> None:
        """Raise NumericsError if mixing failed since the last check; the chain then worked on the base's own logits."""
        status = _native.sampler_take_status(self._state)
        if status:
            raise NumericsError(f"the mixture was not computed: {_FAILURES[status]}")


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


@cache
def _interface() -> Any:
    """llama-cpp-python's llama_sampler_i with our functions. Cached for good: samplers point to it."""
    check_layout(llama_cpp)
    members = dict(llama_cpp.llama_sampler_i._fields_)
    interface = llama_cpp.llama_sampler_i()  # what is not ours stays null
    for name, address in _native.SAMPLER_FUNCTIONS.items():
        setattr(interface, name, members[name](address))
    return interface


def check_layout(declarations: Any) -> None:
    """Raise LibraryError unless the ctypes structs of `declarations` are those that the C code was compiled with."""
    for name, expected in _native.layout().items():
        struct = getattr(declarations, name)
        found = {"sizeof": ctypes.sizeof(struct)}
        found |= {member: getattr(struct, member).offset for member, *_ in struct._fields_ if member in expected}
        if found != expected:
            raise LibraryError(llama_cpp.__version__, f"struct {name} is {found}, not {expected}")
