"""Tuning a memory's weight: what it chooses, when it keeps the defaults, and what it writes into the file."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.experts import fixed_share
from memdec_edge.evaluation.perplexity import score_tokens
from memdec_edge.evaluation.tune import Rule, Tuning, _windows, keep, tune
from memdec_edge.evaluation.windows import slide
from memdec_edge.gguf import metadata
from memdec_edge.options import SHARE, EvalOptions, MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.support.real import EXACT
from tests.support.tiny import OTHER_TEXT, TEXT

OPTIONS = EvalOptions(window=64, stride=32)
DOMAIN, GENERAL = TEXT.split("\n\n"), OTHER_TEXT.split("\n\n")


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], replace(EXACT, n_ctx=64))) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(engine: Engine) -> Tuning:
    return tune(engine, DOMAIN * 3, GENERAL * 3, OPTIONS)


def test_the_table_scores_the_second_half_of_each_text(engine: Engine, found: Tuning) -> None:
    for name, documents in (("domain", DOMAIN), ("general", GENERAL)):
        scores = score_tokens(engine, documents * 3, OPTIONS)
        middle = len(scores.windows) // 2
        cut = sum(window.end - window.scored for window in scores.windows[:middle])
        column = {way: values[name] for way, values in found.table.items()}
        assert column["base"] == pytest.approx(np.exp(-scores.base[cut:].mean()))
        assert column["memory alone"] == pytest.approx(np.exp(-scores.memories[0][cut:].mean()))
        best = np.maximum(scores.base, scores.memories[0])[cut:]
        assert column["better model of each token"] == pytest.approx(np.exp(-best.mean()))
        lambdas = [scores.mixed([n / 20])[cut:] for n in range(21)]
        oracle = column["best fixed lambda of each half, an oracle"]
        assert oracle == pytest.approx(min(np.exp(-each.mean()) for each in lambdas))
        assert column["fixed lambda, the best of the domain"] >= oracle - 1e-9
        experts = fixed_share(np.stack(lambdas[::2]), SHARE)[0]
        assert column["eleven lambdas under fixed share"] == pytest.approx(np.exp(-experts.mean()))
        del column["online, tuned"]  # at another temperature
        assert min(column.values()) == column["better model of each token"]


def test_defaults_stay_unless_the_choice_is_better_by_more_than_its_error(found: Tuning) -> None:
    assert found.default == Rule()
    assert (found.rule == Rule()) == (not found.gain > found.standard_error)
    assert 0 <= found.fixed <= 1


def test_a_memory_that_is_the_base_keeps_what_its_file_recommends(family: Family, tmp_path: Path) -> None:
    """Nothing is better than anything else there."""
    path = tmp_path / "memdec-base.gguf"
    shutil.copy(family.memory, path)
    metadata.patch(path, {metadata.LAMBDA: 0.35})
    with closing(Engine(family.memory, [MemoryOptions(path)], replace(EXACT, n_ctx=64, force=True))) as engine:
        found = tune(engine, DOMAIN * 3, GENERAL * 3, replace(OPTIONS, max_tokens=256))
    assert found.default.initial == pytest.approx(0.35)
    if found.rule.temperature == 1:
        assert found.rule == found.default
        assert found.fixed == pytest.approx(0.35)


def test_a_short_text_is_cut_into_smaller_windows(engine: Engine) -> None:
    """The page of general English that ships is two windows of 1,024 tokens for a real tokenizer."""
    wide = EvalOptions(window=1024, stride=512)
    [*windows] = _windows("general", 1450, wide)
    assert len(windows) >= 8
    assert [windows[0].scored, windows[-1].end] == [1, 1450]
    assert {window.end - window.start for window in windows[:-1]} == {256}
    assert _windows("general", 100_000, wide) == slide(100_000, 1024, 512)
    with pytest.raises(CorpusError, match=r"^the general text: 120 tokens are fewer than four windows of 64"):
        _windows("general", 120, wide)
    with pytest.raises(CorpusError, match=r"^the general text: 1 tokens are fewer"):
        _windows("general", 1, wide)


def test_what_was_found_is_kept_in_the_file_and_used(family: Family, found: Tuning, tmp_path: Path) -> None:
    path = tmp_path / "memdec-own.gguf"
    shutil.copy(family.memory, path)
    other = replace(found, rule=Rule(temperature=1.25, initial=0.35, eta=0.1, share=0.005), fixed=0.45)
    assert keep(path, other) == []
    with closing(Engine(family.base, [MemoryOptions(path)], EXACT)) as engine:
        rule = engine.mixture(MixtureOptions()).rule()
        assert rule is not None
        assert (rule.initial[0], rule.eta, rule.share) == pytest.approx((0.35, 0.1, 0.005))
        given = engine.mixture(MixtureOptions(eta=0.2)).rule()
        assert given is not None
        assert given.eta == 0.2
        assert engine.mixture().weights == pytest.approx((0.45,))
        assert engine.mixture().mixture.temperatures == (1.25,)


def test_a_file_without_places_for_the_rule_keeps_lambda_and_says_so(
    family: Family, found: Tuning, tmp_path: Path
) -> None:
    path = tmp_path / "memdec-old.gguf"
    data = family.memory.read_bytes()  # schema 1: the same keys under names that nothing reads
    path.write_bytes(data.replace(b"memdec_edge.online.", b"memdec_edge.0nline."))
    [warning] = keep(path, replace(found, fixed=0.3))
    assert warning.startswith(f"{path} has no place for how its weight learns")
    values, _ = metadata.read(path)
    assert values[metadata.LAMBDA] == pytest.approx(0.3)


def test_too_little_text_and_two_memories_are_refused(family: Family, engine: Engine) -> None:
    with pytest.raises(CorpusError, match=r"the domain text: .* fewer than four windows of 64"):
        tune(engine, ["a few words"], GENERAL, OPTIONS)
    with pytest.raises(CorpusError, match="the general text"):
        tune(engine, DOMAIN, [""], OPTIONS)
    two = [MemoryOptions(family.memory), MemoryOptions(family.padded)]
    with closing(Engine(family.base, two, replace(EXACT, n_ctx=64))) as both:
        with pytest.raises(OptionError, match="one memory is tuned at a time"):
            tune(both, DOMAIN, GENERAL, OPTIONS)
