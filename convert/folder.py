"""What was given to convert: a checkpoint folder, or something else that people take for one; and its weight files.

Each refusal says what was found and names the next step. Knows nothing of what tensors and tokenizers hold.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf.header import LFS_POINTER, MAGIC
from memdec_edge.gguf.metadata import CHECKPOINT_METADATA

INDEX = ".index.json"  # ends the name of the list of shards
MAX_NAME = 255  # bytes of a file's name; longer ones are an OSError
# In the order in which transformers looks for them (5.24, modeling_utils._get_resolved_checkpoint_files).
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
MANIFEST = "manifest.json"  # of a folder that `memdec-edge train` makes
ADAPTER = "adapter_config.json"  # of a PEFT adapter
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
DISTRIBUTED = "shard-*-model-*.safetensors"  # transformers' distributed checkpoints; it reads them before all others
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ckpt")
Json = Mapping[str, Any]  # an object of a JSON file, checked no further
CHECK = "check the path"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def refuse_what_is_no_checkpoint(folder: Path) -> None:
    """Raise MissingFileError or ModelFileError unless `folder` holds a config.json of a whole model."""
    try:
        there = folder.exists()
    except OSError as error:  # a path that is too long
        raise ModelFileError(folder, f"cannot be read ({error.strerror}); {CHECK}") from error
    if not there:
        raise MissingFileError(folder, "checkpoint folder", _advice_on_download(folder))
    if not folder.is_dir():
        raise ModelFileError(folder, _file_in_place_of_folder(folder))
    _refuse_unfinished_training(folder)
    if (folder / ADAPTER).is_file():  # transformers would load its base and not what lies beside it
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise ModelFileError(
            folder, f"is a PEFT adapter of {base!s:.100}; merge it first: merge_and_unload(), then save_pretrained()"
        )
    if not (folder / "config.json").is_file():
        raise MissingFileError(folder / "config.json", "file", _folder_in_place_of_checkpoint(folder))
    for name in ("config.json", *TOKENIZERS):
        _refuse_pointer(folder / name)


def weight_files(folder: Path, named: str = "") -> tuple[list[Path], str]:
    """The files that transformers would read, and a warning of those that it passes over, or "".

    named  what config.json calls `transformers_weights`; it goes before all other names

    Raises MissingFileError, and ModelFileError for an index that lists no shards or for a distributed checkpoint.
    """
    if named and not (_is_name(named) and named.endswith((".safetensors", f".safetensors{INDEX}"))):
        raise ModelFileError(folder / "config.json", f"transformers_weights is {named!r:.80}; name a .safetensors file")
    if found := sorted(folder.glob(DISTRIBUTED)):
        raise ModelFileError(
            found[0], "is part of a distributed checkpoint; load it and save_pretrained() as one model"
        )
    names = (named,) if named else WEIGHTS
    present = [name for name in names if (folder / name).is_file()]
    if not present:
        others = sorted({path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)})
        advice = f"{others[0]} is there; save the model with save_pretrained()" if others else CHECK
        raise MissingFileError(folder / names[0], "weights file", advice)
    chosen = folder / present[0]
    files = _shards(chosen) if chosen.name.endswith(INDEX) else [chosen]
    for path in files:
        _refuse_pointer(path)
    index = f"{chosen.name}{INDEX}"
    return files, f"{chosen} is read and {index} is not, as transformers does" if index in present else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises MissingFileError and ModelFileError."""
    if not path.is_file():
        raise MissingFileError(path, "file")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFileError(path, f"is no JSON ({error}); save it again") from error
    if not isinstance(body, dict):
        raise ModelFileError(path, f"holds a JSON {type(body).__name__}, not an object; save it again")
    return body


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise ModelFileError(index, "has no weight_map; save the checkpoint again")
    shards = sorted(set(names.values()))
    for shard in shards:
        if not _is_name(shard):
            raise ModelFileError(index, f"points to {shard!r:.80}, no file of its folder; save the checkpoint again")
        if not (index.parent / shard).is_file():
            raise MissingFileError(index.parent / shard, "weights file", f"{index.name} names it; download it too")
    return [index.parent / shard for shard in shards]


def _is_name(text: str) -> bool:
    """Whether a text can be the name of a file in the folder, and leads nowhere else."""
    return Path(text).name == text and len(text.encode(errors="replace")) <= MAX_NAME


def _advice_on_download(folder: Path) -> str:
    name = folder.as_posix()
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        return CHECK
    return f"{CHECK}, or download it from the Hugging Face Hub: hf download {name} --local-dir {folder.name}"


def _file_in_place_of_folder(path: Path) -> str:
    if _begins_with(path, MAGIC):
        return "is a GGUF already; run it, or make it smaller with memdec-edge quantize"
    return f"is a file and no checkpoint folder; give the folder that it lies in, {path.parent}"


def _folder_in_place_of_checkpoint(folder: Path) -> str:
    """What to give instead of a folder without config.json."""
    inside = [path.parent for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/config.json")]
    if inside:  # a folder of trainer checkpoints, or of the Hub's cache
        newest = max(inside, key=lambda path: path.stat().st_mtime)
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


def _refuse_pointer(path: Path) -> None:
    if path.is_file() and _begins_with(path, LFS_POINTER):
        raise ModelFileError(path, "is a pointer of Git LFS and not the file; run git lfs pull in its folder")


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise ModelFileError(path, f"cannot be read ({error.strerror}); make the file readable") from error
