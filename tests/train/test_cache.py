"""train/knn/cache.py and build.py: shards and their limits, k, open files, memory, models that are loaded once."""

import copy
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from memdec_edge.errors import OptionError
from memdec_edge.files import sha256
from memdec_edge.options import DEFAULT_K, CacheOptions
from memdec_edge.train import build_cache, train
from memdec_edge.train.knn import build as train_build
from memdec_edge.train.knn import cache as train_cache
from memdec_edge.train.knn.cache import Cache
from memdec_edge.train.knn.exact import Exact
from memdec_edge.train.models import load_source, work_copy
from memdec_edge.train.targets import MAX_PAIRS, ROW_PAIRS
from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.training import BLOCK, K, cache_options, make_room, own_cache, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def test_every_position_gets_its_target_whatever_the_shards(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Cache(cache_options(room)).targets()
    monkeypatch.setattr(train_cache, "SHARD_POSITIONS", 3 * BLOCK)
    monkeypatch.setattr(train_build, "SEARCHED", 11)
    monkeypatch.setattr(train_build, "AGGREGATED", 5)
    options = cache_options(room, out=tmp_path / "cache")
    build_cache(options)
    assert len(Cache(options).shards("keys")) == len(list(options.out.glob("targets/*"))) == 15
    parts = Cache(options).targets()
    for block in range(43):
        one, other = (targets.rows([block * BLOCK], BLOCK) for targets in (whole, parts))
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("offsets", "ids", "probs"))


