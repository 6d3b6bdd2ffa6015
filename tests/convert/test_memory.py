"""memdec_edge.convert: how much memory a conversion takes, whatever is converted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.tiny import edit_json, tiny_checkpoint

BEYOND = 200e6  # bytes over the largest tensor: half for Python and its packages, the rest for rows in work
HIDDEN = 98_304  # times 400 tokens: an embedding of 157 MB in float32
# Not getrusage: its peak counts what the parent, which has PyTorch, held when it started the process.
MEASURE = (
    "import sys; from pathlib import Path; from memdec_edge.convert import convert\n"
    "from memdec_edge.options import ConvertOptions\n"
    "convert(ConvertOptions(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], verify=False))\n"
    "assert 'torch' not in sys.modules\n"
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one block that is nearly all embedding."""
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("large"), layers=1)
    changes = {"hidden_size": HIDDEN, "head_dim": 16, "num_attention_heads": 1, "num_key_value_heads": 1,
               "intermediate_size": 32}  # fmt: skip
    edit_json(checkpoint / "config.json", **changes)
    sizes = {400: 400, 64: HIDDEN, 32: 16, 128: 32}  # of the tiny one
    random, tensors = np.random.default_rng(0), load_file(checkpoint / "model.safetensors")
    for name, array in tensors.items():
        shape = [sizes[size] for size in array.shape]
        if "q_proj" in name or "o_proj" in name:  # as many rows as the hidden size there
            shape["o_proj" in name] = 16
        tensors[name] = random.standard_normal(shape, np.float32)
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_a_conversion_takes_the_memory_of_its_largest_tensor(large: Path, out: Path, outtype: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, large, out, outtype], capture_output=True, text=True, check=True
    )
    assert 4 * 400 * HIDDEN < 1024 * int(found.stdout) < 4 * 400 * HIDDEN + BEYOND
