"""docs/architecture.md, CONTRIBUTING.md and SECURITY.md name what there is: files, names in them, floors, commands."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPERVISOR = ROOT / "supervisor"
ARCHITECTURE = "docs/architecture.md"
CONTRIBUTING = "CONTRIBUTING.md"
PAGES = (ARCHITECTURE, CONTRIBUTING, "SECURITY.md")

FILE = re.compile(
    r"""(?<![\w./<"-])[\w.-]+(?:/[\w.-]+)*\.(?:py|md|toml)\b|(?<![\w./-])(?:[\w.-]+/)+(?![\w.-])"""
    r"|(?<=`)(?:config|docs|scripts|supervisor|tests)(?:/[\w.-]+)+(?=`)"
)
"""`worker/main.py`, `parent/http/`, `scripts/check`."""
NAME = re.compile(r"`(\w+)\.(\w+)(?:\(.*?\))?`")
"""`exits.judge`, `Pool.view`: of a module, a class or a package."""
EVENTS = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "events.md").read_text(), re.MULTILINE))


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[str]:
    """What is indented by four, paragraph by paragraph: diagrams and commands."""
    return re.findall(r"(?:^(?:    .*)?\n)+", text_of(page), re.MULTILINE)


@cache
def defined() -> dict[str, set[str]]:
    """By module, package or class: the names that it defines."""
    found: dict[str, set[str]] = {}
    for path in SUPERVISOR.rglob("*.py"):
        tree = ast.parse(path.read_text())
        stem = path.parent.name if path.stem == "__init__" else path.stem
        found.setdefault(stem, set()).update(_names(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(_names(node))
    return found


def _names(scope: ast.Module | ast.ClassDef) -> set[str]:
    names: set[str] = set()
    for node in scope.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.AnnAssign(target=ast.Name(name)):
                names.add(name)
            case ast.Assign():
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = set(FILE.findall(text_of(page)))
    assert named
    places = (ROOT, SUPERVISOR, (ROOT / page).parent)
    assert not {name for name in named if not any((place / name).exists() for place in places)}


def test_every_name_that_a_page_gives_is_defined_there() -> None:
    named = {found for page in PAGES for found in NAME.findall(text_of(page))}
    files = {(owner, name) for owner, name in named if name in ("py", "md", "toml")}
    missing = {
        f"{owner}.{name}"
        for owner, name in named - files
        if name not in defined().get(owner, set()) and f"{owner}.{name}" not in EVENTS
    }
    assert len(named - files) > 10
    assert not missing


def test_the_floors_are_those_of_the_contract() -> None:
    [contract, *_] = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    assert contract["type"] == "layers"
    [drawn] = [block for block in blocks(ARCHITECTURE) if block.lstrip().startswith("__main__")]
    # Names are two spaces apart, what is said of them is further off.
    shown = [re.split(r" {3,}", line.strip())[0].split("  ") for line in drawn.strip().splitlines()]
    assert shown == [layer.replace("supervisor.", "").split(" | ") for layer in contract["layers"]]


def commands() -> list[str]:
    """What CONTRIBUTING.md would have one type."""
    lines = [line.partition("#")[0].strip() for block in blocks(CONTRIBUTING) for line in block.splitlines()]
    return [line for line in lines if line.startswith(("scripts/", ".venv/"))]


def test_every_command_names_a_script_its_parts_and_tests_that_exist() -> None:
    assert len(commands()) > 5
    for command in commands():
        program, *arguments = command.split()
        if program.startswith(".venv/"):
            assert command.startswith((".venv/bin/pip install pre-commit", ".venv/bin/pre-commit install"))
            continue
        assert os.access(ROOT / program, os.X_OK), command
        paths = [argument for argument in arguments if argument.startswith("tests/")]
        assert all((ROOT / path).exists() for path in paths), command
        if "planted" in arguments:
            assert "== planted" in text_of("scripts/test")
            paths = ["tests/policy/test_planted_bugs.py"]
        if "-k" in arguments:
            wanted = arguments[arguments.index("-k") + 1]
            assert re.search(wanted.replace("-", r"\W"), text_of(paths[0])), command


def test_the_bug_that_is_shown_is_one_of_those_that_are_planted() -> None:
    [shown] = [line.strip() for line in text_of(CONTRIBUTING).splitlines() if line.startswith("    Bug(")]
    assert shown in text_of("tests/policy/test_planted_bugs.py")


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text_of(page)):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_the_readme_leads_to_the_architecture_first_of_all_for_developers() -> None:
    _, _, developing = text_of("README.md").partition("\n## Developing\n")
    assert re.findall(r"\]\(([^)]+)\)", developing)[:2] == [ARCHITECTURE, CONTRIBUTING]


def test_what_is_promised_to_stay_is_what_the_package_offers() -> None:
    [promised] = [line for line in text_of("docs/upgrading.md").splitlines() if line.startswith("| Python |")]
    names, _, _ = promised.partition(";")
    [offered] = [
        ast.literal_eval(node.value)
        for node in ast.parse(text_of("supervisor/__init__.py")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert set(re.findall(r"`(\w+)`", names)) == set(offered) - {"__version__"}


def test_pre_commit_runs_the_check() -> None:
    config = text_of(".pre-commit-config.yaml")
    assert re.findall(r"^ +entry: (.+)$", config, re.MULTILINE) == ["scripts/check"]
    assert re.findall(r"repo: (.+)$", config, re.MULTILINE) == ["local"]
