"""The files that a checkpoint's tokenizer consists of, read once.

transformers reads tokenizer.json, and builds one where a folder has only vocab.json and merges.txt. Then the same is
built here, through transformers itself. Knows nothing of what the files mean.
"""

import io
import json
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.hf_folder import Json, read_json

from .folder import TOKENIZERS

JSON, MODEL = TOKENIZERS
PARTS = ("vocab.json", "merges.txt")  # of a byte-level BPE that was saved without tokenizer.json
ADVICE = "give the base's GGUF as `base` to copy its tokenizer"


@dataclass(frozen=True)
class TokenizerFiles:
    """What find() found."""

    folder: Path
    path: Path  # of the file that errors about `body` name
    body: Json = field(default_factory=dict)  # of tokenizer.json; {} where the folder has tokenizer.model alone
    model: Path | None = None  # SentencePiece's tokenizer.model
    settings: Json = field(default_factory=dict)  # of tokenizer_config.json

    @property
    def settings_path(self) -> Path:
        """Where `settings` are, or would be."""
        return self.folder / "tokenizer_config.json"


def find(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of a checkpoint folder; None where it has none.

    Raises ModelFileError for files that cannot be read, and MissingExtraError where a tokenizer.json must be built and
    transformers is not installed.
    """
    settings_path, model = folder / "tokenizer_config.json", folder / MODEL
    settings = read_json(settings_path) if settings_path.is_file() else {}
    model_path = model if model.is_file() else None
    if (folder / JSON).is_file():
        body = read_json(folder / JSON)
        if not body:
            raise ModelFileError(folder / JSON, f"is empty; {ADVICE}")
        return TokenizerFiles(folder, folder / JSON, body, model_path, settings)
    if model_path:
        return TokenizerFiles(folder, model_path, {}, model_path, settings)
    if all((folder / name).is_file() for name in PARTS):
        return TokenizerFiles(folder, folder / PARTS[0], _built(folder), None, settings)
    return None


def _built(folder: Path) -> Json:
    """The tokenizer.json that transformers makes of vocab.json and merges.txt."""
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "convert") from error
    try:
        with redirect_stderr(io.StringIO()):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        body: Json = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # of ten kinds: transformers passes on whatever strange files cause
        reason = str(error).strip().split("\n")[0]
        raise ModelFileError(
            folder / PARTS[0], f"transformers makes no tokenizer of it and {PARTS[1]} ({reason:.200}); {ADVICE}"
        ) from error
    return body
