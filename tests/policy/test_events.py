"""docs/events.md and the code say the same: every event, its level and role, its fields. docs/operations.md answers all
that warn."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.vocabulary import Cause, Kind

ROOT = Path(__file__).parents[2]
SUPERVISOR = ROOT / "supervisor"
DOCUMENT = ROOT / "docs" / "events.md"
OPERATIONS = ROOT / "docs" / "operations.md"

EVENT = re.compile(r"[a-z]+\.[a-z_]+")
LEVELS = {"debug", "info", "warning", "error", "critical"}
ROLES = {"parent": {"supervisor"}, "http": {"supervisor"}, "policy": {"supervisor"}, "worker": {"worker"}}
"""By the room of the code; nobody else logs."""
SETTLEMENTS = SUPERVISOR / "policy" / "settle.py"
"""Names the events that a worker logs as `settlement.event`; the first of them under its own name."""
ALWAYS = {"timestamp", "level", "event", "pid", "role", "slot", "queue"}
BOUND = {name: {"slot", "pid", "source"} for name in ("worker.output", "worker.log_dropped")}
"""Fields that the logger is bound to, elsewhere."""
NO_EVENTS = {"queue.declare"}
"""Other names of this form, with the first word of an event."""


@dataclass
class Logged:
    """What the code says about an event, in all the places that log it."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    roles: set[str] = field(default_factory=set)


# ------------------------------------------------------------------------------------------------------- the code


