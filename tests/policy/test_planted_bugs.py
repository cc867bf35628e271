"""Would the tests of the policy notice? Each of these bugs is planted in a copy, and there they must fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.planted

ROOT = Path(__file__).parents[2]
MACHINE = "test_pool_machine.py"
SCENES = "test_pool.py"
LEDGER = "test_poison.py"
SHORTAGE = "test_shortage.py"
PASSING = "test_passing.py"
PARKINGS = "test_parkings.py"
SENTENCES = "test_sentences.py"
ADDRESSED = "test_addressed.py"
SILENCE = "test_silence.py"
TRUTH = "test_truth.py"
ADMISSION = "test_admission.py"
BREAKER = "test_breaker.py"
CANARY = "test_canary.py"
TESTS_FAILED = 1
"""pytest's exit code; others mean that it could not even run them."""


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    """In supervisor/policy."""
    right: str
    wrong: str
    noticed_by: str = MACHINE
    also: tuple[tuple[str, str, str], ...] = ()
    """More of the same, where one guard stands behind another: file, right and wrong."""

    def planted(self, root: Path) -> Iterator[tuple[Path, str]]:
        """The files of the package in `root` with the bug in them. Asserts that each place is there, once."""
        for name, right, wrong in ((self.file, self.right, self.wrong), *self.also):
            file = root / "supervisor" / "policy" / name
            text = file.read_text()
            assert text.count(right) == 1, f"{name} has changed: plant this bug anew, where there was {right!r}"
            yield file, text.replace(right, wrong)


