"""lm-eval both ways: its own client over HTTP against our server, and its model `memdec`, say the same to the bit."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra [eval]")
pytest.importorskip("aiohttp", reason="lm-eval's client asks for it")

from lm_eval.models.openai_completions import LocalCompletionsAPI

from memdec_edge.api import open_model
from memdec_edge.evaluation.harness import MemdecLM
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions
from memdec_edge.server.settings import Defaults
from tests.conftest import Family
from tests.support.lm_tasks import ANSWERS, CHOICES, CLOZE, ROLLING, Rows, samples, write_tasks
from tests.support.tiny import TEXT
from tests.support.web import serving

EXACT: dict[str, Any] = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1}
LONGEST = 200  # tokens of a request: some are longer
SENTENCES = [" ".join(sentence.split()) for sentence in TEXT.replace("\n", " ").split(".") if len(sentence) > 40]
TASKS: dict[str, tuple[str, Rows]] = {
    "choices": (
        CHOICES,
        [
            {"text": text[:40], "choices": [text[40:50], "blood", "the licence", "a"], "answer": at % 4}
            for at, text in enumerate(SENTENCES[:4])
        ],
    ),
    "cloze": (CLOZE, [{"text": TEXT[:end], "word": TEXT[end : end + 9]} for end in (70, 260, 900)]),
    "rolling": (ROLLING, [{"text": TEXT[:700]}, {"text": "東京 🙂"}]),
    "answers": (ANSWERS, [{"text": text, "word": "x"} for text in SENTENCES[:3]]),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), TASKS)


@pytest.mark.parametrize("lam", [None, 0.4, "auto"], ids=["the base alone", "a fixed lambda", "auto"])
def test_both_ways_give_the_same_numbers_texts_and_flags(family: Family, tasks: Path, lam: float | str | None) -> None:
    memories = [] if lam is None else [MemoryOptions(family.memory)]
    mixture = MixtureOptions(total=lam if isinstance(lam, float) else None)
    defaults = Defaults(SamplingOptions(), GenerationOptions(), mixture)
    with serving(open_model(family.base, memories, LoadOptions(n_seq=1, **EXACT)), None, defaults) as web:
        # The client keeps one token for the answer and one for the context, see TemplateAPI.
        client = LocalCompletionsAPI(base_url=f"{web.url}/v1/completions", model="tiny", max_length=LONGEST + 2)
        assert client.tokenizer_backend == "remote"
        over_http = samples(client, tasks, *TASKS)
    given: dict[str, Any] = {} if lam is None else {"memory": family.memory, "lam": lam}
    model = MemdecLM(base=family.base, max_length=LONGEST, batch_size=1, **given, **EXACT)
    in_process = samples(model, tasks, *TASKS)
    model.close()
    for name in TASKS:
        assert len(over_http[name]) == len(in_process[name]) == len(TASKS[name][1])
        for mine, theirs in zip(in_process[name], over_http[name], strict=True):
            assert mine["resps"] == theirs["resps"]  # floats too: not a bit differs


def test_both_ways_know_a_greedy_continuation(family: Family) -> None:
    with serving(open_model(family.base, [MemoryOptions(family.memory)], LoadOptions(n_seq=1, **EXACT))) as web:
        prompt = web.post("/tokenize", {"content": SENTENCES[0]}).body["tokens"]
        asked = {"prompt": prompt, "n_predict": 5, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        likeliest = web.post("/completion", asked | {"memory": 0.4}).body["tokens"]
        client = LocalCompletionsAPI(base_url=f"{web.url}/v1/completions", model="tiny")
        changed = [*likeliest[:-1], likeliest[-1] + 1]
        requests = [(None, prompt, likeliest), (None, prompt, changed)]
        web.post("/memories", {"weights": [{"id": 0, "lambda": 0.4}]})
        over_http = client._loglikelihood_tokens(requests)
    model = MemdecLM(base=family.base, memory=family.memory, lam=0.4, batch_size=1, **EXACT)
    in_process = model._loglikelihood_tokens([(("", ""), context, tokens) for _, context, tokens in requests])
    model.close()
    assert over_http == in_process
    assert [greedy for _, greedy in in_process] == [True, False]
