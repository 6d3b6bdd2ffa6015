"""The finished memory on disk: an ordinary HF folder, and what becomes GGUF metadata.

    model.safetensors config.json tokenizer files    what transformers reads
    memdec.json                                      {GGUF key: value} for memdec-edge convert

Knows nothing of how the weights came about.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from memdec_edge.errors import OutputError
from memdec_edge.files import sha256, shown_name, write_text
from memdec_edge.gguf import metadata
from memdec_edge.gguf.origin import MAX_TEXTS, TEXTS
from memdec_edge.options import TrainOptions

from .artifacts import Stage
from .models import quiet
from .report import NOTICE

SCRATCH = ".memdec-unfinished"


def write_checkpoint(stage: Stage, model: Any, tokenizer: Any) -> None:
    """Write `model` and `tokenizer` into the stage's folder, each file whole; record them. Raises OutputError."""
    with _saved(model, tokenizer, stage.folder / SCRATCH, stage.folder) as files:
        stage.claim(*(file.name for file in files))
        stage.record(files={file.name: sha256(file) for file in files})  # first: what the stage made, it can remove
        for file in files:
            file.replace(stage.folder / file.name)


def write_copy(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write `model` and `tokenizer` as a new folder, whole or not at all. Raises OutputError."""
    scratch = folder.with_name(f".{folder.name}{SCRATCH}")
    with _saved(model, tokenizer, scratch, folder):
        scratch.replace(folder)


@contextmanager
def _saved(model: Any, tokenizer: Any, scratch: Path, target: Path) -> Iterator[list[Path]]:
    """The files of a Hugging Face folder, safe on disk in `scratch`, which is removed in the end."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        mode = scratch.stat().st_mode & 0o666
        with quiet():
            model.save_pretrained(scratch, max_shard_size="1TB")
            tokenizer.save_pretrained(scratch)
        files = sorted(scratch.iterdir())
        for file in files:
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
            file.chmod(mode)  # safetensors makes files that only their owner can read
        yield files
    except (OSError, SafetensorError) as error:
        raise OutputError(target, getattr(error, "strerror", None) or str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_metadata(
    folder: Path,
    options: TrainOptions,
    *,
    teacher: str,
    tau: float | None,
    weight: float | None,
    k: int,
    epochs: float,
    tokens: int,
    texts: list[str],
) -> None:
    """Write memdec.json: where the memory comes from, how much it is to weigh, and the notice.

    tau     None: it imitated no retriever
    weight  the lambda that did best on validation text; None: there was none
    texts   SHA-256 of the files that it was trained on
    """
    domain = options.domain or Path(shown_name(options.cache.corpus)).stem
    train: dict[str, str | int | float] = {
        "beta": options.beta,
        "teacher": teacher,
        "epochs": epochs,
        "tokens": tokens,
    }
    if options.cache.chat_base:
        train["chat_share"] = options.cache.chat_share
    if tau is not None:
        train |= {
            "k": k,
            "knn_temperature": tau,
            "key": options.cache.key,
            "target": options.cache.target,
        }
    entries: dict[str, str | int | float | list[str]] = {
        metadata.DOMAIN: domain,
        **{metadata.TRAIN + name: value for name, value in train.items()},
        **metadata.hub_source(options.cache.teacher, f"{metadata.TRAIN}teacher"),
        "general.name": "memdec-" + "-".join(domain.lower().split()),
        "general.description": f"Memory Decoder for {domain}. {NOTICE}",
    }
    if weight is not None:
        entries |= {metadata.LAMBDA: weight, metadata.TRAINED_LAMBDA: weight}
    if len(texts) <= MAX_TEXTS:
        entries[TEXTS] = texts
    if options.license:
        entries["general.license"] = options.license
    write_text(folder / metadata.CHECKPOINT_METADATA, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
