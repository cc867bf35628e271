"""A nursery as the pool sees it: a process that has imported the handler and forks workers.

When it dies or hangs another one follows, with backoff; its workers keep running. An import that leaves threads running
is not forked from: then each worker imports the handler itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from supervisor.messages import Loaded, LoadFailed, Threaded
from supervisor.policy.actions import Action, Say, StartNursery, StopNursery
from supervisor.policy.condition import Condition, Consequence, GiveUp
from supervisor.policy.events import NurseryGone
from supervisor.policy.imports import Imports
from supervisor.policy.restart import STEADY, Backoff
from supervisor.policy.shortage import NURSERY, Shortage
from supervisor.policy.slots import Slots
from supervisor.settings import Settings
from supervisor.values import dataclass
from supervisor.vocabulary import EXIT_CONFIG, EXIT_KILLED

THREADS: Final = "the import left threads running, which makes forking unsafe: each worker imports the handler itself"
REPLACED: Final = (
    "the import replaced functions of the standard library ({}), as gevent and eventlet do, which makes forking "
    "unsafe: each worker imports the handler itself"
)
_BACKOFF: Final = Backoff(free=1, first=0.25, most=30.0)


class NurseryState(StrEnum):
    NONE = "none"
    LOADING = "loading"
    READY = "ready"


def why_bare(report: Threaded) -> str:
    """Why an import cannot be forked from."""
    return REPLACED.format(", ".join(report.replaced)) if report.replaced else THREADS


@dataclass(slots=True)
class Nursery:
    generation: int
    settings: Settings
    """Its workers'."""
    preload: bool
    state: NurseryState = NurseryState.NONE
    deadline: float | None = None
    """LOADING: give the import up. NONE: start another one."""
    loaded_at: float = 0.0
    failures: int = 0
    """In a row, since one forked a worker or lived for `STEADY` seconds. Loading proves nothing: a fork may kill it."""

    def load(self, now: float, because: str) -> StartNursery:
        self.state = NurseryState.LOADING
        self.deadline = now + self.settings.boot_timeout
        return StartNursery(self.generation, self.preload, because)

    def load_bare(self, report: Threaded, now: float) -> list[Action]:
        """Its import cannot be forked from: start it again without preload."""
        because = why_bare(report)
        self.preload = False
        return [StopNursery(self.generation, because), self.load(now, because)]

    def has_loaded(self, seconds: float, preloaded: bool, now: float) -> Say:
        """It is ready to fork; `seconds`: the duration of the import."""
        self.state = NurseryState.READY
        self.deadline = None
        self.loaded_at = now
        fields = {"handler": self.settings.handler, "seconds": round(seconds, 3), "preloaded": preloaded}
        because = "imported once, for every worker" if preloaded else "each worker imports it itself"
        return Say("handler.loaded", "info", because, fields)

    def has_died(self, now: float) -> None:
        if self.state is not NurseryState.LOADING and now - self.loaded_at >= STEADY:
            self.failures = 0
        self.state = NurseryState.NONE

    def retry(self, now: float, roll: float) -> list[Action]:
        """Start another one, now or at `deadline`; `roll` as for `Backoff.delay`."""
        self.failures += 1
        delay = _BACKOFF.delay(self.failures, roll)
        if not delay:
            return [self.load(now, "the nursery died")]
        self.deadline = now + delay
        return []


