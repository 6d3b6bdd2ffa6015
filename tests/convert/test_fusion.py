"""LMDeploy's memory_fusion/config.json: its lambda goes into the GGUF, and a router that cannot is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from tests.support.tiny import to_gguf

ROUTED = {
    "default_router": "medicine",
    "routers": {"medicine": {"path": "routers/medicine"}},
    "lambda_base_only_threshold": 0.1,
}


def write(folder: Path, **settings: Any) -> None:
    (folder / "memory_fusion").mkdir()
    (folder / "memory_fusion" / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def weight(out: Path) -> float | None:
    return metadata.MemoryMetadata.from_gguf(out, metadata.read(out)[0]).weight


@pytest.mark.parametrize("beside", [False, True])
def test_a_fixed_lambda_is_recommended(checkpoint: Path, out: Path, beside: bool) -> None:
    write(checkpoint.parent if beside else checkpoint, lambda_value=0.35, adaptive_router=False)
    assert to_gguf(checkpoint, out).warnings == ()
    assert weight(out) == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("settings", "carried", "said"),
    [
        (ROUTED, None, "the GGUF recommends no lambda"),
        (ROUTED | {"lambda_value": 1.0}, None, "the GGUF recommends no lambda"),  # LMDeploy's default, unused there
        (ROUTED | {"lambda_value": 0.4, "adaptive_router": True}, 0.4, "its lambda_value 0.4 is"),
    ],
)
def test_a_router_is_not_carried_over_and_one_line_says_so(
    checkpoint: Path, out: Path, settings: dict[str, Any], carried: float | None, said: str
) -> None:
    write(checkpoint, **settings)
    [warning] = to_gguf(checkpoint, out).warnings
    assert warning == (
        f"{checkpoint}/memory_fusion/config.json: the router medicine reads hidden states and is not carried over; "
        f"{said}, and by default the weight follows the text"
    )
    assert weight(out) == (carried and pytest.approx(carried))


def test_the_lambda_of_memdec_json_goes_first_and_a_plain_model_has_none(checkpoint: Path, out: Path) -> None:
    write(checkpoint, lambda_value=0.35, adaptive_router=False)
    plain = out.with_name("model.gguf")
    to_gguf(checkpoint, plain, role="model")
    assert metadata.LAMBDA not in metadata.read(plain)[0]
    (checkpoint / "memdec.json").write_text('{"memdec_edge.lambda": 0.6}', encoding="utf-8")
    to_gguf(checkpoint, out)
    assert weight(out) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"lambda_value": 1.5}, "lambda_value is 1.5; it must be a number from 0 to 1"),
        ({"lambda_value": "0.5"}, "lambda_value is '0.5'; it must be a number from 0 to 1"),
        ({"lambda_value": True}, "lambda_value is True; it must be a number from 0 to 1"),
        ({"adaptive_router": 1}, "adaptive_router is 1; it must be true or false"),
    ],
)
def test_a_value_that_cannot_be_is_refused(checkpoint: Path, out: Path, settings: dict[str, Any], error: str) -> None:
    write(checkpoint, **settings)
    with pytest.raises(ModelFileError) as caught:
        to_gguf(checkpoint, out)
    assert str(caught.value) == f"{checkpoint}/memory_fusion/config.json: {error}"
    assert not out.exists()
