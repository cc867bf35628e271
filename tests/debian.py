"""Programs that some tests need, from Debian's packages.

Not a matter of scripts/setup: who works on something else shall not wait for hundreds of MB. They are installed where
that may be done without asking; else the test is skipped, and on continuous integration (CI is set) it fails.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "scripts" / "setup"
POLICY = Path("/usr/sbin/policy-rc.d")


def install(program: str, *packages: str) -> str:
    """Have these packages, of which the last has this program. Returns its path; skips the test where it is not to be
    had."""
    if shutil.which(program) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(program, packages)
    if (path := shutil.which(program)) is not None:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{program} cannot be installed here, and what needs it must be tested")
    pytest.skip(f"needs {program}: apt-get install --no-install-recommends {' '.join(packages)}")


def _install(program: str, packages: tuple[str, ...]) -> None:
    apt = ["apt-get", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with SETUP.open() as lock:
        # As scripts/setup does: of two that install at a time, one waits.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shutil.which(program) is not None:
            return
        with _services_denied():
            install = [*apt, "install", "--no-install-recommends", *packages]
            if subprocess.run(install, env=env, capture_output=True).returncode != 0:
                # A fresh container has no package lists, an old machine stale ones.
                subprocess.run([*apt, "update"], env=env, capture_output=True)
                subprocess.run(install, env=env, check=False)
        if shutil.which("systemctl"):
            # Nobody has asked for a service; this works where systemd does not run, too.
            subprocess.run(["systemctl", "disable", *packages], capture_output=True, check=False)


@contextmanager
def _services_denied() -> Iterator[None]:
    """A package may start its service. invoke-rc.d asks policy-rc.d first; 101 is its "no" (invoke-rc.d(8))."""
    is_ours = not POLICY.exists()
    if is_ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if is_ours:
            POLICY.unlink()
