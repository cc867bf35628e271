"""A release: the same bytes from the same commit, a page on PyPI whose links lead somewhere, and one version."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import readme_renderer.markdown

from supervisor.version import __version__

ROOT = Path(__file__).parents[2]
NAME = f"workq_supervise-{__version__}"
HOME = "https://github.example/us/workq-supervise"
ABSOLUTE = re.compile(r"https://|http://127\.0\.0\.1:")


def build(tree: Path, to: Path, umask: int = 0o022) -> dict[str, bytes]:
    """By name of the file: what hatchling makes of this tree. Not in an environment of its own: seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", to],
        cwd=tree, env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}, umask=umask, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in to.iterdir()}


def test_two_builds_of_one_source_are_the_same_byte_for_byte_wherever_and_by_whomever(tmp_path: Path) -> None:
    first = build(ROOT, tmp_path / "first")
    # Elsewhere, later, by somebody whose files are nobody else's: what a packager makes of the source distribution.
    with tarfile.open(tmp_path / "first" / f"{NAME}.tar.gz") as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Debian 12's 3.11.2
        archive.extractall(tmp_path / "elsewhere", **safely)
    tree = tmp_path / "elsewhere" / NAME
    (tree / "PKG-INFO").unlink()  # hatchling would copy from it what hatch_build.py makes
    for path in tree.rglob("*"):
        os.utime(path, (1, 2_000_000_000))
        path.chmod(path.stat().st_mode & 0o700)
    second = build(tree, tmp_path / "second", umask=0o077)
    assert first.keys() == second.keys() == {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    assert first == second


# ---------------------------------------------------------------------------------------------------- the page on PyPI


@pytest.fixture(scope="module")
def hatch_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Targets(HTMLParser):
    """Where links and pictures of a page lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        # A heading is a link to itself.
        if tag == "a" and not str(said["href"]).startswith("#user-content-"):
            self.links.append(str(said["href"]))
        if tag == "img":
            self.pictures.append(str(said["src"]))


def shown(text: str) -> Targets:
    """As PyPI renders it."""
    page = readme_renderer.markdown.render(text)
    assert page is not None
    return Targets(page)


def test_with_an_address_every_link_and_picture_on_pypi_leads_to_a_file_of_that_version(
    hatch_build: ModuleType,
) -> None:
    readme = (ROOT / "README.md").read_text()
    here, there = shown(readme), shown(hatch_build.described(readme, HOME, "1.2.3"))
    assert len(there.links) == len(here.links) and len(there.pictures) == len(here.pictures) >= 3
    assert [link for link in there.links if not ABSOLUTE.match(link)] == []
    assert all(picture.startswith(f"{HOME}/raw/v1.2.3/docs/images/") for picture in there.pictures)
    ours = [link.removeprefix(f"{HOME}/blob/v1.2.3/") for link in there.links if link.startswith(HOME)]
    assert len(ours) > 15
    for path in [*ours, *(picture.removeprefix(f"{HOME}/raw/v1.2.3/") for picture in there.pictures)]:
        assert (ROOT / path.partition("#")[0]).exists(), path
    for address in hatch_build.addresses(HOME, "1.2.3").values():
        assert address.startswith(HOME)


def test_without_an_address_nothing_on_pypi_pretends_to_lead_anywhere(hatch_build: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    page = hatch_build.described(readme, "", "1.2.3")
    there = shown(page)
    assert there.pictures == [] and there.links
    assert [link for link in there.links if not ABSOLUTE.match(link)] == []
    assert "docs/handlers.md" in page and hatch_build.addresses("", "1.2.3") == {}
    # The rest is the README, word for word.
    said = re.sub(r"\W+", " ", re.sub(r"!\[.*|\]\([^)]*\)", "", readme))
    assert re.sub(r"\W+", " ", re.sub(r"\]\([^)]*\)", "", page.replace(hatch_build.ELSEWHERE, ""))) == said


def test_what_is_built_says_so_and_passes_twine(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *(tmp_path / name for name in built)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------------------------------- scripts/release


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with what scripts/release looks at before it does anything."""
    tree = tmp_path / "clone"
    (tree / "scripts").mkdir(parents=True)
    (tree / "supervisor").mkdir()
    for name in ("scripts/release", "supervisor/version.py", "pyproject.toml"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} (2026-11-30)\n")
    # The first thing that it does after it has looked: it got that far.
    (tree / "scripts" / "setup").write_text("#!/bin/sh\necho all is well; exit 99\n")
    (tree / "scripts" / "setup").chmod(0o755)
    git(tree, "init", "--quiet")
    commit(tree)
    return tree


def git(tree: Path, *arguments: str) -> None:
    who = [
        "-c",
        "user.name=us",
        "-c",
        "user.email=us@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    subprocess.run(["git", *who, *arguments], cwd=tree, check=True, capture_output=True)


def commit(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "as it is")


def release(tree: Path, *arguments: str, **environ: str) -> str:
    """What it says, up to the point where it would begin."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "GIT_"))}
    done = subprocess.run(
        ["bash", "scripts/release", "--tested", *arguments],
        cwd=tree,
        env=ours | environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 99)
    assert (done.returncode == 99) == ("all is well" in done.stdout)
    return done.stdout + done.stderr


def test_a_commit_whose_changelog_and_version_agree_is_released(clone: Path) -> None:
    git(clone, "tag", f"v{__version__}")
    assert "all is well" in release(clone)


@pytest.mark.parametrize(
    ("file", "was", "now", "because"),
    [
        ("CHANGELOG.md", __version__, "9.9.9", "CHANGELOG.md begins with"),
        ("CHANGELOG.md", " (2026-11-30)", "", "(YYYY-MM-DD)"),
        ("CHANGELOG.md", f"## {__version__} (2026-11-30)", "## Unreleased", "begins with '## Unreleased'"),
        ("supervisor/version.py", __version__, "1.0", "no version"),
    ],
)
def test_what_is_not_consistent_is_not_released(clone: Path, file: str, was: str, now: str, because: str) -> None:
    text = (clone / file).read_text()
    assert text.count(was) == 1
    (clone / file).write_text(text.replace(was, now))
    assert "the tree is not clean" in release(clone)
    commit(clone)
    assert because in release(clone)


def test_another_versions_tag_is_noticed(clone: Path) -> None:
    git(clone, "tag", "v9.9.9")
    assert "tagged v9.9.9" in release(clone)


def test_what_is_published_from_github_must_name_that_repository(clone: Path) -> None:
    where = {"GITHUB_REPOSITORY": "us/workq-supervise", "GITHUB_SERVER_URL": "https://github.example"}
    assert f"and this is {HOME}" in release(clone, **where)
    project = clone / "pyproject.toml"
    text, count = re.subn(r'^home = ".*"$', f'home = "{HOME}"', project.read_text(), flags=re.MULTILINE)
    assert count == 1
    project.write_text(text)
    commit(clone)
    assert "all is well" in release(clone, **where)


def test_a_rehearsal_takes_a_commit_between_two_releases(clone: Path) -> None:
    (clone / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    commit(clone)
    assert "all is well" in release(clone, "--rehearse", GITHUB_REPOSITORY="somebody/else")


# ------------------------------------------------------------------------------------------------------ the workflows


def test_workflows_run_what_ci_runs_and_every_action_is_pinned_to_a_commit() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").iterdir()}
    assert texts.keys() == {"test.yml", "release.yml"}
    assert "- run: bash .ci/run\n" in texts["test.yml"]
    assert "- run: scripts/release --tested dist\n" in texts["release.yml"]
    assert "uses: ./.github/workflows/test.yml" in texts["release.yml"]
    for text in texts.values():
        used = re.findall(r"uses: (\S+)(.*)", text)
        assert used
        for action, comment in used:
            assert action.startswith("./") or (re.search(r"@[0-9a-f]{40}$", action) and re.search(r"# v\d", comment))
    assert "secrets." not in "".join(texts.values()), "trusted publishing needs none"
    assert re.search(r"scripts/release --rehearse", (ROOT / ".ci" / "run").read_text())
