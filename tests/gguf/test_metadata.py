"""memdec_edge.gguf.header and memdec_edge.gguf.metadata, against gguf.GGUFReader and llama.cpp itself."""

import hashlib
import math
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.metadata import GATE, LAMBDA, PPL_BASE, TEMPERATURE, MemoryMetadata
from memdec_edge.gguf.writer import GgufFile, pack_string
from memdec_edge.llama.model import Model
from tests.conftest import PADDING, Family
from tests.support import raw_gguf

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def memory(family: Family, tmp_path: Path) -> Path:
    """A memory GGUF of one's own."""
    return Path(shutil.copy(family.memory, tmp_path / "memdec-own.gguf"))


def llama_metadata(path: Path) -> dict[str, str]:
    """What llama.cpp reads, as it prints it."""
    with closing(llama_cpp.Llama(str(path), vocab_only=True, verbose=False)) as model:
        return dict(model.metadata)


def test_read_gives_what_the_reference_reader_gives(family: Family) -> None:
    values, tensors = metadata.read(family.memory)
    reference = GGUFReader(family.memory)
    for key, value in values.items():
        expected = reference.fields[key].contents()
        assert value == expected or (math.isnan(float(value)) and math.isnan(expected)), key
    singles = {name for name, field in reference.fields.items() if "ARRAY" not in [kind.name for kind in field.types]}
    assert set(values) == {name for name in singles if not name.startswith("GGUF.")}
    assert [(tensor.name, list(tensor.shape), tensor.kind) for tensor in tensors] == [
        (tensor.name, tensor.shape.tolist(), tensor.tensor_type.value) for tensor in reference.tensors
    ]


def test_string_arrays_are_read_raw(family: Family) -> None:
    with Header(family.memory) as header:
        tokens = header.strings("tokenizer.ggml.tokens")
        assert [token.decode() for token in tokens] == GGUFReader(family.memory).fields[
            "tokenizer.ggml.tokens"
        ].contents()
        with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.token_type is not an array of strings"):
            header.strings("tokenizer.ggml.token_type")


def test_metadata_read_through_llama_cpp_and_through_read_are_the_same(memory: Path) -> None:
    metadata.patch(memory, {LAMBDA: 0.5, TEMPERATURE: 1.25, PPL_BASE: 21.5} | dict.fromkeys(GATE, 0.25))
    found = MemoryMetadata.from_gguf(memory, llama_metadata(memory))
    assert found == MemoryMetadata.from_gguf(memory, metadata.read(memory)[0])
    assert (found.role, found.weight, found.temperature, found.ppl_base) == ("memory", 0.5, 1.25, 21.5)
    assert found.gate == (0.25,) * 8
    assert found.ppl_mixture is None


def test_a_fresh_memory_recommends_nothing(family: Family) -> None:
    meta = llama_metadata(family.memory)
    found = MemoryMetadata.from_gguf(family.memory, meta)
    assert metadata.is_memory(meta)
    assert (found.schema_version, found.weight, found.temperature, found.gate) == (metadata.SCHEMA, None, 1.0, None)
    assert not metadata.is_memory(llama_metadata(family.base))
    assert MemoryMetadata.from_gguf(family.base, llama_metadata(family.base)) == MemoryMetadata()


