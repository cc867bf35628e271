"""Who imports whom: no cycle of any kind, and one owner for each foreign library.

import-linter holds the floors. It cannot see every cycle: those within a floor, and it counts no module as importing
the package that it stands in. So the graph is read from the source: imports at the top, within functions, and for types
only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWNERS = {
    "pika": ("supervisor.amqp",),
    "psutil": ("supervisor.parent.worker",),
    "ctypes": ("supervisor.linux",),
    "h11": ("supervisor.parent.http.server",),
    "prometheus_client": ("supervisor.parent.http.metrics",),
    "watchfiles": ("supervisor.parent.watcher",),
    "starlette": ("supervisor.commands.ui",),
    "uvicorn": ("supervisor.commands.ui",),
}

Sources = Mapping[str, str]
"""The source of each module, by its name."""


def _sources() -> Sources:
    found = {}
    for path in sorted((ROOT / "supervisor").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text()
    return found


def _imported(source: str) -> Iterator[tuple[str, str]]:
    """Module, and name taken from it, of every import wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is written with the module's whole name"
            yield from ((node.module or "", alias.name) for alias in node.names)


def _graph(sources: Sources) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        found = set[str]()
        for module, taken in _imported(source):
            # `from supervisor.settings import parsers` runs both. All that stands in the outermost package has run
            # that: there only names that it defines itself count, as in `from supervisor import Task`.
            inner = f"{module}.{taken}"
            found |= {inner} if inner in sources and "." not in module else {module, inner}
        graph[name] = (found & sources.keys()) - {name}
    return graph


def _cycle(sources: Sources) -> list[str]:
    """One cycle, its first module again at the end; empty when there is none."""
    try:
        TopologicalSorter(_graph(sources)).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_module_imports_one_that_imports_it_not_even_late_or_for_a_type() -> None:
    assert _cycle(_sources()) == []


@pytest.mark.parametrize("library", OWNERS)
def test_a_foreign_library_has_one_owner(library: str) -> None:
    importers = {
        name
        for name, source in _sources().items()
        for module, _ in _imported(source)
        if module.partition(".")[0] == library
    }
    assert importers
    assert {name for name in importers if not name.startswith(OWNERS[library])} == set()


def test_f88_of_pika_only_the_codec_and_its_errors_are_used_which_the_next_one_has_too() -> None:
    used = {
        name if module == "pika" and name else module
        for source in _sources().values()
        for module, name in _imported(source)
        if module.partition(".")[0] == "pika"
    }
    assert used == {"data", "exceptions", "frame", "spec"}


@pytest.mark.parametrize(
    "back",
    [
        "import p.a",
        "from p import a",
        "from p.a import Name",
        "def late():\n    from p.a import Name\n",
        "if TYPE_CHECKING:\n    from p.a import Name\n",
    ],
)
def test_a_cycle_is_seen_in_whatever_way_it_is_closed(back: str) -> None:
    assert set(_cycle({"p": "", "p.a": "from p.b import Other", "p.b": back})) == {"p.a", "p.b"}


def test_a_name_that_a_package_itself_defines_is_taken_from_the_package() -> None:
    assert set(_cycle({"p": "from p.a import Name", "p.a": "from p import Other"})) == {"p", "p.a"}
    assert set(_cycle({"p.q": "from p.q.a import Name", "p.q.a": "from p.q import b", "p.q.b": ""})) == {"p.q", "p.q.a"}
    assert _cycle({"p": "from p.a import Name", "p.a": "from p import b", "p.b": ""}) == []
