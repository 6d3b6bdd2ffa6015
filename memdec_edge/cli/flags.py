"""One parameter of a command for a whole dataclass of options: its flags are declared once, by field.

    Load = Annotated[LoadOptions, Flags(threads=Threads, n_batch=BatchSize)]

    @spread
    def run(model: Base, load: Load = LoadOptions()) -> None: ...

shows -t and -b with the dataclass's own defaults, and hands `run` what was given as a LoadOptions. Knows nothing of the
options themselves.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any


class Flags:
    """The flags that set a dataclass's fields, as Typer annotations by field."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def without(self, *names: str) -> "Flags":
        """The same but for some fields, which then keep their defaults."""
        return Flags(**{name: flag for name, flag in self.fields.items() if name not in names})


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command that Typer sees: each parameter annotated with Flags has become a flag for each field.

    The command itself gets the parameter's default with the flags' values in it, checked as the dataclass checks them.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        metadata = getattr(parameter.annotation, "__metadata__", ())
        flags = next((item for item in metadata if isinstance(item, Flags)), None)
        if flags is None:
            parameters.append(parameter)
            continue
        groups[parameter.name] = (parameter.default, list(flags.fields))
        for name, annotation in flags.fields.items():
            default = getattr(parameter.default, name)
            parameters.append(parameter.replace(name=name, annotation=annotation, default=default))

    @wraps(command)
    def spread_out(**given: Any) -> None:
        for group, (default, names) in groups.items():
            given[group] = replace(default, **{name: given.pop(name) for name in names})
        command(**given)

    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread_out