BUGS = [
    Bug(
        "an import that fails for a passing reason is tried again without being asked for",
        "nursery.py",
        "return failed.is_passing and (failed.is_set_up or nursery.settings.boot_retry)",
        "return failed.is_passing",
        SCENES,
    ),
    Bug(
        "an import that may succeed later ends the start",
        "nursery.py",
        "return failed.is_passing and (failed.is_set_up or nursery.settings.boot_retry)",
        "return False",
        SCENES,
    ),
    Bug(
        "all workers try the import that one has failed at",
        "turns.py",
        "self.imports.turn(is_importing)",
        "-math.inf",
    ),
    Bug(
        "each worker tells of the import that all have failed at",
        "imports.py",
        "if self.because is not None and began_at <= self._failed_at:",
        "if False:",
        SCENES,
    ),
    Bug(
        "a burst waits for an import for ever",
        "pool.py",
        "if self._imports.because is None and not is_trying:",
        "if not is_trying:",
        SCENES,
    ),
    Bug(
        "an import that has succeeded is told to fail",
        "nursery.py",
        "                if preloaded:\n                    self.imports.succeed()\n",
        "",
        SCENES,
    ),
    Bug("an error of the code is tried again", "passing.py", "return _Judged.OF_CODE\n", "pass\n", PASSING),
    Bug("what led to an exception is not looked at", "passing.py", "each = each.cause", "each = None", PASSING),
    Bug("the number of a TLS error is taken for an errno", "passing.py", "not last & _OTHER_NUMBERS", "True", PASSING),
    Bug(
        "a burst takes any look for one at the delay queues",
        "burst.py",
        "if depth.delayed is None or not self.all_idle or",
        "if not self.all_idle or",
        SCENES,
    ),
    Bug(
        "a burst leaves while tasks lie in the delay queues",
        "burst.py",
        "        if depth.delayed:\n            self._missed_since",
        "        if False:\n            self._missed_since",
        SCENES,
    ),
    Bug(
        "a burst does not wait for a task that a full queue has refused",
        "burst.py",
        "if not self.away.tasks or self._others",
        "if True or self._others",
        SCENES,
    ),
    Bug(
        "those that stand by behind a single active consumer are doubted",
        "truth.py",
        "        if self.is_single:\n",
        "        if False:\n",
        TRUTH,
    ),
    Bug(
        "one worker that is served proves that there is no single active consumer",
        "truth.py",
        "if len(served) > 1 or",
        "if served or",
        TRUTH,
    ),
    Bug(
        "an active consumer that is given nothing any more is spared",
        "truth.py",
        "if self._replaced > workers and not was_served:",
        "if self._replaced > workers:",
        TRUTH,
    ),
    Bug(
        "the broker is asked for the queue's kind at every look",
        "truth.py",
        "return self._is_asked and not was_asked",
        "return self._is_asked",
        TRUTH,
    ),
    Bug(
        "connections that end together are several occasions",
        "silence.py",
        "(not self._ends or now - self._ends[-1][0] > AT_ONCE)",
        "True",
        SILENCE,
    ),
    Bug(
        "an idle timeout is named at every death",
        "broker.py",
        "because is None or was_named else",
        "because is None else",
        SCENES,
    ),
    Bug(
        "any host with our first label is ours",
        "addressed.py",
        "    return name in {",
        "    return name.partition('.')[0] in {",
        ADDRESSED,
    ),
    Bug(
        "what looks like the start of an address is one",
        "addressed.py",
        "_is_address(name)",
        "name[0].isdigit()",
        ADDRESSED,
    ),
    Bug("names are compared with their port", "addressed.py", "_without_port(host.strip())", "host.strip()", ADDRESSED),
    Bug(
        "every slot asks a machine that refuses",
        "turns.py",
        "self.shortage.turn(self.slots.count(SlotState.FORKING) > 0)",
        "-math.inf",
        SHORTAGE,
    ),
    Bug(
        "a refusal that says nothing new is told, and lengthens the backoff",
        "shortage.py",
        "if self.because is not None and asked_at <= self._failed_at and now < self._again_at:",
        "if False:",
        SHORTAGE,
    ),
    Bug(
        "a shortage is told when it is over",
        "shortage.py",
        "        if not self._slots:\n            self.because = None\n",
        "",
        SHORTAGE,
    ),
    Bug(
        "a pool that works gives up when its nursery is refused",
        "nursery.py",
        "if not self.condition.has_worked and nursery.failures >= 2:\n            # Not for ever",
        "if nursery.failures >= 2:\n            # Not for ever",
        SHORTAGE,
    ),
    Bug(
        "a slot that is not wanted any more keeps a shortage alive",
        "sizing.py",
        "        for slot in too_many:\n            self.shortage.fill(slot.number)\n",
        "",
        SHORTAGE,
    ),
    Bug(
        "a worker that was forked during a pause consumes",
        "turns.py",
        "slot.intake = self.admission.at_first()",
        "slot.intake = Intake.ALL",
        also=(
            (
                "turns.py",
                "from supervisor.policy.slots import Slots\n",
                "from supervisor.policy.slots import Slots\nfrom supervisor.vocabulary import Intake\n",
            ),
            (
                "admission.py",
                "slot.intake is not (intake := self._of(slot, first))",
                "slot.intake is not (intake := self._of(slot, first)) and slot.state is SlotState.READY",
            ),
        ),
    ),
    Bug(
        "who connects is not told of a pause",
        "admission.py",
        "_TOLD: Final = frozenset({SlotState.BOOTING, SlotState.CONNECTING, SlotState.READY})",
        "_TOLD: Final = frozenset({SlotState.READY})",
        ADMISSION,
    ),
    Bug(
        "a worker that may not consume is doubted for being idle",
        "pool.py",
        "self._looks.compare(depth, self._slots.taking(), now)",
        "self._looks.compare(depth, self._slots.consuming(), now)",
        ADMISSION,
    ),
    Bug(
        "nobody wakes up to end a pause",
        "pool.py",
        "min(self._turns.deadline, self._admission.deadline, *nurseries, math.inf)",
        "min(self._turns.deadline, *nurseries, math.inf)",
        ADMISSION,
    ),
    Bug(
        "an open breaker stays open",
        "breaker.py",
        "if may_try and now >= self._until else []",
        "if False else []",
    ),
    Bug(
        "a worker tries long before its time",
        "breaker.py",
        "if may_try and now >= self._until else []",
        "if may_try else []",
    ),
    Bug(
        "a worker tries during a pause",
        "breaker.py",
        "if may_try and now >= self._until else []",
        "if now >= self._until else []",
        BREAKER,
    ),
    Bug(
        "a worker that is lost before its task came keeps the breaker half-open",
        "breaker.py",
        "if may_try and (not hands or are_long):",
        "if may_try and hands and are_long:",
    ),
    Bug(
        "a worker that tries takes more than one task",
        "admission.py",
        "return Intake.ONE if self.breaker.tries(slot) else Intake.NONE",
        "return Intake.ALL if self.breaker.tries(slot) else Intake.NONE",
    ),
    Bug(
        "everybody tries",
        "admission.py",
        "return Intake.ONE if self.breaker.tries(slot) else Intake.NONE",
        "return Intake.ONE",
    ),
    Bug(
        "after the breaker has closed some never follow",
        "breaker.py",
        "        if self.allowed >= self._slots.wanted:\n            self.allowed = math.inf\n\n    def _latest",
        "\n    def _latest",
        BREAKER,
    ),
    Bug(
        "all follow at once when the breaker closes",
        "breaker.py",
        "self.allowed = tried + follows\n",
        "self.allowed = math.inf\n",
        BREAKER,
    ),
    Bug(
        "tasks of long ago open the breaker",
        "breaker.py",
        "self._history[1].at <= now - WINDOW",
        "self._history[1].at <= now - 1000 * WINDOW",
        BREAKER,
    ),
    Bug(
        "a task of before the breaker opened decides",
        "breaker.py",
        "for page, before in self._before.items()]",
        "for page, before in (dict.fromkeys(self._seen, (0, 0)) | self._before).items()]",
        BREAKER,
    ),
    Bug(
        "a breaker that flaps begins with the shortest wait each time",
        "breaker.py",
        "elif self._openings and now - self._since >= max(WINDOW, self._wait):",
        "elif self._openings:",
        BREAKER,
    ),
    Bug(
        "a success that is seen late is missed",
        "breaker.py",
        "        hands = [",
        "        self._before = self._before if self._trying else {}\n        hands = [",
        BREAKER,
    ),
    Bug(
        "deaths by messages do not count for the breaker",
        "succession.py",
        "if not self.condition.is_leaving:\n                failed += self.breaker.died",
        "if False:\n                failed += self.breaker.died",
        BREAKER,
    ),
    Bug(
        "the number of workers is changed while they may not consume",
        "sizing.py",
        "        if self.admission.is_restricted:\n            return []\n",
        "",
        ADMISSION,
    ),
    Bug(
        "a herd comes to a broker that comes back",
        "broker.py",
        "room = ramp.room(consuming)",
        "room = 1000",
    ),
    Bug(
        "a hanging probe holds everybody",
        "broker.py",
        "sorted(begun)[-room] + PROBE_FOR",
        "math.inf",
        SCENES,
    ),
    Bug(
        "a wrong password is tried like a broker that is starting",
        "exits.py",
        "return Fault.REFUSED if kind in restart.NEEDS_OPERATOR else Fault.BROKER",
        "return Fault.BROKER",
        SCENES,
    ),
    Bug(
        "who is cut off in the middle of a task counts as consuming",
        "pool.py",
        "            case Lost() if is_at_work and not slot.is_lost:\n",
        "            case Lost() if False:\n",
    ),
    Bug(
        "an orphan outlives its grace",
        "slot.py",
        "orphan.enter(SlotState.DRAINING, deadline)",
        "orphan.enter(SlotState.DRAINING)",
    ),
    Bug(
        "a message is blamed for an orphan that had to be killed",
        "termination.py",
        "return kill(slot, Cause.BROKER, because)",
        "return kill(slot, Cause.HUNG, because)",
        SCENES,
    ),
    Bug(
        "a stand-in writes to the page of an orphan",
        "turns.py",
        "        if slot.page in self.slots.orphans:\n            return math.inf",
        "        if False:\n            return math.inf",
        SCENES,
    ),
    Bug(
        "orphans gather while connections are lost again and again",
        "slots.py",
        "is not None and older.state is SlotState.DRAINING:",
        "is not None and False:",
        SCENES,
    ),
    Bug(
        "a stop forgets orphans",
        "pool.py",
        "termination.drain_all(self._slots.everybody(), because, now",
        "termination.drain_all(self._slots, because, now",
    ),
    Bug(
        "the death of an orphan is not counted against its message",
        "succession.py",
        "if judged.fault is Fault.MESSAGE and died.hand is not None:",
        "if judged.fault is Fault.MESSAGE and died.hand is not None and died.page not in self.slots.orphans:",
        SCENES,
    ),
    Bug(
        "one of many messages that are alike waits for all the others",
        "poison.py",
        "return held.message_id is not None",
        "return True",
        SCENES,
    ),
    Bug(
        "a holder that has gone on to another message of the same key is waited for",
        "poison.py",
        "return self.holders[reading.page] in (None, held.delivery_tag)",
        "return True",
        SCENES,
    ),
    Bug("all that wait for one message run at once", "poison.py", "other.holders[page] = None", "pass", SCENES),
    Bug(
        "an orphan that has taken long to tell is not waited for",
        "pool.py",
        "*self._suspects.sampled(readings, now)]",
        "*self._suspects.sampled(tuple(r for r in readings if r.page not in self._slots.orphans), now)]",
        SCENES,
    ),
    Bug(
        "a holder that keeps its connection is not waited for",
        "pool.py",
        "*self._suspects.sampled(readings, now)]",
        "*self._suspects.sampled(tuple(r for r in readings if r.page in self._slots.orphans), now)]",
        SCENES,
    ),
    Bug(
        "a refusal is silent while others consume",
        "succession.py",
        "            news += self.broker.turn_away(kind, detail, consuming)\n",
        "            pass\n",
        SCENES,
    ),
    Bug(
        "who is kept out is let off its backoff by whoever comes",
        "pool.py",
        "        if self._broker.away_since is not None:\n            for other in concerned:",
        "        if True:\n            for other in concerned:",
        SCENES,
    ),
    Bug(
        "it is forgotten that replacing does not help",
        "truth.py",
        "            if not self._hopes:\n                self._begin_anew()\n",
        "            self._begin_anew()\n",
        "test_truth.py",
    ),
    Bug(
        "a worker that is served is doubted",
        "truth.py",
        "and self._before[belief.slot] == belief]",
        "]",
        "test_truth.py",
    ),
    Bug(
        "replacing never ends where it does not help",
        "truth.py",
        "        self._replaced += 1\n",
        "",
        "test_truth.py",
    ),
    Bug(
        "it spawns while it drains",
        "turns.py",
        "        if self.condition.is_draining:\n            return\n",
        "",
        also=(("succession.py", "        if self.condition.is_draining:\n            return STOPPING\n", ""),),
    ),
    Bug(
        "a delay that is not a number is taken",
        "retry.py",
        "    if not seconds >= 0:\n",
        "    if seconds < 0:\n",
        "test_retry.py",
    ),
    Bug(
        "True is a delay of a second",
        "retry.py",
        "isinstance(delay, str | bytes | bool)",
        "isinstance(delay, str | bytes)",
        "test_retry.py",
    ),
    Bug("the ledger is off by one", "poison.py", "crashes >= self.max_crashes", "crashes > self.max_crashes"),
    Bug(
        "a handler that says its worker's last words is believed",
        "exits.py",
        "died.said is not None and died.hand is None and",
        "died.said is not None and",
        SCENES,
    ),
    Bug(
        "a worker that sends garbage is left alone",
        "pool.py",
        "return [said, *termination.abort(slot, Cause.PROTOCOL, because, now)]",
        "return [said]",
        SCENES,
    ),
    Bug(
        "a message under a signal is not blamed",
        "exits.py",
        "return Fault.MESSAGE if died.hand",
        "return Fault.BROKER if died.hand",
    ),
    Bug(
        "a slot is filled while its old process lives",
        "termination.py",
        "    slot.enter(SlotState.KILLED)\n",
        "    slot.enter(SlotState.WAITING, 0.0)\n",
    ),
    Bug(
        "a message is blamed for what the machine has not got",
        "exits.py",
        "            return Fault.LOCAL\n",
        "            return Fault.MESSAGE if died.hand is not None else Fault.UNEXPLAINED\n",
        SCENES,
    ),
    Bug(
        "a machine that has nothing left is tried without a brake, as each worker finishes a task",
        "succession.py",
        "judged.finished > 0 and fault is not Fault.LOCAL",
        "judged.finished > 0",
        SCENES,
    ),
    Bug(
        "a stand-in on its slot's other page is not seen waiting to park a message",
        "pool.py",
        "all(slot.page in self._broker.blocked for slot in ready)",
        "all(slot.number in self._broker.blocked for slot in ready)",
        SCENES,
    ),
    Bug(
        "a pool that cannot park anything is called ready",
        "status.py",
        "    if view.is_held_up:\n",
        "    if False:\n",
        SCENES,
    ),
    Bug(
        "one worker that waits to park a message is all of them",
        "pool.py",
        "all(slot.page in self._broker.blocked for slot in ready)",
        "bool(self._broker.blocked)",
        SCENES,
    ),
    Bug(
        "no backoff after unexplained deaths",
        "restart.py",
        "Fault.UNEXPLAINED: Backoff(free=1, first=0.25, most=30.0)",
        "Fault.UNEXPLAINED: Backoff(free=1, first=0.0, most=0.0)",
        SCENES,
    ),
    Bug(
        "a broker that sends workers away at once is tried without a brake",
        "restart.py",
        "was_ready and streak == 1",
        "was_ready",
        SCENES,
    ),
    Bug(
        "a nursery that dies of each fork is started without a brake",
        "nursery.py",
        "        self.loaded_at = now\n",
        "        self.failures = 0\n",
        SCENES,
    ),
    Bug(
        "a deadline is not cancelled",
        "nursery.py",
        """        self.state = NurseryState.READY
        self.deadline = None
""",
        """        self.state = NurseryState.READY
""",
    ),
    Bug(
        "a slot that waits for something else has its deadline in the loop",
        "turns.py",
        "times = [max(slot.deadline, self._free_at(slot)) for",
        "times = [slot.deadline for",
    ),
    Bug("it leaves twice", "pool.py", "        self._left = True\n", ""),
    Bug(
        "it leaves before its workers",
        "pool.py",
        "if any(slot.state is not SlotState.EMPTY for slot in self._slots.everybody()):",
        "if any(slot.state is SlotState.READY for slot in self._slots.everybody()):",
    ),
    Bug(
        "the grace is never enforced",
        "pool.py",
        "(self._slots.everybody(), because, now + self.settings.grace)",
        "(self._slots.everybody(), because, None)",
    ),
    Bug(
        "degraded never ends",
        "pool.py",
        "        actions += self._condition.recover(self._slots.count(SlotState.READY), self._slots.wanted, now)\n",
        "",
    ),
    Bug(
        "all at once while degraded",
        "turns.py",
        "return math.inf if begun else free_at",
        "return free_at",
    ),
    Bug(
        "what a dead nursery was asked for is waited for",
        "rollout.py",
        "        self.unfork(now)\n        return [] if self.condition",
        "        return [] if self.condition",
        SCENES,
    ),
    Bug(
        "a worker that hangs after its last words is waited for",
        "pool.py",
        "is_at_work and (not is_draining or slot.deadline is None):",
        "is_at_work and not is_draining:",
    ),
    Bug(
        "a slot that nobody wants is forked for again",
        "rollout.py",
        "is_wanted = self.slots.is_wanted(slot) and not",
        "is_wanted = not",
        SCENES,
    ),
    Bug(
        "burst believes an answer that a death has overtaken",
        "pool.py",
        "            case Exited():\n                self._burst.all_idle = False\n",
        "            case Exited():\n",
        SCENES,
    ),
    Bug(
        "a message may run again because a sample fell into the death of its holder",
        "poison.py",
        "and held.key == question.suspect.key",
        "and False",
        SCENES,
    ),
    Bug(
        "a reload replaces everybody at once",
        "rollout.py",
        "elif all(slot.state is SlotState.READY for slot in slots):",
        "elif old[0].state is SlotState.READY:",
    ),
    Bug(
        "a reload waits for a broker that the generation there consumes from",
        "rollout.py",
        "            and self.broker.away_since is not None\n            and self.incoming",
        "            and self.incoming",
        SCENES,
    ),
    Bug(
        "a reload waits for a broker that only its own settings name",
        "rollout.py",
        "and self.incoming.settings.url == self.nursery.settings.url",
        "and self.incoming.settings.url is not None",
        SCENES,
    ),
    Bug(
        "a reload that waits is never carried out",
        "rollout.py",
        "if self.is_held and self.broker.away_since is not None:",
        "if self.is_held:",
        SCENES,
    ),
    Bug(
        "a reload that waits keeps the slot of its trial",
        "rollout.py",
        "self.chosen.clear()\n        self.is_held = True",
        "self.is_held = True",
        SCENES,
    ),
    Bug(
        "the slot before the trial's is always the next to probe",
        "turns.py",
        "for slot in sorted(self.slots, key=lambda slot: not self.rollout.is_chosen(slot)):",
        "for slot in self.slots:",
        SCENES,
    ),
    Bug(
        "a generation is adopted because it could be imported",
        "rollout.py",
        "return [nursery.has_loaded(seconds, preloaded, now)]",
        "return [nursery.has_loaded(seconds, preloaded, now), *self.adopt(now)]",
        SCENES,
    ),
    Bug(
        "a generation that has failed goes on forking",
        "rollout.py",
        "        return [stop, *failed]",
        "        return failed",
        SCENES,
    ),
    Bug(
        "what a nursery that has died was asked for is waited for",
        "rollout.py",
        "            if self.is_new(slot) and slot.state is SlotState.FORKING:",
        "            if False:",
        SCENES,
    ),
    Bug(
        "new limits hold for tasks that began under others",
        "rollout.py",
        "return self.past.get(slot.generation, self.nursery_of(slot.generation).settings)",
        "return self.nursery.settings",
        SCENES,
    ),
    Bug(
        "a stop forgets the nursery that a reload has started",
        "rollout.py",
        '        self._end(Stage.FAILED, now, "the supervisor is stopping")\n        return actions\n',
        '        self._end(Stage.FAILED, now, "the supervisor is stopping")\n        return []\n',
        SCENES,
    ),
    Bug(
        "a canary takes one worker more than its share",
        "canary.py",
        "max(1, workers * self.percent // 100)",
        "max(1, workers * self.percent // 100 + 1)",
        CANARY,
    ),
    Bug(
        "a canary fills all slots one by one",
        "rollout.py",
        "if len(self.chosen) < size:",
        "if len(self.chosen) < len(slots):",
    ),
    Bug(
        "a canary of one worker is begun where there is nothing to compare it with",
        "rollout.py",
        "asked.canary is not None and self.slots.wanted < 2",
        "asked.canary is not None and self.slots.wanted < 1",
    ),
    Bug(
        "a pool shrinks below what a canary compares",
        "rollout.py",
        "return 1 if self.watch is None else 2",
        "return 1",
    ),
    Bug(
        "workers of a canary that has failed go on",
        "rollout.py",
        "            dismissed = [slot for slot in self.slots if self.is_new(slot) and slot.is_alive]",
        "            dismissed = []",
    ),
    Bug(
        "what a canary's nursery was asked for is waited for",
        "rollout.py",
        "        if self.is_incoming(slot.generation):\n            return self.roll_back(because, now)\n",
        "",
        CANARY,
    ),
    Bug(
        "a canary waits for its workers for ever",
        "canary.py",
        "if now < self.until + ABSENT_FOR:",
        "if now < math.inf:",
        CANARY,
    ),
    Bug(
        "a canary is judged while nobody can have tasks",
        "canary.py",
        "self.began += now - self._decided_at",
        "pass",
        CANARY,
    ),
    Bug(
        "too few tasks are enough for the new code",
        "canary.py",
        "if min(new.tries, old.tries) < ENOUGH:",
        "if min(new.tries, old.tries) < 0:",
        CANARY,
    ),
    Bug(
        "a difference ends a canary at once as it would at the end",
        "canary.py",
        "< (LATE if is_over else EARLY)",
        "< LATE",
        CANARY,
    ),
    Bug(
        "the crashes of a canary's workers are never in a row",
        "canary.py",
        "        self.crashed += 1\n",
        "",
        CANARY,
    ),
    Bug(
        "a task that waits for what is unavailable is no failure of a canary's",
        "canary.py",
        "now.failed + now.deferred - was.failed - was.deferred",
        "now.failed - was.failed",
        CANARY,
    ),
    Bug(
        "what a canary's worker did since the last sample is lost with it",
        "succession.py",
        "self.rollout.count(slot, died.counts, is_crash",
        "self.rollout.count(slot, None, is_crash",
        CANARY,
    ),
    Bug(
        "the queues that a canary declares are taken for the others'",
        "pool.py",
        "has_queues = slot.has_queues or self._rollout.is_canary(slot)",
        "has_queues = slot.has_queues",
        CANARY,
    ),
    Bug(
        "a stopping supervisor says nothing of its canary",
        "rollout.py",
        '            actions.append(Say("reload.failed", "info", why, {"generation": self.nursery.generation}))\n',
        "",
        CANARY,
    ),
    Bug(
        "a message is judged while whoever holds it may be dying of it",
        "poison.py",
        "            self._waiting[page] = _Question(suspect, dict.fromkeys(begun))\n            return []\n",
        "            return [self._tell(page, suspect, now)]\n",
        SCENES,
    ),
    Bug(
        "a queue is used as soon as it is declared",
        "broker.py",
        "now - self.queues_since >= queues.SETTLES_IN",
        "now >= self.queues_since",
        SCENES,
    ),
    Bug(
        "the queues are taken for declared at a broker that comes back",
        "broker.py",
        "self.queues_since = None  # it may come",
        "pass  # it may come",
        SCENES,
    ),
    Bug(
        "a reload's first worker takes the queues for declared",
        "turns.py",
        "slot.has_queues = not self.rollout.is_incoming(slot.generation) and ",
        "slot.has_queues = ",
        SCENES,
    ),
    Bug(
        "a burst counts the time before it reached the broker",
        "pool.py",
        "        self._burst.reached()\n",
        "",
        SCENES,
    ),
    Bug(
        "what comes back often is run until the broker drops it",
        "poison.py",
        "if self.has_limit and returns >= RETURNS_MAX and not is_condemned:",
        "if False:",
        LEDGER,
    ),
    Bug(
        "what comes back often is quarantined though it has killed nobody",
        "poison.py",
        "fresh=put_back < PUT_BACK_MAX)",
        "fresh=False)",
        LEDGER,
    ),
    Bug(
        "what takes whole hosts with it is put back for ever",
        "poison.py",
        "fresh=put_back < PUT_BACK_MAX)",
        "fresh=True)",
        LEDGER,
    ),
    Bug(
        "what has killed is put back though other hosts lose workers by it, too",
        "poison.py",
        "            if account is not None:\n                return Verdict(key, False, account.crashes, cause",
        "            if False:\n                return Verdict(key, False, account.crashes, cause",
        LEDGER,
    ),
    Bug(
        "what the broker may drop any moment waits for its orphan",
        "poison.py",
        "if begun and not self._ledger.is_urgent(suspect.delivery_count):",
        "if begun:",
        SCENES,
    ),
    Bug(
        "nobody waits for an orphan once a message has come back",
        "poison.py",
        "return self.has_limit and returns >= RETURNS_URGENT",
        "return self.has_limit",
        SCENES,
    ),
    Bug(
        "nobody tells the ledger what the broker does",
        "pool.py",
        "        self._ledger.has_limit = poison.has_limit(report.version)\n",
        "",
        SCENES,
    ),
    Bug(
        "a worker prefetches what the broker counts out when it dies",
        "poison.py",
        "return 1 if has_limit(version) and queue_type",
        "return 1 if has_limit(version) and not queue_type",
        LEDGER,
    ),
    Bug(
        "a message is blamed for what the import takes",
        "hung.py",
        "    memory = memory_limit(limits.max_memory, began_with)\n",
        "    memory = limits.max_memory\n",
        SCENES,
    ),
    Bug(
        "a worker that was killed for memory in a task is no crash",
        "exits.py",
        "return self.fault in (Fault.MESSAGE, Fault.UNEXPLAINED)",
        "return self.fault is Fault.UNEXPLAINED",
        SCENES,
    ),
    Bug(
        "a message is blamed for the signal that the task before it had earned",
        "exits.py",
        "return is_ours and died.hand is not None and died.hand.delivery_tag != slot.meant",
        "return False",
        SCENES,
    ),
    Bug(
        "a worker that outstays the grace is said to have ended as planned",
        "exits.py",
        "return self.fault is Fault.PLANNED and self.cause != Cause.GRACE",
        "return self.fault is Fault.PLANNED",
        SCENES,
    ),
    Bug(
        "what is shown of an exit is judged by its cause alone",
        "succession.py",
        "LastExit(judged.cause, name, now, judged.is_planned)",
        'LastExit(judged.cause, name, now, judged.cause == "memory")',
        SCENES,
    ),
    Bug(
        "what was parked is swallowed for ever",
        "parkings.py",
        "until.popleft()\n        if not until:",
        "until[0]\n        if not until:",
        PARKINGS,
    ),
    Bug(
        "whoever has the id of a message that was dead-lettered is dead-lettered",
        "sentences.py",
        "sentence = self._passed.pop((key, step), None)",
        "sentence = self._passed.get((key, step))",
        SENTENCES,
    ),
    Bug(
        "a message is dead-lettered because it came after the one that was meant",
        "sentences.py",
        "if (wanted.key, wanted.delivery_tag) != (found.key, found.delivery_tag):",
        "if False:",
        SENTENCES,
    ),
    Bug(
        "a sentence is forgotten with the worker that was told", "sentences.py", "self._pass(*told)", "pass", SENTENCES
    ),
    Bug(
        "a message is blamed though an operator asked for the end of its worker",
        "exits.py",
        "Cause.MAX_TASKS | Cause.GRACE | Cause.OPERATOR:",
        "Cause.MAX_TASKS | Cause.GRACE:",
        SCENES,
    ),
    Bug("what was parked is swallowed after any time", "parkings.py", "until[0] < now:", "False:", PARKINGS),
    Bug(
        "an acknowledgement that has arrived is taken for lost",
        "parkings.py",
        "if each.later < prefetch:",
        "if True:",
        PARKINGS,
    ),
    Bug(
        "a new message is swallowed for one that was parked",
        "parkings.py",
        "elif last is not None and not last.redelivered:",
        "elif False:",
        PARKINGS,
    ),
    Bug(
        "a worker that is lost takes along what it was told of a parked message",
        "parkings.py",
        "self._remember(*told)",
        "pass",
        PARKINGS,
    ),
    Bug(
        "what a worker did as it was told is left to the next one",
        "parkings.py",
        "if told is not None and told[0] == message:",
        "if told is not None:",
        PARKINGS,
    ),
    Bug(
        "an exit is not counted",
        "succession.py",
        "self.by_cause[judged.cause] += 1",
        "self.by_cause[judged.cause] = 1",
    ),
    Bug(
        "killing somebody is no reason for exit code 1",
        "succession.py",
        "self.condition.code = EXIT_KILLED",
        "pass",
    ),
]


