"""The connection cut at any byte, and strangers at the broker's door: always a typed end, and a reason."""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from pika import frame, spec

from supervisor import queues
from supervisor.endpoint import Endpoint
from supervisor.publisher import NotSent, Publisher, PublishError, Unconfirmed
from supervisor.settings import Settings
from supervisor.vocabulary import Cause, Kind
from supervisor.worker.consumer import SHORT, Consumer
from supervisor.worker.delivery import Delivery
from supervisor.worker.gone import Gone
from tests import amqp
from tests.proxy import Proxy
from tests.strangers import HTTP, conversation, listening, resetting

pytestmark = pytest.mark.usefixtures("patient")

BODY = "x" * 100


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """pika logs a traceback for each lost connection, here thousands; workers have it silenced."""
    logger = logging.getLogger("pika")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    with Proxy(Endpoint.parse(broker_url).port) as between:
        yield between


def consumer(url: str, queue: str) -> Consumer:
    settings = Settings(handler="any:thing", url=(Endpoint.parse(url),), queue=queue)
    return Consumer(settings, "sweep", lambda: None, lambda _: None)


class End(NamedTuple):
    """A Gone without its traceback, which would keep the consumer, and its descriptors, alive."""

    cause: Cause
    kind: Kind | None
    detail: str


def consume(url: str, queue: str, each: Callable[[Consumer, Delivery], None], version: str = "") -> End:
    """As a worker does it, for as long as the connection lasts; how it ended. `version`: this RabbitMQ has been met
    there before, so the whole handshake is one write."""
    consuming = consumer(url, queue)
    try:
        consuming.open(met={str(Endpoint.parse(url)): version})
        while (delivery := consuming.next()) is not None:
            assert (delivery.name, delivery.body) == ("whole", BODY.encode())
            each(consuming, delivery)
    except Gone as gone:
        return End(gone.cause, gone.kind, gone.detail)
    finally:
        if len(os.listdir("/proc/self/fd")) > 300:
            gc.collect()  # a worker's process ends with its consumer, which never closes its loop for that reason
    raise AssertionError("nobody asked it to leave")


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("looks_first", [False, True])
def test_an_ack_that_the_kernel_does_not_take_is_none(broker_url: str, queue: str, how: int, looks_first: bool) -> None:
    amqp.publish(broker_url, queue, [BODY], ids=["whole"])
    consuming = consumer(broker_url, queue)
    consuming.open()
    delivery = consuming.next()
    assert delivery is not None
    stream: Any = consuming._connection
    stream._stream._sock.shutdown(how)
    if looks_first:
        with consuming.unattended:
            time.sleep(2 * SHORT)
        consuming.catch_up()
    with pytest.raises(Gone) as gone:
        consuming.ack(delivery)
    assert gone.value.kind is Kind.LOST


@pytest.fixture(params=["not met", "met"])
def version(broker_url: str, request: pytest.FixtureRequest) -> str:
    """The broker's, if it has been met."""
    return version_of(broker_url) if request.param == "met" else ""


def version_of(url: str) -> str:
    with amqp.connection(url) as link:
        said: Any = link._impl.server_properties  # type: ignore[attr-defined]
        return str(said["version"])


def length_of_a_delivery(proxy: Proxy, queue: str, version: str) -> tuple[int, int]:
    """How many bytes a connection carries to the broker and to the client, up to a first delivery; not its answer."""
    consuming = consumer(proxy.url, queue)
    consuming.open(met={str(Endpoint.parse(proxy.url)): version})
    assert consuming.next() is not None
    through = proxy.live[-1]
    carried = through.to_broker, through.to_client
    consuming.close()
    return carried


def cuts(complete: int) -> Iterator[int]:
    """Every byte, but for the long tables in which both sides introduce themselves: every third of those."""
    dense_from = complete - 330
    return (size for size in range(complete) if size % 3 == 0 or size < 20 or size > dense_from)


