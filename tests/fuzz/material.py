"""What a fuzzer throws: made from dice, so that a seed makes it again."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import string
import struct
from collections.abc import Callable
from typing import Any, get_args

from pika import BasicProperties
from pika import spec as annotated
from pika.frame import Frame, Heartbeat, Method

from supervisor import messages as m
from supervisor import vocabulary as v
from tests import wire
from tests.differential import TAG, content, method
from tests.garbage import garbage

spec: Any = annotated

KINDS = [*get_args(m.WorkerReport), *get_args(m.NurseryReport), *get_args(m.Order)]
GARBAGE = [frame.encode("latin-1") for _, frame in garbage()]
WORDS = [
    "",
    "k",
    "drained",
    "broker",
    "max_tasks",
    "lost",
    "tls",
    "crash",
    "\ud800",
    "\N{PILE OF POO}",
    "amqp://u:p@h/",
]
NUMBERS = [0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 10**400, 0.0, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf]


def frame(dice: random.Random) -> bytes:
    """Something like a message of a link, or nothing like it."""
    match dice.randrange(6):
        case 0:
            return dice.randbytes(dice.choice([0, 1, 10, 300, 20_000]))
        case 1:
            return dice.choice(GARBAGE)
        case 2:
            return json.dumps(value(dice)).encode()
        case 3:
            return mutated(dice, report(dice))
        case _:
            return report(dice)


def report(dice: random.Random) -> bytes:
    """The names are right, and the values often are."""
    kind = dice.choice(KINDS)
    names = [field.name for field in dataclasses.fields(kind)]
    return json.dumps([kind.__name__, {name: likely(dice, name) for name in names}]).encode()


def likely(dice: random.Random, name: str) -> Any:
    if dice.random() < 0.1:
        return value(dice)
    match name:
        case "kind":
            return dice.choice([*map(str, v.Kind), ""])
        case "cause":
            return dice.choice([*map(str, v.Cause)])
        case "line":
            line = json.dumps({"event": dice.choice(WORDS), "filler": "x" * dice.choice([0, 100, 30_000])}) + "\n"
            return line if dice.random() < 0.9 else mutated(dice, line.encode()).decode("latin-1")
        case "key" | "name" | "message_id" | "detail" | "error" | "traceback" | "because" | "evidence" | "broker":
            return dice.choice(WORDS[:8]) * dice.choice([1, 1, 1000])
        case "at" | "reason" | "version":
            return dice.choice(["3.10.8", "4.3.0", "", "2024-02-29T12:00:00Z"])
        case "threads":
            return ["t"] * dice.choice([0, 1, 5000])
        case "has_declared" | "preloaded" | "preload" | "is_held" | "is_blocked" | "is_unsettled" | "run" | "finish":
            return dice.choice([True, False, None]) if name == "has_declared" else dice.choice([True, False])
        case _:
            return dice.choice([0, 1, 7, dice.randrange(2**31), 2**62])


def value(dice: random.Random, depth: int = 0) -> Any:
    match dice.randrange(7 if depth < 4 else 5):
        case 0:
            return dice.choice(NUMBERS)
        case 1:
            return dice.choice(WORDS)
        case 2:
            return dice.choice([None, True, False])
        case 3:
            return "".join(dice.choices(string.printable, k=dice.randrange(50)))
        case 4:
            return dice.randrange(-(2**70), 2**70)
        case 5:
            return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
        case _:
            return {str(dice.choice(WORDS)): value(dice, depth + 1) for _ in range(dice.randrange(4))}


def mutated(dice: random.Random, data: bytes) -> bytes:
    """With some bytes changed, cut, doubled or moved."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(4):
            case 0:
                changed[at:at] = dice.randbytes(dice.randrange(1, 5))
            case 1:
                del changed[at : at + dice.randrange(1, 20)]
            case 2:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            case _:
                changed[at:at] = changed[dice.randrange(len(changed) + 1) :][:20]
    return bytes(changed)


def page(dice: random.Random) -> bytes:
    """4 KiB that may lie where a worker's note was."""
    doubles: Callable[[], bytes] = lambda: struct.pack("<d", float(dice.choice([0, 1, *NUMBERS[8:]])))  # noqa: E731
    match dice.randrange(5):
        case 0:
            return dice.randbytes(4096)
        case 1:
            return bytes([dice.choice([0, 0xFF, 1, 4, 0x7F])]) * 4096
        case 2:
            return b"".join(doubles() for _ in range(512))
        case 3:
            return b"".join(struct.pack("<Q", dice.choice([0, 1, 1000, 2**63, 2**64 - 1])) for _ in range(512))
        case _:
            head = struct.pack("<BBHI", dice.randrange(9), dice.randrange(2), 0, dice.randrange(2**32))
            return (head + doubles() * 3 + dice.randbytes(300) + b"".join(doubles() for _ in range(512)))[:4096]


