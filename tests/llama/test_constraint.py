"""Grammars and JSON schemas: what they allow, against llama.cpp's own grammars and jsonschema, and hostile ones."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from memdec_edge.errors import DecodeError, NumericsError, OptionError
from memdec_edge.llama.constraint import Constraint, constraint_of
from memdec_edge.llama.gbnf import gbnf_grammar
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import Sampler
from memdec_edge.options import SamplingOptions
from tests.conftest import Family
from tests.support.constrained import follow
from tests.support.pieces import LLAMA, sentencepiece_folder, vocabulary_gguf
from tests.support.real import SMOLLM2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Model]:
    with closing(Model(SMOLLM2, vocab_only=True)) as model:
        yield model


@pytest.fixture(scope="module")
def tiny(family: Family) -> Iterator[Model]:
    with closing(Model(family.base, vocab_only=True)) as model:
        yield model


def constraint(model: Model, **options: str) -> Constraint:
    found = constraint_of(SamplingOptions(**options), model)  # type: ignore[arg-type]
    assert found
    return found


def judge(*arguments: str) -> list[str]:
    """What the process says that fuzzes and compares, without the seeds."""
    command = [sys.executable, "-m", "tests.support.grammar_judge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended at seed {lines[-1:]}: {done.stderr[-500:]}"
    return [line for line in lines if not line.isdigit()]


# --- GBNF ---------------------------------------------------------------------------------------------------------


def test_random_grammars_allow_the_tokens_that_llama_cpp_allows() -> None:
    assert judge("grammars", "0", "80") == ["done"]


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "line 1: over 100 parentheses in each other"),
        ('root ::= "a"{5,2}', "line 1: a repetition of at least 5 and at most 2"),
        ('root ::= "a"\n\nb ::= [a-z]{0,3000}', "line 3: more than 2,000 repetitions, at '3000}'"),
        ("root ::= (", r"line 1: expecting '\)', at 'the end'"),
        ('a ::= "x"', "it has no rule `root`"),
        ("root ::= a", "line 1: the rule `a` is not defined, at 'a'"),
        (r'root ::= "\q"', "expecting an escape that GBNF knows"),
        (r'root ::= "\UFFFFFFFF"', "a character that Unicode does not have"),
        ('root ::= "a\0"', "a character that is no text"),
        ("root ::= [z-a]", "a range that ends before it begins"),
        ("root ::= []*", "nothing stands before the repetition"),
        ("root ::= <no such token>", "that is no token of the vocabulary"),
        ('root ::= "a', "unexpected end"),
        ("root ::= a ]", "expecting a symbol, a repetition or the end of the line"),
        ("   # nothing", "it has no rule `root`"),
        ('root ::= root "a"', "no text fits it"),
        ("#" * 300_000, "it has 300,000 characters; at most 262,144 are read"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_one_error(
    tiny: Model, grammar: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=f"^grammar is .*{reason}") as error:
        constraint(tiny, grammar=grammar)
    assert (error.value.field, "\n" in str(error.value)) == ("grammar", False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ('root ::= "yes, " ("no" | "maybe")', {b"yes, no", b"yes, maybe"}),
        ('root ::= a{2} # twice\na ::= "x" | "é"', {b"xx", "xé".encode(), "éx".encode(), "éé".encode()}),
        ('root ::= root "b" | "a"', None),  # left recursion, which llama.cpp refuses
        ('root ::= (\n  "a"\n  | "b" )? [c-d]\r\n', {b"ac", b"ad", b"bc", b"bd", b"c", b"d"}),
        (r'root ::= "\x41" [\u00e9] [^\U00000000-\u007f\u0080-\U0010ffff]?', {"Aé".encode()}),
        ('root ::= "a"{0} "b"{2,} "" []', None),
        ("root ::= A--1 Start\nA--1 ::= [\\]] \nStart ::= [\\\\-]", {b"]\\", b"]-"}),
    ],
)
def test_what_a_grammar_says_is_what_comes(tiny: Model, grammar: str, texts: set[bytes] | None) -> None:
    found = {follow(tiny, SamplingOptions(grammar=grammar, seed=seed), 40) for seed in range(12)}
    assert found - {None}
    assert texts is None or found <= texts


def test_tokens_may_be_named_and_follow_text(vocabulary: Model) -> None:
    [end] = vocabulary.tokenize("<|im_end|>")
    stands = constraint(vocabulary, grammar="root ::= <[5]> !<[7]> [a-z] <|im_start|>")
    [start] = vocabulary.tokenize("<|im_start|>")
    for token in (5, 8, vocabulary.token_of("a") or 0):
        assert not stands.allows(7)
        stands.accept(token)
    assert [token for token in (start, end, 8) if stands.allows(token)] == [start]


def test_an_ambiguous_grammar_costs_no_more_with_every_parenthesis(vocabulary: Model) -> None:
    """llama.cpp follows nine ways at the first `(`, 81 at the second, and is out of memory at the eighth."""
    stands = constraint(
        vocabulary,
        grammar='root ::= term "+" root | term "-" root | term\nterm ::= f "*" term | f "/" term | f\n'
        'f ::= [0-9]+ | "(" root ")"',
    )
    for text in ["("] * 200 + ["1"] + [")"] * 200:
        stands.accept(vocabulary.tokenize(text)[0])
    assert stands.allows(min(vocabulary.eog_tokens))


def test_a_token_that_may_not_come_is_a_typed_error_and_changes_nothing(tiny: Model) -> None:
    stands = constraint(tiny, grammar='root ::= "a" "b"')
    a, b = (tiny.token_of(text) or 0 for text in "ab")
    with pytest.raises(DecodeError, match=f"token {b} does not follow the grammar here"):
        stands.accept(b)
    stands.accept(a)
    stands.accept(b)
    assert not stands.allows(a)
    assert stands.allows(0)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"grammar": 'root ::= ((("a"{1000}){1000}){1000})'}, b"a"),
        ({"json_schema": '{"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}'}, b'"'),
    ],
)
def test_a_limit_that_a_text_runs_into_is_named(tiny: Model, options: dict[str, str], first: bytes) -> None:
    made = constraint_of(SamplingOptions(**options), tiny)  # type: ignore[arg-type]
    assert made is not None
    with pytest.raises(NumericsError, match=r"cannot be followed any further here \((lexer|parser) error: "):
        made.accept(tiny.pieces.index(first))


def test_ends_come_only_where_the_text_may_end_and_nothing_comes_after(tiny: Model) -> None:
    stands = constraint(tiny, json_schema='{"type": "integer", "minimum": 1, "maximum": 19}')
    row = np.zeros(tiny.n_vocab, np.float32)
    assert not stands.allows(0)
    assert stands.mask(row)[0] == -np.inf
    stands.accept(tiny.token_of("1") or 0)
    assert stands.allows(0)
    assert (stands.mask(row) > -np.inf).sum() == 11
    stands.accept(tiny.token_of("9") or 0)
    assert np.flatnonzero(stands.mask(row) > -np.inf).tolist() == [0]


def test_a_finished_text_whose_end_is_suppressed_has_no_further_token(tiny: Model) -> None:
    with closing(Sampler(SamplingOptions(grammar='root ::= "a"'), tiny, tiny.n_vocab, 64)) as chain:
        chain.accept(tiny.token_of("a") or 0)
        with pytest.raises(NumericsError, match="allows no further token"):
            chain.sample(np.zeros(tiny.n_vocab, np.float32), 0, np.array([0], np.int32))


@pytest.mark.parametrize(
    "options",
    [{"grammar": 'root ::= "yes, " ("no" | "maybe") [a-z]{4}'}, {"json_schema": '{"enum": ["yes, no", "maybe", 17]}'}],
)
def test_a_text_begun_anew_or_forked_stands_where_it_should(vocabulary: Model, options: dict[str, str]) -> None:
    row = np.random.default_rng(0).normal(size=vocabulary.n_vocab).astype(np.float32)

    def rest(chain: Sampler, start: int) -> list[int]:
        found: list[int] = []
        while (token := chain.sample(row, start + len(found))) not in vocabulary.eog_tokens:
            found.append(token)
            chain.accept(token)
        return found

    asked = SamplingOptions(seed=0, **options)  # type: ignore[arg-type]
    with closing(Sampler(asked, vocabulary, vocabulary.n_vocab, 64)) as chain:
        tokens = rest(chain, 0)
        assert len(tokens) > 1
        chain.replay(tokens[:1])
        with closing(chain.fork()) as twin:
            chain.close()
            assert rest(twin, 1) == tokens[1:]


# --- JSON schemas -------------------------------------------------------------------------------------------------


def test_random_schemas_are_refused_or_followed() -> None:
    *invalid, finished, done = judge("schemas", "0", "100")
    assert (invalid, done) == ([], "done")
    assert int(finished.split()[0]) > 40


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "it is no JSON: Expecting property name"),
        ("[]", r"it must be a JSON object, not \[\]"),
        ("false", "it must be a JSON object, not false"),
        ("[" * 9999, "it is no JSON"),
        ('{"a":' * 200 + "1" + "}" * 200, "recursion limit exceeded"),
        ('{"type": "wrong"}', "Invalid type: wrong"),
        ('{"$ref": "http://x"}', "Resource 'http://x' is not present"),
        ('{"type": "string", "pattern": "^*$"}', "lookarounds not supported"),
        ('{"type": "array", "uniqueItems": true}', r'Unimplemented keys: \["uniqueItems"\]'),
        ('{"not": {}, "x-guidance": {"lenient": true}}', r'Unimplemented keys: \["not"\]'),
        ('{"if": {}, "contains": {}}', r'Unimplemented keys: \["contains", "if"\]'),
        ('{"type": "string", "format": "shoe size"}', "Unknown format: shoe size"),
        ('{"type": "integer", "minimum": 3, "maximum": 1}', r"minimum \(3\) is greater than maximum \(1\)"),
        ('{"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"}', "no text fits it"),
        ('{"title": "' + "x" * 300_000 + '"}', "at most 262,144 are read"),
    ],
)
def test_a_json_schema_that_cannot_be_followed_is_one_error(
    tiny: Model, schema: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=f"^json_schema is .*{reason}") as error:
        constraint(tiny, json_schema=schema)
    assert (error.value.field, "\n" in str(error.value)) == ("json_schema", False)
    assert capfd.readouterr() == ("", "")


def chain_of_references(length: int) -> str:
    links = {f"a{index}": {"anyOf": [{"$ref": f"#/$defs/a{index + 1}"}]} for index in range(length)}
    return json.dumps({"$defs": links | {f"a{length}": {"type": "null"}}, "$ref": "#/$defs/a0"})


def test_references_too_deep_for_a_stack_are_refused_and_shorter_chains_followed(tiny: Model) -> None:
    assert follow(tiny, SamplingOptions(json_schema=chain_of_references(150)), 20) == b"null"
    assert follow(tiny, SamplingOptions(json_schema=chain_of_references(1000)), 20) == b"null"
    with pytest.raises(OptionError, match="its references or its nesting are too deep"):
        constraint(tiny, json_schema=chain_of_references(5000))


def test_a_schema_that_would_be_read_for_ever_is_refused(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memdec_edge.llama.guidance.SECONDS", 2)
    every = [{"type": "string", "pattern": f".*a{index}.*"} for index in range(40)]
    with pytest.raises(OptionError, match="reading it takes over 2 seconds"):
        constraint(tiny, json_schema=json.dumps({"allOf": every}))


TREE: dict[str, Any] = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "na\"me": {"type": "string", "maxLength": 5},
                "kind": {"enum": ["leaf", 'bra"nch', "line\nbreak", 7, None]},
                "share": {"type": "number", "minimum": 0.25, "exclusiveMaximum": 2, "multipleOf": 0.25},
                "day": {"type": "string", "format": "date"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Again"}, "maxItems": 2},
            },
            "required": ["na\"me", "kind", "share", "day"],
            "additionalProperties": False,
        },
        "Again": {"$ref": "#/$defs/Node"},
    },
}  # fmt: skip
UNION: dict[str, Any] = {
    "oneOf": [
        {
            "type": "object",
            "properties": {
                "kind": {"const": kind},
                "size": {"type": "integer", "exclusiveMinimum": low, "maximum": 99},
            },
            "required": ["kind", "size"],
            "additionalProperties": False,
        }
        for kind, low in (("cat", -5), ("dog", 90))
    ],
    "discriminator": {"propertyName": "kind"},
}


@pytest.mark.parametrize("schema", [TREE, UNION, {"type": "string", "minLength": 3, "maxLength": 9}])
def test_every_finished_text_is_json_of_its_schema(tiny: Model, schema: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    texts = [follow(tiny, SamplingOptions(json_schema=json.dumps(schema), seed=seed), 400) for seed in range(20)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 15
    for text in finished:
        validator.validate(json.loads(text.replace(b'"0000-', b'"2000-')))  # a year that Python's calendar lacks


def test_a_sentencepiece_vocabulary_with_byte_tokens_spells_json_too(tmp_path: Path) -> None:
    from memdec_edge.convert.tokenizer import built

    folder = sentencepiece_folder(tmp_path / "pieces", "bpe", 400, **LLAMA)
    with closing(
        Model(vocabulary_gguf(tmp_path / "pieces.gguf", built(folder, 400).entries), vocab_only=True)
    ) as model:
        assert not any(b'"na' in piece for piece in model.pieces)
        for seed in range(5):
            text = follow(model, SamplingOptions(json_schema=json.dumps(UNION), seed=seed), 200)
            assert text is not None
            jsonschema.Draft202012Validator(UNION).validate(json.loads(text))


def test_control_tokens_never_stand_in_a_string(vocabulary: Model) -> None:
    stands = constraint(vocabulary, json_schema='{"type": "string"}')
    stands.accept(vocabulary.token_of('"') or 0)
    row = np.zeros(vocabulary.n_vocab, np.float32)
    assert not [token for token in np.flatnonzero(stands.mask(row) > -np.inf) if vocabulary.is_control(int(token))]


def test_the_grammar_of_a_rule_keeps_its_characters_apart() -> None:
    """llguidance's lexer takes the longest match: lexemes of one character leave it no choice."""
    grammar = gbnf_grammar('root ::= "a/" [a-c]', lambda name: None)
    assert grammar == "start: (/\\x{61}/ /\\x{2f}/) /[\\x{61}-\\x{63}]/\n"
