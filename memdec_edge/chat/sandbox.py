"""The Jinja of chat templates: what transformers gives them, in a sandbox, with marks and limits.

Templates come with files from strangers. Jinja's sandbox keeps them from Python's insides. A budget (budget.py) ends
what loops for too long or grows too large. Literal text of a template is marked as TEMPLATE (marked.py), and so stays
through what a template does with it. Knows nothing of messages.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from memdec_edge.chat.budget import Budget, formatted_size, joined_size, printed
from memdec_edge.chat.marked import TEMPLATE, Marked, joined, origins

# Filters that make much of little, and that no chat template needs.
REMOVED = ("batch", "pprint", "slice", "urlize", "xmlattr")


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

    def __repr__(self) -> str:
        return "<namespace>"  # what it holds may hold it


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders templates, in several threads if need be: each counts its own steps."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.finalize = self._printable
        self.filters |= {"tojson": _to_json, "title": _title}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace, "dict": _dict}
        del self.globals["lipsum"]
        self.budget = Budget()
        kept = {name: made for name, made in self.filters.items() if name not in REMOVED}
        self.filters = {name: self._bounded(name, made) for name, made in kept.items()}

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
        self.budget.spend()

    def concat(self, parts: Iterable[Any]) -> Marked:
        """The parts as one text."""
        every = list(parts)
        self.budget.make(joined_size(every, ""), "~")
        return joined(every)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja's
        """Call what a template calls, unless what comes of it is too large."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes | int):
            if name == "join" and len(args) == 1:
                args = (list(args[0]),)
            __self.budget.method(owner, name, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format of a template; it takes no attributes of what is formatted, for their size is not known."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            if re.search(r"\{[^{}:!]*[.\[]", text):
                raise jinja2.exceptions.SecurityError("format() takes no attributes and items")
            values = tuple(args[0].values()) if value.__name__ == "format_map" else (*args, *kwargs.values())
            self.budget.make(formatted_size(text, values), "format")
            return wrapped(*args, **kwargs)

        return bounded

    def _bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is applied unless what comes of it is too large."""
        before = 1 if hasattr(made, "jinja_pass_arg") else 0  # Jinja's own argument

        @wraps(made, assigned=())
        def bounded(*args: Any, **kwargs: Any) -> Any:
            inputs = list(args)
            if name in ("join", "sum") and not hasattr(inputs[before], "__len__"):
                inputs[before] = list(inputs[before])
            self.budget.filter(name, inputs[before], tuple(inputs[before + 1 :]), kwargs)
            return made(*inputs, **kwargs)

        return bounded

    def _printable(self, value: Any) -> Any:
        """What a template prints; a list may be long as a text."""
        if not isinstance(value, str):
            self.budget.make(printed(value), "print")
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left + right and the like, unless what comes of it is too large."""
        self.budget.operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> Marked:
        """Render. Raises BudgetError, and whatever a template raises."""
        self.budget.steps = 0
        text = template.render(variables)
        return text if isinstance(text, Marked) else Marked(text)


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
