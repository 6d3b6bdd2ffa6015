"""Streaming and generating: stop strings, limits, errors, and llama-cpp-python as the judge of greedy text."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import pytest

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.api.results import Timings
from memdec_edge.errors import ContextError, OptionError
from memdec_edge.options import GenerationOptions, LoadOptions, MixtureOptions, SamplingOptions
from tests.conftest import Family
from tests.support.real import EXACT, SMOLLM2

GREEDY = SamplingOptions(temperature=0.0)
PROMPT = "The heart is a muscle that"


@pytest.fixture(scope="module")
def tiny(family: Family) -> Iterator[LanguageModel]:
    with open_model(family.base, [family.memory], EXACT) as model:
        yield model


@pytest.fixture(scope="module")
def real() -> Iterator[LanguageModel]:
    with open_model(SMOLLM2, options=LoadOptions(threads=2, n_ctx=512)) as model:
        yield model


def judge(path: Path, tokens: list[int], count: int, repeat_penalty: float = 1.0) -> list[int]:
    """What llama-cpp-python generates greedily, with flash attention off, F32 KV and two threads as in EXACT."""
    model = llama_cpp.Llama(
        str(path), n_ctx=512, n_threads=2, n_threads_batch=2, flash_attn=False, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, last_n_tokens_size=64,
    )  # fmt: skip
    found: list[int] = []
    for token in model.generate(tokens, temp=0.0, top_k=1, repeat_penalty=repeat_penalty):
        found.append(token)
        if len(found) == count:
            break
    model.close()
    return found


@pytest.mark.parametrize("repeat_penalty", [1.0, 1.1])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_at_lambda_zero_and_one_greedy_text_is_that_of_base_or_memory_alone(
    family: Family, tiny: LanguageModel, weight: float, repeat_penalty: float
) -> None:
    tokens = tiny.engine.base.tokenize("river")
    expected = judge(family.memory if weight else family.base, tokens, 200, repeat_penalty)
    sampling = SamplingOptions(temperature=0.0, repeat_penalty=repeat_penalty)
    found = tiny.generate(
        tokens, sampling, GenerationOptions(n_predict=200, ignore_eos=True), MixtureOptions(total=weight)
    )
    length = expected.index(0) if 0 in expected else 200  # llama-cpp-python knows no --ignore-eos
    assert length > 20
    assert found.tokens[:length] == expected[:length]


def test_greedy_text_of_the_real_model_is_llama_cpp_pythons_over_200_tokens() -> None:
    with open_model(SMOLLM2, options=replace(EXACT, n_ctx=512)) as model:
        tokens = model.engine.base.tokenize(PROMPT)
        for repeat_penalty in (1.0, 1.1):
            sampling = SamplingOptions(temperature=0.0, repeat_penalty=repeat_penalty)
            found = model.generate(tokens, sampling, GenerationOptions(n_predict=200))
            assert len(found.tokens) == 200
            assert found.tokens == judge(SMOLLM2, tokens, 200, repeat_penalty)


@pytest.mark.parametrize("seed", [0, 42])
def test_a_seed_gives_one_text_and_another_seed_another(tiny: LanguageModel, seed: int) -> None:
    limits = GenerationOptions(n_predict=40, ignore_eos=True)
    texts = [tiny.generate(PROMPT, SamplingOptions(seed=s), limits).tokens for s in (seed, seed, seed + 1)]
    assert texts[0] == texts[1] != texts[2]


def test_ignore_eos_gives_exactly_n_tokens_and_reason_length(tiny: LanguageModel) -> None:
    done = tiny.generate(PROMPT, SamplingOptions(seed=1, temperature=5.0), GenerationOptions(300, ignore_eos=True))
    assert len(done.tokens) == 300
    assert not set(done.tokens) & tiny.engine.base.eog_tokens
    assert done.finish_reason == "length"
    assert done.timings.predicted_n == 300
    assert done.timings.predicted_per_second > 0


def test_minus_one_goes_to_the_end_of_the_context(tiny: LanguageModel) -> None:
    done = tiny.generate(PROMPT, SamplingOptions(seed=1), GenerationOptions(-1, ignore_eos=True))
    assert len(done.tokens) + done.timings.prompt_n + done.timings.cache_n == tiny.engine.n_ctx


def test_an_end_of_generation_token_stops_and_is_not_in_the_tokens(real: LanguageModel) -> None:
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    done = real.generate(prompt, GREEDY, GenerationOptions(100))
    assert done.finish_reason == "stop"
    assert not set(done.tokens) & real.engine.base.eog_tokens
    assert "<|im_end|>" not in done.text


def test_a_stop_string_across_tokens_ends_the_text_before_it(real: LanguageModel) -> None:
    plain = real.generate(PROMPT, GREEDY, GenerationOptions(60)).text
    stop = plain[40:47]
    done = real.generate(PROMPT, GREEDY, GenerationOptions(60, stop=(stop,)))
    assert done.text == plain[: plain.index(stop)]
    assert done.finish_reason == "stop"


def test_chunks_join_to_the_text_and_the_last_one_has_the_reason(tiny: LanguageModel) -> None:
    limits = GenerationOptions(50, ignore_eos=True)
    chunks = list(tiny.stream(PROMPT, SamplingOptions(seed=3), limits))
    done = tiny.generate(PROMPT, SamplingOptions(seed=3), limits)
    assert "".join(chunk.text for chunk in chunks) == done.text
    assert [chunk.token for chunk in chunks[:-1]] == done.tokens
    assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert all(chunk.log_prob is not None and chunk.log_prob < 0 for chunk in chunks[:-1])


def test_a_stream_left_early_does_not_disturb_the_next(tiny: LanguageModel) -> None:
    limits = GenerationOptions(20, ignore_eos=True)
    before = tiny.generate(PROMPT, GREEDY, limits).tokens
    for chunk in tiny.stream("Another prompt about", GREEDY, limits):
        if chunk.timings.predicted_n == 3:
            break
    assert tiny.generate(PROMPT, GREEDY, limits).tokens == before


def test_prompts_that_do_not_fit_name_the_numbers(tiny: LanguageModel) -> None:
    with pytest.raises(ContextError, match="a prompt of 600 tokens do not fit the context of 512"):
        tiny.generate([5] * 600)
    with pytest.raises(ContextError, match="a prompt of 500 tokens and 13 new ones do not fit the context of 512"):
        tiny.generate([5] * 500, generation=GenerationOptions(13))
    assert len(tiny.generate([5] * 500, generation=GenerationOptions(12, ignore_eos=True)).tokens) == 12


def test_an_empty_prompt_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(OptionError, match="prompt is empty"):
        tiny.generate("")


def test_a_json_schema_holds_with_a_memory_mixed_in(tiny: LanguageModel) -> None:
    schema = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    done = tiny.generate(PROMPT, SamplingOptions(seed=0, json_schema=schema), GenerationOptions(400))
    assert done.finish_reason == "stop"
    assert json.loads(done.text)["n"] in (1, 2)


def test_timings_count_what_was_decoded_and_not_the_callers_time(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.engine.base.tokenize("A timing of its own, with some words")
    limits = GenerationOptions(8, ignore_eos=True)
    first = tiny.generate(prompt, SamplingOptions(seed=1), limits).timings
    assert first.prompt_n + first.cache_n == len(prompt)
    assert first.prompt_n > 1
    again = list(tiny.stream(prompt, SamplingOptions(seed=1), limits))
    assert (again[-1].timings.cache_n, again[-1].timings.prompt_n) == (len(prompt) - 1, 1)
    waited: list[Timings] = []
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 3600 * len(waited))
    monkeypatch.setattr("memdec_edge.api.streams.time", clock)
    for chunk in tiny.stream(prompt, SamplingOptions(seed=1), replace(limits, draft=0)):
        waited.append(chunk.timings)  # the caller thinks for an hour
    assert 0 < waited[-1].predicted_ms < 3600e3
