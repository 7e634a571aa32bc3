"""The house: which room may import which, and whose private names are used where.

A room is a folder of the package or a loose module. Imports are read from the source; those inside
functions and for type checking count like all others. What is not yet as it should be is listed,
and the lists only become shorter: what is new fails, and so does what is listed and gone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

import optuna_merge

TENSORS = {"tasks", "models", "finetuning", "posteriors", "merging", "previews"}
TRIALS = {
    "trials", "surrogate", "calibration", "samplers", "pruners", "storages", "artifacts",
    "visualization",
}  # fmt: skip

# What is not yet as it should be.

CIRCLES_OF_ROOMS: list[str] = []
CIRCLES_OF_MODULES: list[str] = []
BETWEEN_TOWERS: set[str] = set()
INTO_ROOMS: dict[str, str] = {}
"""Private modules that rooms import from outside, and these rooms."""
OF_OPTUNA: set[str] = set()
"""Private names of Optuna outside of the file for them, as in `OF_OTHERS`."""

# What has a reason.

OF_OTHERS = {
    "accelerate": {
        "finetuning._training: _reset_state": "runs of one process differ in their precision",
        "finetuning._training: _shared_state": "as above: whether a precision is held",
    },
    "timm": {
        "exporting._formats: _model_args": "what `create_model` was given beside the name",
    },
    "torch": {
        "_base.batch_norm: torch.nn.modules.batchnorm._BatchNorm": "batch norms of any dimension",
        "models._trainable: _forward_pre_hooks": "weights that hooks compute before a pass",
        "models._trainable: _tensor_name": "which tensor a pruning hook computes",
        "models._trainable: torch.nn.utils.parametrizations._SpectralNorm": "to refuse it by name",
        "models._multitask: torch.nn.modules.batchnorm._BatchNorm": "as in `_batch_norm`",
        "posteriors._checks: _version": "whether a tensor has been written into",
        "posteriors._kronecker_fisher: _reversed_padding_repeated_twice": "pads as Conv2d",
        "previews._heads: _parameters": "which parameters of a layer are its own, not computed",
    },
}  # fmt: skip
"""Private names of other packages, by package, module and name."""

Graph = Mapping[str, set[str]]


class House:
    """A package as its source says.

    Args:
        folder: The package's.
    """

    def __init__(self, folder: Path) -> None:
        self.trees: dict[str, ast.AST] = {}
        self._packages: set[str] = set()
        for path in sorted(folder.rglob("*.py")):
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            if path.stem == "__init__":
                name = name.removesuffix(".__init__")
                self._packages.add(name)
            self.trees[name] = ast.parse(path.read_text(encoding="utf-8"))
        self.modules: Graph = {name: set(self._own(name)) for name in self.trees}
        self.rooms: Graph = {room(name): set() for name in self.trees}
        for name, other in self.arrows():
            self.rooms[room(name)].add(room(other))

    def arrows(self) -> Iterator[tuple[str, str]]:
        """Modules that import one of another room, and that one."""
        for name, imported in self.modules.items():
            yield from ((name, other) for other in imported if room(name) != room(other))

    def imported(self, module: str) -> Iterator[tuple[str, str]]:
        """Dotted names of what a module imports, and what it calls that."""
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                up = node.level - (module in self._packages)
                above = module.split(".")[: -up or None] if node.level else []
                parent = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:
                    yield f"{parent}.{alias.name}", alias.asname or alias.name

    def _own(self, module: str) -> Iterator[str]:
        """The package's modules that a module imports."""
        for name, _ in self.imported(module):
            while name and name not in self.trees:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name

    def between(self, some: set[str], others: set[str]) -> set[str]:
        """Imports of rooms of one tower from rooms of the other."""
        return {
            f"{short(name)} > {short(other)}"
            for name, other in self.arrows()
            if room(name) in some | others
            if room(other) in (others if room(name) in some else some)
        }

    def into_rooms(self) -> set[str]:
        """Imports of a room's private modules from outside of it."""
        return {
            f"{room(name)} > {short(other)}"
            for name, other in self.arrows()
            if any(map(is_private, short(other).split(".")[1:]))
        }

    def private_names(self, but: str) -> set[str]:
        """Private names of other packages, by module; of imports the dotted name.

        A name is of another package if no class of the same room has it, and if it is no module's
        of the house; or if the module `but`, which is not searched, takes it from an object.
        """
        collected = {name for of, name in attributes(self.trees[but]) if of not in _ITSELF}
        members: dict[str, set[str]] = {}
        for name, tree in self.trees.items():
            members.setdefault(room(name), set()).update(_members(tree))
        found: set[tuple[str, str]] = set()
        for module, tree in self.trees.items():
            own_modules = {alias for name, alias in self.imported(module) if name in self.trees}
            for name, _ in self.imported(module):
                if name.partition(".")[0] != module.partition(".")[0]:
                    found |= {(module, name)} if any(map(is_private, name.split("."))) else set()
            for of, name in attributes(tree):
                is_own = name in members[room(module)] or of in own_modules
                if not is_own or (name in collected and of not in _ITSELF):
                    found.add((module, name))
        return {f"{short(module)}: {name}" for module, name in found if module != but}


_ITSELF = ("self", "cls", "super()")
_DOCUMENTED = ("_replace", "_asdict", "_fields")  # of named tuples


def short(module: str) -> str:
    """The name without the package's."""
    return module.partition(".")[2] or module


def room(module: str) -> str:
    return short(module).partition(".")[0]


