"""Damaged inputs of convert, from a seed: bytes, JSON structure and lengths that lie; and what must hold of each.

`run_case` is one case. The suite runs a few hundred, benchmarks/fuzz_convert.py ten thousand.
"""

import copy
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from safetensors.numpy import load_file

from memdec_edge.convert import convert
from memdec_edge.convert.probe import HARD, ORDINARY
from memdec_edge.convert.tokenizer import built
from memdec_edge.errors import MemdecError
from memdec_edge.gguf import metadata
from memdec_edge.llama.model import Model
from memdec_edge.options import ConvertOptions
from tests.support.pieces import LLAMA, sentencepiece_folder, sentencepiece_model, vocabulary_gguf
from tests.support.tiny import edit_json, tiny_checkpoint, tiny_gguf

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**32, 2**63, 2**70, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "\0", "a\0b", "▁", "<0x00>", "[PAD3]", "\ud800", "a" * 5000, [], {}, [1], [[]], [["a", "b"]], {"a": []},
    {"a": 2**40}, {"type": "Sequence"}, {"type": "BPE"}, {"type": "Unigram"},
)  # fmt: skip
INDEX = "model.safetensors.index.json"
KINDS = (
    "gguf", "config.json", "tokenizer.json", "tokenizer.model", "model.safetensors", INDEX, "tokenizer_config.json",
    "memdec.json",
)  # fmt: skip
NOTED = {
    "general.name": "tiny", "general.tags": ["a", "b"], "memdec_edge.lambda": 0.4, "memdec_edge.train.k": 8,
    "memdec_edge.online.eta": None,
}  # fmt: skip


@dataclass(frozen=True)
class Originals:
    """Undamaged files, tiny ones."""

    checkpoint: Path  # llama, byte-level BPE, with a memdec.json
    sharded: Path  # the same with an index of its one weights file
    sentencepiece: Path  # the same with a tokenizer.model in place of tokenizer.json
    ggufs: tuple[Path, ...]  # byte-level BPE with tensors; SentencePiece BPE and Unigram, vocabularies alone


def originals(folder: Path) -> Originals:
    """Write them into `folder`."""
    size: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "n_tokens": 320}
    checkpoint = tiny_checkpoint(folder / "checkpoint", **size)
    odd = {"model_type": "llama", "transformers_weights": None, "quantization_config": None}
    edit_json(checkpoint / "config.json", **odd)
    (checkpoint / "memdec.json").write_text(json.dumps(NOTED), encoding="utf-8")
    sharded = Path(shutil.copytree(checkpoint, folder / "sharded"))
    shard = (sharded / "model.safetensors").rename(sharded / "shard.safetensors")
    places = dict.fromkeys(load_file(shard), shard.name)
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    other = tiny_checkpoint(folder / "sentencepiece", vocab_extra=200, **size)
    (other / "tokenizer.json").unlink()
    (other / "tokenizer.model").write_bytes(sentencepiece_model("bpe", 400, **LLAMA))
    unigram = sentencepiece_folder(folder / "unigram", "unigram", 180)  # with a table of replacements
    ggufs = (
        tiny_gguf(folder / "memdec-x.gguf", checkpoint, role="memory"),
        vocabulary_gguf(folder / "bpe.gguf", built(other, 520).entries),
        vocabulary_gguf(folder / "unigram.gguf", built(unigram, 180).entries),
    )
    return Originals(checkpoint, sharded, other, ggufs)


def run_case(kind: str, seed: int, whole: Originals, scratch: Path) -> str:
    """Damage one file of `kind` and use it: "accepted", or the name of the typed error. Anything else is raised."""
    random = Random(f"{kind} {seed}")
    if kind == "gguf":
        path = scratch / "memdec-damaged.gguf"
        path.write_bytes(damaged_gguf(random, random.choice(whole.ggufs)))
        return _outcome(lambda: _use(path))
    source = {"tokenizer.model": whole.sentencepiece, INDEX: whole.sharded}.get(kind, whole.checkpoint)
    folder = scratch / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    data = (source / kind).read_bytes()
    if kind == "model.safetensors":
        data = damaged_safetensors(random, data)
    elif kind.endswith(".json") and random.random() < 0.7:
        data = damaged_json(random, json.loads(data))
    else:
        data = damaged_bytes(random, data, len(data))
    (folder / kind).write_bytes(data)
    out = scratch / "out" / "memdec-damaged.gguf"
    shutil.rmtree(out.parent, ignore_errors=True)
    base = whole.ggufs[0] if source == whole.checkpoint and random.random() < 0.3 else None
    options = ConvertOptions(checkpoint=folder, outfile=out, outtype="f16", verify=False, base=base)
    outcome = _outcome(lambda: convert(options))
    if outcome == "accepted":
        _use(out)
    else:
        assert not out.parent.exists() or not list(out.parent.iterdir()), "something was left after a failure"
    return outcome