def check(ends: dict[int, End]) -> None:
    for size, end in ends.items():
        assert (end.cause, end.kind) == (Cause.BROKER, Kind.LOST), (size, end)
        assert end.detail and "\n" not in end.detail and "guest:guest" not in end.detail, (size, end)
    print(len(ends), "cuts:", *Counter(ends.values()).items(), sep="\n")


def test_cut_after_any_byte_from_the_broker_a_consumer_ends_lost_and_never_with_half_a_message(
    proxy: Proxy, broker_url: str, queue: str, version: str
) -> None:
    amqp.publish(broker_url, queue, [BODY], ids=["whole"])
    _, complete = length_of_a_delivery(proxy, queue, version)
    taken: list[int] = []
    ends: dict[int, End] = {}
    for size in cuts(complete + 1):
        # Never acknowledged, so the message is there every time.
        proxy.cut_after(to_client=size, reset=bool(size % 2))
        ends[size] = consume(proxy.url, queue, lambda *_, size=size: taken.append(size), version)
    check(ends)
    assert set(taken) <= {complete}


def test_cut_after_any_byte_to_the_broker_a_consumer_ends_lost_and_only_a_whole_acknowledgement_counts(
    proxy: Proxy, broker_url: str, queue: str, version: str
) -> None:
    amqp.publish(broker_url, queue, [BODY], ids=["whole"])
    before, _ = length_of_a_delivery(proxy, queue, version)
    acknowledgement = 21
    ends: dict[int, End] = {}
    for size in cuts(before + acknowledgement):
        proxy.cut_after(to_broker=size, reset=bool(size % 2))
        ends[size] = consume(proxy.url, queue, Consumer.ack, version)
    check(ends)
    proxy.heal()
    # Not one of them was settled; now it is, by a whole one.
    taken = amqp.drain(broker_url, queue)
    assert [body for _, _, body in taken] == [BODY.encode()]


def test_cut_anywhere_a_publisher_says_lost_and_never_that_a_message_is_confirmed(
    proxy: Proxy, broker_url: str, queue: str
) -> None:
    amqp.publish(broker_url, queue, [])  # declares it: each of the following connections finds it
    with Publisher(proxy.url, queue) as publisher:
        publisher.publish(BODY)
        through = proxy.live[-1]
        whole = {"to_broker": through.to_broker, "to_client": through.to_client}
    kinds: Counter[Kind] = Counter()
    for way, complete in whole.items():
        for size in range(0, complete, 7):
            proxy.cut_after(**{way: size}, reset=bool(size % 2))
            with Publisher(proxy.url, queue) as publisher, pytest.raises(PublishError) as raised:
                publisher.publish(BODY)
            assert raised.value.confirmed == 0
            assert raised.value.trouble is not None
            kinds[raised.value.trouble.kind] += 1
    assert set(kinds) == {Kind.LOST}


# ---------------------------------------------------------------------------------------------- strangers at the door


SSH = b"SSH-2.0-OpenSSH_9.2p1\r\n"
AMQP_1_0 = b"AMQP\0\x01\0\0"


@pytest.mark.parametrize(
    ("answer", "hang_up", "kind", "says"),
    [
        (HTTP, True, Kind.PROTOCOL, "does not answer in AMQP 0-9-1"),
        (SSH, True, Kind.PROTOCOL, "does not answer in AMQP 0-9-1"),
        (b"\x15\x03\x03\0\x02\x02\x46", True, Kind.PROTOCOL, "amqps://"),  # a TLS alert
        (AMQP_1_0, True, Kind.PROTOCOL, "does not answer in AMQP 0-9-1"),
        (b"\x01\0\0\0\0", True, Kind.LOST, "closed the connection before it said anything"),  # the start of a Start
        (b"", True, Kind.LOST, "a load balancer without a broker"),
        (SSH, False, Kind.PROTOCOL, "does not answer in AMQP 0-9-1"),
        (None, False, Kind.TIMEOUT, "does not answer in time"),
    ],
)
def test_what_is_no_broker_is_told_by_what_it_says_within_a_bound(
    answer: bytes | None, hang_up: bool, kind: Kind, says: str
) -> None:
    with (
        listening(answer, hang_up=hang_up) as port,
        Publisher(f"amqp://dora:hunter2@127.0.0.1:{port}", "any", connect_timeout=2.0) as publisher,
        pytest.raises(PublishError) as raised,
    ):
        publisher.connect()
    assert raised.value.trouble is not None
    assert raised.value.trouble.kind is kind
    assert says in raised.value.reason
    assert "hunter2" not in raised.value.reason


