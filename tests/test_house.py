"""The house's rules, proven on its sources: arrows between shelves, lazy imports, file sizes, no names of machines.

CONTRIBUTING.md draws the map that this test checks. A new shelf gets its place in FLOORS.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "memdec_edge": "memdec_edge",
    "memdec_edge.train": "train",
    "memdec_edge.convert": "convert",
}  # as installed
MAKERS = ("train", "convert")

# From the ground up: a shelf imports from the floors below its own, and from itself.
FLOORS = (
    ("errors", "_native"),
    ("options", "files", "notes", "progress", "machine", "child"),
    ("gguf", "mixture", "documents", "text", "long_text"),
    ("llama", "hf_folder"),
    ("engine", "indexing", "chat", "hub"),
    ("api",),
    ("evaluation",),
    ("bench",),
    ("workflow", "server", "dropin"),
    ("cli", "__main__"),
)
OF_MAKERS = {  # what train and convert import
    "errors", "options", "files", "notes", "progress", "machine", "child", "documents", "long_text", "gguf", "mixture",
    "llama", "hf_folder", "chat",
}  # fmt: skip
LONGEST = 400  # lines of a file

REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.|pytorch\.org|huggingface\.co|\bhf\.co|anaconda\.org|npmjs\.|crates\.io|index-url"
)
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|mnt)/\w")


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    module: str
    target: str  # a module of ours, or the top name of another package
    lazy: bool  # inside a function, or only for the type checker
    relative: bool

    def __str__(self) -> str:
        return f"{self.module} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every Python module of the distribution, by its installed name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def shelf(module: str) -> str:
    """memdec_edge.llama.model -> llama; the root, memdec_edge, has the empty name."""
    return ".".join(module.split(".")[1:2])


@cache
def imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for name, path in modules().items():
        for node, lazy in statements(ast.parse(path.read_text(encoding="utf-8")), lazy=False):
            if isinstance(node, ast.Import):
                found += (Import(name, own(alias.name), lazy, relative=False) for alias in node.names)
                continue
            source = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                source = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                target = whole if whole in modules() or alias.name == "_native" else own(source)
                found.append(Import(name, target, lazy, relative=node.level > 0))
    return tuple(found)


def own(name: str) -> str:
    """A module of ours as it is; of another package its top name."""
    return name if name.split(".")[0] == "memdec_edge" else name.split(".")[0]


def statements(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The import statements below a node, with whether importing the module leaves them out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from statements(child, lazy or typing or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def allowed(name: str) -> set[str]:
    """The shelves that a shelf may import, itself included."""
    if name in MAKERS:
        return OF_MAKERS | {name}
    floor = next((i for i, shelves in enumerate(FLOORS) if name in shelves), None)
    assert floor is not None, f"memdec_edge/{name} has no place in FLOORS; CONTRIBUTING.md draws the map"
    return {name, *(below for shelves in FLOORS[:floor] for below in shelves)}


def strings(found: Iterator[Import] | list[Import]) -> list[str]:
    return sorted({str(one) for one in found})


def test_the_distribution_holds_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(name for name, path in modules().items() if path.name == "__init__.py")


def test_arrows_between_shelves_point_one_way() -> None:
    wrong = [
        one
        for one in imports()
        if (to := shelf(one.target)) and own(one.target).startswith("memdec_edge")
        if to not in MAKERS and shelf(one.module) and not one.module.endswith(".__main__")
        if to not in allowed(shelf(one.module))
    ]
    assert strings(wrong) == []


def test_only_the_shelf_llama_imports_llama_cpp() -> None:
    assert {shelf(one.module) for one in imports() if one.target == "llama_cpp"} == {"llama"}


def test_only_mixture_and_llama_call_the_c_extension() -> None:
    assert {shelf(one.module) for one in imports() if one.target == "memdec_edge._native"} == {"mixture", "llama"}


def test_only_workflow_and_lazy_lines_of_the_command_line_import_train_or_convert() -> None:
    foreign = [one for one in imports() if shelf(one.target) in MAKERS and shelf(one.module) != shelf(one.target)]
    assert foreign
    assert strings([one for one in foreign if shelf(one.module) != "workflow" and not is_lazy_cli(one)]) == []


def is_lazy_cli(one: Import) -> bool:
    return shelf(one.module) == "cli" and one.lazy


def test_only_workflow_uses_both_train_and_convert() -> None:
    used = {name: {shelf(one.target) for one in imports() if one.module == name} for name in modules()}
    assert {shelf(name) for name, shelves in used.items() if shelves.issuperset(MAKERS)} <= {"workflow"}


@pytest.mark.parametrize("name", MAKERS)
def test_train_and_convert_import_their_own_modules_relatively(name: str) -> None:
    inside = [one for one in imports() if shelf(one.module) == name == shelf(one.target)]
    assert inside
    assert strings([one for one in inside if not one.relative]) == []


def test_modules_import_each_other_in_no_circle() -> None:
    """Lazy imports and those for the type checker count too: they are knowledge."""
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for one in imports():
        if one.target in graph and one.target != one.module:
            graph[one.module].add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_module_opens_with_a_docstring() -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def sources() -> list[Path]:
    """The files of the repository that hold text."""
    folders = [*PACKAGES.values(), "native", "tests", "benchmarks", "examples", "docs", ".ci"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    kinds = {".py", ".pyi", ".c", ".h", ".sh", ".md", ".txt", ".toml", ".csv", ""}
    return [path for path in found if path.suffix in kinds]


def test_no_source_file_is_longer_than_400_lines() -> None:
    code = [path for path in sources() if path.suffix in (".py", ".pyi", ".c", ".h", ".sh")]
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in code}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LONGEST} == {}


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE], ids=["registry host", "path of a machine"])
def test_no_file_names_a(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources()
        if path != Path(__file__)
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
