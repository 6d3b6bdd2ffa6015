"""The finished memory on disk: an ordinary HF folder, and the facts that become GGUF metadata.

    model.safetensors config.json tokenizer files    what transformers reads
    memdec.json                                      {GGUF key: value} for memdec-edge convert

Knows nothing of how the weights came about.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from memdec_edge.errors import OutputError
from memdec_edge.files import sha256, write_text
from memdec_edge.options import TrainOptions

from .source import quiet
from .stage import MANIFEST

FACTS = "memdec.json"
NOTICE = "A memory can reproduce its training text verbatim: share it only where you may share that text."


def write_checkpoint(folder: Path, model: Any, tokenizer: Any) -> dict[str, str]:
    """Write `model` and `tokenizer` into `folder`, each file whole; return their SHA-256. Raises OutputError."""
    scratch = folder / ".unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        with quiet():
            model.save_pretrained(scratch, max_shard_size="1TB")
            tokenizer.save_pretrained(scratch)
        digests = {}
        for file in sorted(scratch.iterdir()):
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
            file.chmod((folder / MANIFEST).stat().st_mode)  # safetensors makes files that only their owner can read
            file.replace(folder / file.name)
            digests[file.name] = sha256(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise OutputError(folder, getattr(error, "strerror", None) or str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return digests


def write_facts(folder: Path, options: TrainOptions, *, teacher: str, tau: float, epochs: float, tokens: int) -> None:
    """Write memdec.json: where the memory comes from, and the notice."""
    domain = options.domain or options.cache.corpus.stem
    facts: dict[str, str | int | float] = {
        "memdec_edge.domain": domain,
        "memdec_edge.train.beta": options.beta,
        "memdec_edge.train.k": options.cache.k,
        "memdec_edge.train.knn_temperature": tau,
        "memdec_edge.train.key": "mlp_input",
        "memdec_edge.train.teacher": teacher,
        "memdec_edge.train.epochs": epochs,
        "memdec_edge.train.tokens": tokens,
        "general.name": "memdec-" + "-".join(domain.lower().split()),
        "general.description": f"Memory Decoder for {domain}. {NOTICE}",
    }
    if options.license:
        facts["general.license"] = options.license
    write_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
