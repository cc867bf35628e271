"""systemd: READY, STATUS, WATCHDOG, RELOADING, STOPPING, by datagrams to `$NOTIFY_SOCKET` (sd_notify(3)).

Only the loop calls `tell`, every turn, so a loop that is stuck does not ping the watchdog. What systemd is too busy to
receive is sent again later.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, MutableMapping
from enum import StrEnum
from typing import Final

from supervisor.clock import now
from supervisor.parent.environment import NOTIFY
from supervisor.policy.condition import State
from supervisor.policy.reload import Stage
from supervisor.policy.slot import SlotState
from supervisor.policy.status import AT_WORK
from supervisor.policy.view import PoolView
from supervisor.redaction import redact
from supervisor.vocabulary import Cause, Reading

EXTEND: Final = 10.0
"""Seconds by which each second extends the timeout of starting, reloading and stopping."""
STOP_SPARE: Final = 10.0
"""Seconds beyond the grace after which a stop is no longer extended."""
SLOW_BROKER: Final = 10.0
"""Seconds of connecting after which the start no longer waits for the outcome."""
RETRY: Final = 0.25
"""Seconds after which to send again what systemd had no room for."""
MAX_STATUS: Final = 300
"""Characters. systemd ignores a datagram above 4096 bytes (NOTIFY_BUFFER_MAX in its source)."""

_AT_REST: Final = frozenset({SlotState.EMPTY, SlotState.READY, SlotState.DRAINING})
"""A slot in any other state is restarting."""


class ServiceState(StrEnum):
    """The service's state to systemd; the value is the notification."""

    STARTING = ""
    READY = "READY=1"
    RELOADING = "RELOADING=1"
    STOPPING = "STOPPING=1"


class Systemd:
    """The service manager that started us. `due`: when to call `tell` at the latest, monotonic seconds."""

    def __init__(self, address: str, watchdog: float) -> None:
        """`address` as in `$NOTIFY_SOCKET`; `watchdog` in seconds, infinite when there is none."""
        self.due = now() + watchdog / 2
        self._every = watchdog / 2
        # Not connected: the path is looked up each time, in case the service manager has recreated its socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._state = ServiceState.STARTING
        self._status = ""
        self._told_at = 0.0
        self._stop_by = math.inf
        self._is_reload_asked = False
        self._talking_since: float | None = None

    def reload(self) -> None:
        """`tell` will report that a reload was requested, and its end (systemd.service(5), notify-reload)."""
        self._is_reload_asked = True

    def tell(self, view: PoolView, readings: Iterable[Reading], sampled_at: float, grace: float) -> None:
        """Send what has changed, every turn of the loop. `sampled_at`: the time of `readings`; `grace` in seconds."""
        if self._is_reload_asked:
            self._announce_reload()
        state = self._state_of(view)
        is_new, is_tick = state is not self._state, sampled_at != self._told_at
        if not is_new and not is_tick and now() < self.due:
            return
        lines = [str(state)] if is_new else []
        if is_new and state is ServiceState.STOPPING:
            self._stop_by = now() + grace + STOP_SPARE
        is_ping = now() >= self.due
        if is_ping:
            lines.append("WATCHDOG=1")
        status = summary(view, readings) if is_new or is_tick else self._status
        if status != self._status:
            lines.append(f"STATUS={status}")
        extension = min(EXTEND, self._stop_by - now())
        if state is not ServiceState.READY and extension > 0:
            lines.append(f"EXTEND_TIMEOUT_USEC={int(extension * 1e6)}")
        if not lines or self._send(lines):
            self._state, self._status, self._told_at = state, status, sampled_at
            if is_ping:
                self.due = now() + self._every
        else:
            self.due = now() + RETRY

    def _announce_reload(self) -> None:
        if self._state is ServiceState.READY:
            # Rounded down, so as not to be in the future (sd_notify(3), MONOTONIC_USEC).
            if not self._send([ServiceState.RELOADING, f"MONOTONIC_USEC={int(now() * 1e6)}"]):
                self.due = now() + RETRY
                return
            self._state = ServiceState.RELOADING
        self._is_reload_asked = False

    def _state_of(self, view: PoolView) -> ServiceState:
        if view.state in (State.DRAINING, State.STOPPED):
            return ServiceState.STOPPING
        if self._state is ServiceState.STARTING and not self._is_up(view):
            return ServiceState.STARTING
        return (
            ServiceState.RELOADING
            if self._state is ServiceState.RELOADING and view.is_reloading
            else ServiceState.READY
        )

    def _is_up(self, view: PoolView) -> bool:
        """Whether a worker consumes, or could not for a reason that is retried without end. (After exit 78 the pool
        drains.) Under `--boot-retry` it is unknown whether the handler can be imported."""
        if view.not_imported:
            return False
        if view.ready or view.exits.keys() - {Cause.HANDLER}:
            return True
        if not any(slot.state is SlotState.CONNECTING for slot in view.slots):
            self._talking_since = None
            return False
        self._talking_since = self._talking_since or now()
        return now() - self._talking_since > SLOW_BROKER

    def _send(self, lines: list[str]) -> bool:
        """Whether systemd has taken it. Never blocks, however slow the service manager is."""
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), socket.MSG_DONTWAIT, self._address)
        except OSError:
            return False
        return True


def take(environ: MutableMapping[str, str]) -> Systemd | None:
    """From `$NOTIFY_SOCKET`, if it names a unix socket. Removes `NOTIFY` from the environment."""
    address, usec, pid = (environ.pop(name, "") for name in NOTIFY)
    if not address.startswith(("/", "@")):
        return None  # AF_VSOCK, for virtual machines
    # The watchdog may be meant for the process that started us: sd_watchdog_enabled(3).
    is_ours = usec.isascii() and usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
    return Systemd(address, int(usec) / 1e6 if is_ours else math.inf)


def summary(view: PoolView, readings: Iterable[Reading]) -> str:
    """The service in one line, for `systemctl status`: `4 workers, 3 busy, 0 restarting, broker ok`."""
    states = [slot.state for slot in view.slots if slot.state is not SlotState.EMPTY]
    living = {slot.pid for slot in view.slots if slot.pid is not None}
    busy = sum(1 for page in readings if page.pid in living and page.phase in AT_WORK)
    if view.state in (State.DRAINING, State.STOPPED):
        line = f"{view.state}, {_workers(len(states))} left, {busy} busy: {view.because}"
    else:
        restarting = sum(1 for state in states if state not in _AT_REST)
        line = f"{_workers(len(states))}, {busy} busy, {restarting} restarting, {_broker(view)}"
        if view.shortage:
            line = f"{view.shortage}; {line}"
        if view.not_imported:
            line = f"{view.not_imported}; {line}"
        if view.state is State.DEGRADED:
            line = f"degraded ({view.because}); {line}"
        if view.refusal:
            line = f"{view.refusal}; {line}"
        if view.is_reloading:
            line = f"reloading; {line}"
        if view.reload is not None and view.reload.stage is Stage.CANARY:
            line = f"canary of generation {view.reload.generation}; {line}"
    line = redact(line)
    # It quotes the broker, which must not be able to end the line and inject an assignment.
    line = " ".join("".join(char if char.isprintable() else " " for char in line).split())
    return line if len(line) <= MAX_STATUS else line[: MAX_STATUS - 3] + "..."


def _broker(view: PoolView) -> str:
    if view.trouble:
        return f"broker: {view.trouble}"
    return "broker ok" if view.ready else "broker not reached yet"


def _workers(count: int) -> str:
    return f"{count} worker" if count == 1 else f"{count} workers"
