"""Certificates are loaded once, before the fork, and again by whoever finds them replaced."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.amqp import tls
from supervisor.amqp.errors import Unusable
from supervisor.endpoint import Endpoint
from tests.certificates import Authority


@pytest.fixture(autouse=True)
def _nothing_prepared() -> Iterator[None]:
    tls._prepared.clear()
    yield
    tls._prepared.clear()


def endpoint(**files: Path) -> Endpoint:
    return Endpoint("localhost", 5671, tls=True, query=tuple((name, str(path)) for name, path in files.items()))


def names(context: ssl.SSLContext) -> list[object]:
    return [each["serialNumber"] for each in context.get_ca_certs()]


def test_what_is_prepared_is_used_by_every_connection(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    client = authority.sign("worker")
    here = endpoint(cafile=authority.certificate, certfile=client.certificate, keyfile=client.key)
    tls.prepare([here, Endpoint()])
    [context] = tls._prepared.values()
    assert tls.tls(here).context is context
    assert tls.tls(here).server_name == "localhost"


def test_an_authority_that_is_replaced_after_the_preparation_is_the_one_that_counts(tmp_path: Path) -> None:
    authority, successor = Authority(tmp_path / "ours"), Authority(tmp_path / "next")
    here = endpoint(cafile=authority.certificate)
    tls.prepare([here])
    before = names(tls.tls(here).context)
    os.replace(successor.certificate, authority.certificate)
    after = names(tls.tls(here).context)
    assert after and after != before


def test_a_certificate_of_ours_that_is_written_anew_in_place_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    client = authority.sign("worker")
    here = endpoint(cafile=authority.certificate, certfile=client.certificate, keyfile=client.key)
    tls.prepare([here])
    prepared = tls.tls(here).context
    authority.sign("worker")
    assert tls.tls(here).context is not prepared


def test_files_that_cannot_be_used_are_no_news_before_somebody_connects(tmp_path: Path) -> None:
    here = endpoint(cafile=tmp_path / "missing.pem")
    tls.prepare([here])
    with pytest.raises(Unusable, match=r"missing\.pem"):
        tls.tls(here)


def test_a_file_that_vanishes_after_the_preparation_is_missed_by_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    here = endpoint(cafile=authority.certificate)
    tls.prepare([here])
    authority.certificate.unlink()
    with pytest.raises(Unusable, match=r"ca\.pem"):
        tls.tls(here)


def test_the_systems_authorities_are_prepared_and_followed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, successor = Authority(tmp_path / "ours"), Authority(tmp_path / "next")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    tls.prepare([endpoint()])
    before = tls.tls(endpoint()).context
    assert tls.tls(endpoint()).context is before
    os.replace(successor.certificate, authority.certificate)
    assert names(tls.tls(endpoint()).context) not in ([], names(before))
