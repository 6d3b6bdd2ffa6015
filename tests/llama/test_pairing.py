"""Which base and memory match, and the first difference of those that do not."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from memdec_edge.errors import PairingError, RoleError
from memdec_edge.llama.model import Model
from memdec_edge.llama.pairing import compare, require_match
from tests.conftest import RENAMED_TOKEN, Family
from tests.support.real import SMOLLM2
from tests.support.tiny import tiny_checkpoint, tiny_gguf


def opened(stack: ExitStack, *paths: Path) -> list[Model]:
    models = [Model(path, vocab_only=True) for path in paths]
    for model in models:
        stack.callback(model.close)
    return models


@pytest.mark.parametrize("name", ["memory", "padded"])
def test_one_tokenizer_matches_whatever_the_padding(family: Family, name: str) -> None:
    with ExitStack() as stack:
        assert require_match(*opened(stack, family.base, getattr(family, name))) == ""


def test_the_first_differing_token_is_named_with_both_spellings(family: Family) -> None:
    with ExitStack() as stack:
        base, memory = opened(stack, family.base, family.renamed)
        spelling = base.token_text(RENAMED_TOKEN).decode()
        with pytest.raises(PairingError) as error:
            require_match(base, memory)
    expected = f"token {RENAMED_TOKEN} is {spelling!r} in the base and 'renamed-token' in the memory"
    assert error.value.difference == expected
    assert str(error.value).startswith(f"{family.renamed} does not match {family.base}: token {RENAMED_TOKEN}")


def test_a_stranger_is_refused_and_force_lets_it_pass_with_a_warning(family: Family) -> None:
    with ExitStack() as stack:
        base, memory = opened(stack, family.base, family.stranger)
        with pytest.raises(PairingError, match=r"token \d+ is .* in the base and .* in the memory"):
            require_match(base, memory)
        assert "mixed by force: token" in require_match(base, memory, force=True)


def test_a_real_model_and_a_tiny_one_differ(family: Family) -> None:
    with ExitStack() as stack:
        base, memory = opened(stack, SMOLLM2, family.memory)
        assert compare(base, memory).difference is not None


def test_roles_are_checked_both_ways(family: Family) -> None:
    with ExitStack() as stack:
        base, memory = opened(stack, family.base, family.memory)
        with pytest.raises(RoleError, match="is a memory, not a base model; give it as `memory`"):
            require_match(memory, memory)
        with pytest.raises(RoleError, match="is a plain model, not a memory"):
            require_match(base, base)


def test_more_rows_than_padding_explains_are_refused(family: Family, tmp_path: Path) -> None:
    wide = tiny_gguf(tmp_path / "memdec-wide.gguf", tiny_checkpoint(tmp_path / "w", vocab_extra=129), role="memory")
    with ExitStack() as stack:
        difference = compare(*opened(stack, family.base, wide)).difference
    assert difference == "the base has 400 tokens and the memory 529; at most 128 padding tokens may differ"
