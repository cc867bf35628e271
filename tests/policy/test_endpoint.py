"""URLs taken apart, and what may never come out of one."""

from __future__ import annotations

import copy
import json
import pickle
import re
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.endpoint import Endpoint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", Endpoint("h")),
        ("amqp://h/", Endpoint("h", vhost="/")),
        ("amqp://h//", Endpoint("h", vhost="/")),
        ("amqp://h/%2F", Endpoint("h", vhost="/")),
        ("amqp://h/%2f", Endpoint("h", vhost="/")),
        ("amqp://h/name", Endpoint("h", vhost="name")),
        ("amqp://h/a%2Fb%20%C3%A9", Endpoint("h", vhost="a/b é")),
        ("amqp://h:1234/x", Endpoint("h", port=1234, vhost="x")),
        ("amqp://h:/x", Endpoint("h", vhost="x")),
        ("AMQP://h", Endpoint("h")),
        ("  amqp://h\n", Endpoint("h")),
        ("amqps://h", Endpoint("h", port=5671, tls=True)),
        ("amqps://h:5672", Endpoint("h", port=5672, tls=True)),
        ("amqp://u:p@h", Endpoint("h", user="u", password="p")),
        ("amqp://u:@h", Endpoint("h", user="u", password="")),
        ("amqp://u:p:q@h", Endpoint("h", user="u", password="p:q")),
        ("amqp://u:p@q@h", Endpoint("h", user="u", password="p@q")),
        ("amqp://a%40b:%2F%3A%40%25%23+%3F@h", Endpoint("h", user="a@b", password="/:@%#+?")),
        ("amqp://[::1]", Endpoint("::1")),
        ("amqp://u:p@[fe80::1%25eth0]:99/v", Endpoint("fe80::1%eth0", 99, "v", "u", "p")),
        ("amqps://h?cacertfile=/c%20a.pem", Endpoint("h", 5671, tls=True, query=(("cafile", "/c a.pem"),))),
        (
            "amqps://h/?certfile=/c&keyfile=/k&server_name_indication=x",
            Endpoint("h", 5671, tls=True, query=(("certfile", "/c"), ("keyfile", "/k"), ("server_name", "x"))),
        ),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "empty"),
        ("http://h", "amqp://"),
        ("u:hunter2x@h", "amqp://"),
        ("amqp:/h", "amqp://"),
        ("amqp://", "no host"),
        ("amqp:///v", "no host"),
        ("amqp://u:hunter2x@", "no host"),
        ("amqp://u:hunter2x@:5672", "no host"),
        ("amqp://u:hunter2x", "port"),
        ("amqp://h:0", "port"),
        ("amqp://h:65536", "port"),
        ("amqp://h:٣", "port"),
        ("amqp://u@h", "no password"),
        ("amqp://:hunter2x@h", "no user"),
        ("amqp://u:hunter/2x@h", "@ after the host"),
        ("amqp://u:12/hunter2x@h", "@ after the host"),
        ("amqp://u:hunter?2x@h", "@ after the host"),
        ("amqp://u:hunter#2x@h", "#"),
        ("amqp://u:hunter 2x@h", "space"),
        ("amqp://u:hunter%2x@h", "%25"),
        ("amqp://u:hunter%ff@h", "UTF-8"),
        ("amqp://u:hunter%00@h", "NUL"),
        ("amqp://u:hunter[2x@h:1:2", "[USER:PASSWORD@]HOST"),
        ("amqp://h_ö", "host"),
        ("amqp://::1", "HOST"),
        ("amqp://[::1", "HOST"),
        ("amqp://[hunter2x]", "IPv6"),
        ("amqp://h/a/b", "%2F"),
        ("amqp://h/" + "v" * 256, "255"),
        ("amqps://h?heartbeat=1", "cafile"),
        ("amqps://h?verify=verify_none", "always verified"),
        ("amqps://h?cafile=", "empty"),
        ("amqps://h?cafile=a&cacertfile=b", "twice"),
        ("amqps://h?keyfile=a", "certfile"),
        ("amqp://h?cafile=a", "amqps"),
    ],
)
def test_a_malformed_url_is_refused_with_a_reason_and_without_the_password(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        Endpoint.parse(url)
    assert "hunter" not in repr(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint(), "amqp://guest:***@127.0.0.1:5672/%2F"),
        (Endpoint("::1", 5671, "v", "u", "secret", True), "amqps://u:***@[::1]:5671/v"),
        (Endpoint("h", 1, "a/b", "a@b", "secret"), "amqp://a%40b:***@h:1/a%2Fb"),
    ],
)
def test_the_text_of_an_endpoint_is_a_redacted_url(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text
    assert text in repr(endpoint)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
endpoints = st.builds(
    Endpoint,
    host=st.sampled_from(["h", "rabbit-1.example.org", "127.0.0.1", "::1"]),
    port=st.integers(1, 65535),
    vhost=texts,
    user=texts,
    password=texts,
    tls=st.booleans(),
)


@given(endpoints)
def test_an_encoded_url_gives_back_every_part(endpoint: Endpoint) -> None:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    user, password, vhost = (quote(part, safe="") for part in (endpoint.user, endpoint.password, endpoint.vhost))
    url = f"amqp{'s' * endpoint.tls}://{user}:{password}@{host}:{endpoint.port}/{vhost}"
    assert Endpoint.parse(url) == endpoint


@given(endpoints)
def test_an_endpoint_survives_json_and_pickle(endpoint: Endpoint) -> None:
    assert Endpoint.from_wire(json.loads(json.dumps(endpoint.to_wire()))) == endpoint
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint == copy.copy(endpoint)


def test_tls_options_survive_json() -> None:
    endpoint = Endpoint.parse("amqps://h?cafile=/a&server_name=b")
    assert Endpoint.from_wire(json.loads(json.dumps(endpoint.to_wire()))) == endpoint
    assert endpoint.option("cafile") == "/a"
    assert endpoint.option("keyfile") is None


# Words that occur in no message, between characters that break URLs: whatever the parser makes of it, no word may show.
WORD = "Zq7xK"
passwords = st.lists(st.sampled_from([WORD, *"@:/?#%[]&= ,+\\'\"é\n\x00\udc80", "%2", "%ff", "://"]), min_size=1).map(
    lambda parts: WORD + "".join(parts) + WORD
)
malformed = st.builds(
    # In amqp://user:a@b the b is the host, whatever its writer meant: without a host after it, no @ in the password.
    lambda template, password: template.replace("PW*", password.replace("@", "")).replace("PW", password),
    st.sampled_from(
        [
            "amqp://user:PW@host/v", "amqps://user:PW@host:5671", "amqp://user:PW*", "amqp://:PW@host", "user:PW@host",
            "amqp:/user:PW@host", "amqp://user:PW@[::1", "amqp://user:PW@host:port", "amqp://user:PW@host?x=PW",
            "amqps://user:PW@host?PW=x", "amqp://user:12/PW@host", "PW", "PW://user@host",
            "amqp://user:PW@", "amqp://user:PW@host/a/b", "amqp://user:PW@ho st",
        ]
    ),
    passwords,
)  # fmt: skip


@given(malformed)
@settings(max_examples=500, deadline=None)
def test_no_part_of_a_password_is_in_any_error_traceback_or_repr(url: str) -> None:
    try:
        said = [str(endpoint := Endpoint.parse(url)), repr(endpoint)]
        assert WORD in endpoint.password, "the password ended up in a part that is shown"
    except ValueError as error:
        assert error.__context__ is None, "what was raised underneath holds a part of the URL"
        said = [str(error), repr(error), *traceback.format_exception_only(error)]
    assert WORD not in "".join(said)
