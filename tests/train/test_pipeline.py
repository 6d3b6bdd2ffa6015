"""build_cache() and train() on a tiny llama: what they write, against transformers and NumPy."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from memdec_edge.documents import read_documents, split_documents
from memdec_edge.errors import StageError
from memdec_edge.gguf import metadata
from memdec_edge.options import KEYS
from memdec_edge.train import NOTICE, build_cache, train
from memdec_edge.train.knn import cache as train_cache
from tests.support.tiny import tiny_gguf, to_gguf
from tests.support.training import BLOCK, K, cache_options, flip, make_room, metrics, train_options, words


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def test_the_report_counts_what_the_cache_holds(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = build_cache(cache_options(room))
    tokens = {split: np.load(room / "cache" / "tokens" / f"{split}.npy") for split in ("train", "valid")}
    assert (report.train_tokens, report.valid_tokens) == tuple(map(len, tokens.values()))
    assert report.train_tokens == 700
    assert (report.path, report.held_out, report.key) == (room / "cache", None, "mlp_input")
    assert report.bytes == sum(path.stat().st_size for path in (room / "cache").rglob("*") if path.is_file())
    assert report.knn_perplexity is not None
    assert report.teacher_perplexity is not None
    assert report.knn_perplexity < report.teacher_perplexity
    assert capsys.readouterr() == ("", "")  # nothing to do, nothing to say


def test_the_disk_needed_is_said_before_work_starts(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cache(cache_options(room, out=tmp_path / "cache"))
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if not line.startswith(("text: ", "Warning: "))]  # of the corpus
    assert said[0].startswith("the kNN cache needs 0 MB for keys and at most 0 MB for targets in ")
    assert len(said) == 1


def test_keys_are_the_inputs_of_the_last_mlp_at_each_position_of_each_block(room: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(room / "teacher", dtype=torch.float32)
    caught: list[torch.Tensor] = []
    model.model.layers[-1].post_attention_layernorm.register_forward_hook(lambda m, i, out: caught.append(out))
    tokens = torch.from_numpy(np.load(room / "cache" / "tokens" / "train.npy").astype(np.int64))
    with torch.no_grad():
        for start in range(0, len(tokens) - 1 - BLOCK, BLOCK):
            model(input_ids=tokens[None, start : start + BLOCK])
    truth = torch.cat(caught, 1)[0].numpy()
    keys = load_file(room / "cache" / "keys" / "00000.safetensors")["keys"]
    assert keys.dtype == np.float16
    assert keys.shape == truth.shape
    assert np.square(keys - truth).mean() < 0.002 * np.square(truth).mean()  # bfloat16 where the CPU has it


def test_targets_are_what_the_other_keys_say_comes_next(room: Path) -> None:
    tokens = np.load(room / "cache" / "tokens" / "train.npy").astype(int)
    keys = load_file(room / "cache" / "keys" / "00000.safetensors")["keys"].astype(np.float64)
    targets = load_file(room / "cache" / "targets" / "00000.safetensors")
    tau = json.loads((room / "cache" / "manifest.json").read_text())["facts"]["tau"]
    distances = ((keys[:, None] - keys[None]) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    for row in range(0, len(keys), 17):
        nearest = distances[row].argsort()[:K]
        truth = np.zeros(500)
        np.add.at(truth, tokens[nearest + 1], np.exp(-distances[row, nearest] / tau))
        found = np.zeros(500)
        pairs = slice(targets["offsets"][row], targets["offsets"][row + 1])
        found[targets["ids"][pairs]] = targets["probs"][pairs]
        truth /= truth.sum()
        assert truth[found == 0].sum() <= 0.05  # --top-mass 0.95
        np.testing.assert_allclose(found[found > 0], truth[found > 0], atol=2e-3)


def test_a_whole_number_is_the_same_option_as_text_and_as_python_has_it(room: Path, tmp_path: Path) -> None:
    build_cache(cache_options(room, finetune_teacher=1.0, out=tmp_path / "cache"))
    assert build_cache(cache_options(room, finetune_teacher=1, out=tmp_path / "cache")).bytes > 0


def test_a_gguf_teacher_gives_knn_lm_targets_without_fine_tuning_it(room: Path, tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "teacher.gguf", room / "teacher")
    reports = [
        build_cache(cache_options(room, target="knn-lm", teacher=teacher, out=tmp_path / name))
        for name, teacher in (("gguf", gguf), ("folder", room / "teacher"))
    ]
    assert reports[0].gate == pytest.approx(reports[1].gate, abs=0.1)
    shards = [load_file(tmp_path / name / "keys" / "00000.safetensors") for name in ("gguf", "folder")]
    assert (shards[0]["ids"] == shards[1]["ids"])[:, 0].mean() > 0.9
    np.testing.assert_allclose(shards[0]["probs"], shards[1]["probs"], atol=0.05)


def test_knn_lm_targets_are_retriever_and_teacher_mixed_by_the_gate(room: Path, tmp_path: Path) -> None:
    report = build_cache(cache_options(room, target="knn-lm", top_mass=1.0, out=tmp_path / "cache"))
    alone = build_cache(cache_options(room, top_mass=1.0, out=tmp_path / "alone"))
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())["facts"]
    assert (report.tau, report.gate, report.knn_perplexity) == (alone.tau, alone.gate, alone.knn_perplexity)
    assert report.gate is not None
    assert 0 < report.gate < 1
    model = transformers.AutoModelForCausalLM.from_pretrained(room / "teacher", dtype=torch.float32)
    tokens = np.load(tmp_path / "cache" / "tokens" / "train.npy").astype(np.int64)
    keys, mixed = (load_file(tmp_path / "cache" / kind / "00000.safetensors") for kind in ("keys", "targets"))
    retrieved = load_file(tmp_path / "alone" / "targets" / "00000.safetensors")
    with torch.no_grad():
        own = model(input_ids=torch.from_numpy(tokens[None, :BLOCK])).logits[0].softmax(-1).numpy()

    def dense(csr: dict[str, np.ndarray], row: int) -> np.ndarray:
        found = np.zeros(own.shape[1])
        pairs = slice(csr["offsets"][row], csr["offsets"][row + 1])
        found[csr["ids"][pairs]] = csr["probs"][pairs]
        return found

    exact = keys["keys"].astype(np.float64)
    for row in range(BLOCK):
        distances = ((exact - exact[row]) ** 2).sum(1)
        distances[row] = np.inf
        fitted = manifest["trust"]
        gate = 1 / (1 + np.exp(fitted["slope"] * distances.min() - fitted["intercept"]))
        likeliest = np.sort(own[row])[-train_cache.OWN :]
        truth = gate * dense(retrieved, row) + (1 - gate) * np.where(
            own[row] >= likeliest[0], own[row] / likeliest.sum(), 0
        )
        assert np.abs(dense(mixed, row) - truth).sum() < 0.12  # bfloat16, and one id in or out


def test_the_report_has_the_median_distances_of_validation_positions(room: Path) -> None:
    report = build_cache(cache_options(room))
    distances = load_file(room / "cache" / "validation.safetensors")["distances"]
    assert report.nearest_distance == pytest.approx(np.median(distances.min(1)))
    assert report.kth_distance == pytest.approx(np.median(distances.max(1)))
    assert distances.shape[1] == K


def test_test_documents_taken_out_of_a_corpus_are_held_out_as_text(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f'{text} "\u2028 {i}"' for i, text in enumerate(words(40, 1))]
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = cache_options(room, corpus=corpus, out=tmp_path / "cache", max_tokens=0, valid_fraction=0.1)
    report = build_cache(options)
    path = tmp_path / "cache" / "test.jsonl"
    assert report.held_out == path
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "text: 40 documents become train 34, valid 4, test 2"
    assert said[2:] == [f"held-out text, for memdec-edge eval: {path}"]
    held_out = read_documents(path)
    parts = split_documents(corpus, 0.1, options.test_fraction, options.seed)
    assert held_out == [document.text for document in parts["test"]]
    capsys.readouterr()
    assert len(held_out) == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(room / "teacher")
    seen = tokenizer.decode(np.load(tmp_path / "cache" / "tokens" / "train.npy"))
    assert not any(text in seen for text in held_out)
    assert sum(text in seen for text in texts) == 34
    build_cache(options)
    assert capsys.readouterr() == ("", "")


def test_special_tokens_in_the_text_are_text(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(["a <|endoftext|> b"] * 60))
    options = cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "cache", max_tokens=0)
    build_cache(options)
    tokens = np.load(tmp_path / "cache" / "tokens" / "train.npy")
    assert tokens.tolist().count(0) == 1  # EOS at the end


def test_a_trained_memory_is_an_ordinary_checkpoint_with_its_metadata(
    room: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = train_options(room, tmp_path / "memory", domain="old words", license="CC0-1.0", beta=0.5)
    report = train(options)
    out, err = capfd.readouterr()
    assert out == ""
    start = re.fullmatch(
        r"validation perplexity of the memory before training: ([\d.]+) \(([\d.]+) mixed with the teacher\)\n", err
    )
    assert start  # and no chatter of libraries
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "memory", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "memory")
    assert tokenizer.get_vocab() == transformers.AutoTokenizer.from_pretrained(room / "teacher").get_vocab()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tau = json.loads((room / "cache" / "manifest.json").read_text())["facts"]["tau"]
    tokens = 12 * 2 * BLOCK
    assert json.loads((tmp_path / "memory" / "memdec.json").read_text()) == {
        "memdec_edge.domain": "old words",
        "memdec_edge.lambda": report.mixture_lambda,
        "memdec_edge.train.lambda": report.mixture_lambda,
        "memdec_edge.train.beta": 0.5,
        "memdec_edge.train.k": K,
        "memdec_edge.train.knn_temperature": tau,
        "memdec_edge.train.key": "mlp_input",
        "memdec_edge.train.target": "knn",
        "memdec_edge.train.teacher": "teacher",
        "memdec_edge.train.epochs": pytest.approx(tokens / (700 // BLOCK * BLOCK)),
        "memdec_edge.train.tokens": tokens,
        "memdec_edge.train.texts_sha256": sorted(
            hashlib.sha256((room / "corpus" / f"{split}.jsonl").read_bytes()).hexdigest()
            for split in ("train", "valid")
        ),
        "general.name": "memdec-old-words",
        "general.description": f"Memory Decoder for old words. {NOTICE}",
        "general.license": "CC0-1.0",
    }
    assert (report.path, report.steps, report.tokens, report.notice) == (tmp_path / "memory", 12, tokens, NOTICE)
    assert [line["step"] for line in metrics(tmp_path / "memory")] == list(range(1, 13))
    assert not (tmp_path / "memory" / "resume.safetensors").exists()

    valid = torch.from_numpy(np.load(room / "cache" / "tokens" / "valid.npy").astype(np.int64))
    teacher = transformers.AutoModelForCausalLM.from_pretrained(room / "teacher", dtype=torch.float32)
    ids = torch.stack([valid[start : start + BLOCK + 1] for start in range(0, len(valid) - 1 - BLOCK, BLOCK)])
    with torch.no_grad():
        mine, theirs = (
            network(input_ids=ids[:, :-1]).logits.softmax(-1).gather(2, ids[:, 1:, None])
            for network in (model, teacher)
        )
    assert report.valid_perplexity == pytest.approx((-mine.log().mean()).exp().item(), rel=0.02)
    mixtures = {i / 20: (-(i / 20 * mine + (1 - i / 20) * theirs).log().mean()).exp().item() for i in range(21)}
    assert report.mixture_perplexity == pytest.approx(min(mixtures.values()), rel=0.02)
    assert report.mixture_lambda is not None
    assert mixtures[report.mixture_lambda] < 1.005 * min(mixtures.values())
    assert start[1] == start[2]  # the memory begins as the teacher
    assert float(start[1]) == pytest.approx(mixtures[0], rel=0.02)


def test_the_name_of_a_corpus_that_is_not_utf_8_becomes_a_domain_that_is(room: Path, tmp_path: Path) -> None:
    corpus = tmp_path / os.fsdecode(b"caf\xe9.txt")
    corpus.write_text("\n\n".join(words(30, 1)))
    cache = cache_options(room, corpus=corpus, out=tmp_path / "cache")
    train(train_options(room, tmp_path / "memory", cache=cache, beta=0.0, steps=1))
    found = json.loads((tmp_path / "memory" / "memdec.json").read_text(encoding="utf-8"))
    assert found["memdec_edge.domain"] == "caf\ufffd"


def test_a_finished_training_is_reused_and_its_licence_can_be_corrected(room: Path, tmp_path: Path) -> None:
    first = train(train_options(room, tmp_path / "memory"))
    before = (tmp_path / "memory" / "model.safetensors").stat().st_mtime_ns
    again = train(train_options(room, tmp_path / "memory", license="MIT"))
    assert replace(again, seconds=first.seconds) == first
    assert (tmp_path / "memory" / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "memory" / "memdec.json").read_text())["general.license"] == "MIT"
    flip(tmp_path / "memory" / "model.safetensors")
    with pytest.raises(StageError, match=r"model\.safetensors: missing, or changed since it was written"):
        train(train_options(room, tmp_path / "memory"))


def test_a_memory_of_a_teacher_in_the_hubs_cache_keeps_its_revision(room: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123abc"
    shutil.copytree(room / "teacher", snapshot)
    cache = cache_options(room, teacher=snapshot, out=tmp_path / "cache")
    train(train_options(room, tmp_path / "memory", cache=cache, steps=1, beta=0.0))
    found = json.loads((tmp_path / "memory" / "memdec.json").read_text())
    assert {key: value for key, value in found.items() if "teacher" in key} == {
        "memdec_edge.train.teacher": "tiny",
        "memdec_edge.train.teacher.huggingface.repository": "org/tiny",
        "memdec_edge.train.teacher.huggingface.revision": "0123abc",
    }
    to_gguf(tmp_path / "memory", tmp_path / "memdec-tiny.gguf")
    values = metadata.read(tmp_path / "memdec-tiny.gguf")[0]
    assert values["memdec_edge.train.teacher.huggingface.revision"] == "0123abc"


def test_the_retriever_of_a_gguf_reads_other_keys_and_agrees(room: Path, tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "teacher.gguf", room / "teacher")
    reports = [
        build_cache(cache_options(room, teacher=teacher, key=key, out=tmp_path / f"{teacher.name}-{key}"))
        for teacher in (room / "teacher", gguf)
        for key in KEYS
    ]
    assert [report.key for report in reports] == ["mlp_input", "hidden"] * 2
    for report in reports:
        same_key = next(other for other in reports if other.key == report.key)
        assert report.teacher_perplexity == pytest.approx(reports[0].teacher_perplexity, rel=0.02)
        assert report.knn_perplexity == pytest.approx(same_key.knn_perplexity, rel=0.05)  # bfloat16, float32


def test_a_temperature_that_is_worse_than_the_automatic_one_is_said(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = build_cache(cache_options(room, knn_temp=500.0, out=tmp_path / "cache"))
    assert report.tau == 500
    best = build_cache(cache_options(room))
    assert best.knn_perplexity is not None
    assert report.knn_perplexity is not None
    said = capsys.readouterr().err.splitlines()[-1]
    assert report.knn_perplexity > 1.02 * best.knn_perplexity
    assert said == (
        f"at the given temperature of 500 the retriever's validation perplexity is {report.knn_perplexity:.2f}; "
        f"auto would choose {best.tau:g} and reach {best.knn_perplexity:.2f}"
    )


def test_a_fine_tuned_teacher_is_a_better_one_and_the_memory_starts_from_the_plain_one(
    room: Path, tmp_path: Path
) -> None:
    options = cache_options(room, finetune_teacher=2.75, out=tmp_path / "cache")
    report, plain = build_cache(options), build_cache(cache_options(room))
    assert report.teacher_perplexity is not None
    assert plain.teacher_perplexity is not None
    assert report.teacher_perplexity < 0.9 * plain.teacher_perplexity
    assert [line["step"] for line in metrics(options.out / "teacher")] == list(range(1, 31))
    train(train_options(room, tmp_path / "memory", cache=options, lr=0.0, steps=1))
    weights = [load_file(path / "model.safetensors") for path in (tmp_path / "memory", room / "teacher")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])
    other = cache_options(room, out=tmp_path / "cache", fresh=True)
    shutil.copytree(options.out, tmp_path / "kept")
    build_cache(other)
    assert not (options.out / "teacher").exists()  # what another cache has no use for
    shutil.rmtree(options.out)
    (tmp_path / "kept").rename(options.out)
    flip(options.out / "teacher" / "model.safetensors")
    (options.out / "targets" / "00000.safetensors").unlink()
    with pytest.raises(StageError, match=r"teacher/model\.safetensors: missing, or changed since it was written"):
        build_cache(options)
