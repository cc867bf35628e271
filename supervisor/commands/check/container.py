"""`workq check`'s findings about a container that it runs in. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from supervisor.commands.check.facts import Finding, is_loopback, note, ok, warning
from supervisor.settings import Cpus, Settings
from supervisor.values import dataclass

KUBERNETES: Final = "Kubernetes"
_STOPS: Final = {
    KUBERNETES: (30.0, "terminationGracePeriodSeconds: {:g}"),
    "podman": (10.0, "podman run --stop-timeout {:g}"),
    "docker": (10.0, "docker run --stop-timeout {:g}"),
}
"""Seconds from a stop's SIGTERM to SIGKILL unless set, and what sets it. Nothing in a container tells what was set."""


@dataclass(frozen=True, slots=True)
class Container:
    engine: str
    """A key of `_STOPS`."""
    is_killed_whole: bool = False
    """The OOM killer takes all its processes at once (memory.oom.group, cgroup v2)."""
    has_hosts_network: bool = False


def arguments_of(words: Sequence[str]) -> list[str]:
    """The arguments of a supervisor, from its whole command line; none if this is no supervisor's."""
    for at, word in enumerate(words):
        if word.rpartition("/")[2] == "workq-supervise" or (word == "supervisor" and words[at - 1] == "-m"):
            return [*words[at + 1 :]]
    return []


def traps(container: Container, cpus: Cpus, settings: Settings, margin: float) -> list[Finding]:
    """`margin`: seconds that a stop takes beyond the grace."""
    found = [
        *_stop(container, settings, margin),
        *_health(container, settings),
        *_control(settings),
        *_auto(cpus, settings),
        *_oom(container),
    ]
    return found or [ok("container", f"{container.engine}")]


def _stop(container: Container, settings: Settings, margin: float) -> Iterator[Finding]:
    usual, setting = _STOPS[container.engine]
    needed = settings.grace + margin
    if needed > usual:
        what = f"unless told otherwise, {container.engine} kills {usual:g} s after it asked to stop, and --grace "
        what += f"{settings.grace:g}s needs {needed:g} s: set {setting.format(needed)}, or a shorter grace"
        yield note("container", what, f"export WORKQ_GRACE={max(0, usual - margin):g}s")


def _health(container: Container, settings: Settings) -> Iterator[Finding]:
    if settings.health is None:
        yield note("container", "no health port: a probe can only run `workq status --ready`, and metrics are not seen")
    elif is_loopback(settings.health.host) and not (container.has_hosts_network and container.engine != KUBERNETES):
        # With the host's network, too, a kubelet asks at the host's address.
        whom = "probes" if container.engine == KUBERNETES else "published ports"
        what = f"the health port {settings.health} is on the container's own loopback, which {whom} and Prometheus do "
        what += "not reach"
        yield warning("container", what, f"export WORKQ_HEALTH=0.0.0.0:{settings.health.port}")


def _control(settings: Settings) -> Iterator[Finding]:
    if settings.control is None:
        what = "no control socket: workq scale, reload, pause and drain do not work in here"
        yield note("container", what, "export WORKQ_CONTROL=/tmp/workq.sock")


def _auto(cpus: Cpus, settings: Settings) -> Iterator[Finding]:
    if cpus.quota is None and settings.workers.by.startswith("auto"):
        what = f"no CPU limit, so --workers auto is one for each of the machine's {cpus.affinity} CPUs"
        yield note("container", what, "export WORKQ_WORKERS=4")


def _oom(container: Container) -> Iterator[Finding]:
    if container.is_killed_whole:
        what = (
            "memory.oom.group is 1: when memory runs out the whole container is killed, supervisor included, and no "
            "message is blamed; keep workers below the limit by --max-memory, or set the kubelet's singleProcessOOMKill"
        )
        yield warning("container", what)
