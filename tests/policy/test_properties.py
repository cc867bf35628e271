"""A message's properties taken apart and put together, as bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import BasicProperties

from supervisor.amqp.properties import Encoded, Field, decoded, fields, join, readable, split, split_whole

SHORT = st.text(max_size=60)
RAW = st.builds(
    BasicProperties,
    content_type=st.none() | SHORT,
    headers=st.none() | st.dictionaries(SHORT, st.none() | st.integers(0, 2**40) | SHORT | st.binary(max_size=9)),
    priority=st.none() | st.integers(0, 255),
    message_id=st.none() | SHORT,
    timestamp=st.none() | st.integers(0, 2**40),
    cluster_id=st.none() | SHORT,
).map(lambda properties: b"".join(properties.encode()))


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(raw=RAW, cut=st.integers(0, 400))
def test_what_is_taken_apart_is_put_together_to_the_byte_and_what_is_cut_short_is_refused(raw: bytes, cut: int) -> None:
    parts = split_whole(raw)
    assert join(parts) == raw
    table = parts.get("headers", b"")
    assert b"".join(field.encoded for field in fields(table)) == table[4:]
    with pytest.raises(ValueError, match="cut short"):
        split_whole(raw + b"x")
    if cut < len(raw):
        with pytest.raises(ValueError, match="cut short"):
            split_whole(raw[:cut])
        if cut >= 2:
            assert split(raw[:cut]).items() <= parts.items()


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(raw=RAW)
def test_encoded_properties_are_persistent_and_have_the_headers_that_they_are_given(raw: bytes) -> None:
    parts = split_whole(raw)
    theirs = list(fields(parts.get("headers", b"")))
    ours = Field(b"x-ours", b"S\0\0\0\x01x")
    again: Any = BasicProperties().decode(Encoded(parts, (each.encoded for each in (*theirs, ours))).raw)
    before: Any = BasicProperties().decode(raw)
    assert again.headers == {**(before.headers or {}), "x-ours": "x"}
    assert (again.delivery_mode, again.message_id, again.timestamp) == (2, before.message_id, before.timestamp)


def test_of_headers_that_cannot_all_be_decoded_the_others_are_read() -> None:
    good = Field(b"good", b"I\0\0\0\x07")
    beyond = Field(b"beyond", b"T" + (2**62).to_bytes(8))
    table = b"".join(each.encoded for each in (beyond, good))
    assert [(field.text, value) for field, value in readable(len(table).to_bytes(4) + table)] == [("good", 7)]
    assert decoded(beyond.value) == beyond.value
    assert decoded(b"d\x3f\xf8\0\0\0\0\0\0") == 1.5  # which pika makes 1


@pytest.mark.parametrize(
    ("value", "says"), [(b"q\0", "the type b'q'"), (b"S\0\0\0\x09x", "cut short"), (b"", "cut short")]
)
def test_headers_that_cannot_be_taken_apart_are_refused_with_the_reason(value: bytes, says: str) -> None:
    table = Field(b"good", b"I\0\0\0\x07").encoded + Field(b"bad", value).encoded
    found = fields(len(table).to_bytes(4) + table)
    assert next(found).text == "good"
    with pytest.raises(ValueError, match=says):
        next(found)
    assert [field.text for field, _ in readable(len(table).to_bytes(4) + table)] == ["good"]
