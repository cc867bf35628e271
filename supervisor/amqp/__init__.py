"""Everything that speaks to a broker. Workers import this: keep it light."""

from supervisor.amqp.errors import Trouble, Unusable, explain, is_missing, opening_error
from supervisor.amqp.parameters import parameters
from supervisor.amqp.pika_connection import Connection
from supervisor.amqp.topology import declare_anyway, declare_or_take

__all__ = [
    "Connection",
    "Trouble",
    "Unusable",
    "declare_anyway",
    "declare_or_take",
    "explain",
    "is_missing",
    "opening_error",
    "parameters",
]
