"""Tests of a handler, without a broker and without a process.

    from supervisor import testing
    from tasks import resize

    def test_a_picture_that_is_missing_is_rejected():
        assert testing.run(resize, "no.jpg") == testing.Rejected("no.jpg is not there")

`run` calls the handler by the worker's own code, so what counts as done, failed or rejected is what counts there. The
pytest fixture `workq_broker` (`supervisor.pytest_plugin`) is for tests that want a RabbitMQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack, assert_never

from supervisor import queues
from supervisor.amqp.properties import Properties
from supervisor.clock import now
from supervisor.policy import settle
from supervisor.settings import OPTIONS
from supervisor.worker import contract
from supervisor.worker.delivery import Delivery
from supervisor.worker.event_loop import Nested
from supervisor.worker.handler import CannotLoad, Handler, ended
from supervisor.worker.task import Task

__all__ = ["Deferred", "Done", "Failed", "Message", "Rejected", "Result", "Retried", "run", "task"]


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned: the message is acknowledged."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, or returned something that has not run: the message is tried again, or dead-lettered."""

    error: str
    """As in the log: `ValueError: 12 is odd`."""
    traceback: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Retried:
    """The handler raised `Retry`."""

    delay: float | None
    """Seconds that it asked for; None: as after an exception."""
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Deferred:
    """The handler raised `Unavailable`: the message is run again later, and no try is counted."""

    retry_after: float
    """Seconds."""
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The handler raised `Reject`: the message is dead-lettered at once."""

    why: str


Result = Done | Failed | Retried | Deferred | Rejected


class Message(TypedDict, total=False):
    """What a message has beside its body."""

    headers: Mapping[str, Any]
    message_id: str
    correlation_id: str
    content_type: str
    routing_key: str
    queue: str
    redelivered: bool
    attempt: int


def task(body: str | bytes = b"", **message: Unpack[Message]) -> Task:
    """A task as a handler gets it. Text is sent as UTF-8; `attempt` is 1 unless it is given, `queue` the default one,
    and `routing_key` the queue's name.

    Raises ValueError when `attempt` is less than 1, and TypeError for a body that is neither text nor bytes, or for
    what a message does not have.
    """
    if unknown := ", ".join(sorted(message.keys() - Message.__annotations__.keys())):
        raise TypeError(f"a message has no {unknown}; it has {', '.join(Message.__annotations__)}")
    attempt = message.get("attempt", 1)
    if attempt < 1:
        raise ValueError(f"attempt counts from 1, and {attempt} is given")
    body = queues.octets(body)
    queue = message.get("queue", OPTIONS["queue"].default)
    routing_key = message.get("routing_key", queue)
    properties = Properties(
        headers=dict(message["headers"]) if "headers" in message else None,
        message_id=message.get("message_id"),
        correlation_id=message.get("correlation_id"),
        content_type=message.get("content_type"),
        delivery_mode=2,
    )  # type: ignore[no-untyped-call]
    name = queues.name(message.get("message_id"), body, routing_key)
    delivery = Delivery(1, routing_key, message.get("redelivered", attempt > 1), properties, body, name)
    return Task(delivery, attempt, now(), queue)


def run(function: Callable[..., Any], body: str | bytes | Task = b"", **message: Unpack[Message]) -> Result:
    """Run a handler on one task, as a worker does, and say how it ended. What it raises is in the result, SystemExit
    and KeyboardInterrupt too.

    `body` may be a task made by `task`. An `async def` runs on a loop of its own. Of a class an instance is made, set
    up, called and torn down.

    Raises TypeError for what a worker refuses at its start (a generator function, or what cannot be called with
    exactly one argument), and for a body that is neither text, bytes nor a task; RuntimeError in a running event loop,
    where nothing of the handler's can be awaited; what the set-up of a class raises; AssertionError when its tear-down
    raises.
    """
    name = getattr(function, "__qualname__", repr(function))
    if (why := contract.refusal(name, function)) is not None:
        raise TypeError(why)
    if isinstance(body, Task) and message:
        raise TypeError(f"a task is complete: give {', '.join(sorted(message))} to testing.task")
    given = body if isinstance(body, Task) else task(body, **message)
    made = Handler(name, function, _ended)
    try:
        made.set_up()
        return result(made.runner()(given))
    except CannotLoad as error:
        cause = error.__cause__ or error
        raise _nested() if isinstance(cause, Nested) else cause from None
    except Nested:
        raise _nested() from None
    finally:
        if (failed := made.tear_down()) is not None:
            raise AssertionError(f"the tear-down raised {failed.error}\n{failed.traceback}")


def _ended(error: BaseException) -> settle.Outcome:
    if isinstance(error, Nested):
        raise error
    return ended(error)


def _nested() -> RuntimeError:
    return RuntimeError(
        "testing.run cannot be called from a running event loop: it awaits the handler on a loop of its own. Make the "
        "test a plain `def`, or call `await asyncio.to_thread(testing.run, handler, body)`"
    )


def result(outcome: settle.Outcome) -> Result:
    """The worker's word for how a handler ended, as one of ours."""
    match outcome:
        case settle.Returned():
            return Done()
        case settle.Raised(error, traceback):
            return Failed(error, traceback)
        case settle.RetryAsked(delay, why):
            return Retried(delay, why)
        case settle.Deferred(retry_after, why):
            return Deferred(retry_after, why)
        case settle.Rejected(why):
            return Rejected(why)
        case settle.Condemned() | settle.TooLarge() | settle.Undecodable():
            raise AssertionError(f"{outcome}: not an end of a handler's")
        case _:
            assert_never(outcome)
