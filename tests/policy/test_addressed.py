"""By which names the health port may be asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.policy.addressed import is_ours

LABELS = st.text(st.sampled_from("abcdefgh-_0123456789"), min_size=1, max_size=20)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "127.0.0.1",
        "10.0.0.7:9191",
        "[::1]:9191",
        "[2001:db8::7]",
        "localhost",
        "LocalHost.:80",
        "worker-7",
        "WORKER-7",
        "worker-7.example.org",
        "Worker-7.Example.org.:9191",
        "workers",
        "workers.:1",
        "127.0.0.1 ",
    ],
)
def test_f101_addresses_localhost_the_own_name_and_those_that_are_allowed_are_ours(host: str) -> None:
    assert is_ours(host, "worker-7.example.org", ["Workers."])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9191",
        "worker-7.evil.example",
        "example.org",
        "localhost.evil.example",
        "local",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "127.1.2",
        "0x7f000001",
        "[evil.example]",
        "a.workers",
        "worker",
    ],
)
def test_f101_any_other_name_is_not(host: str) -> None:
    assert not is_ours(host, "worker-7.example.org", ["workers"])


@given(LABELS, LABELS, st.integers(1, 65535))
def test_f101_no_name_that_somebody_may_register_is_ours(label: str, top: str, port: int) -> None:
    for host in (f"{label}.{top}.example", f"worker-7.{top}.example", f"workers.{top}.example"):
        assert not is_ours(f"{host}:{port}", "worker-7.example.org", ["workers"])