def _copy(to: Path) -> None:
    """The package and the tests of its policy; no other test, and not this one."""
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "supervisor", to / "supervisor", ignore=leave_out)
    (to / "tests" / "policy").mkdir(parents=True)
    for name in (
        "world.py",
        MACHINE,
        SCENES,
        LEDGER,
        SHORTAGE,
        ADMISSION,
        BREAKER,
        PASSING,
        PARKINGS,
        SENTENCES,
        ADDRESSED,
        SILENCE,
        "test_truth.py",
        "test_retry.py",
        CANARY,
    ):
        shutil.copy(ROOT / "tests" / "policy" / name, to / "tests" / "policy")
    (to / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\npythonpath = ["."]\n'
    )


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy without a bug, its files compiled: what is copied from it is not compiled once more."""
    place = tmp_path_factory.mktemp("healthy")
    _copy(place)
    _pytest(place, "--collect-only", PYTHONDONTWRITEBYTECODE="")
    return place


def _run(where: Path, *files: str) -> subprocess.CompletedProcess[str]:
    return _pytest(where, "-x", *(f"tests/policy/{f}" for f in files), PYTHONDONTWRITEBYTECODE="1")


def _pytest(where: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where), "WORKQ_TEST_PLANTED": "1", **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: re.sub(r"\W+", "-", bug.name))
def test_a_planted_bug_is_noticed(bug: Bug, healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)  # with the times of the files, by which Python compiles anew
    for file, text in bug.planted(tmp_path):
        file.write_text(text)
    run = _run(tmp_path, bug.noticed_by)
    assert run.returncode == TESTS_FAILED, f"not noticed:\n{run.stdout}{run.stderr}"
    # It failed because of what it saw, not because the copy is broken.
    assert "AssertionError" in run.stdout, run.stdout


def test_the_copy_is_what_is_tested_and_without_a_bug_it_passes(tmp_path: Path) -> None:
    _copy(tmp_path)
    (tmp_path / "tests" / "policy" / "test_where.py").write_text(
        "from pathlib import Path\n\nimport supervisor\n\n\n"
        "def test_it_is_the_copy() -> None:\n    assert Path(supervisor.__file__).parents[1] == Path.cwd()\n"
    )
    run = _run(tmp_path, "test_where.py", SCENES, MACHINE)
    assert run.returncode == 0, run.stdout + run.stderr
