"""Random GBNF grammars and JSON schemas, sound and damaged, from a seed. Knows nothing of what becomes of them."""

from random import Random
from typing import Any

PIECES = (
    "::=", "|", "(", ")", "[", "]", "[^", "{", "}", "{2}", "{1,3}", "{0,}", "{3,1}", "{0,0}", "{2001}", "*", "+", "?",
    ".", '"', "\\", "\\n", "\\x41", "\\u00e9", "\\q", "-", "root", "a", "b", "\n", "\r\n", " ", "#", "<[5]>", "!<[7]>",
    "<|im_end|>", "<x>", "é", "東", "\t", "_", "0", "9", ",",
)  # fmt: skip


def grammar(random: Random) -> str:
    """A grammar of some rules, in half of the cases with a piece put in, left out or doubled."""
    names = ["root", *(f"r{index}" for index in range(random.randint(0, 4)))]
    text = ""
    for index, name in enumerate(names):
        known = names if random.random() < 0.3 else names[index + 1 :]
        text += f"{name} ::= {_alternatives(random, known, 3)}\n"
    for _ in range(random.choice((0, 0, 1, 2))):
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.choice((0, 0, 1, 2, 9)))
        text = text[:start] + random.choice(("", *PIECES)) + text[end:]
    return text


def _alternatives(random: Random, names: list[str], depth: int) -> str:
    return " | ".join(_sequence(random, names, depth) for _ in range(random.choice((1, 1, 2, 3))))


def _sequence(random: Random, names: list[str], depth: int) -> str:
    symbols = [_symbol(random, names, depth) for _ in range(random.choice((1, 1, 2, 3)))]
    return " ".join(symbol + random.choice(("",) * 6 + ("*", "+", "?", "{2}", "{0,2}", "{1,}")) for symbol in symbols)


def _symbol(random: Random, names: list[str], depth: int) -> str:
    kind = random.randrange(9)
    if kind < 3:
        return random.choice(('"a"', '"the "', '""', '"\\n"', '"é東"', '"\\u00e9"', '"\\u0e01"'))
    if kind < 5:
        return random.choice(("[a-z]", "[^a]", "[ก-๛]", "[é]", "[a\\]-]", ".", "[\\x00-\\x1f]"))
    if kind == 5 and random.random() < 0.3:
        return random.choice(("<[5]>", "!<[7]>", "<|im_end|>", "<no such token>", "[]"))
    if kind == 6 and depth:
        return f"({_alternatives(random, names, depth - 1)})"
    return random.choice(names) if names else '"x"'


TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
FORMATS = ("date", "date-time", "time", "uuid", "email", "ipv4", "uri", "duration", "no-such-format")


def schema(random: Random, depth: int = 3) -> Any:
    """A JSON schema, with some keywords and values that are odd."""
    if depth == 0 or random.random() < 0.1:
        return random.choice((True, {}, {"type": random.choice(TYPES)}, {"$ref": "#"}, {"$ref": "#/$defs/A"}))
    found: dict[str, Any] = {"type": random.choice(TYPES)}
    for _ in range(random.randint(0, 3)):
        found |= _keyword(random, depth)
    if depth == 3 and random.random() < 0.5:
        found["$defs"] = {"A": schema(random, depth - 1), "B": {"$ref": "#/$defs/A"}}
    return found


def _keyword(random: Random, depth: int) -> dict[str, Any]:
    number = random.choice((-1, 0, 1, 2.5, 3, 1e9, 10**18, 1e-7, 40))
    inner = [schema(random, depth - 1) for _ in range(random.randint(0, 3))]
    keyed = {random.choice(("a", "b", 'quo"te', "ü", "", "a\nb")): each for each in inner}
    return random.choice(
        (
            {random.choice(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")): number},
            {random.choice(("minLength", "maxLength", "minItems", "maxItems", "minProperties")): random.randint(0, 40)},
            {"properties": keyed, "required": list(keyed), "additionalProperties": False},
            {"properties": keyed},
            {"items": schema(random, depth - 1)},
            {"prefixItems": inner},
            {random.choice(("anyOf", "oneOf", "allOf")): inner},
            {"enum": random.sample([1, "x", None, True, 'q"', [1], {"a": 1}, 1.5, "\n"], random.randint(0, 4))},
            {"const": random.choice((1, "x", "\u2028", None, [], {"k": "v"}))},
            {"pattern": random.choice(("^a+$", "[0-9]{3}", "(", "^(a|b)*c$", "\\d", "é", "(?=a)", "a{9999}"))},
            {"format": random.choice(FORMATS)},
            {random.choice(("uniqueItems", "not", "if", "contains", "propertyNames", "x-guidance", "title")): {}},
        )
    )
