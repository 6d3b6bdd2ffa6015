"""What a memory says about itself: the `memdec_edge.*` keys of its GGUF, read, checked and patched.

The names stand here and nowhere else. Lambda, temperature, gate and perplexities are known only after conversion. Their
values are f32 placeholders, NaN for "not set", so that patch() changes them in place and rewrites no file. The gate is
eight single keys and not one array, since llama.cpp gives its callers no arrays. Knows nothing of models, of mixing,
nor of how the values are found.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.files import shown_name
from memdec_edge.gguf.header import FLOAT32, Header, Scalar, TensorInfo

PREFIX = "memdec_edge."
SCHEMA = 2  # 1 had no ONLINE_*
SCHEMA_VERSION = "memdec_edge.schema_version"
ROLE = "memdec_edge.role"
ROLES = ("memory", "model", "index")
DOMAIN = "memdec_edge.domain"
LAMBDA = "memdec_edge.lambda"
TEMPERATURE = "memdec_edge.temperature"
TOKENIZER_SHA256 = "memdec_edge.tokenizer.sha256"
TOKENIZER_N_TOKENS = "memdec_edge.tokenizer.n_tokens"
TRAINED_LAMBDA = "memdec_edge.train.lambda"  # what training chose; LAMBDA may have been changed since
TRAIN = "memdec_edge.train."  # beta, k, knn_temperature, key, target, teacher, epochs, tokens, chat_share; origin.py's
EVAL_DATASET = "memdec_edge.eval.dataset"
PPL_BASE = "memdec_edge.eval.ppl_base"
PPL_MEMORY = "memdec_edge.eval.ppl_memory"
PPL_MIXTURE = "memdec_edge.eval.ppl_fused"  # its older name stays, since files have it
HUB = "huggingface"  # in keys of where a model comes from
CHECKPOINT_METADATA = "memdec.json"  # in a checkpoint folder: the keys that training leaves to convert, written last
ONLINE_LAMBDA = "memdec_edge.online.lambda"
ONLINE_ETA = "memdec_edge.online.eta"
ONLINE_SHARE = "memdec_edge.online.share"
GATE_SIZE = 8
GATE = tuple(f"memdec_edge.gate.weight_{i}" for i in range(GATE_SIZE))

TEMPERATURES = (0.01, 100.0)  # llama.cpp prints metadata with six decimals; smaller numbers would lose digits
PERPLEXITIES = (PPL_BASE, PPL_MEMORY, PPL_MIXTURE)
ONLINE = (ONLINE_LAMBDA, ONLINE_ETA, ONLINE_SHARE)
RANGES = {  # of numbers; of the others what float32 holds
    LAMBDA: (0.0, 1.0),
    TEMPERATURE: TEMPERATURES,
    **dict.fromkeys(PERPLEXITIES, (1.0, 3e38)),
    **dict.fromkeys(ONLINE, (0.0, 1.0)),
}
PLACEHOLDERS: dict[str, float] = {
    LAMBDA: math.nan,
    TEMPERATURE: 1.0,
    **dict.fromkeys(GATE, math.nan),
    **dict.fromkeys(PERPLEXITIES, math.nan),
    **dict.fromkeys(ONLINE, math.nan),
}  # convert writes these side by side in this order, and patch() may change them
SINGLE = (SCHEMA_VERSION, ROLE, DOMAIN, TOKENIZER_SHA256, TOKENIZER_N_TOKENS, EVAL_DATASET, *PLACEHOLDERS)


@dataclass(frozen=True)
class MemoryMetadata:
    """The `memdec_edge.*` keys of a GGUF. A GGUF without them is a model with schema version 0."""

    schema_version: int = 0
    role: str = "model"  # of ROLES
    domain: str = ""
    weight: float | None = None  # recommended lambda in [0, 1]; None: the file recommends none
    temperature: float = 1.0  # divides the memory's logits before mixing; in TEMPERATURES
    first_weight: float | None = None  # with which a weight that learns begins; None: `weight`
    eta: float | None = None  # how fast it learns, and how much of it returns to the first; None: the defaults
    share: float | None = None
    tokenizer_sha256: str = ""
    tokenizer_n_tokens: int | None = None
    train: Mapping[str, str] | None = None  # how it was trained, by the key's last part
    eval_dataset: str = ""
    ppl_base: float | None = None
    ppl_memory: float | None = None
    ppl_mixture: float | None = None
    gate: tuple[float, ...] | None = None  # GATE_SIZE weights; None: not fitted

    @classmethod
    def from_gguf(cls, path: Path | str, meta: Mapping[str, object]) -> "MemoryMetadata":
        """The metadata among all keys of a GGUF; `meta` has the values as read() gives them, or as text.

        Raises ModelFileError, which names `path`, key and value, for a value that is no number or is outside its range.
        A later schema is refused too.
        """
        version = _whole(meta, SCHEMA_VERSION, path) or 0
        if version > SCHEMA:
            raise ModelFileError(
                path, f"{SCHEMA_VERSION} is {version}, this version knows {SCHEMA}; update memdec-edge"
            )
        role = str(meta.get(ROLE, "model"))
        if role not in ROLES:
            raise ModelFileError(path, f"{ROLE} is {role!r:.80}; it must be one of {', '.join(ROLES)}")
        weights = tuple(_float(meta, key, path) for key in GATE)
        if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
            raise ModelFileError(path, f"only some of {GATE[0]} ... {GATE[-1]} are set; fit the gate again")
        gate = tuple(weight for weight in weights if weight is not None)
        return cls(
            schema_version=version,
            role=role,
            domain=str(meta.get(DOMAIN, "")),
            weight=_float(meta, LAMBDA, path),
            temperature=_float(meta, TEMPERATURE, path) or 1.0,
            first_weight=_float(meta, ONLINE_LAMBDA, path),
            eta=_float(meta, ONLINE_ETA, path),
            share=_float(meta, ONLINE_SHARE, path),
            tokenizer_sha256=str(meta.get(TOKENIZER_SHA256, "")),
            tokenizer_n_tokens=_whole(meta, TOKENIZER_N_TOKENS, path),
            train={key.removeprefix(TRAIN): str(value) for key, value in meta.items() if key.startswith(TRAIN)} or None,
            eval_dataset=str(meta.get(EVAL_DATASET, "")),
            ppl_base=_float(meta, PPL_BASE, path),
            ppl_memory=_float(meta, PPL_MEMORY, path),
            ppl_mixture=_float(meta, PPL_MIXTURE, path),
            gate=gate or None,
        )

    @property
    def origin(self) -> str:
        """Where the recommended lambda comes from."""
        train = self.train or {}
        trained = train.get(TRAINED_LAMBDA.removeprefix(TRAIN), "")
        if self.weight is None:
            return "the file recommends none"
        with suppress(ValueError):
            if math.isclose(float(trained), self.weight, abs_tol=1e-6):
                return f"training found it best on validation text, mixed with {train.get('teacher', 'its teacher')}"
        return "set after training"


def is_memory(meta: Mapping[str, object]) -> bool:
    """Whether a GGUF with these keys calls itself a memory."""
    return meta.get(ROLE) == "memory"


def is_index(meta: Mapping[str, object]) -> bool:
    """Whether a GGUF with these keys calls itself a document index (index_file.py)."""
    return meta.get(ROLE) == "index"


def read(path: Path | str) -> tuple[dict[str, Scalar], list[TensorInfo]]:
    """The single values (numbers, booleans, strings) and the tensors of a GGUF; arrays are left out.

    Raises MissingFileError and ModelFileError. Takes 15-60 ms, whatever the file's size.
    """
    with Header(path) as header:
        return single_values(header), header.tensors


def single_values(header: Header) -> dict[str, Scalar]:
    """Every single value of a GGUF. Raises ModelFileError for an array under a key of SINGLE, which would not count."""
    for key in SINGLE:
        if (entry := header.entries.get(key)) and entry.count is not None:
            raise ModelFileError(header.path, f"{key} is an array, not a single value; make the file again")
    return header.scalars()


def patch(path: Path | str, values: Mapping[str, float]) -> None:
    """Set keys of PLACEHOLDERS in a memory GGUF, in place; NaN unsets one.

    One write spans the first value to the last, then fsync: the file keeps its length, and a crash leaves it loadable.
    Before anything is written, raises MissingFileError, and ModelFileError for a key that is unknown or not in the
    file, or for a value outside its range. A link is refused too: other programs may share the file behind it, as in
    the cache of the Hugging Face Hub. Raises ModelFileError where the file cannot be written.
    """
    path = Path(path)
    checked = {key: _checked(key, value, path) for key, value in values.items()}
    if not checked:
        return
    with Header(path) as header:
        starts = {key: _placeholder(header, key) for key in checked}
        first, last = min(starts.values()), max(starts.values()) + 4
        span = bytearray(header.raw(first, last))
    if path.is_symlink() or path.stat().st_nlink > 1:
        what = f"is a link to {path.resolve()}" if path.is_symlink() else "has other names (hard links)"
        raise ModelFileError(path, f"{what}, so others may share it; copy the file and change the copy")
    for key, value in checked.items():
        struct.pack_into("<f", span, starts[key] - first, value)
    try:
        with path.open("rb+", buffering=0) as file:
            file.seek(first)
            file.write(span)
            os.fsync(file.fileno())
    except OSError as error:
        raise ModelFileError(path, f"cannot be written ({error.strerror}); make the file writable") from error


def model_name(folder: Path | str) -> dict[str, str]:
    """What a model folder's path says of the model, as keys of general.*: its name, perhaps its organization."""
    found = _in_hub_cache(folder)
    if found is None:
        return {"general.name": shown_name(Path(folder).resolve())}
    organization, _, name = found[0].rpartition("/")
    return {"general.name": name} | ({"general.organization": organization} if organization else {})


