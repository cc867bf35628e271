"""Frames that no worker sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def report(kind: str, /, **fields: Any) -> str:
    """A frame as a worker would send it."""
    return json.dumps([kind, fields])


def garbage() -> Iterator[tuple[str, str]]:
    """Frames that no worker sends, each with its name."""
    suspect = {"key": "k", "delivery_count": 0, "put_back": 0, "name": "k", "step": 1}
    yield "not UTF-8", "\xff\xfe\x00"
    yield "nothing", ""
    yield "not JSON", "{'a': 1}"
    yield "a number", "7"
    yield "an object", '{"Ready": 1, "fields": {}}'
    yield "a text", '"ab"'
    yield "too few", '["Ready"]'
    yield "too many", '["Connecting", {}, 1]'
    yield "a kind that is a list", "[[], {}]"
    yield "a kind that is null", "[null, {}]"
    yield "fields that are a list", '["Connecting", []]'
    yield "unknown kind", '["Nonsense", {}]'
    yield "unknown field", '["Connecting", {"colour": 1}]'
    yield "missing field", '["Depth", {"ready": 1}]'
    yield "a nursery's", report("Forked", ticket=1, pid=1)
    yield "a nursery's, loaded", report("Loaded", seconds=1.0, preloaded=True)
    yield "an order", report("Begin", slot=0)
    yield "a text for a number", report("Depth", ready="1", consumers=1)
    yield "a list for a number", report("Depth", ready=[], consumers=1)
    yield "true for a number", report("Depth", ready=True, consumers=1)
    yield "not a number", '["Depth", {"ready": NaN, "consumers": 1}]'
    yield "infinity", '["Depth", {"ready": 1e999, "consumers": 1}]'
    yield "a negative number", report("Depth", ready=-1, consumers=1)
    yield "a huge number", report("Depth", ready=10**30, consumers=1)
    yield "an endless number", '["Depth", {"ready": ' + "9" * 5000 + ', "consumers": 1}]'
    yield "a number for a text", report("Ready", broker=1, version="", has_declared=None)
    yield "null for a text", report("Lost", detail=None, kind="lost")
    yield "an unknown kind of trouble", report("Lost", detail="", kind="nonsense")
    yield "an unknown cause", report("Leaving", cause="nonsense", detail="", kind="", is_unsettled=False)
    yield "a lone surrogate", report("Suspect", **suspect | {"key": "\ud800"})
    yield "a lone surrogate in a line", '["Record", {"line": "{\\"event\\": \\"\\ud800\\"}\\n"}]'
    yield "no line", report("Record", line="no JSON\n")
    yield "two lines", report("Record", line='{"event": "a"}\n{"event": "b"}\n')
    yield "no end of the line", report("Record", line='{"event": "a"}')
    yield "deep", "[" * 100_000
    yield "deep fields", report("Suspect", **suspect).replace('"k"', '{"a":' * 20_000 + "1" + "}" * 20_000, 1)
    yield "wide", report("Suspect", **suspect).replace('"k"', "[" + "[]," * 40_000 + "1]", 1)
    yield "UTF-16", '["Connecting",{}]'.encode("utf-16").decode("latin-1")
    yield "larger than a frame", json.dumps(["Suspect", suspect | {"key": "x" * 190_000}])
