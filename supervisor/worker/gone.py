"""Why a consumer ended."""

from __future__ import annotations

from typing import Final

from supervisor.vocabulary import Cause, Kind

_CAUSES: Final = {
    Kind.MISMATCH: Cause.CONFIG, Kind.STREAM: Cause.CONFIG, Kind.SETTINGS: Cause.CONFIG, Kind.LOCAL: Cause.LOCAL,
}  # fmt: skip
"""Not to be fixed on the broker's side, as a password or a permission is, which is therefore retried. `CONFIG` needs
other settings."""


class Gone(Exception):
    """This consumer has ended."""

    def __init__(self, cause: Cause, detail: str, kind: Kind | None = None, silence: float = 0.0) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail
        self.kind = kind
        """What is wrong with the broker, if that is the cause."""
        self.silence = silence
        """Seconds without a byte before the connection ended; 0: it had been silent for longer before."""


def cause_of(kind: Kind) -> Cause:
    return _CAUSES.get(kind, Cause.BROKER)


def none_of(refusals: list[Gone]) -> Gone:
    """One for several nodes, with each reason once."""
    if len(refusals) == 1:
        return refusals[0]
    reasons = "; ".join(dict.fromkeys(refusal.detail for refusal in refusals))
    return Gone(Cause.BROKER, f"none of {len(refusals)} nodes can be used: {reasons}", refusals[-1].kind)
