"""How AMQP 0-9-1 lays out a message's properties: what a reader of raw ones needs to know. Pure.

In a content header stand two bytes of flags and then, one after the other, the properties whose flags are set.
"""

from __future__ import annotations

from typing import Final

PROPERTIES: Final = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip
"""In the order of the wire, from flag 15 downwards (https://www.rabbitmq.com/amqp-0-9-1-reference#class.basic)."""
NUMBERS: Final = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
"""Those that are numbers, by size; `headers` is a table, and the others are short strings."""
SIZES: Final = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"U": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8,
    b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0,
}  # fmt: skip
"""Types of a header's value by the size of what follows the type
(https://www.rabbitmq.com/amqp-0-9-1-errata#section_3)."""
SIZED: Final = (b"S", b"x", b"A", b"F")
"""Types of a header's value that begins with its size, four bytes."""
