"""What users get: a wheel and an sdist, built from this tree and installed where nothing else is."""

from __future__ import annotations

import email
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from supervisor.version import __version__

ROOT = Path(__file__).parents[2]
NAME = f"workq_supervise-{__version__}"
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "supervisor").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)
ALIAS = "supervisor/alias/workq.py"

pytestmark = pytest.mark.timeout(600)  # pip and an index somewhere


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Nothing of this tree or its environment is seen by what runs, unless it is in the current directory."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    ours = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("WORKQ_")}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=ours | environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path

    def in_wheel(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()

    def in_sdist(self) -> list[str]:
        with tarfile.open(self.sdist) as archive:
            return [name.removeprefix(f"{NAME}/") for name in archive.getnames()]

    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as archive:
            return email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


@dataclass(frozen=True)
class Installed:
    """An environment with nothing in it but what was installed."""

    directory: Path

    def __call__(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.directory / "bin" / program, *arguments, cwd=self.directory)

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Ours, from outside: to install one in each takes longer than all the rest."""
        return run(sys.executable, "-m", "pip", "--python", self.directory / "bin" / "python", *arguments)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """That there is somewhere to install from, by this machine's own settings of pip."""
    there = tmp_path_factory.mktemp("index")
    done = run(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", there, "hatchling")
    if done.returncode != 0:
        pytest.skip(f"no package index can be reached: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, index: None) -> Built:
    """The sdist of this tree, and the wheel of that sdist: what is missing in the one is missing in the other."""
    there = tmp_path_factory.mktemp("built")
    done = run(sys.executable, "-m", "build", "--outdir", there, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [sdist] = there.glob("*.whl"), there.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    directory = tmp_path_factory.mktemp(request.param)
    venv.create(directory)
    there = Installed(directory)
    done = there.pip("install", "--quiet", getattr(built, request.param))
    assert done.returncode == 0, done.stderr
    return there


def test_the_wheel_is_the_package_with_its_page_and_its_types_and_nothing_else(built: Built) -> None:
    names = built.in_wheel()
    assert built.wheel.name == f"{NAME}-py3-none-any.whl"
    ours = sorted({*SOURCES, "workq.py"} - {ALIAS})
    assert sorted(name for name in names if ".dist-info/" not in name) == ours
    assert {"supervisor/parent/http/page.html", "supervisor/py.typed"} <= set(names)
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_the_wheel_asks_for_what_it_needs_and_for_development_only_by_name(built: Built) -> None:
    metadata = built.metadata()
    wanted = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    names = {re.split(r"[ <>=!~\[;]", line)[0].lower() for line in wanted}
    assert names == {"pika", "psutil", "structlog", "click", "prometheus-client", "h11", "rich"}
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_sdist_has_sources_tests_and_documents_and_no_litter(built: Built) -> None:
    names = built.in_sdist()
    assert set(SOURCES) <= set(names)
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py", "scripts/test"} <= set(names)
    assert {"CONTRIBUTING.md", "SECURITY.md", ".editorconfig", ".pre-commit-config.yaml"} <= set(names)
    assert any(name.startswith("config/systemd/") for name in names) and "docs/security.md" in names
    assert [
        name for name in names if re.search(r"\.py[co]$|__pycache__|\.venv|\.git/|_cache/|\.hypothesis", name)
    ] == []


def test_what_is_installed_says_its_version_and_its_help_and_warns_of_nothing(installed: Installed) -> None:
    for program in ("workq-supervise", "workq"):
        done = installed(program, "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{program}, version {__version__}\n", "")
        done = installed(program, "--help")
        assert (done.returncode, done.stderr) == (0, "") and "Usage: " in done.stdout
    everything = "; ".join(f"import {name}" for name in modules())
    done = installed("python", "-W", "error", "-c", f"import supervisor; print(supervisor.__file__); {everything}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(installed.directory / "lib"))


def modules() -> list[str]:
    """Every module that needs none of the extras; not those that run when they are imported."""
    files = [name.removeprefix("supervisor/alias/") for name in SOURCES]
    names = [name.removesuffix(".py").replace("/", ".") for name in files if name.endswith(".py")]
    extra = (".changes", ".tracing", ".pytest_plugin", ".ui.guard", ".ui.site")
    return [name for name in names if not name.endswith(("__init__", "__main__", *extra))]


def test_what_is_installed_is_consistent_and_brings_nothing_for_development(installed: Installed) -> None:
    assert installed.pip("check").returncode == 0
    there = {each["name"].lower() for each in json.loads(installed.pip("list", "--format", "json").stdout)}
    assert "pika" in there and "workq-supervise" in there
    assert there.isdisjoint({"pytest", "hypothesis", "mypy", "ruff", "build", "pip-audit", "watchfiles", "trustme"})


def test_importing_the_package_costs_a_producer_or_a_handler_nothing_they_did_not_ask_for(installed: Installed) -> None:
    done = installed("python", "-I", "-c", "import sys, supervisor; print(*sys.modules, sep='\\n')")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"pika", "psutil", "structlog", "click", "prometheus_client", "h11", "rich", "asyncio"} == set()


def test_what_is_installed_supervises_and_serves_its_page(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("def work(task):\n    pass\n")
    # Nobody listens on port 1: a supervisor without its broker is up, and answers.
    options = ["--url", "amqp://127.0.0.1:1", "--workers", "1", "--health", "127.0.0.1:0", "--app-dir", str(tmp_path)]
    program = str(installed.directory / "bin/workq-supervise")
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", program, *options, "tasks:work"],
        env={"PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        events = map(json.loads, process.stderr)
        url = next(event["url"] for event in events if event["event"] == "health.listening")
        assert next(event for event in events if event["event"] == "worker.exited")["cause"] == "broker"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == (ROOT / "supervisor/parent/http/page.html").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert [event["code"] for event in events if event["event"] == "supervisor.stopped"] == [0]
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_no_library_that_comes_with_it_has_a_known_vulnerability(installed: Installed) -> None:
    [libraries] = installed.directory.glob("lib/python*/site-packages")
    done = run(
        sys.executable, "-m", "pip_audit", "--path", libraries, "--format", "json", "--progress-spinner", "off",
        "--timeout", "10",
    )  # fmt: skip
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"the index has no word on vulnerabilities: {done.stderr.strip()[-300:]}")
    # pip-audit calls it success when the index (a mirror, say) knows nothing about anything.
    unknown = {each["name"]: each["skip_reason"] for each in found if "skip_reason" in each}
    wanted = {"pika", "psutil", "structlog", "click", "prometheus-client", "h11", "rich"}
    assert wanted <= {each["name"] for each in found}
    vulnerable = {f"{each['name']} {each['version']}": each["vulns"] for each in found if each.get("vulns")}
    # Not what Python itself puts into every new environment.
    assert {name for name in vulnerable if not name.startswith(("pip ", "setuptools "))} == set()
    if wanted & unknown.keys():
        pytest.skip(f"the index has no word on vulnerabilities in {', '.join(sorted(wanted & unknown.keys()))}")