def is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not dunder and name not in _DOCUMENTED


def attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Private attributes, by name too, and keywords of calls, and what they are of."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(of, name):
                pass
            case ast.Call(
                ast.Name("getattr" | "hasattr" | "setattr"), [of, ast.Constant(name), *_]
            ):
                pass
            case ast.Call(of, _, words):
                for word in words:
                    if is_private(word.arg or ""):
                        yield ast.unparse(of), str(word.arg)
                continue
            case _:
                continue
        if is_private(str(name)):
            yield ast.unparse(of), str(name)


def _members(tree: ast.AST) -> Iterator[str]:
    """Names that the classes of a module and their objects have."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                for part in node.body:
                    match part:
                        case ast.FunctionDef(name) | ast.AnnAssign(ast.Name(name)):
                            yield name
                        case ast.Assign(targets):
                            yield from map(ast.unparse, targets)
            case ast.Attribute(ast.Name("self" | "cls"), name, ast.Store()):
                yield name


def circles(graph: Graph) -> list[set[str]]:
    """The largest sets of nodes each of which can be reached from every other one."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reach = {node: reached(node) for node in graph}
    found = {
        frozenset(other for other in reach[node] if node in reach[other])
        for node in graph
        if node in reach[node]
    }
    return sorted(map(set, found), key=sorted)


def check_circles(graph: Graph, listed: list[str]) -> None:
    found = [set(map(short, circle)) for circle in circles(graph)]
    known = [set(names.split()) for names in listed]
    new = [sorted(circle) for circle in found if not any(circle <= old for old in known)]
    assert not new, "modules or rooms import each other in a circle"
    gone = set().union(*known) - set().union(*found)
    assert not sorted(gone), "in no circle any more: take them from the list"
    assert found == sorted(known, key=sorted), "a circle has fallen apart: list its parts"


def check_list(found: set[str], known: Iterable[str]) -> None:
    known = set(known)
    assert not sorted(found - known), "new, and not allowed"
    assert not sorted(known - found), "gone: take it from the list"


@pytest.fixture(scope="module")
def house() -> House:
    return House(Path(optuna_merge.__file__).parent)


def test_no_circles(house: House) -> None:
    check_circles(house.rooms, CIRCLES_OF_ROOMS)
    check_circles(house.modules, CIRCLES_OF_MODULES)


def test_the_two_towers_never_import_each_other(house: House) -> None:
    check_list(house.between(TENSORS, TRIALS), BETWEEN_TOWERS)


def test_private_modules_are_imported_in_their_own_room(house: House) -> None:
    known = {f"{by} > {of}" for of, rooms in INTO_ROOMS.items() for by in rooms.split()}
    check_list(house.into_rooms(), known)


def test_private_names_of_other_packages(house: House) -> None:
    """Of Optuna in one file alone, of others where there is a reason."""
    (collector,) = (name for name in house.trees if name.endswith("._optuna"))
    listed = OF_OPTUNA.union(*OF_OTHERS.values())
    check_list(house.private_names(but=collector), listed)
    assert not [name for name in set().union(*OF_OTHERS.values()) if ": optuna." in name]


PLANTED = {
    "_low": "import json\nX = 1",
    "trials/__init__": "from pack.trials._made import made",
    "trials/_made": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from pack.trials import made
        class Made:
            _held = 1
            def __init__(self, study):
                self._mine = study
                self._mine, self._theirs, study._storage, study._held
        """,
    "tasks/__init__": """
        def load():
            from ..trials import _made
            return _made._hidden
        """,
    "models": """
        from pack.tasks import load
        from other._inner import x
        from pack import _low
        _low._hidden, getattr(x, "_kept", None), x(_quiet=1), x.__doc__, x._replace(a=1)
        """,
    "_optuna": "study._storage = study._seen",
    "top": "import pack.models, pack._low",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house") / "pack"
    for name, text in {"__init__": "", **PLANTED}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return House(folder)


def test_imports_are_found(planted: House) -> None:
    assert planted.modules["pack.tasks"] == {"pack.trials._made"}
    assert planted.modules["pack.models"] == {"pack.tasks", "pack._low"}
    assert planted.rooms["top"] == {"models", "_low"}
    assert circles(planted.rooms) == []
    assert circles(planted.modules) == [{"pack.trials", "pack.trials._made"}]
    with pytest.raises(AssertionError, match="import each other"):
        check_circles(planted.modules, [])
    with pytest.raises(AssertionError, match="in no circle any more"):
        check_circles(planted.modules, ["trials trials._made tasks"])
    check_circles(planted.modules, ["trials trials._made"])


def test_circles() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [{"b", "c"}, {"d", "e"}]
    with pytest.raises(AssertionError, match="fallen apart"):
        check_circles(graph, ["b c d e"])


def test_offences_are_found(planted: House) -> None:
    assert planted.between(TENSORS, TRIALS) == {"tasks > trials._made"}
    assert planted.between(TRIALS, TENSORS) == {"tasks > trials._made"}
    assert planted.into_rooms() == {"tasks > trials._made"}
    assert planted.private_names(but="pack._optuna") == {
        "models: other._inner.x",
        "models: _kept",
        "models: _quiet",
        "trials._made: _theirs",
        "trials._made: _storage",
    }
    with pytest.raises(AssertionError, match="new, and not allowed"):
        check_list(planted.into_rooms(), ())
    with pytest.raises(AssertionError, match="gone"):
        check_list(set(), {"tasks > trials._made"})