def test_patching_changes_only_the_values_and_llama_cpp_reads_them(memory: Path) -> None:
    before = memory.read_bytes()
    metadata.patch(memory, {LAMBDA: 0.4})
    after = memory.read_bytes()
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert 0 < len(changed) <= 4
    assert changed[-1] - changed[0] < 4
    assert struct.pack("<f", 0.4) in after
    assert float(llama_metadata(memory)[LAMBDA]) == pytest.approx(0.4, abs=1e-6)
    metadata.patch(memory, {LAMBDA: math.nan})
    assert memory.read_bytes() == before
    assert MemoryMetadata.from_gguf(memory, llama_metadata(memory)).weight is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (LAMBDA, 1.01),
        (LAMBDA, -0.1),
        (LAMBDA, math.inf),
        (TEMPERATURE, 0.0),
        (TEMPERATURE, math.nan),
        (GATE[3], -math.inf),
        (PPL_BASE, 0.5),
        ("general.name", 1.0),
    ],
)
def test_a_value_out_of_range_is_named_and_nothing_is_written(memory: Path, key: str, value: float) -> None:
    before = memory.read_bytes()
    with pytest.raises(ModelFileError, match=key.replace(".", r"\.")):
        metadata.patch(memory, {GATE[0]: 1.0, key: value} if key != GATE[3] else {key: value})
    assert memory.read_bytes() == before


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["a symbolic link", "a hard link"])
def test_a_file_that_others_may_share_is_not_patched_through_a_link(
    memory: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    before, other = memory.read_bytes(), tmp_path / "memdec-other.gguf"
    link(memory, other)
    with pytest.raises(ModelFileError, match=r"memdec-other\.gguf: .*so others may share it; copy the file and change"):
        metadata.patch(other, {LAMBDA: 0.4})
    assert memory.read_bytes() == before
    copy = Path(shutil.copy(other, tmp_path / "memdec-copy.gguf"))
    metadata.patch(copy, {LAMBDA: 0.4})
    assert metadata.read(copy)[0][LAMBDA] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("models--org--Tiny-1.5B/snapshots/0123abc", {"general.name": "Tiny-1.5B", "general.organization": "org"}),
        ("models--org--a--b/snapshots/0123abc", {"general.name": "a--b", "general.organization": "org"}),
        ("models--gpt2/snapshots/0123abc", {"general.name": "gpt2"}),
        ("datasets--org--x/snapshots/0123abc", {"general.name": "0123abc"}),
        ("mine/snapshots/0123abc", {"general.name": "0123abc"}),
        ("models--org--x/0123abc", {"general.name": "0123abc"}),
        ("mine", {"general.name": "mine"}),
    ],
)
def test_a_model_is_called_by_its_folder_or_by_its_name_in_the_hubs_cache(
    tmp_path: Path, folder: str, expected: dict[str, str]
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / folder)
    assert metadata.model_name(tmp_path / folder) == metadata.model_name(tmp_path / "link") == expected