def hub_source(path: Path | str, prefix: str) -> dict[str, str]:
    """Which repository and commit of the Hugging Face Hub a file or folder of its cache is of, as keys under `prefix`.

    GGUF has keys for addresses of web sites, and none for a commit. {} for what lies elsewhere.
    """
    found = _in_hub_cache(path)
    return {f"{prefix}.{HUB}.repository": found[0], f"{prefix}.{HUB}.revision": found[1]} if found else {}


def base_model(path: Path | str) -> dict[str, str | int]:
    """Which base a file is for, in GGUF's own keys: what a base's GGUF or folder says of itself, and where it is from.

    {} where nothing is known. Raises as read() does.
    """
    prefix, found = "general.base_model.0", dict[str, str | int]()
    values = model_name(path) if Path(path).is_dir() else read(path)[0]
    for name in ("name", "organization", "repo_url"):
        if f"general.{name}" in values:
            found[f"{prefix}.{name}"] = str(values[f"general.{name}"])
    found |= hub_source(path, prefix)
    return {"general.base_model.count": 1, **found} if found else {}


def _in_hub_cache(path: Path | str) -> tuple[str, str] | None:
    """Repository and commit: the cache keeps a model in models--ORGANIZATION--NAME/snapshots/COMMIT, files as links."""
    path = Path(path)
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    for folder in (path, *path.parents):
        kind, *names = folder.parent.parent.name.split("--")
        if folder.parent.name == "snapshots" and kind == "models" and names:
            return "/".join([names[0], "--".join(names[1:])] if names[1:] else names), folder.name
    return None