def _outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except MemdecError as error:
        message = str(error)
        assert message, "an error says something"
        assert "\n" not in message, f"an error is one line: {message!r}"
        return type(error).__name__
    return "accepted"


def _use(path: Path) -> None:
    """What is done with a file before its weights are: read its keys, split text, spell tokens."""
    with suppress(MemdecError):  # a memory's metadata may be wrong in a file that llama.cpp takes
        metadata.read(path)
    with closing(Model(path, vocab_only=True)) as model:
        for text in (*ORDINARY, *HARD):
            for token in model.tokenize(text):
                if 0 <= token < model.n_vocab:
                    model.piece(token, special=True)


def damaged_bytes(random: Random, data: bytes, reach: int) -> bytes:
    """Up to 4 edits in the first `reach` bytes: flipped bits, odd numbers, pieces cut out, doubled or cut off."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(min(reach, max(len(found), 1)))
        edit = random.choice(("flip", "byte", "number", "cut", "double", "end"))
        if edit == "flip" and found:
            found[at % len(found)] ^= 1 << random.randrange(8)
        elif edit == "byte" and found:
            found[at % len(found)] = random.choice((0, 1, 0x22, 0x7F, 0x80, 0xFF, 0x5B, 0x7D))
        elif edit == "number":
            value = random.choice((0, 1, 2**16, 2**31, 2**32, 2**40, 2**63, 2**64 - 1))
            found[at : at + 8] = struct.pack("<Q", value)
        elif edit == "cut":
            del found[at : at + random.choice((1, 4, 8, 100))]
        elif edit == "double":
            found[at:at] = found[at : at + random.choice((1, 8, 200))]
        elif edit == "end" and random.random() < 0.3:
            del found[at:]
    return bytes(found)


def damaged_json(random: Random, body: Any) -> bytes:
    """Up to 3 values anywhere replaced, removed or doubled."""
    body = copy.deepcopy(body)
    for _ in range(random.randint(1, 3)):
        place, key = _spot(random, body)
        if place is None:
            break
        edit = random.random()
        if edit < 0.7:
            place[key] = copy.deepcopy(random.choice(ODD))
        elif edit < 0.9:
            del place[key]
        elif isinstance(place, list):
            place.append(place[key])
        else:
            place[f"{key}2"] = place[key]
    return json.dumps(body).encode()


def _spot(random: Random, body: Any) -> tuple[Any, Any]:
    """A container and a key in it; each level is left with even odds, so that all depths are met."""
    place, key = None, None
    here = body
    while isinstance(here, dict | list) and here and (place is None or random.random() < 0.6):
        place, key = here, random.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here = place[key]
    return place, key


def damaged_safetensors(random: Random, data: bytes) -> bytes:
    """The header's length, its JSON or any of its bytes; the numbers behind it stay, or are cut off."""
    (length,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    edit = random.random()
    if edit < 0.2:
        wrong = random.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + header + rest
    header = damaged_json(random, json.loads(header)) if edit < 0.7 else damaged_bytes(random, header, len(header))
    if random.random() < 0.1:
        rest = rest[: random.randrange(len(rest))]
    return struct.pack("<Q", len(header)) + header + rest


def damaged_gguf(random: Random, path: Path) -> bytes:
    """Bytes of the header: keys, values and the tensor table."""
    data = path.read_bytes()
    last = data.rfind(b"output_norm.weight")
    end = last + 64 if last > 0 else len(data)
    return damaged_bytes(random, data, random.choice((64, 2000, end)))