def printed(dice: random.Random) -> bytes:
    """A worker's output, a piece of it."""
    size = dice.choice([1, 10, 1000, 60_000])
    match dice.randrange(5):
        case 0:
            return dice.randbytes(size)
        case 1:
            return b"\n" * size
        case 2:
            return dice.choice([b"\xff", b"\0", b"x", b"\r", "\N{PILE OF POO}".encode()]) * size
        case 3:
            return (b"amqp://user:secret@host/ " * (size // 25 + 1))[:size] + b"\n"
        case _:
            return b"".join(dice.choice([b"a", b"\n", b"\r\n", b"\x1b[2J", b"{}"]) for _ in range(min(size, 2000)))


def request(dice: random.Random) -> bytes:
    """What may come to a port that speaks HTTP. Never a drain: that one is obeyed."""
    path = dice.choice(
        [
            b"/",
            b"/status",
            b"/metrics",
            b"/healthz",
            b"/scale",
            b"/scale",
            b"/kill",
            b"/kill",
            b"/nowhere",
            b"/%ff%00",
            b"*",
        ]
    )
    body = dice.choice(
        [
            b"",
            b"{}",
            json.dumps({"workers": dice.choice([2, 3, 3, 0, -1, 10**400, 2.5, "3", None])}).encode(),
            json.dumps({"change": dice.choice([1, -1, 0, "1"])}).encode(),
            json.dumps({"target": dice.choice(["0", "9", "\u0660", "-1", "", "1" * 4000]), "at_once": True}).encode(),
            json.dumps({"target": "0", "kind": dice.choice(["slot", "message", 1, None]), "dead_letter": 1}).encode(),
            json.dumps(value(dice)).encode(),
            b"[" * 4000,
            dice.randbytes(5000),
        ]
    )
    method = dice.choice([b"GET", b"POST", b"POST", b"HEAD", b"BREW"])
    head = b"%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (method, path, len(body))
    match dice.randrange(5):
        case 0:
            return dice.randbytes(dice.choice([1, 100, 40_000]))
        case 1:
            return mutated(dice, head) + body
        case 2:
            chunked = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
            return chunked + mutated(dice, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        case _:
            return head + body


# ------------------------------------------------------------------------------------------------------- a broker


def deliveries(dice: random.Random) -> bytes:
    """Frames on the way to a consumer: mostly whole deliveries, some of them cut, doubled or changed."""
    stream = b"".join(_content(dice) for _ in range(dice.randrange(1, 6)))
    for _ in range(dice.choice([0, 0, 1, 3])):
        at = dice.randrange(len(stream))
        match dice.randrange(4):
            case 0:
                stream = stream[:at] + stream[at + dice.choice([1, 7, 30]) :] or b"\0"
            case 1:
                stream = stream[:at] + stream[max(0, at - 40) :]
            case _:
                stream = stream[:at] + bytes([dice.choice([0, 1, 2, 3, 8, 60, 206, 255])]) + stream[at + 1 :]
    return stream


def _content(dice: random.Random) -> bytes:
    channel = dice.choice([1, 1, 1, 1, 2, 3])
    tag = dice.choice([TAG, TAG, TAG, "gone", "other"])
    begun = method(
        channel, tag, dice.choice([1, 7, 2**64 - 1]), dice.random() < 0.5, "", dice.choice(["q", "\N{SNOWMAN}"])
    )
    raw = dice.choice(_RAWS)
    body = dice.randbytes(dice.choice([0, 1, 9, 9, 5000]))
    filled = content(channel, raw, body, dice.choice([1, 1, 2, 5]))
    match dice.randrange(10):
        case 0:
            return begun
        case 1:
            return filled
        case 2:
            return begun + Heartbeat().marshal() + filled
        case _:
            return begun + filled


_RAWS = [
    b"\0\0",
    b"".join(BasicProperties(content_type="text/plain", headers={"a": 1, "b": [True, None]}).encode()),
    b"".join(BasicProperties(message_id="id", delivery_mode=2, timestamp=2**31).encode()),
    wire.properties(timestamp=struct.pack(">Q", 2**62), headers=wire.table({b"t": (b"T", struct.pack(">Q", 2**62))})),
    wire.properties(message_id=wire.short(b"\xff\xfe")),
    b"\xff\xff",
]
_SAID: list[Any] = [
    spec.Connection.Start(0, 9, {"product": "RabbitMQ", "capabilities": {}}, "PLAIN", "en_US"),
    spec.Connection.Tune(2047, 131072, 60),
    spec.Connection.Tune(0, 0, 0),
    spec.Connection.OpenOk(),
    spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0),
    spec.Connection.CloseOk(),
    spec.Connection.Blocked("low on memory"),
    spec.Connection.Unblocked(),
    spec.Channel.OpenOk(),
    spec.Channel.Close(404, "NOT_FOUND", 50, 10),
    spec.Channel.CloseOk(),
    spec.Channel.Flow(False),
    spec.Queue.DeclareOk("q", 1, 2),
    spec.Basic.QosOk(),
    spec.Basic.ConsumeOk(TAG),
    spec.Basic.CancelOk(TAG),
    spec.Basic.Cancel(TAG, False),
    spec.Basic.GetOk(1, False, "", "q", 0),
    spec.Basic.Return(312, "NO_ROUTE", "", "q"),
    spec.Basic.Ack(1),
]


def said_by_a_broker(dice: random.Random) -> bytes:
    """Methods in no order, deliveries, and nothing like them."""
    match dice.randrange(8):
        case 0:
            return dice.randbytes(dice.choice([1, 10, 300]))
        case 1:
            index = dice.choice([10, 20, 50, 60]) << 16 | dice.choice([*range(70)])
            return Frame(1, dice.choice([0, 1]))._marshal(
                [struct.pack(">I", index), dice.randbytes(dice.randrange(30))]
            )
        case 2:
            return deliveries(dice)
        case 3:
            return mutated(dice, Method(0, dice.choice(_SAID)).marshal())
        case 4:
            return Heartbeat().marshal()
        case _:
            return b"".join(
                Method(dice.choice([0, 0, 1, 2]), dice.choice(_SAID)).marshal() for _ in range(dice.randrange(1, 5))
            )
