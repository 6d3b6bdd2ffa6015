"""Reads a GBNF grammar as llama.cpp does, and makes llguidance's grammar of it.

Each character becomes a lexeme of its own, so that both mean the same texts: llguidance's lexer would take the longest
match, and GBNF has no lexer. Left recursion is allowed here and not in llama.cpp. Format: llama.cpp's
grammars/README.md. Knows nothing of models and samplers.
"""

import re
from collections.abc import Callable
from typing import NoReturn

from llguidance import LLMatcher

from memdec_edge.errors import OptionError
from memdec_edge.llama.guidance import tried, wrong_with

MAX_TEXT = 1 << 18  # characters of a grammar
MAX_NESTING = 100  # parentheses in each other
MAX_REPETITIONS = 2_000  # llama.cpp's MAX_REPETITION_THRESHOLD
SMALL = 1 << 14  # characters of a grammar that needs no trial

NAME = re.compile(r"[a-zA-Z0-9-]+")
NUMBER = re.compile(r"[0-9]+")
SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
ESCAPE = re.compile(r'\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([trn\\"\[\]-]))')
ESCAPED = {"t": "\t", "r": "\r", "n": "\n"}
TOKEN_ID = re.compile(r"<\[([0-9]{1,10})\]>")
TOKEN_NAME = re.compile(r"<[^>]*>")
NOTHING = '""'
TokenOf = Callable[[str], int | None]


def gbnf_grammar(text: str, token_of: TokenOf) -> str:
    """Return llguidance's grammar for the GBNF grammar `text`.

    token_of: the id of a token by its name, such as <|im_end|>, or None. Raises OptionError, with the line, for what is
    no GBNF, and for grammars that take too long or too much stack.
    """
    try:
        lark = _Reader(text, token_of).read()
    except _SyntaxError as error:
        raise refused(str(error)) from error
    grammar: str = LLMatcher.grammar_from_lark(lark)
    reason = wrong_with(grammar) if len(lark) < SMALL else tried(grammar)
    if reason:
        raise refused(reason)
    return grammar


def refused(reason: str) -> OptionError:
    """Return the error for a grammar that cannot be followed."""
    return OptionError("grammar", "no GBNF grammar that can be followed", reason)


class _SyntaxError(Exception):
    pass


