"""memdec_edge.convert.folder: what people give in place of a checkpoint is named, with the next step."""

import _thread
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memdec_edge.errors import Cancelled, MissingFileError, ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.train import train
from tests.conftest import Family
from tests.support.tiny import to_gguf
from tests.support.training import make_room, train_options


def refused(given: Path) -> str:
    with pytest.raises((MissingFileError, ModelFileError)) as caught:
        to_gguf(given, Path("nowhere") / "memdec-own.gguf")
    assert not Path("nowhere").exists()
    return str(caught.value)


def test_a_peft_adapter_asks_for_its_base_even_where_a_config_lies_beside_it(checkpoint: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (checkpoint / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    advice = "is a PEFT adapter; give org/base as `lora_base` to merge the two"
    assert refused(checkpoint) == f"{checkpoint}: {advice}"
    (checkpoint / "config.json").unlink()
    assert refused(checkpoint) == f"{checkpoint}: {advice}"


def test_an_id_of_the_hub_gives_the_command_that_downloads_it() -> None:
    assert refused(Path("org/Tiny-1.5B")) == (
        "org/Tiny-1.5B: no such checkpoint folder; check the path, or download it from the Hugging Face Hub: "
        "hf download org/Tiny-1.5B --local-dir Tiny-1.5B"
    )


@pytest.mark.parametrize("given", ["/no/where", "a/b/c", "nothing-here"])
def test_a_path_that_cannot_be_an_id_of_the_hub_gives_no_such_command(given: str) -> None:
    assert refused(Path(given)) == f"{given}: no such checkpoint folder; check the path"


def test_a_gguf_needs_no_conversion(family: Family, tmp_path: Path) -> None:
    advice = "is a GGUF already; run it, or make it smaller with memdec-edge quantize"
    assert refused(family.memory) == f"{family.memory}: {advice}"
    shutil.copy(family.memory, tmp_path / "a.gguf")
    assert refused(tmp_path) == f"{tmp_path / 'config.json'}: no such file; a.gguf is there, a GGUF already; run it"


def test_a_file_of_a_checkpoint_names_the_folder_to_give(checkpoint: Path) -> None:
    given = checkpoint / "model.safetensors"
    assert (
        refused(given) == f"{given}: is a file and no checkpoint folder; give the folder that it lies in, {checkpoint}"
    )


def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").startswith(f"{tmp_path / 'pipe'}: is a file and no checkpoint folder")


@pytest.mark.parametrize("place", ["checkpoint-500", "snapshots/0123456789abcdef"])
def test_a_folder_of_checkpoints_names_the_newest_one(checkpoint: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "many"
    shutil.copytree(checkpoint, folder / place)
    older = folder / Path(place).with_name("older")
    shutil.copytree(checkpoint, older)
    os.utime(older, (1, 1))
    assert refused(folder) == (
        f"{folder / 'config.json'}: no such file; give the checkpoint folder in it, {folder / place}"
    )


def test_a_path_that_is_too_long_is_a_typed_error() -> None:
    assert refused(Path("a" * 5000)).endswith(": cannot be read (File name too long); check the path")


def test_the_makers_own_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}", encoding="utf-8")
    assert "params.json is of the model's makers' own format; give the version for transformers" in refused(tmp_path)


def test_an_empty_folder_is_a_missing_config(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path / 'config.json'}: no such file; check the path"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("room"))


def interrupt_once(ready: Callable[[], bool]) -> None:
    """Ctrl-C for this process as soon as `ready` is true."""

    def wait() -> None:
        while not ready():
            time.sleep(0.001)
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


def test_an_unfinished_training_and_a_cache_are_no_memories_and_a_finished_one_is(room: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    options = train_options(room, folder, steps=100_000)
    metrics = folder / "metrics.jsonl"
    interrupt_once(lambda: metrics.is_file() and metrics.stat().st_size > 0)  # a step is done: all is imported
    with pytest.raises(Cancelled):
        train(options)
    assert refused(folder) == (f"{folder}: is a training that is not finished; run memdec-edge train again, it goes on")
    cache = options.cache.out
    assert refused(cache) == f"{cache}: holds a kNN cache and no memory; give the folder of memdec-edge train"
    finished = train(train_options(room, tmp_path / "other", steps=2)).path
    to_gguf(finished, tmp_path / "memdec-own.gguf")
    (finished / metadata.CHECKPOINT_METADATA).unlink()  # killed between its last two files
    assert "is a training that is not finished" in refused(finished)


def test_a_config_that_is_a_folder_is_a_missing_file(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").mkdir()
    assert refused(checkpoint) == f"{checkpoint / 'config.json'}: no such file; check the path"
