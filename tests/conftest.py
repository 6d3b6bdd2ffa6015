"""Fixtures that several test files share: tiny GGUFs, made once per run, models and engines of them, a Hub."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from memdec_edge.engine import Engine
from memdec_edge.llama.library import set_verbose
from memdec_edge.llama.model import Model
from memdec_edge.options import MemoryOptions
from tests.support.hub import Hub, running_hub
from tests.support.plain import FOUR
from tests.support.real import SMOLLM2
from tests.support.tiny import OTHER_TEXT, tiny_checkpoint, tiny_gguf

RENAMED_TOKEN = 300  # the id whose text differs in `Family.renamed`
LONGEST = ("test_demo.py", "test_learn.py", "test_examples.py", "test_snippets.py", "test_fuzz*.py")
PADDING = 16  # embedding rows without a token in `Family.padded`


@dataclass(frozen=True)
class Family:
    """F32 GGUFs; `base`, `memory` and `padded` share a tokenizer of 400 tokens."""

    base_checkpoint: Path
    memory_checkpoint: Path
    base: Path  # role model, hidden 96
    memory: Path  # role memory, tokenizer copied from `base`
    padded: Path  # role memory, PADDING tokens [PADn] beyond the base's
    stranger: Path  # role memory, trained on other text: other tokens, fewer of them
    renamed: Path  # role memory, token #RENAMED_TOKEN has another text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONGEST) if item.path.match(name)), len(LONGEST)))


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """After a command that ran in this process with --verbose, llama.cpp's log is silent again."""
    yield
    set_verbose(False)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user's cache folder holds is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMDEC_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    base = tiny_checkpoint(folder / "base", hidden=96, seed=1, tied=False)
    memory = tiny_checkpoint(folder / "memory", seed=2)
    padded = tiny_checkpoint(folder / "padded", seed=3, vocab_extra=PADDING)
    stranger = tiny_checkpoint(folder / "stranger", seed=4, text=OTHER_TEXT)
    renamed = tiny_checkpoint(folder / "renamed", seed=5, rename=(RENAMED_TOKEN, "renamed-token"))
    base_gguf = tiny_gguf(folder / "base.gguf", base)
    return Family(
        base_checkpoint=base,
        memory_checkpoint=memory,
        base=base_gguf,
        memory=tiny_gguf(folder / "memdec-tiny.gguf", memory, role="memory", base=base_gguf),
        padded=tiny_gguf(folder / "memdec-padded.gguf", padded, role="memory"),
        stranger=tiny_gguf(folder / "memdec-stranger.gguf", stranger, role="memory"),
        renamed=tiny_gguf(folder / "memdec-renamed.gguf", renamed, role="memory"),
    )


@pytest.fixture
def checkpoint(family: Family, tmp_path: Path) -> Path:
    """A copy of the memory's checkpoint folder, to be edited."""
    return Path(shutil.copytree(family.memory_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a memory GGUF may be written; its folder does not exist yet."""
    return tmp_path / "out" / "memdec-own.gguf"


@pytest.fixture(scope="module")
def model(family: Family) -> Iterator[Model]:
    opened = Model(family.base)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    opened = Model(SMOLLM2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    """Two memories, four slots, 1,024 cells."""
    memories = [MemoryOptions(family.memory, 0.4), MemoryOptions(family.padded, 0.3)]
    with closing(Engine(family.base, memories, FOUR)) as opened:
        yield opened


@pytest.fixture
def fresh(family: Family) -> Iterator[Engine]:
    """One memory, four slots, 512 cells, nothing in them."""
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], replace(FOUR, n_ctx=512))) as opened:
        yield opened


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of this machine's own, without repositories."""
    with running_hub() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where files of that Hub are kept; nothing is there yet."""
    return tmp_path / "home"
