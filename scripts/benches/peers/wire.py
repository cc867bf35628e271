"""How messages in a peer's own format come from its environment to ours: JSON, one line a message.

In: a text. Out: `[body, {property: value}]`, with pika's names of the properties.
"""

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(encode: Callable[[str], tuple[str, dict[str, Any]]]) -> None:
    """Encode what comes on standard input until it ends."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(encode(json.loads(line))) + "\n")
