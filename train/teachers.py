"""Which runtime a teacher runs in: llama.cpp for a GGUF, PyTorch for a Hugging Face folder. Knows nothing of either."""

from pathlib import Path

import torch

from .model_files import require_llama
from .models import Source, load_source
from .teacher import Teacher, TorchTeacher


def open_teacher(path: Path, kind: str, device: torch.device, source: Source | None = None) -> Teacher:
    """A GGUF file or a Hugging Face folder as a teacher of keys of this kind, "mlp_input" or "hidden".

    source  the folder's model, where it is loaded already

    Raises MissingFileError, ModelFileError, and LibraryError where llama.cpp cannot be tapped.
    """
    if path.is_file():
        require_llama(path)
        from .llama_teacher import LlamaTeacher

        return LlamaTeacher(path, kind)
    return TorchTeacher(source or load_source(path), kind, device)
