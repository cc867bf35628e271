"""The live page's bytes (page.html), and the headers of all answers over HTTP.

The Content-Security-Policy (https://www.w3.org/TR/CSP3/) names the page's own style and script by their hashes. Trusted
types, the last two directives, make it an error to turn text into markup or code.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Final

HTML: Final = Path(__file__).with_suffix(".html").read_bytes()


def _hashes(tag: bytes) -> str:
    """CSP hashes of the contents of each of these elements."""
    import hashlib  # it loads OpenSSL, and most supervisors are never asked for the page

    contents = re.findall(rb"^<%b>(.*?)</%b>$" % (tag, tag), HTML, re.DOTALL | re.MULTILINE)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in contents)


def policy(scripts: str, styles: str) -> str:
    """For a page with these, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            f"style-src {styles}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


@cache
def own_policy() -> bytes:
    """The page's. Raises OSError and ImportError, the first time."""
    return policy(_hashes(b"script"), _hashes(b"style")).encode()


NO_PAGE: Final = policy("'none'", "'none'").encode()
"""The policy of answers that are no page."""

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
