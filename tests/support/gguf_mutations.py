"""Hostile GGUFs from a seed: keys, values and tensors changed one by one, or a whole model of odd sizes.

`run_case` is one case. The suite runs a few hundred, benchmarks/fuzz_gguf.py ten thousand.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from gguf.constants import Keys

from memdec_edge.convert.tokenizer import built
from memdec_edge.errors import MemdecError
from memdec_edge.gguf.header import SCALARS, STRING
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions
from tests.support.pieces import LLAMA, sentencepiece_folder, vocabulary_gguf
from tests.support.raw_gguf import (
    ARCHITECTURES,
    BOOL,
    FLOAT32,
    FLOAT64,
    SIZES,
    UINT32,
    RawEntry,
    RawGguf,
    RawTensor,
    entry,
    n_bytes,
    read,
    tiny,
)
from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.tiny_recurrent import tiny_hybrid_gguf, tiny_recurrent_gguf, tiny_sliding_gguf

KINDS = ("key", "tensor", "sizes")
OTHERS = {"mamba": tiny_recurrent_gguf, "lfm2": tiny_hybrid_gguf, "olmo2": tiny_sliding_gguf}  # that no rule covers
REFUSALS = {
    "llama.cpp would end the process": "refused after a trial",
    "llama.cpp cannot load it": "refused by llama.cpp",
    "no context of": "refused by llama.cpp",
}

INTEGERS = (
    0, 1, 2, 3, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33, 62, 63, 64, 96, 127, 128, 256, 511, 512, 513, 1024, 2**15,
    2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**31 + 16, 2**32 - 16, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1,
    -1, -2, -16, -(2**31), -(2**63),
)  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-5, -1e-5, 1e-38, 1e-45, 1e5, 1e38, -1e38, math.nan, math.inf, -math.inf)
TEXTS = (
    "", "x", "none", "linear", "yarn", "longrope", "su", "dynamic", "gpt2", "llama", "bert", "t5", "rwkv", "plamo2",
    "gemma4", "hybriddna", "whitespace", "test", "no_vocab", "default", "llama-bpe", "qwen2", "kimi-k2", "a\0b",
    "a" * 3000, "é", "silu",
)  # fmt: skip
TOKENS = (b"", b"a", b" ", b"\0", b"\xff\xfe", b"a b", b"<0x0A>", b"<|end|>", b"\xe2\x96\x81" * 900)
LENGTHS = (0, 1, 2, 2, 2, 3, 4, 399, 400, 401, 512, 513)  # of arrays
OFFSETS = (0, 1, 32, 64, 2**31, 2**40, 2**63, 2**64 - 32, 2**64 - 1)
CHOICES: dict[str, tuple[int, ...]] = {  # of the sizes of raw_gguf.SIZES_OF
    "E": (1, 2, 16, 32, 48, 63, 64, 65, 96, 128), "F": (1, 2, 32, 33, 64, 96, 256), "heads": (1, 2, 3, 4, 5, 6, 8),
    "kv": (1, 2, 3, 4, 5, 8), "head": (1, 2, 3, 8, 15, 16, 17, 32, 64, 80), "value": (1, 2, 8, 16, 17, 32),
    "layers": (1, 2, 3, 6, 7), "C": (1, 2, 32, 128, 512),
}  # fmt: skip
STRANGERS = (  # tensors that llama.cpp looks for in some architecture
    b"rope_freqs.weight", b"output.bias", b"output.weight", b"cls.weight", b"cls.output.weight",
    b"position_embd.weight", b"dense_2.weight", b"dense_3.weight", b"rope_factors_long.weight",
    b"rope_factors_short.weight", b"blk.0.attn_qkv.weight", b"blk.7.attn_q.weight", b"x", b"a" * 70,
)  # fmt: skip


def _names(keys: type) -> set[str]:
    """Every key that gguf's authors know, `{arch}` in the architecture's place."""
    own = vars(keys).values()
    return {value for value in own if isinstance(value, str) and "." in value}.union(
        *(_names(value) for value in own if isinstance(value, type))
    )


CATALOGUE = sorted(_names(Keys) - {Keys.__module__})


@dataclass(frozen=True)
class Originals:
    """Sound files, and the one whose tokenizer most of them have."""

    tokenizer: Path
    models: list[tuple[str, RawGguf]]  # by architecture; the covered ones stand in it twice as often


def originals(folder: Path) -> Originals:
    """Write the tokenizers' files into `folder`, and build the models."""
    checkpoint = tiny_checkpoint(folder / "checkpoint", hidden=16, heads=2, kv_heads=1)
    tokenizer = tiny_gguf(folder / "tokenizer.gguf", checkpoint)
    models = [(name, tiny(name, tokenizer)) for name in ARCHITECTURES]
    for kind, n_tokens, options in (("bpe", 450, LLAMA), ("unigram", 180, {})):
        source = sentencepiece_folder(folder / kind, kind, n_tokens, **options)
        other = vocabulary_gguf(folder / f"{kind}.gguf", built(source, n_tokens).entries)
        models.append(("llama", tiny("llama", other)))
    models *= 2
    models += [(name, read(make(folder / f"{name}.gguf", tokenizer))) for name, make in OTHERS.items()]
    return Originals(tokenizer, models)