class Reader(ast.NodeVisitor):
    """Finds the calls that log, and what they log: `Say(...)`, `log.info(...)`, `self._note(...)`."""

    def __init__(self, path: Path, functions: dict[str, ast.FunctionDef], found: dict[str, Logged]) -> None:
        self.roles = {"nursery"} if path == SUPERVISOR / "worker" / "nursery.py" else ROLES.get(path.parent.name, set())
        self.functions = functions
        self.found = found
        self.scope: list[ast.FunctionDef] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.scope.append(node)
        self.generic_visit(node)
        self.scope.pop()

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name == "Say":
            event, level, _, *more = node.args
            self.note(event, level, {"because"}.union(*map(self.keys, more)))
        elif name == "self._note" and len(node.args) > 1:  # a method of that name elsewhere notes something else
            level, event = node.args[:2]
            self.note(event, level, {"because"} | self.keywords(node))
        elif re.fullmatch(r"(.*\._?)?(log|get_logger\(\))\.\w+", name) and name.rpartition(".")[2] in LEVELS:
            self.note(node.args[0], ast.Constant(name.rpartition(".")[2]), self.keywords(node))
        elif name == "logs.tell":
            level, event, fields = node.args
            self.note(event, level, self.keys(fields))

    def note(self, event: ast.expr, level: ast.expr, fields: set[str]) -> None:
        for name in self.texts(event):
            if EVENT.fullmatch(name):
                logged = self.found.setdefault(name, Logged())
                logged.levels |= {text for text in self.texts(level) if text in LEVELS}
                logged.fields |= fields
                logged.roles |= self.roles

    def texts(self, node: ast.expr) -> set[str]:
        """The strings that an expression may be: itself, or what is assigned to that name in the function."""
        if ast.unparse(node) == "settlement.event":
            return {
                each.value
                for settlement in ast.parse(SETTLEMENTS.read_text()).body
                if getattr(settlement, "name", "") != "Acknowledge"
                for each in ast.walk(settlement)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
        values = self.assigned(node.id) if isinstance(node, ast.Name) else [node]
        return {
            each.value
            for value in values
            for each in ast.walk(value)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        }

    def keys(self, node: ast.expr) -> set[str]:
        """The keys that a mapping may have: of a display, a name's assignments, a function's result."""
        found: set[str] = set()
        if isinstance(node, ast.Name):
            for value in self.assigned(node.id):
                found |= self.keys(value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            for each in ast.walk(self.functions[node.func.id]):
                if isinstance(each, ast.Return) and each.value is not None:
                    found |= self.keys(each.value)
        elif isinstance(node, ast.Attribute) and node.attr == "trace":
            found.add("trace_id")
        else:
            for each in ast.walk(node):
                if isinstance(each, ast.Dict):
                    found |= {key.value for key in each.keys if isinstance(key, ast.Constant)}
                    for key, value in zip(each.keys, each.values, strict=True):
                        found |= self.keys(value) if key is None else set()
        return found

    def keywords(self, node: ast.Call) -> set[str]:
        found: set[str] = set()
        for keyword in node.keywords:
            found |= {keyword.arg} if keyword.arg else self.keys(keyword.value)
        return found

    def assigned(self, name: str) -> Iterator[ast.expr]:
        """What a name is given in the function, its default as a parameter, and by `name["key"] = ...`."""
        for function in self.scope[-1:]:
            arguments = function.args
            for argument, default in zip(reversed(arguments.args), reversed(arguments.defaults), strict=False):
                if argument.arg == name:
                    yield default
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else []
                targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
                for target in targets:
                    if ast.unparse(target) == name and node.value is not None:
                        yield node.value
                    if isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                        yield ast.Dict(keys=[target.slice], values=[ast.Constant(None)])


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(SUPERVISOR.rglob("*.py"))}


@functools.cache
def _in_code() -> dict[str, Logged]:
    """Not called when this is imported: it takes half a second, in each process of the tests."""
    found: dict[str, Logged] = {}
    for path, tree in _trees().items():
        Reader(path, _functions(tree), found).visit(tree)
    return found


# --------------------------------------------------------------------------------------------------- the document


def _tables(heading: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of each table with such a first column, and the text before it since its heading."""
    for section in re.split(r"^##+ ", DOCUMENT.read_text(), flags=re.MULTILINE):
        before, found, rows = section.partition(f"\n| {heading} |")
        for row in rows.splitlines()[2:] if found else []:
            if row.startswith("|"):
                yield before, [cell.strip() for cell in row.strip("|").split(" |")]


def _names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def _in_document() -> dict[str, Logged]:
    found: dict[str, Logged] = {}
    for before, (event, level, fields, _when, *_) in _tables("event"):
        (name,) = _names(event)
        assert name not in found, f"{name} is there twice"
        said = re.search(r"^Role: ((?:`\w+`(?:, )?)+)", before, re.MULTILINE)
        assert said is not None, f"nobody says who logs {name}"
        found[name] = Logged(set(level.split(", ")), _names(fields), _names(said[1]))
    return found


def documented_fields() -> dict[str, set[str]]:
    """By event, all the fields that a line of it may have: also for tests that see real ones."""
    return {name: event.fields | ALWAYS for name, event in _in_document().items()}


# ------------------------------------------------------------------------------------------------------ the tests
SAID = _in_document()


def test_every_event_is_documented_and_every_documented_one_is_logged() -> None:
    assert _in_code().keys() == SAID.keys()


@pytest.mark.parametrize("event", sorted(SAID))
def test_level_role_and_fields_are_as_documented(event: str) -> None:
    logged, said = _in_code()[event], SAID[event]
    assert said.levels == logged.levels
    assert said.roles == logged.roles
    assert said.fields == logged.fields | BOUND.get(event, set())


def test_no_event_goes_another_way() -> None:
    """Whatever looks like an event's name is one that was found above."""
    areas = {name.partition(".")[0] for name in _in_code()}
    rooms = {path: tree for path, tree in _trees().items() if path.parent.name in ROLES}
    for path, tree in rooms.items():
        docstrings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                is_one = EVENT.fullmatch(node.value) and node.value.partition(".")[0] in areas
                is_module = (SUPERVISOR / node.value.partition(".")[2]).with_suffix(".py").exists()
                is_room = (SUPERVISOR / node.value.partition(".")[2]).is_dir()
                known = is_module or is_room or node.value in _in_code().keys() | NO_EVENTS
                assert known or not is_one, f"{path.name}:{node.lineno}: {node.value}"


def test_every_field_is_explained_and_nothing_else_is() -> None:
    explained: list[str] = []
    for _, (names, kind, meaning) in _tables("field"):
        explained += sorted(_names(names))
        assert kind
        assert meaning
    assert len(explained) == len(set(explained))
    assert set(explained) == ALWAYS.union(*(event.fields for event in SAID.values()))


def test_operations_has_a_line_for_every_event_that_an_operator_may_have_to_act_on() -> None:
    """Under its worst level, once, with what follows and what to do."""
    _, found, section = OPERATIONS.read_text().partition("\n### What the log warns of\n")
    assert found, f"{OPERATIONS.name} has no such section"
    errors, _, warnings = section.partition("\n### ")[0].partition("\n**warning**")
    for level, table in {"error": errors, "warning": warnings}.items():
        rows = [[cell.strip() for cell in row.strip("|").split(" |")] for row in table.splitlines() if row[:3] == "| `"]
        answered = [name for names, _follows, _to_do in rows for name in re.findall(r"`([^`]+)`", names)]
        assert all(all(row) for row in rows)
        assert len(answered) == len(set(answered))
        expected = {name for name, event in _in_code().items() if _worst(event.levels) == level}
        assert not expected.symmetric_difference(answered), f"rows of level {level} in docs/{OPERATIONS.name}"


def _worst(levels: set[str]) -> str:
    return next(level for level in ("error", "warning", "info", "debug") if level in levels)


def test_every_kind_and_every_cause_is_named() -> None:
    text = DOCUMENT.read_text()
    assert not [kind for kind in Kind if f"`{kind}`" not in text]
    assert not [cause for cause in Cause if f"`{cause}`" not in text]
