"""A whole delivery in one step: method, content header and body, as they arrive in one read.

Frame by frame each would be copied and made an object. Here the three are recognised by their offsets (AMQP 0-9-1,
4.2.3 and 4.2.6); pika decodes the properties. Anything else, such as a body in several frames, is handled frame by
frame with the same result. What this saves: docs/decisions/0020.
"""

from __future__ import annotations

import struct
from typing import Final

from pika import spec

from supervisor.amqp.properties import Properties, decode

_METHOD: Final = struct.Struct(">BHLL")
"""Type, channel, size of the payload; the payload begins with class and method."""
_HEADER: Final = struct.Struct(">BBHLHHQ")
"""The end of the frame before; type, channel, size of the payload; class, weight, size of the body."""
_BODY: Final = struct.Struct(">BBHL")
"""The end of the frame before; type, channel, size of the payload."""
_TAG: Final = struct.Struct(">QBB")
"""Behind the consumer's tag: delivery tag, whether it is redelivered, size of the exchange's name."""
_CLASS: Final = spec.BasicProperties.INDEX
Whole = tuple[int, int, spec.Basic.Deliver, Properties, bytes]


def whole(read: bytes, at: int) -> Whole | None:
    """The delivery that begins there: where it ends, on which channel, and what it consists of.

    None when something else begins there, or not all of it has been read.
    """
    try:
        kind, channel, size, index = _METHOD.unpack_from(read, at)
        if kind != spec.FRAME_METHOD or index != spec.Basic.Deliver.INDEX:
            return None
        header_at = at + spec.FRAME_HEADER_SIZE + size
        mark, kind, of_channel, size, of_class, _, body_size = _HEADER.unpack_from(read, header_at)
        if (mark, kind, of_channel, of_class) != (spec.FRAME_END, spec.FRAME_HEADER, channel, _CLASS):
            return None
        raw_at, end = header_at + _HEADER.size, header_at + _BODY.size + size
        raw = read[raw_at:end]
        body = b""
        if body_size:
            mark, kind, of_channel, size = _BODY.unpack_from(read, end)
            if (mark, kind, of_channel, size) != (spec.FRAME_END, spec.FRAME_BODY, channel, body_size):
                return None
            body_at, end = end + _BODY.size, end + _BODY.size + size
            body = read[body_at:end]
        if read[end] != spec.FRAME_END:
            return None
        tag_at = at + _METHOD.size + 1
        tag_end = tag_at + read[tag_at - 1]
        number, bits, size = _TAG.unpack_from(read, tag_end)
        exchange_at = tag_end + _TAG.size
        exchange_end = exchange_at + size
        key_at = exchange_end + 1
        if key_at + read[exchange_end] != header_at:
            return None
        method = spec.Basic.Deliver(  # type: ignore[no-untyped-call]
            str(read[tag_at:tag_end], "utf-8"),
            number,
            bool(bits & 1),
            str(read[exchange_at:exchange_end], "utf-8"),
            str(read[key_at:header_at], "utf-8"),
        )
        properties = decode(raw)
    except Exception:  # noqa: BLE001 - too short, or broken: whoever takes it frame by frame shall say so
        return None
    return end + 1, channel, method, properties, body