def run_case(kind: str, seed: int, whole: Originals, scratch: Path) -> str:
    """Make the mutant and use it: "accepted", or which refusal it met. Anything but a typed error is raised."""
    random = Random(f"{kind} {seed}")
    path = mutant(kind, random, whole).write(scratch / "mutant.gguf")
    try:
        use(path, random)
    except MemdecError as error:
        message = str(error)
        assert message, "an error says something"
        assert "\n" not in message, f"an error is one line: {message!r}"
        return next((outcome for words, outcome in REFUSALS.items() if words in message), "refused by our rules")
    return "accepted"


def use(path: Path, random: Random) -> None:
    """Open it, split a text, decode rows of one slot and of two, with settings that differ by the seed."""
    choices: tuple[Literal["auto", "off", "on"], ...] = ("auto", "off", "on")
    flash, cache, n_seq = random.choice(choices), random.choice(("f16", "f32", "q8_0")), random.choice((1, 1, 2))
    values = "f16" if flash == "off" else cache
    options = LoadOptions(threads=1, flash_attn=flash, cache_type_k=cache, cache_type_v=values)
    with closing(Model(path)) as model:
        tokens = [token for token in model.tokenize("The heart is 12 ﬁ\n 🙂") if 0 <= token < model.n_vocab][:12] or [0]
        with closing(Context(model, options, min(64, model.n_ctx_train * n_seq), n_seq=n_seq)) as context:
            room = min(len(tokens), model.n_ctx_train)
            context.feed(tokens[:room])
            list(context.feed_rows(tokens[: min(3, model.n_ctx_train - room)]))
            if n_seq == 2:
                context.copy(0, 1)
                if len(context.tokens[1]) < model.n_ctx_train:
                    context.decode([(1, tokens[:1])])


def mutant(kind: str, random: Random, whole: Originals) -> RawGguf:
    """One hostile file."""
    if kind == "sizes":
        return _odd_sizes(random, whole)
    architecture, source = random.choice(whole.models)
    file = RawGguf(list(source.entries), list(source.tensors))
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        if kind == "key":
            _change_key(random, file, architecture)
        else:
            random.choice(TENSOR_EDITS)(random, file)
    return file


def _odd_sizes(random: Random, whole: Originals) -> RawGguf:
    """Keys and shapes that agree with each other, and with nothing else; sometimes one more key is changed."""
    architecture = random.choice(ARCHITECTURES)
    sizes = {name: random.choice(choices) for name, choices in CHOICES.items() if random.random() < 0.35}
    if random.random() < 0.5 and "head" in sizes:  # else most are refused for the same reason
        sizes["value"] = sizes["head"]
    file = tiny(architecture, whole.tokenizer, random.randrange(100), **sizes)
    if random.random() < 0.3:
        _change_key(random, file, architecture)
    return file


# --- keys ---------------------------------------------------------------------------------------------------------


def _change_key(random: Random, file: RawGguf, architecture: str) -> None:
    own = [at for at, old in enumerate(file.entries) if not old.key.startswith(b"tokenizer.")]
    at = random.choice(own if own and random.random() < 0.75 else range(len(file.entries)))
    old = file.entries[at]
    edit = random.choice(("value", "value", "value", "type", "array", "array", "drop", "double", "swap", "add", "add"))
    if edit == "value":
        changed = _edge(random, old.key, old.kind) if old.element is None else _edge_array(random, old)
        file.entries[at] = changed
    elif edit == "type":
        file.entries[at] = _edge(random, old.key, random.choice((*SCALARS, STRING)))
    elif edit == "array":
        file.entries[at] = _array(random, old.key)
    elif edit == "drop":
        del file.entries[at]
    elif edit == "double":
        file.entries.append(old)
    elif edit == "swap":
        other = random.randrange(len(file.entries))
        keys = old.key, file.entries[other].key
        file.entries[at], file.entries[other] = replace(old, key=keys[1]), replace(file.entries[other], key=keys[0])
    else:
        key = random.choice(CATALOGUE).replace("{arch}", architecture).encode()
        file.entries = [old for old in file.entries if old.key != key]
        kind = random.choice((UINT32, UINT32, FLOAT32, BOOL, STRING, None))
        file.entries.append(_array(random, key) if kind is None else _edge(random, key, kind))


def _edge(random: Random, key: bytes, kind: int) -> RawEntry:
    """A key with an edge case of a type for its value."""
    return entry(key.decode(), _value(random, kind), kind)


def _value(random: Random, kind: int) -> Any:
    if kind == STRING:
        return random.choice(TEXTS)
    if kind in (FLOAT32, FLOAT64):
        return random.choice(FLOATS)
    if kind == BOOL:
        return random.random() < 0.5
    bits, signed = SCALARS[kind].size * 8, SCALARS[kind].format[-1].islower()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return random.choice([value for value in INTEGERS if low <= value < high])


