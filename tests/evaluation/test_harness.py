"""The model of lm-eval against lm-eval's own Hugging Face model in PyTorch, on local tasks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra [eval]")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from memdec_edge.errors import MissingFileError, ModelFileError, OptionError, TemplateError
from memdec_edge.evaluation.harness import MemdecLM
from tests.conftest import Family
from tests.engine.test_engine import torch_log_probs
from tests.engine.test_index import TEXTS, tiny_index
from tests.support.command import error_of, memdec
from tests.support.lm_tasks import ANSWERS, CHOICES, CLOZE, ROLLING, Rows, samples, write_tasks
from tests.support.tiny import TEXT, edit_gguf

EXACT: dict[str, Any] = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1}
NOISE = 1e-4  # nats of a request: float32 sums in another order
SENTENCES = [" ".join(sentence.split()) for sentence in TEXT.replace("\n", " ").split(".") if len(sentence) > 40]
TASKS: dict[str, tuple[str, Rows]] = {
    "choices": (
        CHOICES,
        [
            {"text": text[:40], "choices": [text[40:50], "blood", "the licence", "a"], "answer": at % 4}
            for at, text in enumerate(SENTENCES[:8])
        ],
    ),
    "cloze": (CLOZE, [{"text": text[:-9], "word": text[-9:]} for text in SENTENCES[:6]]),
    "rolling": (ROLLING, [{"text": TEXT[:1900]}, {"text": SENTENCES[0]}, {"text": "東京 🙂"}]),
    "answers": (ANSWERS, [{"text": text, "word": "x"} for text in SENTENCES[:5]]),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), TASKS)


def said(model: Any, folder: Path) -> dict[str, Rows]:
    return samples(model, folder, *TASKS)


@pytest.fixture(scope="module")
def by_torch(family: Family, tasks: Path) -> dict[str, dict[str, Rows]]:
    """What lm-eval's own model says of base and memory, in windows of 512 tokens."""
    return {
        name: said(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4), tasks)
        for name, folder in (("base", family.base_checkpoint), ("memory", family.memory_checkpoint))
    }


def same(found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    """Every number within float noise, every text and flag the same."""
    assert found.keys() == expected.keys() == TASKS.keys()
    for name in TASKS:
        assert len(found[name]) == len(expected[name]) == len(TASKS[name][1])
        for mine, theirs in zip(found[name], expected[name], strict=True):
            assert mine["arguments"] == theirs["arguments"]
            for [one], [other] in zip(mine["resps"], theirs["resps"], strict=True):
                if name == "answers":
                    assert one == other
                else:
                    np.testing.assert_allclose(
                        np.ravel(one), np.ravel(other), atol=NOISE * (20 if name == "rolling" else 1)
                    )


def test_the_base_alone_is_lm_evals_own_model_on_the_same_weights(
    family: Family, tasks: Path, by_torch: dict[str, dict[str, Rows]]
) -> None:
    model = MemdecLM(base=family.base, **EXACT)
    same(said(model, tasks), by_torch["base"])
    model.close()


def test_lm_evals_own_model_reads_the_same_gguf(
    family: Family, tasks: Path, by_torch: dict[str, dict[str, Rows]]
) -> None:
    model = HFLM(
        pretrained=str(family.base.parent), gguf_file=family.base.name, tokenizer=str(family.base_checkpoint),
        device="cpu", dtype="float32", batch_size=4,
    )  # fmt: skip
    same(said(model, tasks), by_torch["base"])


@pytest.mark.parametrize(("lam", "name"), [(0, "base"), (1.0, "memory")])
def test_lambda_zero_is_the_base_and_lambda_one_the_memory(
    family: Family, tasks: Path, by_torch: dict[str, dict[str, Rows]], lam: float, name: str
) -> None:
    model = MemdecLM(base=family.base, memory=family.memory, lam=lam, batch_size=3, **EXACT)
    same(said(model, tasks), by_torch[name])
    model.close()


def test_an_index_is_a_memory_and_weights_that_learn_lie_between_their_voices(family: Family, tmp_path: Path) -> None:
    index = tiny_index(tmp_path / "memdec-index.gguf", family.base, TEXTS)
    with_index = MemdecLM(base=family.base, memory=[family.memory, index], **EXACT)
    base = with_index.engine.base
    text = b"".join(base.piece(token) for token in TEXTS[0][:40]).decode("utf-8", "replace")
    rows: dict[str, float] = {}
    for name, model in (
        ("auto", with_index),
        ("index", MemdecLM(base=family.base, memory=str(index), lam=0.9, **EXACT)),
        ("base", MemdecLM(base=family.base, **EXACT)),
    ):
        [rows[name]] = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
        model.close()
    assert rows["base"] < rows["auto"]  # the documents hold the text, as far as its tokens come back from the text


def test_weights_learn_from_the_first_token_of_each_rolling_window(family: Family) -> None:
    rule: dict[str, Any] = {"eta": 0.2, "share": 0.01}
    model = MemdecLM(base=family.base, memory=family.memory, max_length=60, **rule, **EXACT)
    [found] = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0)])
    windows = model._windows(TEXT)
    model.close()
    assert len(windows) > 5
    assert len(windows[-1].context) > 1  # the last window repeats tokens
    total, start = 0.0, np.array([0.5, 0.5])
    for context, tokens in windows:
        ids, weights = [*context, *tokens], start
        paths = (family.base_checkpoint, family.memory_checkpoint)
        rows = [torch_log_probs(path, ids[:-1]) for path in paths]
        for at, token in enumerate(ids[1:]):  # Soft-Bayes, written out
            chances = np.exp([row[at, token] for row in rows])
            mixed = weights @ chances
            total += math.log(mixed) if at >= len(context) - 1 else 0.0
            weights = 0.99 * weights * (0.8 + 0.2 * chances / mixed) + 0.01 * start
    assert found == pytest.approx(total, abs=0.05)


