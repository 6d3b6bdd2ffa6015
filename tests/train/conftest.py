"""Fixtures of the tests of training."""

import pytest

from memdec_edge.train import head
from tests.support.causal import BATCH, LENGTH, N_VOCAB


@pytest.fixture(params=[1, 7, BATCH * LENGTH], ids=lambda tokens: f"chunks of {tokens}")
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in chunks of so many float64 rows."""
    monkeypatch.setattr(head, "CHUNK", request.param * N_VOCAB * 8)
