"""The benchmark against independent truths: sizes as gguf reads them, a simulation of rounds, its own counters, and the
command line as a user meets it. Speeds themselves are not judged: other work on the machine would be."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from memdec_edge.bench import bench
from memdec_edge.bench.bandwidth import bandwidth_meter, model_bytes
from memdec_edge.bench.figures import Speed, one_after_another, predicted_tps
from memdec_edge.bench.systems import Costs, cut_prompts, row_costs, run
from memdec_edge.engine import Engine, MemoryMixture
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.options import BenchOptions, GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from tests.conftest import Family
from tests.support.command import error_of, last_json, memdec
from tests.support.indexes import index_file
from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.tiny_recurrent import tiny_recurrent_gguf

LOAD = LoadOptions(n_ctx=512, threads=1)
SHORT = ["--prompt-tokens", 24, "-n", 12, "--repetitions", 2, "-t", 1, "-s", 3]


def tensor_bytes(path: Path, *left_out: str) -> int:
    return sum(tensor.n_bytes for tensor in GGUFReader(path).tensors if tensor.name not in left_out)


@pytest.fixture(scope="module")
def found(family: Family) -> dict[str, Any]:
    """What `bench --json` says of a base and two memories that draft 3 tokens."""
    memories = ["-M", family.memory, "-M", family.padded, "--lambda", 0.5]
    return last_json(memdec("bench", "-m", family.base, *memories, *SHORT, "--draft", 3, "--json"))


def test_every_system_has_both_speeds(found: dict[str, Any]) -> None:
    for name in ("base", "memory", "mixture", "drafted", "base_llama_generate", "base_engine"):
        assert found[name]["prompt_tps"] > 0
        assert found[name]["gen_tps"] > 0
    assert len(found["memories"]) == len(found["memory_files"]) == 2
    assert found["lambdas"] == [0.25, 0.25]


def test_the_base_is_the_faster_of_llama_cpp_python_and_this_engine(found: dict[str, Any]) -> None:
    for phase in ("prompt_tps", "gen_tps"):
        assert found["base"][phase] == max(found["base_llama_generate"][phase], found["base_engine"][phase])


def test_ratios_follow_from_the_figures(found: dict[str, Any]) -> None:
    drafted = found["drafted"]["gen_tps"]
    assert found["ratio_to_base"] == pytest.approx(drafted / found["base"]["gen_tps"])
    assert found["ratio_to_mixture"] == pytest.approx(drafted / found["mixture"]["gen_tps"])
    share = found["drafted"]["predicted_share"]  # of all runs together, where gen_tps is a median
    assert share == pytest.approx(drafted / found["drafted"]["predicted_tps"], rel=0.5)
    seconds = sum(1 / memory["gen_tps"] for memory in found["memories"])
    assert found["memory"]["gen_tps"] == pytest.approx(1 / seconds)


def test_time_is_split_without_rest(found: dict[str, Any]) -> None:
    for figures in (found["base_engine"], *found["memories"], found["mixture"], found["drafted"]):
        split = figures["time_split"]
        assert sum(split.values()) == pytest.approx(100)
        assert min(split.values()) >= 0
    assert found["base_engine"]["time_split"]["memory"] == 0
    assert found["mixture"]["time_split"]["memory"] > 0


def test_drafts_are_counted(found: dict[str, Any]) -> None:
    drafted = found["drafted"]
    lengths = {int(length): rounds for length, rounds in drafted["draft_lengths"].items()}
    assert max(lengths) == 3
    assert drafted["tokens_per_base_pass"] == pytest.approx(2 * 12 / sum(lengths.values()))
    assert 0 <= drafted["acceptance"] <= 1
    assert drafted["predicted_length"] == 3
    assert list(found["base_rows_ms"]) == [str(rows) for rows in range(1, 9)]


def test_plain_rounds_read_every_model_once_a_token(family: Family, found: dict[str, Any]) -> None:
    base = tensor_bytes(family.base, "token_embd.weight")  # untied: only looked up
    memories = [tensor_bytes(family.memory), tensor_bytes(family.padded)]
    assert found["base_engine"]["model_bytes_per_token"] == base
    assert [figures["model_bytes_per_token"] for figures in found["memories"]] == memories
    assert found["mixture"]["model_bytes_per_token"] == base + sum(memories)
    share = found["mixture"]["gen_tps"] * (base + sum(memories)) / found["read_bytes_per_second"]
    assert found["mixture"]["bandwidth_share"] == pytest.approx(share)


def test_without_a_memory_only_the_base_is_measured(family: Family) -> None:
    for memory in ([], ["-M", family.memory, "--lambda", 0]):
        done = memdec("bench", "-m", family.base, *memory, *SHORT, "--json")
        assert "mixture" not in done.stdout.rpartition("{")[0].splitlines()[1]
        alone = last_json(done)
        assert alone["base"]["gen_tps"] > 0
        for name in ("memory", "mixture", "drafted", "ratio_to_base", "ratio_to_mixture", "memory_step_ms"):
            assert alone[name] is None


def test_the_policy_chooses_among_lengths_up_to_seven(family: Family) -> None:
    options = BenchOptions(prompt_tokens=16, n_predict=40, repetitions=1)
    report = bench(family.base, [MemoryOptions(family.memory)], LOAD, SamplingOptions(seed=1), options)
    assert report.drafted
    assert set(report.drafted.draft_lengths) <= set(range(8))
    assert report.drafted.predicted_length in range(8)
    assert report.options == options
    assert report.sampling.seed == 1


def test_a_base_that_cannot_roll_back_has_no_costs_and_no_prediction(family: Family, tmp_path: Path) -> None:
    base = tiny_recurrent_gguf(tmp_path / "base.gguf", family.base)
    report = bench(base, [MemoryOptions(family.memory)], LOAD, SamplingOptions(seed=1), BenchOptions(16, 4, 1))
    assert (report.base_rows_ms, report.memory_step_ms) == ({}, None)
    assert report.base_llama_generate.gen_tps > 0
    assert report.drafted
    assert report.drafted.draft_lengths == {0: 4}
    assert report.drafted.predicted_tps is None


@pytest.fixture(scope="module")
def index(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    digest, n_vocab = tokenizer_of(family.base)
    path = tmp_path_factory.mktemp("index") / "memdec-index.gguf"
    return index_file(path, [list(range(1, 60)) * 3], n_vocab, digest=digest)


@pytest.mark.parametrize("n_predict", [1, 4])
def test_an_index_that_may_draft_nothing_ends(family: Family, index: Path, tmp_path: Path, n_predict: int) -> None:
    """Nothing can be drafted before the only token, or on a base that cannot roll back: no length can be learned."""
    base = family.base if n_predict == 1 else tiny_recurrent_gguf(tmp_path / "base.gguf", family.base)
    options = BenchOptions(16, n_predict, 1)
    report = bench(base, [MemoryOptions(index)], LOAD, SamplingOptions(seed=1), options)
    assert report.drafted
    assert report.drafted.draft_lengths == {0: n_predict}


def test_an_index_is_told_with_its_weight_after_the_longest_matches(family: Family, index: Path) -> None:
    voices = ["--memory-scaled", f"{family.memory}:0.2", "--memory-scaled", f"{index}:0.7"]
    done = memdec("bench", "-m", family.base, *voices, *SHORT, "--draft", 3, "--json")
    report = last_json(done)
    assert report["lambdas"] == pytest.approx([0.2, 0.7])
    assert report["drafted"]["weights"] == pytest.approx([0.8, 0.2, 0.7])
    lines = done.stdout.splitlines()
    assert f"memory {family.memory} at lambda 0.2, at the end of the texts 0.2" in lines
    assert f"index {index} at lambda 0.7 after its longest matches, at the end of the texts 0.7" in lines


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_model_bytes_are_those_that_a_pass_reads(tmp_path: Path, tied: bool, outtype: str) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", tiny_checkpoint(tmp_path / "x", tied=tied), outtype)
    assert model_bytes(path) == tensor_bytes(path, *(() if tied else ("token_embd.weight",)))


def test_bandwidth_is_that_of_a_machine() -> None:
    assert 1e8 < bandwidth_meter(1)() < 1e13


def test_prompts_are_cut_from_the_text_at_even_distances(family: Family) -> None:
    text = "The heart pumps blood through the body. " * 20
    with closing(Engine(family.base, (), LOAD)) as engine:
        tokens = engine.base.tokenize(text)
        prompts = cut_prompts(engine, [text], 30, 4)
        assert [len(prompt) for prompt in prompts] == [30] * 4
        first = int(engine.base.add_bos)
        spare = len(tokens) - 30
        for number, prompt in enumerate(prompts):
            start = first + number * spare // 3
            assert prompt[first:] == tokens[start : start + 30 - first]
        assert prompts[-1][-1] == tokens[-1]
        assert cut_prompts(engine, [text], len(tokens) + 1, 1) == []
        assert cut_prompts(engine, [text], len(tokens), 1) == [tokens]


def test_a_run_starts_from_empty_caches_and_counts_all_its_tokens(family: Family) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], LOAD)) as engine:
        mixture = MemoryMixture.of([(engine.memories[0], 0.6)])
        sampling, generation = SamplingOptions(seed=1), GenerationOptions(20, ignore_eos=True, draft=2)
        prompt = list(range(5, 45))
        for _ in range(2):
            found = run(engine, sampling, generation, mixture, prompt)
            assert found.counters.emitted == 20
            steps = found.counters.memory_steps
            most = sum(rounds * (length + 1) for length, rounds in found.counters.lengths.items())
            assert 20 - 1 <= steps <= most  # a round decodes its newest token and each drafted one, none twice
        costs = row_costs(engine, engine.memories, prompt, 50, 4)
        assert list(costs.base) == [1, 2, 3, 4]
        assert list(costs.beside) == ([1, 2, 3, 4] if engine.rounds.division else [])
        assert run(engine, sampling, generation, MemoryMixture.of(()), prompt).counters.memory_steps == 0


@pytest.mark.parametrize(("acceptance", "length"), [(0.3, 1), (0.8, 5), (1.0, 7), (0.0, 3), (0.6, 0)])
def test_the_prediction_is_the_mean_of_simulated_rounds(acceptance: float, length: int) -> None:
    costs = Costs({rows: 0.010 + 0.003 * rows for rows in range(1, 9)}, 0.004, {})
    chance, tokens, seconds = random.Random(7), 0, 0.0
    for _ in range(40_000):
        right = 0
        while right < length and chance.random() < acceptance:
            right += 1
        tokens += right + 1
        seconds += costs.base[length + 1] + costs.memory * (length + (right == length))
    assert predicted_tps(costs, acceptance, length) == pytest.approx(tokens / seconds, rel=0.01)


def test_a_step_beside_the_base_counts_where_it_is_faster() -> None:
    costs = Costs({1: 0.010, 2: 0.012}, 0.004, {1: 0.011, 2: 0.020})
    assert predicted_tps(costs, 0.5, 0) == pytest.approx(1 / 0.011)  # in turn 1 / 0.014
    assert predicted_tps(costs, 0.5, 1) == pytest.approx(1.5 / (0.012 + 1.5 * 0.004))


def test_costs_are_medians_row_by_row() -> None:
    found = Costs.medians([Costs({1: a, 2: b}, c, {1: d}) for a, b, c, d in ((1, 9, 5, 2), (3, 7, 1, 4), (2, 8, 2, 3))])
    assert found == Costs({1: 2, 2: 8}, 2, {1: 3})


def test_models_one_after_another_add_their_times() -> None:
    assert one_after_another([Speed(100, 10), Speed(100, 30)]) == Speed(50, 7.5)


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (["--prompt-tokens", 1], "--prompt-tokens is 1: must be from 2 to 1048576", 2),
        (["-n", 0], "--predict is 0: must be from 1 to 1048576", 2),
        (["--repetitions", 0], "--repetitions is 0: must be from 1 to 1000", 2),
        (["--draft", 17], "--draft is 17: must be from 0 to 16", 2),
        (
            ["-ctk", "q3"],
            "--cache-type-k is q3: must be one of f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl",
            2,
        ),
        (["--temp", -1], "--temp is -1: must be from 0 to 100", 2),
        (["-p", "x", "-f", "y"], "--file is y: given beside --prompt; give one of the two", 2),
        (["-f", "no.txt"], "no.txt: no such text file or folder; check the path", 1),
        (
            ["-p", "The heart is"],
            "the text: shorter than a prompt of 24 tokens; give a longer one or lower --prompt-tokens",
            1,
        ),
        (
            ["-n", 500],
            "a prompt of 24 tokens and 500 new ones do not fit the context of 512; "
            "raise --ctx-size as far as the models were trained, shorten the prompt or lower --predict",
            1,
        ),
        (["-M", "no.gguf"], "no.gguf: no such GGUF file; check the path", 1),
    ],
)
def test_what_cannot_be_measured_is_one_line(family: Family, arguments: list[object], line: str, code: int) -> None:
    assert error_of("bench", "-m", family.base, *SHORT, *arguments, code=code) == line