# ------------------------------------------------------------------------------ a broker that breaks off, at any point


def said(channel: int, method: Any) -> bytes:
    return bytes(frame.Method(channel, method).marshal())


INTRODUCTION = {"product": "RabbitMQ", "version": "3.10.8", "capabilities": {"publisher_confirms": True}}
START = said(0, spec.Connection.Start(0, 9, INTRODUCTION, "PLAIN", "en_US"))
TUNE = said(0, spec.Connection.Tune(2047, 131072, 60))
OPEN = said(0, spec.Connection.OpenOk())
CHANNEL = said(1, spec.Channel.OpenOk())
QUEUE = said(1, spec.Queue.DeclareOk("any", 0, 0))
CONFIRM = said(1, spec.Confirm.SelectOk())
QOS = said(1, spec.Basic.QosOk())
GOODBYE = said(0, spec.Connection.Close(320, "CONNECTION_FORCED - as an operator", 0, 0))
LIFE = [START, TUNE, OPEN, CHANNEL, QUEUE, CONFIRM]
"""What a broker says to a publisher up to its first message; to a consumer, but for the last."""
NO_SUCH_METHOD = b"\x01\0\0\0\0\0\x04\0\x63\0\x63\xce"
NO_END = b"\x01\0\0\0\0\0\x04\0\x0a\0\x0a\0"
NO_SUCH_FRAME = b"\x77\0\0\0\0\0\x01x\xce"
BODY_WITHOUT_HEADER = bytes(frame.Body(1, b"xx").marshal())
HEADER_WITHOUT_METHOD = bytes(frame.Header(1, 5, spec.BasicProperties()).marshal())
ANSWER_TO_NOTHING = said(1, spec.Basic.GetEmpty())
TOO_SMALL = said(0, spec.Connection.Tune(2047, 100, 60))


def test_f106_a_listener_that_accepts_and_resets_at_once_is_a_lost_connection_and_never_a_setting() -> None:
    """Sooner or later it resets between pika's connect and its getpeername()."""
    with resetting() as port:
        url = f"amqp://dora:hunter2@127.0.0.1:{port}"
        ends = Counter(consume(url, "any", lambda *_: None)[:2] for _ in range(200))
        assert set(ends) == {(Cause.BROKER, Kind.LOST)}
        for _ in range(100):
            with Publisher(url, "any") as publisher, pytest.raises(NotSent) as raised:
                publisher.connect()
            assert raised.value.trouble is not None
            assert (raised.value.trouble.kind, raised.value.trouble.permanent) == (Kind.LOST, False)


