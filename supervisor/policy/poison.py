"""Which messages kill their workers?

The ledger counts deaths for each key, and is asked before a redelivered message runs; one that has killed `max_crashes`
workers is quarantined instead. Deaths under other supervisors are not known here; for them a quorum queue counts
returns.

That count means only that a message came back: a lost connection counts, and so does every prefetched message. From 4.0
on RabbitMQ drops a message at its 20th return. So at half of that:

| the message                              | action                                                             |
|------------------------------------------|--------------------------------------------------------------------|
| has killed a worker of this supervisor   | quarantined: other supervisors seem to have lost workers too       |
| is not known to have killed any          | put back fresh: a copy with count 0, at the end of the queue       |
| was put back `PUT_BACK_MAX` times before | quarantined: it may kill whole hosts, with their ledgers           |

Before 4.0 there is no limit unless it was configured, which AMQP does not show (`workq check` does), and the count is
ignored. Rejected: subtracting the returns whose reason this supervisor knows (those of other hosts remain unknown), and
quarantining whatever came back often (it may be an innocent long task that lost connections).

`prefetch` is limited for the same reason: a worker that dies returns all it had prefetched, so innocent messages behind
killers would be dropped without ever being run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from supervisor.messages import Suspect, Verdict
from supervisor.policy import advice
from supervisor.policy.actions import Tell
from supervisor.policy.parkings import Parkings
from supervisor.policy.sentences import Sentences
from supervisor.vocabulary import Cause, InHand, Phase, Reading

RETURNS_MAX: Final = 10
"""Returns of a quorum queue's message (`x-delivery-count`) at which it is not run: half the limit of 20 at which
RabbitMQ 4 drops it silently (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling). The other half is
for workers that lose their connection before they have put it back: each returns it once more."""
RETURNS_URGENT: Final = 15
"""Returns at which the verdict no longer waits for earlier holders of the message."""
PUT_BACK_MAX: Final = 5
"""So a message may come back 59 times without blame and still be run."""
ROOM: Final = 2_000
"""Keys remembered, with up to 16 KiB of output each; the one that killed longest ago is forgotten first."""
DEATHS: Final = 10


def has_limit(version: str) -> bool:
    """Whether a broker of this version by default drops a quorum queue's message that comes back often."""
    release = advice.release_of(version)
    return release is not None and release >= (4, 0)


def prefetch(wanted: int, version: str, queue_type: str) -> int:
    """The prefetch count to use. `queue_type`: empty when not known."""
    return 1 if has_limit(version) and queue_type != "classic" else wanted


@dataclass(slots=True)
class Account:
    crashes: int
    cause: str
    output: str
    first_seen: str
    deaths: list[str]
    """A line for each, the latest `DEATHS` of them."""

    @property
    def evidence(self) -> str:
        """The last victim's output, then the deaths: the end is kept if it is too long."""
        return "\n".join([*([self.output.rstrip()] if self.output else []), *self.deaths])


class Ledger:
    """Deaths by key, bounded."""

    def __init__(self, max_crashes: int, room: int = ROOM) -> None:
        self.max_crashes = max_crashes
        self.has_limit = False
        """Whether the broker drops messages that come back often."""
        self._room = room
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def blame(self, key: str, cause: str, output: str = "", *, at: str = "", who: str = "a worker") -> int:
        """A worker died of this key; `at`: time of day. Returns the number of deaths so far."""
        account = self._accounts.pop(key, None) or Account(0, cause, output, at, [])
        account.crashes += 1
        account.cause = cause
        account.output = output or account.output
        account.deaths = [*account.deaths[1 - DEATHS :], f"death {account.crashes}: {at} {who}: {cause}"]
        self._accounts[key] = account
        if len(self._accounts) > self._room:
            self._accounts.popitem(last=False)
        return account.crashes

    def is_condemned(self, crashes: int) -> bool:
        return crashes >= self.max_crashes

    def sentence(self, crashes: int) -> str:
        """The end of a log line about a message with so many deaths; empty for 0."""
        if not crashes:
            return ""
        told = f"; the message has killed {crashes} of at most {self.max_crashes} workers"
        return f"{told} and will be quarantined" if self.is_condemned(crashes) else told

    def is_urgent(self, returns: int) -> bool:
        """Whether the broker may drop the message before an earlier holder exits."""
        return self.has_limit and returns >= RETURNS_URGENT

    def verdict(self, key: str, returns: int = 0, put_back: int = 0) -> Verdict:
        """`returns`: a quorum queue's count since the message was last put back fresh, for the `put_back`-th time."""
        account = self._accounts.get(key)
        is_condemned = account is not None and self.is_condemned(account.crashes)
        if self.has_limit and returns >= RETURNS_MAX and not is_condemned:
            cause = f"returned {put_back * RETURNS_MAX + returns} times"
            if account is not None:
                return Verdict(key, False, account.crashes, cause, account.evidence, account.first_seen)
            return Verdict(key, False, cause=cause, fresh=put_back < PUT_BACK_MAX)
        if account is None:
            return Verdict(key, run=True)
        return Verdict(
            key,
            run=not is_condemned,
            crashes=account.crashes,
            cause=account.cause,
            evidence=account.evidence,
            first_seen=account.first_seen,
        )


