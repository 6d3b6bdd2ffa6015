"""Flags from dataclasses of options, and messages that name fields turned into messages that name flags.

    @spread
    def run(*, model: ..., load: Given[LoadOptions]) -> None:
        options = load()

shows -t, -b and the other flags of LoadOptions, each with its default and help. `load` is LoadOptions with what was
given filled in: to call it makes the object, and checks it. Knows nothing of any particular option.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import partial, wraps
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import typer

from memdec_edge.errors import MemdecError, OptionError, spell

Options = TypeVar("Options")


class Flags:
    """Marks the parameter of a command that takes the flags of a dataclass, all but those of the fields `without`."""

    def __init__(self, *without: str) -> None:
        self.without = without


Given = Annotated[Callable[..., Options], Flags()]


class Group(NamedTuple):
    """A dataclass of options, and those of its fields that a command has flags for."""

    kind: Any
    fields: dict[str, Field[Any]]


class CommandError(Exception):
    """What main() shows of an error: one line, and the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def flag(about: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Any:
    """Return Typer's description of an option or argument, from the metadata of a field."""
    how: dict[str, Any] = {"metavar": about.get("metavar"), "help": spell(about.get("help", ""), names or {})}
    return typer.Option(*about["flags"], **how) if about["flags"] else typer.Argument(**how)


def of(options: type, name: str) -> Any:
    """Return flag() of one field of a dataclass."""
    found = flag(next(each.metadata for each in fields(options) if each.name == name))
    found.field = name
    return found


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command that Typer sees: instead of each parameter of Flags, one for each flag of its dataclass.

    Errors that the command raises name fields; the ones that leave it are CommandErrors, which name its flags.
    """
    given = list(inspect.signature(command, eval_str=True).parameters.values())
    groups = {parameter.name: group for parameter in given if (group := _group(parameter))}
    names: dict[str, str] = {}
    for parameter in given:
        names |= _names_of_group(groups[parameter.name]) if parameter.name in groups else _names_of(parameter)
    parameters: list[inspect.Parameter] = []
    for parameter in given:
        if parameter.name in groups:
            parameters += [_parameter(each, names) for each in groups[parameter.name].fields.values()]
        else:
            parameters.append(parameter)

    @wraps(command)
    def spread_out(**values: Any) -> None:
        try:
            for name, (kind, chosen) in groups.items():
                values[name] = partial(kind, **{key: _value(each, values.pop(key)) for key, each in chosen.items()})
            command(**values)
        except MemdecError as error:
            raise CommandError(error.spelled(names), error.exit_code) from error

    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread_out


def flags_of(*kinds: type) -> dict[str, str]:
    """What messages call the fields of some dataclasses of options, for MemdecError.spelled()."""
    shown = {each.name: each for kind in kinds for each in fields(kind) if each.metadata.get("flags")}
    return _names_of_group(Group(None, shown))


def unknown_flag(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return what to say where an unknown flag of several letters was read as a short flag with a value; else "".

    To the parser `-cnv` is `-c nv`; a user of llama.cpp means one flag.
    """
    short = [flag for flag in getattr(getattr(error, "param", None), "opts", ()) if re.fullmatch(r"-\w", flag)]
    meant = [text for text in arguments if text[:2] in short and re.fullmatch(r"-[A-Za-z][A-Za-z-]+", text)]
    return f"No such option: {meant[0]}" if meant else ""


def _group(parameter: inspect.Parameter) -> Group | None:
    """The dataclass of Annotated[Callable[..., KIND], Flags()] and its fields with flags; None for other parameters."""
    mark = next((item for item in get_args(parameter.annotation) if isinstance(item, Flags)), None)
    if mark is None:
        return None
    kind = get_args(get_args(parameter.annotation)[0])[-1]
    shown = (each for each in fields(kind) if each.metadata.get("flags") or each.metadata.get("metavar"))
    return Group(kind, {each.name: each for each in shown if each.name not in mark.without})


def _names_of_group(group: Group) -> dict[str, str]:
    """Field -> what messages call it."""
    return {name: _long(each.metadata["flags"], each.metadata.get("metavar")) for name, each in group.fields.items()}


def _names_of(parameter: inspect.Parameter) -> dict[str, str]:
    """The parameter's name, and the field that of() made it from -> what messages call both."""
    names: dict[str, str] = {}
    for item in get_args(parameter.annotation)[1:]:
        decls = (item.default, *(item.param_decls or ()))  # in Annotated the first one is where a default was
        found = _long([text for text in decls if isinstance(text, str)], item.metavar)
        names |= {parameter.name: found, getattr(item, "field", parameter.name): found}
    return names


def _long(flags: Iterable[str], metavar: str | None) -> str:
    """The first long flag, of an argument its metavar."""
    found = next((flag for flag in flags if flag.startswith("--")), metavar or "")
    return found.partition("/")[0]


def _parameter(each: Field[Any], names: Mapping[str, str]) -> inspect.Parameter:
    """The parameter that Typer makes a flag of. A word for None makes it text, which _value() reads."""
    kind, default = each.type, each.default
    if word := each.metadata.get("none"):
        kind, default = str, word if default is None else default
    if get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]] | None, None  # type: ignore[misc]
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, flag(each.metadata, names)],
        default=inspect.Parameter.empty if default is MISSING else default,
    )


def _value(each: Field[Any], given: Any) -> Any:
    """What Typer read, as the field holds it. Raises OptionError for text that is no number where one belongs."""
    if word := each.metadata.get("none"):
        number = next(kind for kind in get_args(each.type) if kind is not type(None))
        try:
            return None if given == word else number(given)
        except ValueError:
            wanted = "a whole number" if number is int else "a number"
            bounds = f" from {each.metadata['low']:g} to {each.metadata['high']:g}"
            raise OptionError(each.name, given, f"must be {word} or {wanted}{bounds}") from None
    if "choices" in each.metadata:
        return given.lower()  # names of types are written in any case
    return tuple(given or ()) if get_origin(each.type) is tuple else given
