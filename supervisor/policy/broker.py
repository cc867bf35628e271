"""What the pool knows of the broker, and which worker may try it next: one probes, the others follow.

While no worker consumes, the slots emptied by the broker share one backoff, after which one of them tries. Once that
worker consumes the others follow, at most twice as many at a time as already consume: no stampede on a broker that has
just come back. Slots emptied by anything else do not wait for this.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Final

from supervisor import queues
from supervisor.messages import Leaving, Ready
from supervisor.policy import advice, ramp, restart
from supervisor.policy.actions import Say
from supervisor.policy.restart import Fault
from supervisor.policy.silence import Silences
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import Kind, slot_of

FAULTS: Final = frozenset({Fault.BROKER, Fault.REFUSED})
"""Faults that make a slot wait its turn."""
PROBE_FOR: Final = 3.0
"""Seconds for which the others wait for one that tries: a node that drops packets delays it for 15 s."""


def turn(begun: list[float], consuming: int) -> float:
    """When one more worker may start to connect, while others that began at these times are still connecting."""
    room = ramp.room(consuming)
    return -math.inf if len(begun) < room else sorted(begun)[-room] + PROBE_FOR


@dataclass(frozen=True, slots=True)
class Blockage:
    """A worker cannot park its message, and so takes no other."""

    since: float
    because: str
    """Empty: the broker has an alarm."""


@dataclass(slots=True)
class BrokerState:
    address: str | None = None
    version: str | None = None
    met: dict[str, str] = field(default_factory=dict)
    """As in `Begin`."""
    trouble: str | None = None
    """Why the latest worker could not consume; None when all is well."""
    kind: str = ""
    """The trouble's `Kind`."""
    away_since: float | None = None
    """Since when no worker consumes because of the broker."""
    is_over: bool = False
    """A worker consumes again since the trouble, and the others follow."""
    failures: int = 0
    """Probes in a row that failed in the same way."""
    fault: Fault | None = None
    next_at: float = 0.0
    """When the next probe is due."""
    has_queue: bool = False
    """A worker has consumed from the queue."""
    queues_since: float | None = None
    """Since when the queues for retries and dead letters are known to be declared; None: not known."""
    refused: str = ""
    """Why one of them cannot be declared."""
    is_narrow: bool = False
    """Workers prefetch less than `--prefetch`, which was logged."""
    blocked: dict[int, Blockage] = field(default_factory=dict)
    """By page."""
    silences: Silences = field(default_factory=Silences)
    is_idling_named: bool = False
    """It was logged that idle connections are closed."""

    def lose(self, kind: str, detail: str, consuming: int, now: float, *, is_usual: bool = False) -> list[Say]:
        """A worker that consumed lost its connection or consumer; `consuming` are left. `is_usual` as below."""
        self._note(kind, detail)
        if consuming or self.away_since is not None:
            return []
        self.away_since = now
        self.queues_since = None  # it may come back as another broker, or without its disk
        level = "info" if is_usual else "error"
        return [Say("broker.lost", level, f"no worker consumes: {detail}", {"kind": kind})]

    def end(self, kind: str, silence: float, heartbeat: float, now: float) -> list[Say]:
        """A consumer's connection ended: log once, when it is known, that idle ones are closed."""
        self.silences.ended(kind, silence, now)
        because = self.silences.because(heartbeat, now)
        was_named, self.is_idling_named = self.is_idling_named, because is not None
        return [] if because is None or was_named else [Say("broker.idle_timeout", "error", because)]

    def is_usual(self, left: Leaving | None) -> bool:
        """Whether its connection was closed for being idle, which is already known to happen."""
        return left is not None and self.silences.expects(left.kind, left.silence)

    def story(self, heartbeat: float, consuming: int, now: float) -> str | None:
        """Its trouble, or the known reason for that."""
        behind = self.silences.because(heartbeat, now) if self.kind in ("", Kind.LOST) else None
        if self.trouble and self.is_over and consuming and not behind:
            return f"the other workers follow, now that this is over: {self.trouble}"
        return behind or self.trouble

    def fail(
        self, fault: Fault, kind: str, detail: str, streak: int, now: float, roll: float
    ) -> tuple[float, list[Say]]:
        """A probe failed, and no worker consumes. Returns when the next one is due, monotonic seconds."""
        is_news = (fault, kind) != (self.fault, self.kind) or self.away_since is None
        self._note(kind, detail)
        if self.away_since is None:
            self.away_since = now
        if fault is not self.fault:
            self.failures, self.next_at = 0, now
        self.fault = fault
        if now >= self.next_at:
            # Several may have tried together, at the start: they count as one failure.
            self.failures = max(self.failures + 1, streak)
            self.next_at = restart.decide(fault, streak=self.failures, was_ready=False, now=now, roll=roll).at
        if not is_news:
            return self.next_at, []
        follows = f"one worker retries in {self.next_at - now:.1f} s, indefinitely; the others wait for it"
        return self.next_at, [Say("broker.refused", "error", detail, {"kind": kind, "next": follows})]

    def turn_away(self, kind: str, detail: str, consuming: int) -> list[Say]:
        """One more worker could not consume; `consuming` others do."""
        is_news = kind != self.kind or self.trouble is None
        self._note(kind, detail)
        if not is_news:
            return []
        follows = f"retried indefinitely; meanwhile {_number(consuming, 'worker consumes', 'workers consume')}"
        return [Say("broker.refused", "warning", detail, {"kind": kind, "next": follows})]

    def consume(self, report: Ready, settings: Settings, *, has_queues: bool, now: float) -> list[Say]:
        """A worker with these settings consumes. `has_queues` as in `Begin`."""
        said = self.reach(report.broker, report.version, advice.acknowledgement(report.version, settings), now)
        said += self.find_queue(settings, report.has_declared)
        if not has_queues:
            said += self.declare(report.refused, now)
        return [*said, *self.narrow(settings.prefetch, report)]

    def reach(self, address: str, version: str, advised: str, now: float) -> list[Say]:
        """Log when the broker was down, or has another version, with what is `advised` for it."""
        said = []
        if self.away_since is not None or version != self.version:
            fields: dict[str, object] = {"broker": address, "version": version}
            because = advised
            if self.away_since is not None:
                fields["seconds"] = round(now - self.away_since, 3)
                if version == self.version:
                    because = f"a worker consumes again after {now - self.away_since:.1f} s; the others follow"
            said.append(Say("broker.connected", "info", because, fields))
        self.is_over = self.is_over or self.away_since is not None
        self.address, self.version = address, version
        self.met = {**self.met, address: version}
        self.away_since, self.failures, self.fault, self.next_at = None, 0, None, 0.0
        return said

    def find_queue(self, settings: Settings, has_declared: bool | None) -> list[Say]:
        """Log the first use of the queue, and when a deleted queue is back."""
        queue, had_queue, self.has_queue = settings.queue, self.has_queue, True
        was_gone = self.kind in (Kind.CANCELLED, Kind.MISSING)
        if has_declared and (was_gone or not had_queue):
            anew = "was deleted with its messages and is declared again" if had_queue else "is declared"
            level = "warning" if had_queue else "info"
            return [Say("queue.declared", level, f"{queue} {anew}: durable, of the virtual host's default type")]
        if had_queue:
            return []
        if has_declared is None:
            return [Say("queue.taken", "info", f"{queue} is durable and of type {settings.queue_type}, as configured")]
        untold = "AMQP does not show its type and arguments, `workq check` does"
        return [Say("queue.taken", "info", f"{queue} exists and is used as it is; {untold}")]

    def declare(self, refused: str, now: float) -> list[Say]:
        """A worker declared the queues for retries and dead letters, or was `refused` one: log that once."""
        if self.queues_since is None:
            self.queues_since = now
        # Not compared: each worker reports the queue it was refused last.
        is_news, self.refused = bool(refused) and not self.refused, refused
        if not is_news:
            return []
        follows = "a task that fails stays in flight, unacked, until this is fixed"
        return [Say("queue.not_declared", "warning", f"{refused}; {follows}")]

    def change(self, former: Settings, settings: Settings, now: float) -> None:
        """A reload changed the settings."""
        if (former.heartbeat, former.url) != (settings.heartbeat, settings.url):
            self.silences.forget()
        self.queues_since = now  # its retries may need other delay queues, which are no older than this

    def has_queues(self, now: float) -> bool:
        """Whether a worker that starts now may rely on them."""
        return self.queues_since is not None and now - self.queues_since >= queues.SETTLES_IN

    def narrow(self, wanted: int, report: Ready) -> list[Say]:
        """Log once that workers prefetch less than `--prefetch`."""
        was_narrow, self.is_narrow = self.is_narrow, 0 < report.prefetch < wanted
        if was_narrow or not self.is_narrow:
            return []
        because = (
            f"--prefetch {wanted} is reduced to {report.prefetch}: a worker that dies returns all it has prefetched, "
            f"and RabbitMQ {report.version} drops a quorum queue's message at its 20th return"
        )
        fields: dict[str, object] = {"prefetch": report.prefetch}
        return [Say("queue.prefetch_reduced", "warning", because, fields)]

    @property
    def blockade(self) -> str | None:
        """Why messages cannot be parked."""
        return self._stuck() or self._alarm()

    def _alarm(self) -> str | None:
        if not (count := sum(not each.because for each in self.blocked.values())):
            return None
        waiting = _number(count, "message waits", "messages wait")
        return (
            f"the broker has a memory or disk alarm and accepts no messages: {waiting} to be parked; tasks and "
            "acknowledgements continue; see rabbitmqctl status"
        )

    def _stuck(self) -> str | None:
        if not (reasons := [each.because for each in self.blocked.values() if each.because]):
            return None
        whose = "message cannot be parked, so its worker takes", "messages cannot be parked, so their workers take"
        return f"{_number(len(reasons), *whose)} nothing else: {reasons[0]}"

    @property
    def blocked_since(self) -> float | None:
        return min((each.since for each in self.blocked.values()), default=None)

    def block(self, page: int, because: str | None, now: float) -> list[Say]:
        """A worker cannot park its message (`because` empty: an alarm; None: it can again, or has exited)."""
        had_alarm, was_stuck = self._alarm(), self._stuck()
        former = self.blocked.pop(page, None)
        if because is not None:
            self.blocked[page] = Blockage(former.since if former else now, because)
        alarm, stuck = self._alarm(), self._stuck()
        said = []
        if alarm and not had_alarm:
            said.append(Say("broker.blocked", "warning", alarm, {"slot": slot_of(page)}))
        if stuck and not was_stuck:
            said.append(Say("parking.blocked", "error", stuck, {"slot": slot_of(page)}))
        if had_alarm and not alarm:
            said.append(Say("broker.unblocked", "info", "no message waits for an alarm to clear"))
        if was_stuck and not stuck:
            said.append(Say("parking.unblocked", "info", "no message waits to be parked"))
        return said

    def recover(self) -> None:
        self.trouble, self.kind, self.is_over = None, "", False

    def _note(self, kind: str, detail: str) -> None:
        self.trouble, self.kind, self.is_over = detail, kind, False


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
