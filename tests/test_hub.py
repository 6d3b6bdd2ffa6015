"""Models by name, asked of a Hub that the test itself runs: which file is taken, downloads that stop, refusals."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from memdec_edge.errors import MissingExtraError, MissingFileError
from memdec_edge.hub import _Repository, gguf_of
from tests.support.hub import COMMIT, Hub, Repository, running_hub

PROGRAM = """
import sys
from memdec_edge import hub
from memdec_edge.errors import MemdecError
try:
    found = getattr(hub, sys.argv[1])(*sys.argv[2:])
except MemdecError as error:
    sys.exit(f"{type(error).__name__} {error}")
print(found.path, found.revision, sep="\\n")
"""  # a process of its own: huggingface_hub reads its environment when it is imported
QUANTS = {f"tiny-{quant}.gguf": quant.encode() for quant in ("BF16", "Q4_K_M", "Q5_K_M", "Q8_0")}
CHUNK = 10 << 20  # bytes that huggingface_hub writes at a time


class Fetched(NamedTuple):
    """What the program printed."""

    path: Path
    revision: str
    stderr: str


def ask(environment: dict[str, str], how: str, *arguments: str, limit: int = -1) -> subprocess.CompletedProcess[str]:
    """Run the program, which may write files of `limit` bytes at most; -1: of any size."""
    command = [sys.executable, "-c", PROGRAM, how, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def fetched(environment: dict[str, str], *arguments: str, how: str = "gguf_of") -> Fetched:
    done = ask(environment, how, *arguments)
    assert done.returncode == 0, done.stderr
    path, revision = done.stdout.splitlines()
    return Fetched(Path(path), revision, done.stderr)


def refused(environment: dict[str, str], *arguments: str, limit: int = -1) -> str:
    done = ask(environment, "gguf_of", *arguments, limit=limit)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


FILES = [
    "README.md",
    "mmproj-tiny-Q4_K_M.gguf",
    "tiny-BF16.gguf",
    "tiny-IQ4_NL.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-Q8_0.gguf",
]
SPLIT = [f"big/tiny-Q6_K-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("files", "quant", "file", "chosen"),
    [
        (FILES, "", "", ["tiny-Q4_K_M.gguf"]),
        (FILES, "q8_0", "", ["tiny-Q8_0.gguf"]),
        (FILES, "iq4_nl", "", ["tiny-IQ4_NL.gguf"]),
        (FILES, "", "TINY-bf16.GGUF", ["tiny-BF16.gguf"]),
        (FILES, "", "mmproj-tiny-Q4_K_M.gguf", ["mmproj-tiny-Q4_K_M.gguf"]),
        ([*FILES[:4], FILES[5]], "", "", ["tiny-Q8_0.gguf"]),
        (FILES[:4], "", "", ["tiny-BF16.gguf"]),
        ([*SPLIT, *FILES], "q6_k", "", SPLIT),
        (SPLIT[::-1], "", "", SPLIT),
    ],
)
def test_the_file_is_the_one_that_llama_cpp_takes(files: list[str], quant: str, file: str, chosen: list[str]) -> None:
    assert _Repository("user/tiny", COMMIT, files).parts(quant, file) == chosen


@pytest.mark.parametrize(
    ("files", "quant", "file", "error"),
    [
        (
            FILES,
            "q3_k",
            "",
            "user/tiny:q3_k: no such GGUF q3_k on the Hugging Face Hub; the repository has tiny-BF16.gguf, ",
        ),
        (
            FILES,
            "",
            "none.gguf",
            "user/tiny:none.gguf: no such file on the Hugging Face Hub; the repository has mmproj-",
        ),
        (["config.json"], "", "", "user/tiny: no such GGUF on the Hugging Face Hub; the repository has none"),
        (SPLIT[:2], "", "", f"user/tiny:{SPLIT[2]}: no such part of {SPLIT[0]} on the Hugging Face Hub; "),
    ],
)
def test_a_file_that_is_not_there_is_named_with_those_that_are(
    files: list[str], quant: str, file: str, error: str
) -> None:
    with pytest.raises(MissingFileError, match=re.escape(error)):
        _Repository("user/tiny", COMMIT, files).parts(quant, file)


def test_a_model_is_downloaded_once_and_its_revision_is_kept(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository(QUANTS)
    first = fetched(hub.environment(home), "user/tiny")
    assert first.path.name == "tiny-Q4_K_M.gguf"
    assert first.path.read_bytes() == b"Q4_K_M"
    assert first.revision == first.path.parent.name == COMMIT
    assert "user/tiny: downloading tiny-Q4_K_M.gguf, 0.0 MB" in first.stderr
    again = fetched(hub.environment(home), "user/tiny:Q4_K_M")
    assert again == first._replace(stderr="")
    assert len(hub.downloads()) == 1
    assert [path.name for path in home.rglob("*.incomplete*")] == []
    assert "authorization" not in hub.downloads()[0]


def test_all_parts_of_a_split_gguf_come(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository({name: name.encode() for name in SPLIT})
    found = fetched(hub.environment(home), "user/tiny")
    assert found.path.as_posix().endswith(SPLIT[0])
    assert sorted(path.name for path in found.path.parent.iterdir()) == [name.removeprefix("big/") for name in SPLIT]


def test_a_killed_download_goes_on_where_it_stopped(hub: Hub, home: Path) -> None:
    data = os.urandom(3 * CHUNK)
    hub.repositories["user/tiny"] = Repository({"tiny-Q8_0.gguf": data})
    hub.stall_after = 2 * CHUNK + CHUNK // 2
    environment = hub.environment(home)
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, "gguf_of", "user/tiny"], env=environment)
    assert hub.stalled.wait(60)
    while not (parts := list(home.rglob("*.incomplete"))) or parts[0].stat().st_size < 2 * CHUNK:
        assert first.poll() is None
    first.kill()
    first.wait()
    hub.stall_after = None
    found = fetched(environment, "user/tiny")
    assert found.path.read_bytes() == data
    assert hub.downloads()[-1]["range"] == f"bytes={2 * CHUNK}-"
    assert "21.0 of them done" in found.stderr


def test_a_download_that_went_on_from_other_bytes_is_thrown_away(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository({"tiny-Q8_0.gguf": b"0123456789"})
    blobs = home / "hub" / "models--user--tiny" / "blobs"
    blobs.mkdir(parents=True)
    tag = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    (blobs / f"{tag}.memdec.incomplete").write_bytes(b"other")
    environment = hub.environment(home)
    error = "HubError user/tiny: tiny-Q8_0.gguf came damaged; run again to download it anew"
    assert refused(environment, "user/tiny") == error
    assert fetched(environment, "user/tiny").path.read_bytes() == b"0123456789"


def test_a_full_disk_is_no_fault_of_the_hub(hub: Hub, home: Path) -> None:
    data = os.urandom(50_000)
    hub.repositories["user/tiny"] = Repository({"tiny-Q8_0.gguf": data})
    environment = hub.environment(home)
    error = refused(environment, "user/tiny", limit=20_000)
    assert error.startswith("OutputError the cache of the Hub could not be written: File too large;")
    assert fetched(environment, "user/tiny").path.read_bytes() == data


def test_a_name_that_the_hub_lacks_is_a_missing_file(hub: Hub, home: Path) -> None:
    error = "MissingFileError user/none: no such model on the Hugging Face Hub; check the name"
    assert refused(hub.environment(home), "user/none").startswith(error)


def test_a_gated_model_needs_consent_and_a_token(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository(QUANTS, token="secret", gated=True)
    error = "HubError user/tiny: its makers ask for consent; agree on its page, then set HF_TOKEN or run hf auth login"
    assert refused(hub.environment(home), "user/tiny") == error
    assert refused(hub.environment(home, HF_TOKEN="wrong"), "user/tiny") == error
    assert fetched(hub.environment(home, HF_TOKEN="secret"), "user/tiny").path.read_bytes() == b"Q4_K_M"


def test_a_private_model_needs_a_token_that_no_other_host_gets(hub: Hub, home: Path) -> None:
    with running_hub() as other:
        other.repositories["user/tiny"] = Repository(QUANTS)
        hub.repositories["user/tiny"] = Repository(QUANTS, token="secret", elsewhere=other)
        assert refused(hub.environment(home), "user/tiny").startswith("MissingFileError user/tiny: no such model")
        found = fetched(hub.environment(home, HF_TOKEN="secret"), "user/tiny:q8_0")
        assert found.path.read_bytes() == b"Q8_0"
        assert len(other.downloads()) == 1
        assert all("authorization" not in headers for _, _, headers in other.asked)


def test_offline_the_cache_answers_and_says_what_it_has(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository(QUANTS)
    offline = hub.environment(home, HF_HUB_OFFLINE="1")
    assert refused(offline, "user/tiny") == (
        "HubError user/tiny: it is not in the cache, and HF_HUB_OFFLINE is set; unset that to download it"
    )
    online = fetched(hub.environment(home), "user/tiny:q8_0")
    asked = len(hub.asked)
    found = fetched(offline, "user/tiny")
    assert (found.path, found.revision) == (online.path, COMMIT)
    assert "user/tiny: the Hub was not asked (HF_HUB_OFFLINE is set); the cache answers" in found.stderr
    assert refused(offline, "user/tiny:bf16").endswith("the cache has tiny-Q8_0.gguf")
    assert len(hub.asked) == asked


def test_a_hub_that_fails_or_is_not_there_leaves_the_cache(hub: Hub, home: Path) -> None:
    hub.repositories["user/tiny"] = Repository(QUANTS)
    environment = hub.environment(home)
    fetched(environment, "user/tiny")
    hub.broken = 503
    assert fetched(environment, "user/tiny").path.name == "tiny-Q4_K_M.gguf"
    assert refused(environment, "user/other") == "HubError user/other: the Hub answered 503; try again later"
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the port of a service that nothing offers
    assert fetched(nowhere, "user/tiny").path.name == "tiny-Q4_K_M.gguf"
    assert refused(nowhere, "user/other").startswith("HubError user/other: the Hub cannot be reached (")


def test_a_model_for_transformers_comes_as_its_folder(hub: Hub, home: Path) -> None:
    shards = {f"model-{i:05d}-of-00002.safetensors": b"shard" for i in (1, 2)}
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    read = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index, **shards}
    unread = {"README.md": b"", "onnx/config.json": b"", "pytorch_model.bin": b"", "tiny-Q8_0.gguf": b""}
    hub.repositories["user/tiny"] = Repository(read | unread)
    found = fetched(hub.environment(home), "user/tiny", how="model_of")
    assert {path.name for path in found.path.iterdir()} == set(read)
    gguf = fetched(hub.environment(home), "user/tiny:q8_0", how="model_of")
    assert gguf.path == found.path / "tiny-Q8_0.gguf"


def test_a_teacher_is_a_path_or_else_a_name_on_the_hub(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repositories["user/tiny"] = Repository(QUANTS)
    program = "import sys; from pathlib import Path; from memdec_edge.hub import local; "
    command = [sys.executable, "-c", program + "print(local(Path(sys.argv[1])))", "user/tiny"]

    def teacher() -> subprocess.CompletedProcess[str]:
        environment = hub.environment(home)
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = teacher()
    assert done.stdout.endswith("tiny-Q4_K_M.gguf\n"), done.stderr
    assert "no path is called user/tiny; the Hub is asked for a model of that name\n" in done.stderr
    assert "user/tiny is tiny-Q4_K_M.gguf, revision c0ffee000000\n" in done.stderr
    (tmp_path / "user" / "tiny").mkdir(parents=True)
    asked = len(hub.asked)
    assert teacher().stdout == "user/tiny\n"
    assert len(hub.asked) == asked


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"huggingface_hub is not installed; pip install 'memdec-edge\[hub\]'"):
        gguf_of("user/tiny")


OLD, NEW = "01d" + 37 * "1", "ee" + 38 * "2"


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_stays_what_it_was(hub: Hub, home: Path) -> None:
    old = {"tiny-Q8_0.gguf": b"old"}
    hub.repositories["user/tiny"] = Repository({"tiny-Q8_0.gguf": b"new"}, commits={OLD: old}, refs={"v1": OLD})
    environment = hub.environment(home)
    for revision in ("v1", OLD):
        found = fetched(environment, f"user/tiny@{revision}:q8_0")
        assert (found.revision, found.path.read_bytes()) == (OLD, b"old")
    assert fetched(environment, "user/tiny").path.read_bytes() == b"new"
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert fetched(offline, "user/tiny@v1").path.read_bytes() == b"old"
    assert fetched(offline, f"user/tiny@{OLD[:7]}").path.read_bytes() == b"old"
    assert fetched(offline, "user/tiny").path.read_bytes() == b"new"
    assert refused(offline, "user/tiny@v2").startswith("HubError user/tiny@v2: it is not in the cache")
    assert refused(environment, "user/tiny@v2") == (
        "MissingFileError user/tiny@v2: no such revision on the Hugging Face Hub; "
        "name a branch, a tag or a commit of it"
    )


def test_all_files_are_of_the_commit_that_was_named_first(hub: Hub, home: Path) -> None:
    first = {"config.json": b"{}", "model.safetensors": b"first"}
    second = {"config.json": b"[]", "model.safetensors": b"second"}
    moved = Repository(first, commits={NEW: second}, refs={"main": NEW})
    hub.repositories["user/tiny"] = Repository(first, later=moved)  # main moves before anything is downloaded
    found = fetched(hub.environment(home), "user/tiny", how="checkpoint_of")
    assert (found.revision, found.path.name, (found.path / "model.safetensors").read_bytes()) == (
        COMMIT,
        COMMIT,
        b"first",
    )
    again = fetched(hub.environment(home), "user/tiny", how="checkpoint_of")
    assert (again.revision, (again.path / "model.safetensors").read_bytes()) == (NEW, b"second")
    offline = fetched(hub.environment(home, HF_HUB_OFFLINE="1"), "user/tiny", how="checkpoint_of")
    assert offline.path == again.path


def test_a_checkpoint_is_what_convert_reads_and_a_gguf_is_none(hub: Hub, home: Path) -> None:
    read = {
        "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w", "memdec.json": b"{}",
        "memory_fusion/config.json": b"{}",
    }  # fmt: skip
    unread = {"README.md": b"", "memory_fusion/router/1.pt": b"", "tiny-Q8_0.gguf": b"", "pytorch_model.bin": b""}
    hub.repositories["user/tiny"] = Repository(read | unread)
    hub.repositories["user/lora"] = Repository(
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "x.md": b""}
    )
    hub.repositories["user/gguf"] = Repository(QUANTS)
    environment = hub.environment(home)
    found = fetched(environment, "user/tiny", how="checkpoint_of").path
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == set(read)
    lora = fetched(environment, "user/lora", how="checkpoint_of").path
    assert {path.name for path in lora.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    asked = len(hub.downloads())
    done = ask(environment, "checkpoint_of", "user/gguf")
    assert done.stderr.splitlines()[-1].startswith(
        "MissingFileError user/gguf: no such checkpoint (config.json and weights) on the Hugging Face Hub; "
        "the repository has tiny-BF16.gguf, "
    )
    assert len(hub.downloads()) == asked


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("user/many", "memdec-law-Q8_0.gguf"),
        ("user/many:bf16", "memdec-law-BF16.gguf"),
        ("user/many:memdec-law-index.gguf", "memdec-law-index.gguf"),
        ("user/many:tiny-Q4_K_M.gguf", "tiny-Q4_K_M.gguf"),
        ("user/index", "memdec-law-index.gguf"),
        ("user/plain", "law.gguf"),
    ],
)
def test_a_memory_is_chosen_before_the_other_files(hub: Hub, home: Path, name: str, chosen: str) -> None:
    many = ("memdec-law-BF16.gguf", "memdec-law-Q8_0.gguf", "memdec-law-index.gguf", "tiny-Q4_K_M.gguf")
    hub.repositories["user/many"] = Repository({file: file.encode() for file in many})
    hub.repositories["user/index"] = Repository(dict.fromkeys(many[2:], b""))
    hub.repositories["user/plain"] = Repository({"law.gguf": b"x"})
    assert fetched(hub.environment(home), name, how="memory_of").path.name == chosen
