"""A folder of Hugging Face's format: which of its files hold the weights, and what people give in place of one.

transformers decides, and what it would read is read here. Each refusal says what was found and names the next step.
Knows nothing of what tensors and tokenizers hold, nor of what the model is for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf.header import LFS_POINTER
from memdec_edge.options import HUB_ID

INDEX = ".index.json"  # ends the name of the list of shards
MAX_NAME = 255  # bytes of a file's name; longer ones are an OSError
# In the order in which transformers looks for them (5.24, modeling_utils._get_resolved_checkpoint_files).
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
ADAPTER = "adapter_config.json"  # of a PEFT adapter
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # peft's, the first that is there
FUSION = "memory_fusion/config.json"  # beside a memory's weights: how LMDeploy mixes it
DISTRIBUTED = "shard-*-model-*.safetensors"  # transformers' distributed checkpoints; it reads them before all others
READ = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # ends of configs, tokenizers and chat templates
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ckpt")
Json = Mapping[str, Any]  # an object of a JSON file, checked no further
CHECK = "check the path"


def advice_on_download(folder: Path) -> str:
    """The next step for a folder that is not there: a download, where its name may be an id of the Hub."""
    name = folder.as_posix()
    if folder.is_absolute() or not HUB_ID.fullmatch(name):
        return CHECK
    return f"{CHECK}, or download it from the Hugging Face Hub: hf download {name} --local-dir {folder.name}"


def base_of_adapter(folder: Path) -> str | None:
    """What a PEFT adapter calls its base, "" where it does not say; None for a folder that is no adapter.

    Raises ModelFileError for an adapter_config.json that is damaged.
    """
    if not (folder / ADAPTER).is_file():
        return None
    return str(read_json(folder / ADAPTER).get("base_model_name_or_path") or "")


def refuse_adapter(folder: Path) -> None:
    """Raise ModelFileError for a PEFT adapter: transformers would load its base, and not what lies beside it."""
    base = base_of_adapter(folder)
    if base is not None:
        raise ModelFileError(
            folder,
            f"is a PEFT adapter of {base or 'another model':.100}; merge it first: merge_and_unload(), then "
            "save_pretrained()",
        )


def newest_checkpoint_in(folder: Path) -> Path | None:
    """The newest model folder in a folder of a trainer's checkpoints, or of the Hub's cache."""
    inside = [path.parent for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/config.json")]
    return max(inside, key=lambda path: path.stat().st_mtime, default=None)


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
        refuse_pointer(path)
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


def refuse_pointer(path: Path) -> None:
    """Raise ModelFileError for a pointer of Git LFS in place of a file."""
    if begins_with(path, LFS_POINTER):
        raise ModelFileError(path, "is a pointer of Git LFS and not the file; run git lfs pull in its folder")


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether a file's first bytes are these; no pipe or device is waited for. Raises ModelFileError."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise ModelFileError(path, f"cannot be read ({error.strerror}); make the file readable") from error


def shard_names(index: Path) -> list[str]:
    """The files that a list of shards names. Raises ModelFileError for a list that is damaged or leads elsewhere."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise ModelFileError(index, "has no weight_map; save the checkpoint again")
    shards = sorted(set(names.values()))
    for shard in shards:
        if not _is_name(shard):
            raise ModelFileError(index, f"points to {shard!r:.80}, no file of its folder; save the checkpoint again")
    return shards


def _shards(index: Path) -> list[Path]:
    found = [index.parent / shard for shard in shard_names(index)]
    for path in found:
        if not path.is_file():
            raise MissingFileError(path, "weights file", f"{index.name} names it; download it too")
    return found


def _is_name(text: str) -> bool:
    """Whether a text can be the name of a file in the folder, and leads nowhere else."""
    return Path(text).name == text and len(text.encode(errors="replace")) <= MAX_NAME