def test_a_context_that_is_too_long_loses_its_beginning_and_stderr_says_so(
    family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    model = MemdecLM(base=family.base, max_length=50, **EXACT)
    text = TEXT.rstrip()
    ids = model.tok_encode(text)
    assert len(ids) > 60
    request = Instance("loglikelihood", {}, (text, " blood and more"), 0)
    [long] = model.loglikelihood([request])
    answer = model.tok_encode(text + " blood and more")[len(ids) :]
    [short] = model._loglikelihood_tokens([(("", ""), ids[-(51 - len(answer)) :], answer)])
    assert long == short
    told = "1 of 1 requests are longer than 50 tokens; their contexts lose the beginning"
    assert told in capfd.readouterr().err
    model.generate_until([Instance("generate_until", {}, (text, {"max_gen_toks": 4}), 0)])
    assert told in capfd.readouterr().err
    model.close()


def test_generation_options_are_taken_or_named(family: Family, capfd: pytest.CaptureFixture[str]) -> None:
    model = MemdecLM(base=family.base, memory=family.memory, batch_size=2, **EXACT)
    kwargs = {"until": ["the", ""], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "num_beams": 3}
    asked = [
        Instance("generate_until", {}, (text, kwargs), 0) for text in (SENTENCES[0], SENTENCES[0], "", SENTENCES[2])
    ]
    first, second, *others = model.generate_until(asked)
    assert first != second  # each request has its own seed
    assert all("the" not in text for text in (first, second, *others))
    assert model.generate_until(asked) == [first, second, *others]
    err = capfd.readouterr().err
    assert err.count("the generation option num_beams has no meaning here, and is left out") == 1
    with pytest.raises(OptionError, match="max_gen_toks is 600: must be from 1 to 511"):
        model.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 600}), 0)])
    with pytest.raises(OptionError, match="top_p is 3: must be from 0 to 1"):
        model.generate_until([Instance("generate_until", {}, ("a", {"top_p": 3.0, "do_sample": True}), 0)])
    model.close()


def test_a_chat_template_is_the_bases_own(family: Family, tmp_path: Path) -> None:
    end = "{% if not loop.last or add_generation_prompt %};{% endif %}"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + end + "{% endfor %}"
    path = edit_gguf(family.base, tmp_path / "chat.gguf", {"tokenizer.chat_template": template})
    model = MemdecLM(base=path)
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}]
    assert model.apply_chat_template(talk[:1]) == "<user>Who?;"
    assert model.apply_chat_template(talk, add_generation_prompt=False) == "<user>Who?;<assistant>It is"
    assert model.chat_template(True) == template
    model.close()
    plain = MemdecLM(base=family.base)
    with pytest.raises(TemplateError, match="it has no chat template"):
        plain.apply_chat_template(talk[:1])
    plain.close()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "base is missing: give a GGUF as base=FILE in --model_args"),
        ({"lam": "much"}, "lam is much: must be auto or a number from 0 to 1"),
        ({"lam": 1.5}, "lam is 1.5: must be from 0 to 1"),
        ({"batch_size": "x"}, "batch_size is x: must be auto or a whole number"),
        ({"batch_size": 0}, "batch_size is 0: must be from 1 to 256"),
        ({"n_ctx": "x"}, "n_ctx is x: must be a whole number"),
        ({"max_length": 1000}, "max_length is 1000: must be from 2 to 512"),
        ({"lam": 0.5}, "lam is 0.5: there is no memory to weigh; give one as memory=FILE"),
    ],
)
def test_arguments_that_cannot_be_are_refused(family: Family, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError, match=line):
        MemdecLM(family.base if arguments else None, **arguments)


def test_unknown_arguments_and_missing_files_are_named(family: Family, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="pretrained is gpt2: the model memdec has no such argument; it has base, memory,"
    ):
        MemdecLM(base=family.base, pretrained="gpt2")
    with pytest.raises(MissingFileError, match="no such GGUF file"):
        MemdecLM(base=family.base, memory=tmp_path / "no.gguf")
    keys = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
    nameless = edit_gguf(family.base, tmp_path / "nameless.gguf", dict.fromkeys(keys))
    model = MemdecLM(base=nameless)
    if model.engine.base.bos < 0 and model.engine.base.eos < 0:
        with pytest.raises(ModelFileError, match="it names no token that begins or ends a text"):
            model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a",), 0)])
    model.close()


def test_the_command_prints_the_table_of_a_task(family: Family, tasks: Path) -> None:
    done = memdec(
        "lm-eval", "--model-args", f"base={family.base},memory={family.memory},lam=auto", "--tasks", "choices,cloze",
        "--include-path", tasks, "--limit", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nmemdec ({'base': " in done.stdout
    assert "|choices|" in done.stdout.replace(" ", "")
    assert "perplexity" in done.stdout
    assert "Warning: lm-eval: --limit SHOULD ONLY BE USED FOR TESTING" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_refuses_in_one_line(tasks: Path) -> None:
    assert error_of("lm-eval", "--task", "x", "--limit", "much").startswith(
        "lm-eval: argument --limit/-L: invalid float value: 'much'; lm-eval run -h shows its options"
    )
    given = ["--model-args", "base=no.gguf", "--include-path", tasks]
    assert error_of("lm-eval", *given, "--tasks", "choices") == "no.gguf: no such GGUF file; check the path"
