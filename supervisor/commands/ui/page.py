"""The bytes of the page: the live page of the health port (`parent/http/page.html`), with hands.

Its style, markup and script are taken from there, so that there is one live page. `hands.js` adds to them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from supervisor.parent.http import page

_HERE: Final = Path(__file__).parent


def _part(begin: bytes, end: bytes) -> bytes:
    """What stands between these lines of the live page."""
    found = re.search(rb"^%b\n(.*?)^%b" % (begin, end), page.HTML, re.DOTALL | re.MULTILINE)
    assert found is not None, begin
    return found[1]


_BODY: Final = _part(b"</noscript>", b"<footer")  # its footer leads to paths that are not here
HTML: Final = (_HERE / "page.html").read_bytes().replace(b"<!-- live -->\n", _BODY)
STYLE: Final = _part(b"<style>", b"</style>") + (_HERE / "hands.css").read_bytes()
LIVE: Final = _part(b"<script>", b"</script>")
HANDS: Final = (_HERE / "hands.js").read_bytes()
