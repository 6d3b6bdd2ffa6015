"""What was given to convert: a checkpoint folder, or something else that people take for one.

Each refusal says what was found and names the next step. Knows nothing of what weights and tokenizers hold.
"""

from pathlib import Path

from memdec_edge.errors import MissingFileError, ModelFileError, OptionError
from memdec_edge.files import MANIFEST
from memdec_edge.gguf.header import MAGIC
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA
from memdec_edge.hf_folder import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CHECK,
    advice_on_download,
    base_of_adapter,
    begins_with,
    newest_checkpoint_in,
    read_json,
    refuse_pointer,
)

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def refuse_what_is_no_checkpoint(folder: Path) -> None:
    """Raise MissingFileError or ModelFileError unless `folder` holds a config.json of a whole model."""
    _refuse_what_is_no_folder(folder)
    _refuse_unfinished_training(folder)
    base = base_of_adapter(folder)
    if base is not None:
        raise ModelFileError(
            folder, f"is a PEFT adapter; give {base or 'its base':.100} as `lora_base` to merge the two"
        )
    if not (folder / "config.json").is_file():
        raise MissingFileError(folder / "config.json", "file", _folder_in_place_of_checkpoint(folder))
    for name in ("config.json", *TOKENIZERS):
        refuse_pointer(folder / name)


def refuse_what_is_no_lora(folder: Path, base: Path) -> None:
    """Raise unless `folder` is a PEFT adapter and `base` may be a folder.

    MissingFileError, ModelFileError, and OptionError (lora_base).
    """
    _refuse_what_is_no_folder(folder)
    if base_of_adapter(folder) is None:
        raise OptionError("lora_base", base, f"{folder} is no LoRA (it has no {ADAPTER}); leave it out")
    if base.is_file():
        raise ModelFileError(
            base, "is a file; a LoRA is merged into the folder or Hub's name of a model for transformers"
        )
    for name in ADAPTER_WEIGHTS:
        refuse_pointer(folder / name)


def _refuse_what_is_no_folder(folder: Path) -> None:
    try:
        there = folder.exists()
    except OSError as error:  # a path that is too long
        raise ModelFileError(folder, f"cannot be read ({error.strerror}); {CHECK}") from error
    if not there:
        raise MissingFileError(folder, "checkpoint folder", advice_on_download(folder))
    if not folder.is_dir():
        raise ModelFileError(folder, _file_in_place_of_folder(folder))


def _file_in_place_of_folder(path: Path) -> str:
    if begins_with(path, MAGIC):
        return "is a GGUF already; run it, or make it smaller with memdec-edge quantize"
    return f"is a file and no checkpoint folder; give the folder that it lies in, {path.parent}"


def _folder_in_place_of_checkpoint(folder: Path) -> str:
    """What to give instead of a folder without config.json."""
    if newest := newest_checkpoint_in(folder):
        return f"give the checkpoint folder in it, {newest}"
    if (folder / "params.json").is_file():
        return "params.json is of the model's makers' own format; give the version for transformers"
    if ggufs := sorted(folder.glob("*.gguf")):
        return f"{ggufs[0].name} is there, a GGUF already; run it"
    return CHECK


def _refuse_unfinished_training(folder: Path) -> None:
    """Raise for a folder of `memdec-edge train` that lacks memdec.json, which training writes last."""
    path = folder / MANIFEST
    if not path.is_file() or (folder / CHECKPOINT_METADATA).is_file():
        return
    stage = read_json(path).get("stage")
    if stage == "memory":
        raise ModelFileError(folder, "is a training that is not finished; run memdec-edge train again, it goes on")
    if isinstance(stage, str):
        raise ModelFileError(folder, f"holds a {stage:.40} and no memory; give the folder of memdec-edge train")
