"""Certificates for tests, made when needed: a certificate authority of the test's own, and what it signs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """A certificate authority that nobody else trusts. Its files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.certificate = directory / "ca.pem"
        """What to trust: `?cafile=`, `ssl_options.cacertfile`."""
        self._authority.cert_pem.write_to_path(str(self.certificate))

    def sign(self, name: str, *, expired: bool = False, to: Path | None = None) -> Identity:
        """A certificate for a host (or anybody) of this name, for the next day; or for yesterday."""
        today = datetime.now(UTC)
        ends = today + timedelta(days=-1 if expired else 1)
        signed = self._authority.issue_cert(name, not_before=ends - timedelta(days=2), not_after=ends)
        identity = Identity(to or self.directory / name)
        signed.cert_chain_pems[0].write_to_path(str(identity.certificate))
        signed.private_key_pem.write_to_path(str(identity.key))
        return identity


class Identity:
    """A certificate and its private key, as two PEM files."""

    def __init__(self, stem: Path) -> None:
        self.certificate = stem.with_name(stem.name + "-certificate.pem")
        self.key = stem.with_name(stem.name + "-key.pem")

    def encrypt_key(self, passphrase: str) -> Path:
        """The same key in a file that takes a passphrase to read."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        encrypted = self.key.with_name("encrypted-" + self.key.name)
        encrypted.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(passphrase.encode()),
            )
        )
        return encrypted
