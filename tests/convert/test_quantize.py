"""memdec_edge.convert.quantize: types, what is lost, and that nothing is left behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_cpp import Llama

from memdec_edge.convert import quantize
from memdec_edge.convert.quantize import EMBEDDING, HEAD, MIN_SAME_TOP
from memdec_edge.errors import ExistingOutputError, MissingFileError, ModelFileError, OptionError
from memdec_edge.gguf import metadata
from memdec_edge.options import ConvertOptions, QuantizeOptions, QuantTypes
from tests.conftest import Family
from tests.support.raw_gguf import read
from tests.support.tiny import tiny_checkpoint, tiny_gguf, to_gguf

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K = 0, 1, 2, 8, 12, 14  # enum ggml_type


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied F16 GGUF with rows of 256, which K types need."""
    folder = tmp_path_factory.mktemp("wide")
    return tiny_gguf(folder / "wide.gguf", tiny_checkpoint(folder / "wide", hidden=256, layers=1), "f16")


def kinds(gguf: Path) -> dict[str, int]:
    return {tensor.name: tensor.kind for tensor in metadata.read(gguf)[1]}


def test_a_tied_embedding_stays_q8_0_and_stock_llama_cpp_runs_the_file(wide: Path, out: Path) -> None:
    report = quantize(QuantizeOptions(wide, out, QuantTypes("q4_k_m")))
    found = kinds(out)
    assert found[EMBEDDING] == Q8_0
    assert found["blk.0.attn_q.weight"] == Q4_K
    assert report.n_bytes == out.stat().st_size < report.n_bytes_before == wide.stat().st_size
    assert (report.reference, report.kinds["Q8_0"]) == ("F16", 1)
    assert report.quality is not None
    assert report.quality.n_tokens > 1000
    assert 0 < report.quality.mean_kl < 1
    assert 0.3 < report.quality.same_top < 1
    llama = Llama(str(out), n_ctx=32, verbose=False)
    assert llama.create_completion("The heart", max_tokens=4, temperature=0)["usage"]["completion_tokens"] > 0
    llama.close()


def test_embedding_and_head_take_the_types_asked_for(family: Family, out: Path) -> None:
    types = QuantTypes("q4_0", token_embedding="f16", output_tensor="q8_0", quality_tokens=0)
    assert quantize(QuantizeOptions(family.base, out, types)).quality is None
    found = kinds(out)
    assert (found[EMBEDDING], found[HEAD], found["blk.0.ffn_up.weight"]) == (F16, Q8_0, Q4_0)


def test_a_tied_embedding_goes_lower_where_that_is_asked_for(wide: Path, out: Path) -> None:
    quantize(QuantizeOptions(wide, out, QuantTypes("q4_k_m", token_embedding="q4_k", quality_tokens=0)))
    assert kinds(out)[EMBEDDING] == Q4_K


def test_quantising_keeps_the_metadata_of_a_memory(family: Family, out: Path) -> None:
    quantize(QuantizeOptions(family.memory, out, QuantTypes("q8_0", quality_tokens=0)))
    before, after = metadata.read(family.memory)[0], metadata.read(out)[0]
    assert after.pop("general.file_type") == 7
    assert {key: str(value) for key, value in before.items() if key in after} == {
        key: str(value) for key, value in after.items()
    }
    metadata.patch(out, {metadata.LAMBDA: 0.5})
    assert metadata.read(out)[0][metadata.LAMBDA] == 0.5


