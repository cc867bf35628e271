"""How bare pika reads a URL of ours: by itself it refuses `?cafile=`."""

import ssl
from urllib.parse import parse_qs

import pika


def parameters(url: str) -> pika.URLParameters:
    """Those of a URL, TLS with its own authority included."""
    plain, _, query = url.partition("?")
    found = pika.URLParameters(plain)
    if cafile := parse_qs(query).get("cafile"):
        found.ssl_options = pika.SSLOptions(ssl.create_default_context(cafile=cafile[0]), found.host)
    return found