def _array(random: Random, key: bytes) -> RawEntry:
    kind = random.choice((UINT32, UINT32, BOOL, FLOAT32, STRING, *SCALARS))
    return entry(key.decode(), [_value(random, kind) for _ in range(random.choice(LENGTHS))], kind)


def _edge_array(random: Random, old: RawEntry) -> RawEntry:
    """An array with other elements here and there, or fewer, or none."""
    kind, items = old.element, old.items()
    assert kind is not None
    for _ in range(random.choice((1, 1, 5)) if items else 0):
        token = random.choice((*TOKENS, random.choice(items)))
        items[random.randrange(len(items))] = token if kind == STRING else SCALARS[kind].pack(_value(random, kind))
    if random.random() < 0.3:
        items = items[: random.choice((0, random.randrange(len(items) + 1)))]
    return old.with_items(items)


# --- tensors ------------------------------------------------------------------------------------------------------


def _reshape(random: Random, file: RawGguf) -> None:
    at, old = _one(random, file)
    shape = list(old.shape)
    place = random.randrange(len(shape)) if shape else 0
    edit = random.choice(("edge", "one", "swap", "append", "drop", "double", "zero"))
    if edit == "append" or not shape:
        shape.append(random.choice((0, 1, 2, 2**32)))
    elif edit == "swap":
        shape.reverse()
    elif edit == "drop":
        del shape[place]
    else:
        edge, near = (
            random.choice([value for value in INTEGERS if value >= 0]),
            abs(shape[place] + random.choice((-1, 1))),
        )
        shape[place] = {"edge": edge, "one": near, "double": 2 * shape[place], "zero": 0}[edit]
    data = old.data
    if random.random() < 0.7 and n_bytes(tuple(shape), old.kind) < 10**7:
        data = _bytes(random, n_bytes(tuple(shape), old.kind))
    file.tensors[at] = replace(old, shape=tuple(shape), data=data)


def _retype(random: Random, file: RawGguf) -> None:
    """Another type and as many bytes as it takes, which offsets and sizes do not give away. Now and then of several."""
    at, old = _one(random, file)
    kind = random.choice(
        [kind for kind, (elements, _) in SIZES.items() if not old.shape or old.shape[0] % elements == 0]
    )
    alike = random.random() < 0.15
    for place, tensor in enumerate(file.tensors):
        if place == at or (alike and len(tensor.shape) == len(old.shape)):
            file.tensors[place] = replace(tensor, kind=kind, data=_bytes(random, n_bytes(tensor.shape, kind)))


def _mislabel(random: Random, file: RawGguf) -> None:
    """Another type's number, over the same bytes."""
    at, old = _one(random, file)
    file.tensors[at] = replace(old, kind=random.choice((*range(48), 2**31 - 1, 2**31, 2**32 - 1)))


def _move(random: Random, file: RawGguf) -> None:
    at, old = _one(random, file)
    file.tensors[at] = replace(old, offset=random.choice(OFFSETS))


def _swap(random: Random, file: RawGguf) -> None:
    (at, old), (other, new) = _one(random, file), _one(random, file)
    file.tensors[at], file.tensors[other] = replace(old, name=new.name), replace(new, name=old.name)


def _rename(random: Random, file: RawGguf) -> None:
    at, old = _one(random, file)
    file.tensors[at] = replace(old, name=random.choice(_cousins(file)))


def _drop(random: Random, file: RawGguf) -> None:
    if len(file.tensors) > 1:
        del file.tensors[_one(random, file)[0]]


def _double(random: Random, file: RawGguf) -> None:
    file.tensors.append(_one(random, file)[1])


def _add(random: Random, file: RawGguf) -> None:
    shape = random.choice((_one(random, file)[1].shape, (64,), (1,), (64, 400), (8,)))
    file.tensors.append(RawTensor(random.choice(_cousins(file)), shape, 0, _bytes(random, n_bytes(shape, 0))))


def _noise(random: Random, file: RawGguf) -> None:
    at, old = _one(random, file)
    file.tensors[at] = replace(old, data=_bytes(random, len(old.data)))


TENSOR_EDITS: tuple[Callable[[Random, RawGguf], None], ...] = (
    _reshape, _reshape, _retype, _retype, _retype, _mislabel, _move, _swap, _rename, _drop, _double, _add, _add, _noise,
)  # fmt: skip


def _one(random: Random, file: RawGguf) -> tuple[int, RawTensor]:
    at = random.randrange(len(file.tensors))
    return at, file.tensors[at]


def _cousins(file: RawGguf) -> list[bytes]:
    """Names that llama.cpp takes beside those of a file: biases, scales, other norms."""
    names = {tensor.name for tensor in file.tensors}
    stems = {name.rpartition(b".")[0] for name in names}
    beside = {stem + suffix for stem in stems for suffix in (b".bias", b".weight", b".scale", b".input_scale")}
    return sorted((beside | set(STRANGERS)) - names)


def _bytes(random: Random, size: int) -> bytes:
    return bytes(size) if random.random() < 0.3 else random.randbytes(size)
