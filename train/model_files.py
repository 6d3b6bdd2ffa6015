"""The files that a model is read from, and what people give in place of one.

Their digests decide whether results can be gone on with. So a README beside a model, or weights that lose against
others, count for nothing. Knows nothing of what is in the files.
"""

from importlib.util import find_spec
from pathlib import Path

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.files import sha256
from memdec_edge.gguf import parts
from memdec_edge.gguf.header import Header
from memdec_edge.hf_folder import (
    CHECK,
    INDEX,
    READ,
    advice_on_download,
    newest_checkpoint_in,
    read_json,
    refuse_adapter,
    refuse_pointer,
    weight_files,
)


def model_files(path: Path) -> dict[str, Path]:
    """The files of a GGUF or a Hugging Face folder by name: those that llama.cpp or transformers reads.

    Raises MissingFileError and ModelFileError, which name the next step for a path that is no model.
    """
    if path.is_file():
        _refuse_gguf_adapter(path)
        return {file.name: file for file in parts.files(path)}
    if not path.is_dir():
        advice = f"{advice_on_download(path)}; the GGUF of a base can be the teacher, too"
        raise MissingFileError(path, "HF folder or GGUF file", advice)
    refuse_adapter(path)
    config = path / "config.json"
    if not config.is_file():
        newest = newest_checkpoint_in(path)
        raise MissingFileError(config, "file", f"give the model folder in it, {newest}" if newest else CHECK)
    weights, _ = weight_files(path, str(read_json(config).get("transformers_weights") or ""))
    others = [file for file in path.iterdir() if file.suffix in READ and file.is_file() and file.name[0] != "."]
    for file in others:
        refuse_pointer(file)
    found = [*weights, *(file for file in others if not file.name.endswith(INDEX))]
    return {file.name: file for file in sorted(found)}


def unread_files(path: Path) -> set[str]:
    """Names of the files beside a model's own; manifests of an earlier version have their digests, too."""
    if path.is_file():
        return set()
    return {file.name for file in path.iterdir() if file.is_file()} - set(model_files(path))


def digests(files: dict[str, Path], prefix: str) -> dict[str, str]:
    """SHA-256 of each file, keyed by what a user would call it."""
    return {f"{prefix} {name}": sha256(file) for name, file in files.items()}


def require_llama(path: Path) -> None:
    """Raise ModelFileError where llama.cpp, which reads a GGUF's text, is not installed."""
    if find_spec("llama_cpp") is None:
        advice = "install it, or give a Hugging Face folder"
        raise ModelFileError(path, f"llama-cpp-python, which reads the text for a GGUF, is not installed; {advice}")


def _refuse_gguf_adapter(path: Path) -> None:
    with Header(path) as header:
        if header.scalars().get("general.type") == "adapter":
            raise ModelFileError(path, "is a LoRA adapter; merge it into its base first, with llama-export-lora")