@dataclass(slots=True)
class _Question:
    suspect: Suspect
    holders: dict[int, int | None]
    """The pages of workers that may still run this message, each with the delivery it holds, once that is known."""

    def is_held(self, reading: Reading, held: InHand) -> bool:
        """Whether the message that this page holds, of the same key, may be the one in question. What has no id shares
        its key with all that have its body: there only deliveries of before the question count, or this worker would
        wait for as long as others are busy with the like."""
        if reading.phase is Phase.ASKING:
            return True  # just told what to do with it
        if reading.page in self.holders:
            return self.holders[reading.page] in (None, held.delivery_tag)
        return held.message_id is not None


class Suspects:
    """Workers that have asked whether a message may run, and wait for the answer.

    A message never runs twice at the same time: the answer waits until each worker that holds the message has exited or
    finished with it. An orphan does within `--lost-grace`, another worker when its task is done (a node cut off from
    its cluster keeps the holder's connection alive while the cluster redelivers the message). An urgent message does
    not wait and is not run: its copy is asked about again.

    When several ask about one message, only the last can still have its connection, so it is answered first; the others
    then wait for it.
    """

    def __init__(self, ledger: Ledger, parkings: Parkings) -> None:
        self._ledger = ledger
        self._parkings = parkings
        self.sentences = Sentences()
        self._waiting: dict[int, _Question] = {}
        """By page, in the order in which they asked."""

    def ask(self, page: int, suspect: Suspect, holders: Collection[int], now: float) -> list[Tell]:
        """The worker of this page asks about a message that is also on the pages `holders`."""
        self._waiting.pop(page, None)
        begun = {holder for holder in holders if holder not in self._waiting}
        if begun and not self._ledger.is_urgent(suspect.delivery_count):
            # A holder may be dying of it right now: its connection closes before its pidfd is readable.
            self._waiting[page] = _Question(suspect, dict.fromkeys(begun))
            return []
        return [self._tell(page, suspect, now)]

    def forget(self, page: int) -> None:
        """It exits, and needs no answer."""
        self._waiting.pop(page, None)

    def died(self, page: int, now: float) -> list[Tell]:
        self.forget(page)
        self.sentences.died(page)
        for question in self._waiting.values():
            question.holders.pop(page, None)
        return self._answer(now)

    def sampled(self, readings: tuple[Reading, ...], now: float) -> list[Tell]:
        """Update the holders from the pages. A dead worker's page counts until it is reaped."""
        for asked_by, question in self._waiting.items():
            question.holders = {
                reading.page: None if reading.phase is Phase.ASKING else held.delivery_tag
                for reading in readings
                if (held := reading.held) is not None
                and held.key == question.suspect.key
                and reading.page != asked_by
                and reading.page not in self._waiting
                and question.is_held(reading, held)
            }
        return self._answer(now)

    def silent(self, readings: tuple[Reading, ...], longest: float, now: float) -> list[int]:
        """The pages of holders whose loop has been stuck for longer than any broker waits for heartbeats: their
        connection is lost, and they cannot report it, because the handler holds the interpreter."""
        held = {holder for question in self._waiting.values() for holder in question.holders}
        return [reading.page for reading in readings if reading.page in held and now - reading.beat > longest]

    def _answer(self, now: float) -> list[Tell]:
        answers: list[Tell] = []
        for page, question in reversed(list(self._waiting.items())):
            if question.holders:
                continue
            del self._waiting[page]
            answers.append(self._tell(page, question.suspect, now))
            for other in self._waiting.values():
                if other.suspect.key == question.suspect.key:
                    other.holders[page] = None
        return answers

    def _tell(self, page: int, suspect: Suspect, now: float) -> Tell:
        if self._parkings.claim(page, suspect.key, suspect.step, now):
            verdict = Verdict(suspect.key, run=False, name=suspect.name, is_parked=True)
            return Tell(page, verdict, "it is parked already, and its acknowledgement was lost")
        if (sentence := self.sentences.claim(page, suspect.key, suspect.step, now)) is not None:
            verdict = Verdict(
                suspect.key, False, cause=Cause.OPERATOR, evidence=sentence.evidence, name=suspect.name, by=sentence.by
            )
            return Tell(page, verdict, f"{sentence.by} had its worker killed, to have it dead-lettered")
        verdict = self._ledger.verdict(suspect.key, suspect.delivery_count, suspect.put_back)
        verdict = replace(verdict, name=suspect.name)
        if verdict.fresh:
            return Tell(page, verdict, f"it was {verdict.cause}, killed no worker, and would be dropped soon")
        if not verdict.crashes and not verdict.run:
            return Tell(page, verdict, f"it was {verdict.cause}, and would be dropped soon")
        if not verdict.crashes:
            return Tell(page, verdict, "it is not known to have killed a worker")
        return Tell(page, verdict, f"it has killed {verdict.crashes} of at most {self._ledger.max_crashes} workers")
