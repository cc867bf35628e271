"""How messages in a peer's own format come from its environment to ours: JSON, one line a message.

In: `[message id, text]`. Out: `[body, {property: value}]`, with pika's names of the properties.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Encoded(NamedTuple):
    body: str
    properties: dict[str, Any]


def serve(encode: Callable[[str, str], Encoded]) -> None:
    """Encode what comes on standard input until it ends."""
    for line in sys.stdin:
        message_id, text = json.loads(line)
        sys.stdout.write(json.dumps(encode(message_id, text)) + "\n")
