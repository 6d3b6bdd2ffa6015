"""Damaged inputs of convert: a typed error or a file that can be used, never a crash, and no memory for a lie."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mutations import KINDS, Originals, originals, run_case

CASES = 40  # of each kind; benchmarks/fuzz_convert.py runs over a thousand of each
LIMITED = """
import resource, sys
from pathlib import Path
from memdec_edge.convert import convert
from memdec_edge.errors import ModelFileError
from memdec_edge.options import ConvertOptions
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
try:
    convert(ConvertOptions(Path(sys.argv[1]), Path(sys.argv[2]), "f32", verify=False))
except ModelFileError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return originals(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_used_or_refused_in_one_line(whole: Originals, tmp_path: Path, kind: str) -> None:
    outcomes = {run_case(kind, seed, whole, tmp_path) for seed in range(CASES)}
    assert "ModelFileError" in outcomes  # the damage is seen
    assert "accepted" in outcomes  # and not everything is refused


HEADERS = {
    "a header of 2^63 bytes": (2**63, b"{}"),
    "a header of all the memory there is": (2**40, b"{}"),
    "a tensor of 2^62 numbers": (
        None,
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}},
    ),
    "a tensor beyond the file": (
        None,
        {"model.embed_tokens.weight": {"dtype": "F32", "shape": [320, 16], "data_offsets": [2**40, 2**40 + 20480]}},
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory through /proc and RLIMIT_AS")
@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_safetensors_header_allocates_nothing(whole: Originals, tmp_path: Path, name: str) -> None:
    length, header = HEADERS[name]
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    weights = (length or len(body)).to_bytes(8, "little") + body + bytes(4096)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in whole.checkpoint.iterdir():
        (folder / file.name).write_bytes(weights if file.suffix == ".safetensors" else file.read_bytes())
    command = [sys.executable, "-c", LIMITED, str(folder), str(tmp_path / "memdec-x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.startswith("refused: "), done.stderr[-500:]
    assert not list(tmp_path.glob("*.gguf*"))
