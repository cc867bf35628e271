"""Everything that speaks to a broker, and alone imports pika. Workers import this: keep it light."""

from supervisor.late import later

with later("asyncio"), later("ssl"):  # which pika imports for adapters that nobody here uses
    from supervisor.amqp.errors import Trouble, Unusable, explain, is_missing, is_refusal, refusal
from supervisor.amqp.topology import declare_anyway

__all__ = ["Trouble", "Unusable", "declare_anyway", "explain", "is_missing", "is_refusal", "refusal"]