def test_convert_quantises_in_one_go(tmp_path: Path, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", hidden=256, layers=1)
    report = to_gguf(checkpoint, out, "q6_k", verify=True, types=QuantTypes(quality_tokens=200))
    assert (report.outtype, kinds(out)["blk.0.attn_q.weight"]) == ("q6_k", Q6_K)
    assert report.verification is not None
    assert report.verification.mean_kl < 1e-4  # of the F16 file between the two
    assert report.quantized is not None
    assert report.quantized.quality is not None
    assert report.quantized.reference == "F16"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_more_bits_lose_less_and_a_type_that_loses_too_much_is_a_warning_that_names_one_with_more(
    wide: Path, tmp_path: Path
) -> None:
    lost = []
    for kind, better in (("q8_0", ""), ("q6_k", "Q8_0"), ("q4_k_s", "Q5_K_M"), ("q2_k", "Q3_K_M")):
        report = quantize(QuantizeOptions(wide, tmp_path / f"{kind}.gguf", QuantTypes(kind, quality_tokens=200)))
        assert report.quality is not None
        lost.append(report.quality.mean_kl)
        assert (report.quality.same_top < MIN_SAME_TOP) == bool(better)
        kept = f"{kind} keeps the likeliest token at {report.quality.same_top:.1%} of positions, less than 90%"
        assert report.warnings == ((f"{kept}; {better} keeps more",) if better else ())
    assert lost == sorted(lost)


def test_converting_to_a_type_that_loses_too_much_is_a_warning_too(tmp_path: Path, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", hidden=256, layers=1)
    (warning,) = to_gguf(checkpoint, out, "q2_k", types=QuantTypes(quality_tokens=100)).warnings
    assert warning.endswith("less than 90%; Q3_K_M keeps more")


def test_the_loss_is_measured_on_the_text_given(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Blood carries oxygen from the lungs to every cell. " * 9, encoding="utf-8")
    types = QuantTypes("q8_0", text=tmp_path / "text.txt", quality_tokens=50)
    quality = quantize(QuantizeOptions(wide, tmp_path / "q8.gguf", types)).quality
    assert quality is not None
    assert quality.n_tokens == 50


def test_a_quantised_source_is_refused_unless_asked_for(wide: Path, tmp_path: Path, out: Path) -> None:
    once = tmp_path / "once.gguf"
    quantize(QuantizeOptions(wide, once, QuantTypes("q8_0", quality_tokens=0)))
    options = QuantizeOptions(once, out, QuantTypes("q4_0", quality_tokens=0))
    with pytest.raises(ModelFileError, match=r"quantised already \(.* is Q8_0\); .* `allow_requantize`"):
        quantize(options)
    assert list(out.parent.iterdir()) == []
    quantize(QuantizeOptions(once, out, options.types, allow_requantize=True))
    assert kinds(out)["blk.0.attn_q.weight"] == Q4_0


def test_an_existing_file_is_replaced_only_where_overwrite_is_given(wide: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    types = QuantTypes("q8_0", quality_tokens=0)
    with pytest.raises(ExistingOutputError):
        quantize(QuantizeOptions(wide, out, types))
    assert out.read_text() == "mine"
    quantize(QuantizeOptions(wide, out, types, overwrite=True))
    assert kinds(out)[EMBEDDING] == Q8_0


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
@pytest.mark.parametrize("name", ["source.gguf", "text.md"])
def test_overwrite_replaces_neither_the_source_nor_the_text(
    family: Family, tmp_path: Path, name: str, link: Callable[[Path, Path], None] | None
) -> None:
    source = Path(shutil.copy(family.base, tmp_path / "source.gguf"))
    (tmp_path / "text.md").write_text("mine")
    given = out = tmp_path / name
    if link:
        link(given, out := tmp_path / "link.gguf")
    before = given.read_bytes()
    with pytest.raises(ExistingOutputError, match=f"it is made from {given}; choose another path"):
        quantize(QuantizeOptions(source, out, QuantTypes("q8_0", text=tmp_path / "text.md"), overwrite=True))
    assert given.read_bytes() == before


def test_a_type_that_llama_cpp_refuses_is_an_error_with_its_reason_and_leaves_nothing(wide: Path, out: Path) -> None:
    with pytest.raises(ModelFileError, match=r"quantise it to iq2_xxs \(this quantization requires an imatrix!\)"):
        quantize(QuantizeOptions(wide, out, QuantTypes("iq2_xxs")))
    assert list(out.parent.iterdir()) == []


def test_a_quantiser_that_ends_its_own_process_is_a_typed_error_here(wide: Path, tmp_path: Path, out: Path) -> None:
    broken = read(wide)
    broken.add("llama.nextn_predict_layers", 99)  # more than layers: no rule of ours sees it
    path = broken.write(tmp_path / "broken.gguf")
    with pytest.raises(ModelFileError, match=r"broken\.gguf: llama\.cpp cannot quantise it to q4_0 \(llama-model.cpp:"):
        quantize(QuantizeOptions(path, out, QuantTypes("q4_0")))
    assert list(out.parent.iterdir()) == []


def test_what_would_end_the_quantiser_is_refused_by_key(wide: Path, tmp_path: Path, out: Path) -> None:
    broken = read(wide)
    broken.set("llama.block_count", 0)
    with pytest.raises(ModelFileError, match=r"broken\.gguf: llama\.block_count is 0; it must be a whole number"):
        quantize(QuantizeOptions(broken.write(tmp_path / "broken.gguf"), out, QuantTypes("q4_0")))
    assert list(out.parent.iterdir()) == []


def test_a_type_of_a_single_tensor_is_refused_where_the_quantiser_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        ConvertOptions(tmp_path, tmp_path / "a.gguf", "f16", types=QuantTypes(token_embedding="q4_0"))
    assert str(caught.value) == ("token_embedding is q4_0: `outtype` f16 is written as it is; give a type of quantize")


@pytest.mark.parametrize("option", ["outtype", "token_embedding", "output_tensor"])
def test_unknown_types_are_option_errors(option: str) -> None:
    with pytest.raises(OptionError, match=r" is q3_x: must be one of .*q8_0"):
        QuantTypes(**{option: "q3_x"})  # type: ignore[arg-type]


def start_quantising(tmp_path: Path, out: Path, command: str) -> "subprocess.Popen[str]":
    """A run of the command line whose quantiser is at work in a process of its own."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", hidden=512, layers=6)
    program = str(Path(sys.executable).with_name("memdec-edge"))
    if command == "quantize":
        source = tiny_gguf(tmp_path / "source.gguf", checkpoint, "f16")
        arguments = [program, "quantize", str(source), str(out), "IQ4_XS"]
    else:
        arguments = [program, "convert", str(checkpoint), "--outfile", str(out), "--outtype", "IQ4_XS", "--no-verify"]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    # convert writes an F16 file first; the quantiser's own is the second
    n_files = 1 if command == "quantize" else 2
    while not (out.parent.is_dir() and sum(path.stat().st_size > 1000 for path in out.parent.iterdir()) == n_files):
        assert running.poll() is None
        time.sleep(0.01)
    return running


def children(process: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, out: Path, command: str) -> None:
    running = start_quantising(tmp_path, out, command)
    os.kill(running.pid, signal.SIGINT)
    assert running.communicate()[1] == "Error: stopped\n"
    assert running.returncode == 130
    assert list(out.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="finds the quantiser through /proc")
@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("convert", signal.SIGKILL),
        *(("quantize", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_the_quantiser_dies_with_its_parent_and_a_later_run_removes_what_is_left(
    tmp_path: Path, out: Path, wide: Path, command: str, number: signal.Signals
) -> None:
    running = start_quantising(tmp_path, out, command)
    (quantiser,) = children(running.pid)
    os.kill(running.pid, number)
    running.communicate()
    while is_alive(quantiser):  # else the test's time limit ends it
        time.sleep(0.01)
    left = [path.read_bytes()[:4] for path in out.parent.iterdir()]
    assert not left or set(left) != {b"GGUF"}  # llama.cpp writes the first bytes last: it did not finish its work
    quantize(QuantizeOptions(wide, out, QuantTypes("q8_0", quality_tokens=0)))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_full_disk_is_an_output_error_and_leaves_nothing(wide: Path, out: Path) -> None:
    program = str(Path(sys.executable).with_name("memdec-edge"))
    done = subprocess.run(
        [program, "quantize", str(wide), str(out), "q8_0"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {out} could not be written: no space")
    assert list(out.parent.iterdir()) == []


def test_a_missing_text_is_refused_before_the_work_begins(wide: Path, tmp_path: Path, out: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere: no such text file"):
        quantize(QuantizeOptions(wide, out, QuantTypes("q8_0", text=tmp_path / "nowhere")))
