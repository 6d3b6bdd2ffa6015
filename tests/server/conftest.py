"""A tiny base with a chat template and its memories, served over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from openai import OpenAI

from memdec_edge.api import open_model
from memdec_edge.options import GenerationOptions, MemoryOptions, SamplingOptions, ServerOptions
from memdec_edge.server.settings import Defaults
from tests.conftest import Family
from tests.support.chatty import chatty
from tests.support.plain import FOUR
from tests.support.web import Web, serving

LOAD = replace(FOUR, n_batch=64)
SOBER = Defaults(SamplingOptions(temperature=0.0, seed=1), GenerationOptions())


@pytest.fixture(scope="session")
def talker(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a template."""
    return chatty(family.base, tmp_path_factory.mktemp("talker") / "talker.gguf")


@pytest.fixture(scope="module")
def web(family: Family, talker: Path) -> Iterator[Web]:
    """Two memories, four slots, 1,024 cells, greedy unless asked otherwise."""
    memories = [MemoryOptions(family.memory), MemoryOptions(family.padded)]
    with serving(open_model(talker, memories, LOAD), ServerOptions(alias="tiny"), SOBER) as served:
        yield served
        served.until_idle()


@pytest.fixture(scope="module")
def client(web: Web) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{web.url}/v1", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def small(family: Family, talker: Path) -> Iterator[Web]:
    """One memory, two slots, 192 cells, one request that waits at most."""
    load = replace(LOAD, n_ctx=192, n_seq=2)
    memories = [MemoryOptions(family.memory, 0.6)]
    with serving(open_model(talker, memories, load), ServerOptions(queue=1), SOBER) as served:
        yield served
        served.until_idle()