class _Reader:
    """A recursive descent over `text`; each method reads one part and returns its Lark."""

    def __init__(self, text: str, token_of: TokenOf) -> None:
        self.text, self.token_of, self.at = text, token_of, 0
        self.rules: dict[str, str] = {}
        self.groups: list[str] = []  # Lark nests no deeper than some dozens, so that each is a rule
        self.first_use: dict[str, int] = {"root": -1}

    def read(self) -> str:
        if len(self.text) > MAX_TEXT:
            raise _SyntaxError(f"it has {len(self.text):,} characters; at most {MAX_TEXT:,} are read")
        wrong = re.search(r"[\0\ud800-\udfff]", self.text)
        if wrong:
            self.fail("a character that is no text", wrong.start())
        self.skip(SPACE_AND_LINES)
        while self.at < len(self.text):
            self.rule()
        if "root" not in self.rules:
            raise _SyntaxError("it has no rule `root`")
        for name, at in self.first_use.items():
            if name not in self.rules:
                self.fail(f"the rule `{name}` is not defined", at)
        named = [(_lark_name(name), body) for name, body in self.rules.items()]
        named += [(_group_name(index), body) for index, body in enumerate(self.groups)]
        return "".join(f"{name}: {body}\n" for name, body in named)

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        rest = self.text[at : at + 20].splitlines() or ["the end"]
        raise _SyntaxError(f"line {self.text.count(chr(10), 0, at) + 1}: {what}, at {rest[0]!r}")

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if not found:
            self.fail(f"expecting {what}")
        self.at = found.end()
        return found

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def expect(self, text: str) -> None:
        if not self.peek(text):
            self.fail(f"expecting {text!r}")
        self.at += len(text)

    def rule(self) -> None:
        name = self.take(NAME, "a rule's name")[0]
        self.skip(SPACE)
        self.expect("::=")
        self.skip(SPACE_AND_LINES)
        self.rules[name] = self.alternates(nesting=0)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            self.fail("expecting the end of the line")
        self.skip(SPACE_AND_LINES)

    def alternates(self, nesting: int) -> str:
        if nesting > MAX_NESTING:
            self.fail(f"over {MAX_NESTING} parentheses in each other")
        found = [self.sequence(nesting)]
        while self.peek("|"):
            self.at += 1
            self.skip(SPACE_AND_LINES)
            found.append(self.sequence(nesting))
        return " | ".join(found)

    def sequence(self, nesting: int) -> str:
        space = SPACE_AND_LINES if nesting else SPACE
        found: list[str] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)\r\n":
            if self.text[self.at] in "*+?{":
                found[-1:] = [self.repeated(found[-1] if found else "", space)]
            else:
                found.append(self.symbol(nesting))
            self.skip(space)
        return " ".join(symbol or NOTHING for symbol in found) or NOTHING

    def symbol(self, nesting: int) -> str:
        """One symbol, which may be repeated; empty for "" and [], which may not."""
        char = self.text[self.at]
        if char == '"':
            return self.literal()
        if char == "[":
            return self.characters()
        if char in "<!":
            return self.token()
        if char == "(":
            return self.group(nesting)
        if char == ".":
            self.at += 1
            return "/(?s:.)/"
        at = self.at
        name = self.take(NAME, "a symbol, a repetition or the end of the line")[0]
        self.first_use.setdefault(name, at)
        return _lark_name(name)

    def character(self) -> int:
        if not self.peek("\\"):
            if self.at >= len(self.text):
                self.fail("unexpected end")
            self.at += 1
            return ord(self.text[self.at - 1])
        at, found = self.at, self.take(ESCAPE, "an escape that GBNF knows")
        number = found[1] or found[2] or found[3]
        code = int(number, 16) if number else ord(ESCAPED.get(found[4], found[4]))
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            self.fail("a character that Unicode does not have", at)
        return code

    def literal(self) -> str:
        self.at += 1
        found = []
        while not self.peek('"'):
            found.append(f"/{_regex(self.character())}/")
        self.at += 1
        return f"({' '.join(found)})" if len(found) > 1 else "".join(found)

    def characters(self) -> str:
        self.at += 1
        inverse = self.peek("^")
        self.at += inverse
        found = []
        while not self.peek("]"):
            at, low = self.at, self.character()
            found.append(_regex(low))
            if self.peek("-") and not self.peek("-]"):
                self.at += 1
                high = self.character()
                if high < low:
                    self.fail("a range that ends before it begins", at)
                found.append(f"-{_regex(high)}")
        self.at += 1
        return f"/[{'^' * inverse}{''.join(found)}]/" if found else ""

    def token(self) -> str:
        inverse = self.peek("!")
        self.at += inverse
        at, number = self.at, TOKEN_ID.match(self.text, self.at)
        if number:
            self.at = number.end()
            token: int | None = int(number[1])
        else:
            token = self.token_of(self.take(TOKEN_NAME, "a token such as <[12]> or <name>")[0])
        if token is None:
            self.fail("that is no token of the vocabulary", at)
        return f"<[{'^' * inverse}{token}]>"

    def group(self, nesting: int) -> str:
        self.at += 1
        self.skip(SPACE_AND_LINES)
        self.groups.append(self.alternates(nesting + 1))
        self.expect(")")
        return _group_name(len(self.groups) - 1)

    def repeated(self, symbol: str, space: re.Pattern[str]) -> str:
        at = self.at
        sign = self.text[at]
        self.at += 1
        if not symbol:
            self.fail("nothing stands before the repetition", at)
        if sign != "{":
            return f"({symbol}){sign}"
        self.skip(space)
        low = self.number()
        high: int | None = low
        self.skip(space)
        if not self.peek("}"):
            self.expect(",")
            self.skip(space)
            high = self.number() if NUMBER.match(self.text, self.at) else None
            self.skip(space)
        self.expect("}")
        if high is not None and high < low:
            self.fail(f"a repetition of at least {low} and at most {high}", at)
        if high == 0:
            return ""
        return f"({symbol}){{{low},{'' if high is None else high}}}"

    def number(self) -> int:
        at, digits = self.at, self.take(NUMBER, "a number")[0]
        if len(digits) > 9 or int(digits) > MAX_REPETITIONS:
            self.fail(f"more than {MAX_REPETITIONS:,} repetitions", at)
        return int(digits)


def _lark_name(rule: str) -> str:
    """Lark's rules are of lower case: the code of every other character stands in its place."""
    if rule == "root":
        return "start"
    return "r_" + "".join(char if char.islower() or char.isdigit() else f"_{ord(char):x}_" for char in rule)


def _group_name(index: int) -> str:
    return f"g_{index}"


def _regex(code: int) -> str:
    return f"\\x{{{code:x}}}"