def test_a_base_is_called_what_it_says_of_itself_and_where_it_is_from(family: Family, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--Tiny-1.5B" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    of_hub = Path(shutil.copy(family.base, snapshot / "tiny.gguf"))
    source = {"huggingface.repository": "org/Tiny-1.5B", "huggingface.revision": "0123abc"}
    for path, told in (
        (family.base, {"name": "base"}),
        (of_hub, {"name": "base", **source}),
        (snapshot, {"name": "Tiny-1.5B", "organization": "org", **source}),
    ):
        expected = {f"general.base_model.0.{key}": value for key, value in told.items()}
        assert metadata.base_model(path) == {"general.base_model.count": 1, **expected}


def test_a_model_without_placeholders_is_not_patched(family: Family) -> None:
    with pytest.raises(ModelFileError, match=r"no place for memdec_edge\.lambda; make it with memdec-edge convert"):
        metadata.patch(family.base, {LAMBDA: 0.5})


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ({LAMBDA: "a lot"}, "memdec_edge.lambda is 'a lot', not a number"),
        ({LAMBDA: "1.5"}, "memdec_edge.lambda is 1.5"),
        ({TEMPERATURE: "nan"}, "memdec_edge.temperature is nan"),
        ({TEMPERATURE: "-1"}, "memdec_edge.temperature is -1.0"),
        ({metadata.SCHEMA_VERSION: "3"}, "memdec_edge.schema_version is 3, this version knows 2"),
        ({metadata.SCHEMA_VERSION: "-1"}, "memdec_edge.schema_version is '-1'"),
        ({metadata.ROLE: "king"}, "memdec_edge.role is 'king'"),
        ({metadata.TOKENIZER_N_TOKENS: "many"}, "memdec_edge.tokenizer.n_tokens is 'many'"),
        ({GATE[0]: "1.0"}, "only some of memdec_edge.gate.weight_0"),
    ],
)
def test_a_garbage_value_is_named_with_its_key(meta: dict[str, str], named: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        MemoryMetadata.from_gguf("memdec-x.gguf", meta)
    assert str(caught.value).startswith(f"memdec-x.gguf: {named}")


KEYS = st.sampled_from(
    [*metadata.PLACEHOLDERS, metadata.ROLE, metadata.SCHEMA_VERSION, metadata.TOKENIZER_N_TOKENS, "memdec_edge.train.k"]
)
VALUES = st.one_of(st.text(max_size=12), st.floats().map(str), st.integers().map(str), st.just("memory"))


@pytest.mark.parametrize("key", metadata.SINGLE)
def test_an_array_in_place_of_a_value_does_not_count_as_none(family: Family, tmp_path: Path, key: str) -> None:
    raw = raw_gguf.read(family.memory)
    raw.set(key, [1, 2])
    path = raw.write(tmp_path / "memdec-odd.gguf")
    for opened in (metadata.read, Model):
        with pytest.raises(ModelFileError) as caught:
            opened(path)
        assert str(caught.value) == f"{path}: {key} is an array, not a single value; make the file again"


@FUZZ
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_strings_give_metadata_in_range_or_an_error(meta: dict[str, str]) -> None:
    try:
        found = MemoryMetadata.from_gguf("x.gguf", meta)
    except ModelFileError:
        return
    assert found.weight is None or 0 <= found.weight <= 1
    assert 0.01 <= found.temperature <= 100
    assert found.role in ("memory", "model")


def test_the_tokenizer_digest_leaves_padding_out(family: Family) -> None:
    with Header(family.base) as base, Header(family.padded) as padded, Header(family.renamed) as renamed:
        tokens = base.strings("tokenizer.ggml.tokens")
        assert len(padded.strings("tokenizer.ggml.tokens")) == len(tokens) + PADDING
        expected = hashlib.sha256(b"".join(len(token).to_bytes(4, "little") + token for token in tokens)).hexdigest()
        assert metadata.tokenizer_digest(tokens) == (expected, len(tokens))
        assert metadata.tokenizer_digest(padded.strings("tokenizer.ggml.tokens")) == (expected, len(tokens))
        assert metadata.tokenizer_digest(renamed.strings("tokenizer.ggml.tokens"))[0] != expected
    for path in (family.memory, family.padded):
        found = MemoryMetadata.from_gguf(path, llama_metadata(path))
        assert (found.tokenizer_sha256, found.tokenizer_n_tokens) == (expected, len(tokens))


def test_a_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.gguf"):
        metadata.read(tmp_path / "nowhere.gguf")


def test_a_big_endian_file_of_ggufs_own_writer_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_name("big")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(ModelFileError, match="is big-endian"):
        metadata.read(path)


def test_a_folder_given_as_a_gguf_names_convert(family: Family) -> None:
    with pytest.raises(ModelFileError, match=r"is a folder and no GGUF file; make one .* with memdec-edge convert"):
        metadata.read(family.memory_checkpoint)


@pytest.mark.parametrize("content", [b"", b"GG", b"hello world, I am a text", b"PK\x03\x04" * 10])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        metadata.read(path)


def test_a_file_cut_anywhere_in_its_header_is_refused(family: Family, tmp_path: Path) -> None:
    content, path = family.memory.read_bytes(), tmp_path / "cut.gguf"
    with Header(family.memory) as header:
        first = min(content.find(tensor.name.encode()) for tensor in header.tensors)
    for length in range(4, first, 101):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=f"ends at byte {length}"):
            metadata.read(path)


