"""The Jinja of chat templates: what transformers gives them, in a sandbox, with marks and limits.

Templates come with files from strangers. Jinja's sandbox keeps them from Python's insides. Budget ends what loops for
too long or grows too large. Literal text of a template is marked as TEMPLATE (marked.py), and so stays through what a
template does with it. Knows nothing of messages.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from memdec_edge.chat.marked import TEMPLATE, Marked, joined, origins

MAX_STEPS = 2_000_000  # passes of loops and calls of macros in one rendering; some seconds
MAX_LENGTH = 1 << 26  # characters of a text, items of a list
MAX_BITS = 1 << 14  # of a whole number


class BudgetError(Exception):
    """A template ran for too long, or made something too large."""


class _Generator(CodeGenerator):
    """Writes the Python of a template so that its literals are marked, and joined with their marks."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        if isinstance(node.value, str):
            self.write(f"environment.literal({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: N802
        self.write(f"environment.literal({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({''.join(map(str, group))!r})"


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks answers for training, and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's name

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's namespace, without names that begin with _."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name such as {name}")
        super().__setitem__(name, value)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders templates, in several threads if need be: each counts its own steps."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**"))
    concat = staticmethod(joined)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.filters |= {"tojson": _to_json, "title": _title}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace, "dict": _dict}
        del self.globals["lipsum"]
        self._counter = threading.local()

    @staticmethod
    def literal(text: str) -> Marked:
        """Text that the template's author wrote."""
        return Marked(text, TEMPLATE)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> Any:
        loops: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*source.find_all(nodes.For)]
        loops += [*source.find_all(nodes.Macro), *source.find_all(nodes.CallBlock)]
        for node in loops:
            # As an attribute it is called straight away; nodes.Call would ask the sandbox, ten times as dear.
            node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("spend()"), lineno=node.lineno))
        return super()._generate(source, *args, **kwargs)

    def spend(self) -> None:
        """One more pass of a loop."""
        self._counter.steps += 1
        if self._counter.steps > MAX_STEPS:
            raise BudgetError(f"it makes more than {MAX_STEPS:,} passes of its loops")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left + right, left * right, left ** right, unless what comes of it is too large."""
        with suppress(TypeError):
            size = _bits(left) * abs(right) if operator == "**" else _size(operator, left, right)
            if size > (MAX_LENGTH if operator != "**" else MAX_BITS):
                raise BudgetError(f"it makes something too large with {operator}")
        return super().call_binop(context, operator, left, right)

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> Marked:
        """Render. Raises BudgetError, and whatever a template raises."""
        self._counter.steps = 0
        text = template.render(variables)
        if len(text) > MAX_LENGTH:
            raise BudgetError(f"it writes more than {MAX_LENGTH:,} characters")
        return text if isinstance(text, Marked) else Marked(text)


def _size(operator: str, left: Any, right: Any) -> int:
    """How large a sum or product will be, in characters or items; whole numbers count by their bits."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        bits = _bits(left) + _bits(right)
        return bits if bits <= MAX_BITS else MAX_LENGTH + 1
    if operator == "+":
        return len(left) + len(right)
    return len(left) * right if isinstance(right, int) else left * len(right)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 64


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _title(text: str) -> str:
    titled = jinja2.filters.do_title(text)
    return Marked(titled, origins(text)) if len(titled) == len(text) else titled


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