def tokenizer_digest(tokens: Iterable[bytes]) -> tuple[str, int]:
    """SHA-256 of a vocabulary as 64 hexadecimal digits, and its number of tokens without padding at the end.

    Hashed are, for each id in order, the token's length (u32, little-endian) and its bytes. Padding is left out: the
    tokens `[PAD<id>]` that converters write for embedding rows without a token.
    """
    digest, n_tokens = hashlib.sha256(), 0
    for token_id, token in enumerate(tokens):
        if token != b"[PAD%d]" % token_id:
            digest.update(struct.pack("<I", len(token)) + token)
            n_tokens = token_id + 1
    return digest.hexdigest(), n_tokens


def _placeholder(header: Header, key: str) -> int:
    entry = header.entries.get(key)
    if entry is None or entry.kind != FLOAT32 or entry.count is not None:
        raise ModelFileError(header.path, f"it has no place for {key}; make it with memdec-edge convert")
    return entry.start


def _float(meta: Mapping[str, object], key: str, path: Path | str) -> float | None:
    """The number under `key`; None where there is none or it is NaN. Raises ModelFileError."""
    if key not in meta:
        return None
    try:
        value = float(str(meta[key]))
    except ValueError:
        raise ModelFileError(path, f"{key} is {meta[key]!r:.80}, not a number; make the file again") from None
    return None if math.isnan(_checked(key, value, path)) else value


def _whole(meta: Mapping[str, object], key: str, path: Path | str) -> int | None:
    """The whole number under `key`, None where there is none. Raises ModelFileError."""
    text = str(meta.get(key, "0"))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelFileError(path, f"{key} is {text!r:.80}, not a whole number; make the file again")
    return int(text) if key in meta else None


def _checked(key: str, value: float, path: Path | str) -> float:
    """`value` if it may stand under `key`. Raises ModelFileError. NaN, not set, may stand under all but TEMPERATURE."""
    if key not in PLACEHOLDERS:
        raise ModelFileError(path, f"{key} cannot be changed in a finished file; only {', '.join(PLACEHOLDERS)} can")
    low, high = RANGES.get(key, (-3e38, 3e38))
    if not low <= value <= high and not (math.isnan(value) and key != TEMPERATURE):
        raise ModelFileError(path, f"{key} is {value}; it must be from {low:g} to {high:g}")
    return value
