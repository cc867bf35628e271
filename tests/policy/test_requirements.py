"""The lock files, requirements/*.txt, hold all that pyproject.toml asks for. `scripts/lock` writes them."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"runtime": (), "dev": ("dev", "otel", "reload", "ui"), "docs": ("docs",)}
"""By lock file: the extras that it has beside what is always needed."""
PIN = re.compile(r"^([\w.\[\],-]+)==([\w.+!]+)(?: ; (.*?))? \\$", re.MULTILINE)


def text_of(lock: str) -> str:
    return (ROOT / "requirements" / f"{lock}.txt").read_text()


def pins(lock: str) -> dict[str, set[str]]:
    """By package: its versions; several, where it differs by Python's version."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, version, _ in PIN.findall(text_of(lock)):
        found[canonicalize_name(name.partition("[")[0])].add(version)
    return found


def asked(lock: str) -> list[Requirement]:
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in EXTRAS[lock] for line in PROJECT["optional-dependencies"][extra]),
    ]
    return list(map(Requirement, lines))


def test_there_is_a_lock_for_each_use_and_every_extra_is_in_one() -> None:
    assert {path.stem for path in (ROOT / "requirements").glob("*.txt")} == EXTRAS.keys()
    assert {extra for extras in EXTRAS.values() for extra in extras} == PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_dependency_is_locked_to_versions_that_it_allows(lock: str) -> None:
    locked = pins(lock)
    unmet = [
        str(wanted)
        for wanted in asked(lock)
        if not (versions := locked.get(canonicalize_name(wanted.name)))
        or not all(wanted.specifier.contains(version, prereleases=True) for version in versions)
    ]
    assert not unmet, "run scripts/lock"


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_pin_has_a_hash_and_nothing_is_there_that_is_no_pin(lock: str) -> None:
    blocks = re.split(r"\n(?=\S)", text_of(lock).strip())
    packages = [block for block in blocks if not block.startswith("#")]
    assert packages
    assert [block for block in packages if not PIN.match(block) or "--hash=sha256:" not in block] == []
    assert "://" not in text_of(lock), "no index and no mirror is named"


def test_development_runs_what_is_released() -> None:
    runtime, dev = pins("runtime"), pins("dev")
    assert {name: dev[name] for name in runtime} == runtime


def test_the_markers_leave_out_no_python_that_is_supported() -> None:
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(">=3.11")
    assert "python_version" not in text_of("runtime") and "python_full_version" not in text_of("runtime")
