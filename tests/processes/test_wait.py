"""The one wait: what it does when descriptors come and go within a round."""

from __future__ import annotations

import os
from collections.abc import Iterator

from supervisor.clock import now
from supervisor.parent.wait import Wait
from supervisor.policy.events import Event


def _a_number_is_reused_within_a_round() -> list[str]:
    """Two pipes are readable; whichever is heard first has the other closed, and its number given to a third."""
    wait = Wait(lambda *_: None)
    heard: list[str] = []
    readers = []

    def hear(mine: int) -> Iterator[Event]:
        heard.append("one of the two")
        [other] = [fd for fd in readers if fd != mine]
        wait.forget(other)
        third, writer = os.pipe()
        os.dup2(third, other)
        os.write(writer, b"x")
        wait.watch(other, hear_third)
        return iter(())

    def hear_third() -> Iterator[Event]:
        heard.append("the third")
        return iter(())

    for _ in range(2):
        reader, writer = os.pipe()
        os.write(writer, b"x")
        readers.append(reader)
        wait.watch(reader, lambda reader=reader: hear(reader))  # type: ignore[misc]
    list(wait.events(now() + 1.0, ()))
    return heard


def test_a_descriptor_that_got_the_number_of_one_closed_in_the_same_round_is_not_taken_for_it() -> None:
    # In a process of its own: with it, all those descriptors are gone.
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if _a_number_is_reused_within_a_round() == ["one of the two"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