def header_bytes(n_tensors: int, n_keys: int, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + body


HUGE = 2**63
ARRAY_OF = pack_string(b"key") + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (header_bytes(0, HUGE), "number of keys"),
        (header_bytes(HUGE, 0), "number of tensors"),
        (header_bytes(0, 1, struct.pack("<Q", HUGE)), "a key is"),
        (header_bytes(0, 1, pack_string(b"key") + struct.pack("<IQ", 8, HUGE)), "inside key"),
        (header_bytes(0, 1, ARRAY_OF + struct.pack("<IQ", 4, HUGE)), "number of elements of key"),
        (header_bytes(0, 1, ARRAY_OF + struct.pack("<IQ", 8, 1 << 24)), "inside key"),
        (header_bytes(0, 1, ARRAY_OF + struct.pack("<IQ", 9, 1)), "unknown value type 9"),
        (header_bytes(0, 1, pack_string(b"key") + struct.pack("<I", 77)), "unknown value type 77"),
        (header_bytes(0, 2, (pack_string(b"key") + struct.pack("<II", 4, 1)) * 2), "the key key stands in it twice"),
        (header_bytes(1, 0, pack_string(b"t") + struct.pack("<I", 9)), "t has 9 dimensions"),
        (header_bytes(1, 0, pack_string(b"t") + struct.pack("<IQ", 1, 5)), "inside t"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not known, only 2 and 3 are; convert the model again"),
        (b"GGUF" + struct.pack("<IQQ", 50331649, 0, 0), "version 50331649 is not known"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"is big-endian, llama\.cpp wants little-endian; gguf-convert-endian"),
        (b"GGUF" + struct.pack(">IQQ", 2, 0, 0), "is big-endian"),
        (
            b"tjgg" + struct.pack("<I", 3),
            r"is of llama\.cpp's formats before GGUF; convert or download the model again",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a pointer of Git LFS and not the file; run git lfs pull",
        ),
    ],
)
def test_a_lying_header_is_refused_by_name(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=named):
        metadata.read(path)


@FUZZ
@given(st.data())
def test_damaged_bytes_give_values_or_an_error(family: Family, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(family.memory.read_bytes()[: 1 << 16])
    spots = st.integers(4, 2000) | st.integers(4, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(spots)] = data.draw(st.sampled_from([0, 1, 8, 9, 127, 255]) | st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        values, _ = metadata.read(path)
        MemoryMetadata.from_gguf(path, values)
        metadata.patch(path, {LAMBDA: 0.5})
    except ModelFileError:
        return
    assert metadata.read(path)[0][LAMBDA] == 0.5


@FUZZ
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic_never_do_harm(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + tail)
    with suppress(ModelFileError):
        metadata.read(path)


@FUZZ
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=8),
        st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(width=32, allow_nan=False) | st.text(max_size=20),
        max_size=8,
    )
)
def test_what_is_written_is_read_back(tmp_path: Path, values: dict[str, Any]) -> None:
    file, path = GgufFile(), tmp_path / "some.gguf"
    for key, value in values.items():
        file.add(key, value)
    file.write(path, [], lambda count: None)
    found, tensors = metadata.read(path)
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]
    assert tensors == []


def test_a_key_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    file, path = GgufFile(), tmp_path / "odd.gguf"
    file.add("general.\nname", "odd")
    file.write(path, [], lambda count: None)
    with pytest.raises(ModelFileError, match="a key at byte 32 is no text; the file is damaged") as caught:
        metadata.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "origin"),
    [
        ({}, "the file recommends none"),
        ({LAMBDA: math.nan, "memdec_edge.train.lambda": 0.35}, "the file recommends none"),
        ({LAMBDA: 0.35}, "set after training"),
        ({LAMBDA: 0.4, "memdec_edge.train.lambda": 0.35}, "set after training"),
        (
            {LAMBDA: 0.3499999940395355, "memdec_edge.train.lambda": "0.350000", "memdec_edge.train.teacher": "smol"},
            "training found it best on validation text, mixed with smol",
        ),
        ({LAMBDA: 0.35, "memdec_edge.train.lambda": "one"}, "set after training"),
    ],
)
def test_a_recommended_lambda_tells_where_it_comes_from(entries: dict[str, object], origin: str) -> None:
    assert metadata.MemoryMetadata.from_gguf("a.gguf", entries).origin == origin
