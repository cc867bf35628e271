"""Which messages kill their workers?

The ledger counts deaths for each key. A message that has been delivered before asks the ledger before it runs; one
that has killed `max_crashes` workers is quarantined instead. So a message kills at most `max_crashes` workers of a
supervisor. What other supervisors saw of it is not known here; a quorum queue's own count is the second fence.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from supervisor.vocabulary import Suspect, Tell, Verdict

RETURNS_MAX: Final = 18
"""Returns of a quorum queue's message (`x-delivery-count`) at which it is quarantined unrun: two before the limit of 20
at which RabbitMQ 4 drops it silently (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling)."""
ROOM: Final = 2_000
"""Keys remembered at most, with 16 KiB of output each; the one that killed longest ago is forgotten first."""
DEATHS: Final = 10


@dataclass(slots=True)
class Account:
    """What one key has done."""

    crashes: int
    cause: str
    output: str
    first_seen: str
    deaths: list[str]
    """A line for each, the latest `DEATHS` of them."""

    @property
    def evidence(self) -> str:
        """What the last victim wrote, and the deaths; the end is what is kept if it is too long."""
        return "\n".join([*([self.output.rstrip()] if self.output else []), *self.deaths])


class Ledger:
    """Deaths by key, bounded."""

    def __init__(self, max_crashes: int, room: int = ROOM) -> None:
        self.max_crashes = max_crashes
        self._room = room
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def blame(self, key: str, cause: str, output: str = "", *, at: str = "", who: str = "a worker") -> int:
        """Somebody died of this key, at this time of day (for people). Returns how many have, now."""
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

    def verdict(self, key: str, returns: int = 0) -> Verdict:
        """May this message run? `returns`: how often a quorum queue says that it came back, from whichever host."""
        account = self._accounts.get(key)
        if returns >= RETURNS_MAX and (account is None or not self.is_condemned(account.crashes)):
            evidence = account.evidence if account else ""
            return Verdict(key, False, account.crashes if account else 0, f"returned {returns} times", evidence)
        if account is None:
            return Verdict(key, run=True)
        return Verdict(
            key,
            run=not self.is_condemned(account.crashes),
            crashes=account.crashes,
            cause=account.cause,
            evidence=account.evidence,
            first_seen=account.first_seen,
        )


@dataclass(slots=True)
class _Question:
    suspect: Suspect
    has_waited: bool = False
    """Over one sample already."""


class Suspects:
    """Workers that have asked whether a message may run, and wait for the answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: dict[int, _Question] = {}
        """By slot: about a message that another worker seems to hold."""

    def ask(self, slot: int, suspect: Suspect) -> list[Tell]:
        """The worker of this slot asks."""
        if suspect.is_held:
            # Whoever holds it may be dying of it this instant: its connection is closed before its pidfd tells.
            self._waiting[slot] = _Question(suspect)
            return []
        return [self._tell(slot, suspect)]

    def died(self, key: str) -> list[Tell]:
        """Whoever held this message is dead: answer those who asked about it."""
        return self._answer([slot for slot, question in self._waiting.items() if question.suspect.key == key])

    def sampled(self) -> list[Tell]:
        """Answer those whose holder lives on: who have waited from one sample to the next.

        Not at the first: a sample may fall into the milliseconds of a death.
        """
        due = [slot for slot, question in self._waiting.items() if question.has_waited]
        answers = self._answer(due)
        for question in self._waiting.values():
            question.has_waited = True
        return answers

    def forget(self, slot: int) -> None:
        """Its worker is gone."""
        self._waiting.pop(slot, None)

    def _answer(self, slots: list[int]) -> list[Tell]:
        return [self._tell(slot, self._waiting.pop(slot).suspect) for slot in slots]

    def _tell(self, slot: int, suspect: Suspect) -> Tell:
        verdict = replace(self._ledger.verdict(suspect.key, suspect.delivery_count), name=suspect.name)
        if not verdict.crashes and not verdict.run:
            return Tell(slot, verdict, f"it was {verdict.cause}, and the broker drops such messages")
        if not verdict.crashes:
            return Tell(slot, verdict, "it is not known to have killed a worker")
        return Tell(slot, verdict, f"it has killed {verdict.crashes} of {self._ledger.max_crashes}")