def test_shards_are_so_small_that_their_offsets_hold_and_no_larger_for_a_larger_text(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cache_options(room, out=tmp_path / "whole", top_mass=1.0)
    build_cache(whole)
    targets = Cache(whole).targets()
    monkeypatch.setattr(train_cache, "MAX_PAIRS", (K + train_cache.OWN) * 2 * BLOCK + 1)
    options = cache_options(room, out=tmp_path / "cache", top_mass=1.0)
    build_cache(options)
    parts = Cache(options)
    assert {len(blocks) for blocks in parts.shards("targets").values()} == {2, 1}
    for block in range(43):
        one, other = (found.rows([block * BLOCK], BLOCK) for found in (targets, parts.targets()))
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("offsets", "ids", "probs"))
    monkeypatch.setattr(train_cache, "MAX_PAIRS", (K + train_cache.OWN) * BLOCK - 1)
    with pytest.raises(OptionError, match=r"top_mass is 1: a block of 16 positions may have over 479 pairs; lower"):
        build_cache(replace(options, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_the_limits_of_a_shard_hold_at_the_largest_options() -> None:
    for k, n_vocab, block in ((1024, 49_152, 512), (1 << 20, 262_144, 16_383), (1, 400, 8), (1 << 20, 1 << 20, 4095)):
        for mass in (0.95, 1.0):
            options = CacheOptions(Path("t"), Path("c"), Path("o"), k=k, block=block, top_mass=mass)
            pairs = min(k + train_cache.OWN, n_vocab) if mass == 1 else ROW_PAIRS
            step = train_cache.shard_blocks(options, k, n_vocab)
            assert step * block * pairs <= MAX_PAIRS
            assert step * block <= train_cache.SHARD_POSITIONS
    options = CacheOptions(Path("t"), Path("c"), Path("o"), k=1 << 20, block=1 << 20, top_mass=1.0)
    with pytest.raises(OptionError, match="over 4294967295 pairs; lower it, `block` or `k`"):
        train_cache.shard_blocks(options, 1 << 20, 262_144)


def test_a_cache_of_an_earlier_version_keeps_its_hundred_shards(room: Path, tmp_path: Path) -> None:
    options = own_cache(room, tmp_path)
    body = json.loads((options.out / "manifest.json").read_text())
    del body["facts"]["shard_blocks"]
    (options.out / "manifest.json").write_text(json.dumps(body))
    cache = Cache(options)
    assert cache.shards("keys") == Cache(cache_options(room)).shards("keys")
    body["facts"] |= {"files": {}, "tokens": {}}
    long = np.zeros(40 * 16_384 * BLOCK + 1, np.uint32)
    cache.tokens = lambda split: long
    assert {len(blocks) for blocks in cache.shards("keys").values()} == {16_384 * 40 // 100 + 1, 16_384 * 40 % 6554}
    assert len(cache.shards("keys")) == 100


def test_no_more_files_are_open_than_a_few_whatever_the_shards(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_cache, "SHARD_POSITIONS", BLOCK)
    options = cache_options(room, out=tmp_path / "cache")
    build_cache(options)
    cache = Cache(options)
    before = len(os.listdir("/proc/self/fd"))
    keys, targets = cache.datastore(), cache.targets()
    searcher = Exact(keys, torch.device("cpu"))
    searcher.search(torch.from_numpy(keys[0].copy()), 3)
    targets.rows([0, 5 * BLOCK], BLOCK)
    assert (len(keys), keys.n) == (43, 688)
    assert len(os.listdir("/proc/self/fd")) - before < 3


def test_a_small_text_gets_as_many_neighbours_as_there_are_and_says_so(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = cache_options(room, k=None, out=tmp_path / "cache")
    report = build_cache(options)
    assert report.k == 687
    assert "the text has 688 keys: k is 687 and not 1024" in capsys.readouterr().err.splitlines()
    all_of_them = build_cache(cache_options(room, k=687, out=tmp_path / "other"))
    assert replace(report, path=all_of_them.path, bytes=all_of_them.bytes) == all_of_them
    with pytest.raises(OptionError, match="k is 1024: the datastore has 688 keys, so a key has 687 neighbours"):
        build_cache(replace(options, k=1024, out=tmp_path / "explicit"))
    trained = train(train_options(room, tmp_path / "memory", cache=options, steps=1))
    assert json.loads((trained.path / "memdec.json").read_text())["memdec_edge.train.k"] == 687
    assert build_cache(options) == report
    assert "k is" not in capsys.readouterr().err.splitlines()[-1]


def test_the_default_k_is_the_one_that_earlier_caches_name() -> None:
    assert DEFAULT_K == 1024


def test_a_model_is_loaded_once_in_a_training(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def counting(path: Path, **options: Any) -> Any:
        loaded.append(path)
        return load(path, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counting)
    cache = cache_options(room, out=tmp_path / "cache", finetune_teacher=0.1)
    options = train_options(room, tmp_path / "memory", cache=cache, steps=1)
    train(options)
    assert loaded == [room / "teacher", tmp_path / "cache" / "teacher"]
    train(options)
    assert len(loaded) == 2
    gguf = tiny_gguf(tmp_path / "teacher.gguf", room / "teacher")
    cache = cache_options(room, teacher=gguf, out=tmp_path / "of a gguf", finetune_teacher=0.1)
    train(train_options(room, tmp_path / "other", cache=cache, steps=1))
    assert len(loaded) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_working_copy_shares_the_numbers_that_need_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tied: bool
) -> None:
    source = load_source(tiny_checkpoint(tmp_path / "model", tied=tied)).model
    before = copy.deepcopy(source.state_dict())
    monkeypatch.setattr("memdec_edge.train.models.work_dtype", lambda device: dtype)
    found = work_copy(source, torch.device("cpu"))
    theirs = dict(source.named_parameters())
    for name, mine in found.named_parameters():
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs[name].to(dtype))
        assert (mine.data_ptr() == theirs[name].data_ptr()) == (dtype == torch.float32)
    head, embedding = found.get_output_embeddings().weight, found.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert all(buffer.dtype == torch.float32 for buffer in found.buffers())
    found.model.layers[0] = torch.nn.Identity()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_of_a_zip_the_test_split_is_none_of_the_texts_that_were_seen(room: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for path in (room / "corpus").iterdir():
            archive.write(path, f"corpus/{path.name}")
    folder, packed = (Cache(cache_options(room, corpus=corpus, out=tmp_path / "cache"))
                      for corpus in (room / "corpus", tmp_path / "corpus.zip"))  # fmt: skip
    assert (
        packed.texts == folder.texts == sorted(sha256(room / "corpus" / f"{name}.jsonl") for name in ("train", "valid"))
    )
