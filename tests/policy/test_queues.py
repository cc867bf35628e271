"""What we call our queues, and what we say when we declare them."""

from __future__ import annotations

import pytest

from supervisor import queues


def test_names_are_those_of_the_public_interface() -> None:
    assert queues.dead("task_queue") == "task_queue.dead"
    assert queues.delay("task_queue", 5000) == "task_queue.delay.5000"
    assert queues.HEADERS == (
        "x-workq-attempt",
        "x-workq-reason",
        "x-workq-error",
        "x-workq-traceback",
        "x-workq-crashes",
        "x-workq-cause",
        "x-workq-evidence",
        "x-workq-host",
        "x-workq-first-seen",
        "x-workq-queue",
        "x-workq-expiration",
        "x-workq-user-id",
        "x-workq-properties",
        "x-workq-dropped",
        "x-workq-cc",
        "x-workq-part",
        "x-workq-parts",
        "x-workq-part-of",
        "x-workq-put-back",
        "x-workq-burst",
        "x-workq-deferred",
        "x-workq-edited-from",
    )


def test_what_waits_for_another_try_is_dead_lettered_at_least_once_and_its_queue_never_expires() -> None:
    arguments = queues.delayed("q", 5000)["arguments"]
    assert arguments is not None and arguments["x-message-ttl"] == 5000
    # Each without the others is at most once: https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once
    assert arguments["x-queue-type"] == "quorum"
    assert arguments["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["x-overflow"] == "reject-publish"
    # A quorum queue's lease is not renewed by declaring it anew: it would go with what is in it.
    assert "x-expires" not in arguments


@pytest.mark.parametrize(
    ("queue_type", "arguments"),
    [("default", None), ("quorum", {"x-queue-type": "quorum"}), ("classic", {"x-queue-type": "classic"})],
)
def test_a_declaration_is_durable_and_says_the_type_or_nothing(queue_type: str, arguments: dict[str, str]) -> None:
    assert queues.declaration("q", queue_type) == {
        "queue": "q",
        "passive": False,
        "durable": True,
        "arguments": arguments,
    }


def test_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'stream' is none of default, quorum, classic"):
        queues.arguments("stream")


def test_a_queue_needs_a_name() -> None:
    with pytest.raises(ValueError, match="no name"):
        queues.declaration("")


def test_a_plain_declaration_asks_first() -> None:
    plain = queues.declaration("q")
    assert queues.attempts(plain) == (queues.inquiry("q"), plain)


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_a_declaration_with_a_type_is_sent_at_once_for_the_broker_to_compare(queue_type: str) -> None:
    typed = queues.declaration("q", queue_type)
    assert queues.attempts(typed) == (typed,)


@pytest.mark.parametrize("queue_type", queues.TYPES)
def test_without_leave_to_declare_every_attempt_is_passive(queue_type: str) -> None:
    assert [each["passive"] for each in queues.attempts(queues.declaration("q", queue_type), declare=False)] == [True]


def test_f120_a_key_is_the_same_in_every_process_and_tells_bodies_apart() -> None:
    assert queues.key("invoice-7", 0xCBF43926) == "invoice-7 cbf43926"
    assert queues.key("invoice-7", 7) == "invoice-7 00000007"
    assert queues.key("digest:0123", 0) == "digest:0123"