def import_hangs(settings: Settings) -> LoadFailed:
    """Transient, because the usual reason is a host that drops packets."""
    limit = f"--boot-timeout ({settings.boot_timeout:g} s)"
    return LoadFailed(f"the import of {settings.handler} did not finish within {limit}", "", is_passing=True)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Handles what the current generation's nursery does: it loads, fails, dies, or is refused."""

    slots: Slots
    condition: Condition
    shortage: Shortage
    imports: Imports

    def loaded(self, nursery: Nursery, report: Loaded | Threaded | LoadFailed, now: float) -> list[Consequence]:
        match report:
            case Loaded(seconds, preloaded):
                self.shortage.fill(NURSERY)
                if preloaded:
                    self.imports.succeed()
                return [nursery.has_loaded(seconds, preloaded, now)]
            case Threaded(threads):
                self.imports.succeed()
                fields = {"threads": threads, "preloaded": False}
                said = Say("handler.loaded", "warning", why_bare(report), fields)
                return [said, *nursery.load_bare(report, now)]
            case LoadFailed():
                nursery.state = NurseryState.NONE
                return self._cannot_import(nursery, report, now)

    def gone(self, nursery: Nursery, gone: NurseryGone, now: float) -> list[Consequence]:
        was_loading = nursery.state is NurseryState.LOADING
        nursery.has_died(now)
        fields: dict[str, object] = {"output": gone.output} if gone.output else {}
        said = Say("nursery.exited", "warning", f"{gone.cause}; workers keep running, another nursery starts", fields)
        if was_loading and not self.condition.has_worked and nursery.failures >= 2:
            error = f"the importing process died three times, last of {gone.cause}"
            return [said, *self.cannot_load(nursery, LoadFailed(error, gone.output))]
        return [said, *nursery.retry(now, self.slots.roll())]

    def refused(self, nursery: Nursery, error: str, now: float) -> list[Consequence]:
        """The machine refused the process."""
        nursery.has_died(now)
        if self.condition.is_draining:
            return []
        if not self.condition.has_worked and nursery.failures >= 2:
            # Not for ever, as later on: a service manager, or a person, notices a start that fails.
            said = Say("nursery.start_failed", "error", error, {"next": "none: it was refused three times"})
            return [said, GiveUp(error, EXIT_KILLED)]
        roll = self.slots.roll()
        self.shortage.refuse(NURSERY, error, now, now, roll)
        retry = nursery.retry(now, roll)
        delay = max(0.0, (nursery.deadline or now) - now) if not retry else 0.0
        return [Say("nursery.start_failed", "error", error, {"next": f"retried in {delay:.2f} s"}), *retry]

    def overdue(self, nursery: Nursery, now: float) -> list[Consequence]:
        if nursery.deadline is None or nursery.deadline > now:
            return []
        if nursery.state is not NurseryState.LOADING:
            why = "the import is retried" if self.imports.because else f"after {nursery.failures} failures"
            return [nursery.load(now, why)]
        failed = import_hangs(nursery.settings)
        nursery.state = NurseryState.NONE
        nursery.deadline = None
        stop = StopNursery(nursery.generation, failed.error, stack=True)
        return [stop, *self._cannot_import(nursery, failed, now)]

    def _cannot_import(self, nursery: Nursery, failed: LoadFailed, now: float) -> list[Consequence]:
        if self.may_pass(nursery, failed):
            told = self.import_later(nursery, failed, now, now, self.slots.roll())
            nursery.state, nursery.deadline = NurseryState.NONE, self.imports.turn(is_trying=False)
            return [*told]
        if not self.condition.has_worked:
            return self.cannot_load(nursery, failed)
        retry = nursery.retry(now, self.slots.roll())
        return [_failed(nursery, failed, "retried: running workers have loaded it"), *retry]

    def cannot_load(self, nursery: Nursery, failed: LoadFailed) -> list[Consequence]:
        """No worker has consumed, and none will."""
        follows = "none: restarting will not help"
        if failed.is_passing:
            follows = "none; if this is transient: --boot-retry retries it"
        because = failed.error if failed.is_set_up else f"the handler cannot be loaded: {failed.error}"
        return [_failed(nursery, failed, follows), GiveUp(because, EXIT_CONFIG, ends_nursery=True)]

    def may_pass(self, nursery: Nursery, failed: LoadFailed) -> bool:
        """Whether to retry: a set-up always, like a connection to the broker; an import with `--boot-retry`."""
        return failed.is_passing and (failed.is_set_up or nursery.settings.boot_retry)

    def import_later(
        self, nursery: Nursery, failed: LoadFailed, began_at: float, now: float, roll: float
    ) -> list[Action]:
        """One worker retries for all, at `Imports.turn`. The traceback is logged once for each reason."""
        why = "set up" if failed.is_set_up else "imported"
        because = f"the handler cannot be {why} yet: {failed.error}; it is retried"
        told = self.imports.fail(because, began_at, now, roll)
        if told is None:
            return []
        delay, is_news = told
        by = "" if failed.is_set_up else " (--boot-retry)"
        return [_failed(nursery, failed, f"retried in {delay:.2f} s{by}", passes=True, is_news=is_news)]


def _failed(nursery: Nursery, failed: LoadFailed, follows: str, *, passes: bool = False, is_news: bool = True) -> Say:
    fields = {"handler": nursery.settings.handler, "next": follows}
    if failed.traceback and is_news:
        fields["exception"] = failed.traceback
    event = "handler.setup_failed" if failed.is_set_up else "handler.import_failed"
    return Say(event, "warning" if passes else "error", failed.error, fields)