def test_f106_a_node_that_resets_is_forgotten_and_does_not_end_the_connection_to_the_next(
    broker_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    amqp.publish(broker_url, queue, [BODY])
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with resetting() as port:
        away = [Endpoint.parse(f"amqp://dora:hunter2@127.0.0.1:{port}/{number}") for number in range(60)]
        settings = Settings(handler="any:thing", url=(*away, Endpoint.parse(broker_url)), queue=queue)
        consuming = Consumer(settings, "sweep", lambda: None, lambda _: None)
        consuming.open()
        delivery = consuming.next()
        assert delivery is not None
        # The timers for those that were reset are gone with them: there is one for the heartbeats of this one.
        assert sum(timer.callback is not None for timer in consuming._ioloop._timers) <= 2
        consuming.ack(delivery)
        consuming.close()


def test_what_a_node_that_refuses_us_has_left_unanswered_is_not_said_of_the_next(
    broker_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    with conversation([START + GOODBYE], reset=False) as port:
        nodes = Endpoint.parse(f"amqp://dora:hunter2@127.0.0.1:{port}"), Endpoint.parse(broker_url)
        settings = Settings(handler="any:thing", url=nodes, queue=queue)
        consuming = Consumer(settings, "sweep", lambda: None, lambda _: None)
        assert consuming.open(declare_ours=True) == str(nodes[1])
        assert (consuming.own_queues.refused, consuming.subscription.has_declared) == ("", True)
        assert f"{queue}.dead" in consuming.own_queues.declared
        consuming.close()


def test_a_consumer_that_a_node_confirms_and_then_hangs_up_on_is_not_taken_for_the_next_nodes(
    broker_url: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    confirmed = TUNE + OPEN + CHANNEL + QUEUE + QOS + said(1, spec.Basic.ConsumeOk("sweep"))
    with conversation([START, confirmed + GOODBYE], reset=False) as port:
        nodes = Endpoint.parse(f"amqp://dora:hunter2@127.0.0.1:{port}"), Endpoint.parse(broker_url)
        settings = Settings(handler="any:thing", url=nodes, queue=queue)
        consuming = Consumer(settings, "sweep", lambda: None, lambda _: None)
        assert consuming.open() == str(nodes[1])
        assert amqp.consumers(broker_url, queue) == 1  # the queue was missing, so it has been declared
        consuming.close()


@pytest.mark.parametrize("met", ["", "3.10.8"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("with_goodbye", [False, True])
@pytest.mark.parametrize("length", range(len(LIFE) + 1))
def test_f106_f107_a_broker_that_breaks_off_at_any_step_is_told_as_that_and_nothing_of_pikas_comes_through(
    length: int, with_goodbye: bool, reset: bool, met: str
) -> None:
    """With the end right behind the last word: then pika knows it before it is asked for the next thing."""
    script = LIFE[:length]
    if with_goodbye and script:
        script[-1] += GOODBYE
    with conversation(script, reset=reset) as port:
        url = f"amqp://dora:hunter2@127.0.0.1:{port}"
        end = consume(url, "any", lambda *_: None, met)
        assert (end.cause, end.kind in (Kind.LOST, Kind.OPERATOR)) == (Cause.BROKER, True), end
        with Publisher(url, "any", connect_timeout=5.0) as publisher:
            for _ in range(2):
                with pytest.raises((NotSent, Unconfirmed)) as raised:
                    publisher.publish(BODY, timeout=5.0)
                assert raised.value.trouble is not None
                assert raised.value.trouble.kind in (Kind.LOST, Kind.OPERATOR)
                if not reset and length < len(LIFE):  # a reset may destroy a last word on its way
                    assert raised.value.trouble.reason == end.detail
            with pytest.raises(NotSent):
                publisher.declare(queues.declaration("another"), timeout=5.0)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        [START[:20]],
        [NO_SUCH_METHOD],
        [START, NO_SUCH_METHOD],
        [START, NO_END],
        [START, NO_SUCH_FRAME],
        [START, START],
        [START, OPEN],
        [START, TOO_SMALL],
        [START, TUNE, TUNE],
        [START, TUNE, CHANNEL],
        [START, TUNE, OPEN, BODY_WITHOUT_HEADER],
        [START, TUNE, OPEN, CHANNEL, BODY_WITHOUT_HEADER],
        [START, TUNE, OPEN, CHANNEL, HEADER_WITHOUT_METHOD],
        [START, TUNE, OPEN, CHANNEL, ANSWER_TO_NOTHING],
        [START, TUNE, OPEN, CHANNEL, QOS],
        [START, TUNE, OPEN, CHANNEL, QUEUE, QUEUE],
        [START, TUNE, OPEN, CHANNEL, QUEUE, NO_SUCH_METHOD],
        [START, TUNE, OPEN, CHANNEL + QUEUE + NO_END],
    ],
)
def test_f106_f107_nonsense_in_the_middle_ends_the_connection_like_any_loss(script: list[bytes], reset: bool) -> None:
    with conversation(script, reset=reset) as port:
        url = f"amqp://dora:hunter2@127.0.0.1:{port}"
        for met in ("", "3.10.8"):
            end = consume(url, "any", lambda *_: None, met)
            assert end.cause is Cause.BROKER
            assert end.detail and "\n" not in end.detail and "hunter2" not in end.detail
        with Publisher(url, "any", connect_timeout=5.0) as publisher:
            with pytest.raises((NotSent, Unconfirmed)) as raised:
                publisher.publish(BODY, timeout=5.0)
            assert raised.value.trouble is not None and not raised.value.trouble.permanent
            assert "\n" not in raised.value.reason and "hunter2" not in raised.value.reason


def test_a_connection_that_takes_forever_is_given_up_before_the_supervisor_loses_patience(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a name that takes minutes to look up, or that has many addresses of which none answers.
    monkeypatch.setattr("supervisor.worker.consumer.CONNECT_TIMEOUT", 0.5)
    proxy.silence()
    with pytest.raises(Gone, match=r"no connection to .* in time: its host name takes too long to look up") as raised:
        consumer(proxy.url, "any").open()
    assert (raised.value.cause, raised.value.kind) == (Cause.BROKER, Kind.TIMEOUT)


# -------------------------------------------------------------------------------- a broker that workers have met before


def refused(url: str, queue: str, version: str, **options: Any) -> End:
    settings = Settings(handler="any:thing", url=(Endpoint.parse(url),), queue=queue, **options)
    consuming = Consumer(settings, "refused", lambda: None, lambda _: None)
    with pytest.raises(Gone) as gone:
        consuming.open(met={str(settings.url[0]): version})
    return End(gone.value.cause, gone.value.kind, gone.value.detail)


@pytest.mark.parametrize(
    ("login", "path", "options", "kind"),
    [
        ("guest:hunter2", "", {}, Kind.AUTHENTICATION),
        ("guest:guest", "/nowhere", {}, Kind.VHOST),
        ("guest:guest", "", {"declare": False}, Kind.MISSING),
        ("guest:guest", "", {"queue_type": "quorum"}, Kind.MISMATCH),
    ],
)
def test_a_handshake_in_one_write_is_refused_with_the_same_words(
    broker_url: str, queue: str, login: str, path: str, options: dict[str, Any], kind: Kind
) -> None:
    if kind is Kind.MISMATCH:
        amqp.publish(broker_url, queue, [])  # declares it, classic
    here = Endpoint.parse(broker_url)
    url = f"amqp://{login}@{here.host}:{here.port}{path}"
    version = version_of(broker_url)
    ends = [refused(url, queue, met, **options) for met in ("", version, version)]
    assert ends[0].kind is kind
    assert set(ends) == {ends[0]}


@pytest.mark.parametrize("version", ["3.8.1", "9.9.9"])
def test_a_broker_of_another_version_than_it_was_is_asked_again_after_it_has_said_so(
    proxy: Proxy, broker_url: str, queue: str, version: str
) -> None:
    amqp.publish(broker_url, queue, [BODY], ids=["whole"])
    consuming = consumer(proxy.url, queue)
    consuming.open(met={str(Endpoint.parse(proxy.url)): version})
    assert consuming.version == version_of(broker_url)
    delivery = consuming.next()
    assert delivery is not None and delivery.name == "whole"
    consuming.ack(delivery)
    assert consuming.close()
    assert amqp.depth(broker_url, queue) == 0
