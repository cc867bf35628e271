"""Errors of the broker, ssl and the OS in words."""

from __future__ import annotations

import errno
import re
import socket
import sys
from typing import Any, Final

from pika import exceptions

from supervisor.endpoint import Endpoint
from supervisor.values import dataclass
from supervisor.vocabulary import Kind


class Unusable(ValueError):
    """What we are told to use cannot be used, as seen before the first connect. The text says why, without secrets.

    A class of its own, because only this ValueError is an error of settings.
    """


@dataclass(frozen=True, slots=True)
class Trouble:
    """One error, told apart."""

    kind: Kind
    reason: str
    """One line: what happened, what it means, what to do. No secret."""
    permanent: bool
    """The broker has answered, and said no to our settings: trying again with the same ones makes no sense."""
    max_message_size: int = 0
    """Bytes of a body, where it was a larger one that the broker has refused."""


_PERMANENT: Final = frozenset(
    # Not TLS: an expired certificate is renewed on the broker's side, without us. Not a missing queue: somebody else,
    # who has the permission, may be about to declare it.
    {Kind.AUTHENTICATION, Kind.VHOST, Kind.PERMISSION, Kind.MISMATCH, Kind.STREAM, Kind.SETTINGS}
)
_CLOSE: Final = re.compile(r"\((\d{3})\) (['\"])(.*)\2", re.S)
"""The repr of a ConnectionClosedByBroker, which is all that a Probable...Error holds of it."""
_ALERT: Final = re.compile(r"SSLError\(.*\[SSL: (\w+)\]")
"""Likewise, of an SSLError: all that a StreamLostError holds of what ended the connection."""
_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
"""RabbitMQ's reply text: rabbit_channel:check_msg_size."""
_REMEDIES: Final = {
    # X509_V_ERR_... of openssl/x509_vfy.h.
    9: "is the clock right, here and where the certificate was made?",
    10: "renew it where the broker runs, or set the clock here",
    62: "connect by a name that it is for, or say which with ?server_name=",
    64: "connect by a name that it is for, or say which with ?server_name=",
}
_FRAME_ERROR: Final = 501
_SEE_LOG: Final = "the broker's log says why"
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""errno of calls that fail because this process, or the machine, has nothing left."""
_BROKEN_OFF: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN, errno.ENOTCONN})
_FAR: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL})


def explain(error: BaseException, endpoint: Endpoint | None = None) -> Trouble:
    """Tell what an error of a connection, of ssl or of the OS means for the connection to `endpoint`."""
    who = _Who(endpoint)
    kind, reason = _closed(error, who) or _local(error, who) or _handshake(error, who) or _network(error, who)
    limit = _TOO_LARGE.search(reason) if kind is Kind.TOO_LARGE else None
    return Trouble(kind, _one_line(reason), kind in _PERMANENT, int(limit[1]) if limit else 0)


class _ClosedEarly(exceptions.StreamLostError):
    """The connection ended before the broker's first word."""


def opening_error(connection: Any, error: BaseException) -> BaseException:
    """What a connection that `is_strange` or not has ended with before it was open, told apart further, for `explain`.

    A broker that is just starting closes the connection before its first word, too; and of somebody else's answer, in
    HTTP for instance, more is awaited: it looks like the start of a large frame.
    """
    if connection.is_strange:
        return exceptions.ProtocolVersionMismatch("0-9-1", "something else")
    if isinstance(error, exceptions.IncompatibleProtocolError) and not _ALERT.search(str(error)):
        return _ClosedEarly()
    return error


class _Who:
    """The other side, as far as it is known, for use in sentences."""

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._name = str(endpoint) if endpoint else "the broker"
        self.user = f"user {endpoint.user}" if endpoint else "our user"
        self.guest = endpoint is not None and endpoint.user == "guest"
        self.vhost = f"virtual host {endpoint.vhost}" if endpoint else "the virtual host"
        self._password = endpoint.password if endpoint else ""
        other = "amqps://"
        if endpoint is not None and endpoint.tls:
            # Its alert may be lost on the way, when we have written in the meantime.
            other = "a client certificate that it knows (?certfile=)"
        self.maybe = f"it may be starting or stopping, a load balancer without a broker, or want {other}"
        """Why it may close a connection before its first word."""

    def __str__(self) -> str:
        return self._name

    def clean(self, text: str) -> str:
        """An unforeseen text; nobody knows what it quotes, so without the password."""
        return text.replace(self._password, "***") if self._password else text


def _closed(error: BaseException, broker: _Who) -> tuple[Kind, str] | None:
    """The broker closed the channel or the connection, and said why."""
    if isinstance(error, exceptions.ChannelClosedByBroker | exceptions.ConnectionClosedByBroker):
        return _reply(error.reply_code, error.reply_text, broker)
    if isinstance(error, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError):
        match = _CLOSE.search(str(error.args[0]))
        if match is None:
            return Kind.LOST, f"{broker} closed the connection during the handshake; it may be starting or stopping"
        code, text = int(match[1]), match[3]
        if isinstance(error, exceptions.ProbableAuthenticationError) and code == 403:
            hint = "check user and password in the URL"
            if broker.guest:
                hint += "; a broker accepts guest only from its own host"
            return Kind.AUTHENTICATION, f"{broker} refuses the login of {broker.user}: {hint} ({text})"
        return _reply(code, text, broker)
    return None


def _reply(code: int, text: str, broker: _Who) -> tuple[Kind, str]:
    """RabbitMQ's reply codes (https://www.rabbitmq.com/amqp-0-9-1-reference#constants), told apart by text where one
    of them stands for several things."""
    if code == 320:
        return Kind.OPERATOR, f"{broker} closed the connection: it is shutting down, or an operator closed it ({text})"
    if code == 403 and "exclusive use" in text:
        return Kind.LOCKED, f"the queue has an exclusive consumer; stop it, or wait until it exits ({text})"
    if code == 403:
        return Kind.PERMISSION, f"{broker.user} may not do this; see rabbitmqctl set_permissions ({text})"
    if code == 404 and "down or inaccessible" in text:
        return Kind.UNAVAILABLE, f"the queue exists, but the node that holds it is down; it returns with it ({text})"
    if code == 404:
        return Kind.MISSING, f"there is no such queue or exchange; declare it, or check the name ({text})"
    if code == 405:
        return Kind.LOCKED, f"the queue is exclusive to another connection; wait until that one closes ({text})"
    if code == 406 and "inequivalent" in text:
        hint = "leave out the queue type to use the queue as it is, or delete it"
        return Kind.MISMATCH, f"the queue exists with other properties than asked for; {hint} ({text})"
    if code == 406 and "rabbit_stream_queue" in text:
        hint = "streams never remove a message, so workers cannot share the work; name another queue"
        return Kind.STREAM, f"the queue is a stream: {hint} ({text})"
    if code == 406 and "delivery acknowledgement" in text:
        return Kind.ACK_TIMEOUT, f"the task took longer than the broker's consumer_timeout allows ({text})"
    if code == 406 and _TOO_LARGE.search(text):
        return Kind.TOO_LARGE, f"{broker} accepts no message of this size; see its max_message_size ({text})"
    if code == 406:
        return Kind.PRECONDITION, f"{broker} refuses ({text})"
    if code == _FRAME_ERROR:
        hint = "properties and headers of a message must fit into one frame: shorten them, or raise its frame_max"
        return Kind.PRECONDITION, f"{broker} refuses a frame: {hint} ({text})"
    if code == 530 and "limit" in text:
        return Kind.LIMIT, f"{broker} accepts no more connections or channels ({text})"
    if code == 530:
        hint = "check its name in the URL, or see rabbitmqctl add_vhost and set_permissions"
        return Kind.VHOST, f"{broker.user} cannot use {broker.vhost}: {hint} ({text})"
    return Kind.BROKER, f"{broker} closed with an error of its own; see its log ({code} {text})"


def _local(error: BaseException, broker: _Who) -> tuple[Kind, str] | None:
    """Neither the broker's nor the network's: it is this process that cannot."""
    if isinstance(error, Unusable):
        return Kind.SETTINGS, _text(error, broker)
    lacking = ""
    if isinstance(error, socket.gaierror) and error.errno in (socket.EAI_MEMORY, socket.EAI_SYSTEM):
        lacking = f"looking up its name failed: {error.strerror}"
    elif isinstance(error, OSError) and error.errno in EXHAUSTED:
        lacking = f"{error.strerror}"
    elif isinstance(error, MemoryError):
        lacking = "out of memory"
    elif isinstance(error, RuntimeError) and "new thread" in str(error):
        lacking = "no thread can be started"
    if not lacking:
        return None
    hint = "see what the handler leaves open, and the limits on files, memory and tasks (LimitNOFILE=, TasksMax=)"
    return Kind.LOCAL, f"this process cannot reach {broker}: {lacking}; {hint}"


def _handshake(error: BaseException, broker: _Who) -> tuple[Kind, str] | None:
    """TLS and AMQP, before anything was said."""
    if "ssl" in sys.modules and (said := _of_tls(error, broker)) is not None:
        return said
    if isinstance(error, exceptions.IncompatibleProtocolError) and (alert := _ALERT.search(str(error))):
        # With TLS 1.3 a client has finished its handshake when the broker looks at the client's certificate.
        hint = "it wants a client certificate of an authority that it knows: ?certfile= and ?keyfile="
        is_ours = "CERTIFICATE" in alert[1] or "UNKNOWN_CA" in alert[1]
        return Kind.TLS, f"{broker} refuses our side of TLS: {alert[1]}; {hint if is_ours else _SEE_LOG}"
    if isinstance(error, _ClosedEarly):
        return Kind.LOST, f"{broker} closed the connection before it said anything; {broker.maybe}"
    if isinstance(error, exceptions.IncompatibleProtocolError | exceptions.ProtocolVersionMismatch):
        hint = "is the port right (5672), and does it want amqps:// instead?"
        return Kind.PROTOCOL, f"what listens at {broker} does not answer in AMQP 0-9-1; {hint}"
    if isinstance(error, exceptions.NoFreeChannels):
        return Kind.LIMIT, f"{broker} allows too few channels on a connection; raise its channel_max"
    if isinstance(error, exceptions.AuthenticationError):
        return Kind.AUTHENTICATION, f"{broker} does not offer login with user and password (SASL PLAIN)"
    return None


def _of_tls(error: BaseException, broker: _Who) -> tuple[Kind, str] | None:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        hint = _REMEDIES.get(error.verify_code, "name the authority that signed it with ?cafile=")
        return Kind.TLS, f"the certificate of {broker} is not trusted: {error.verify_message}; {hint}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Kind.LOST, f"{broker} closed the connection during the TLS handshake; {broker.maybe}"
    if isinstance(error, ssl.SSLError):
        hint = "is it the TLS port (5671), and does the broker want a client certificate?"
        return Kind.TLS, f"no TLS with {broker}: {error.reason or error}; {hint}"
    return None


def _network(error: BaseException, broker: _Who) -> tuple[Kind, str]:
    if isinstance(error, socket.gaierror):
        return Kind.DNS, f"the host name of {broker} has no address: {error.strerror}; check it, and the resolver"
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return Kind.HEARTBEAT, f"nothing was heard from {broker} for two heartbeats: it, or the network, is stuck"
    if isinstance(error, TimeoutError):
        return Kind.TIMEOUT, f"{broker} does not answer in time: a firewall, or a broker that hangs or is starting"
    if isinstance(error, ConnectionRefusedError):
        return Kind.REFUSED, f"connection refused by {broker}: no broker is running there, or it is still starting"
    if isinstance(error, OSError) and error.errno in _BROKEN_OFF:
        return Kind.LOST, f"the connection to {broker} broke off: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _FAR:
        return Kind.UNREACHABLE, f"no route to {broker}: {error.strerror}; check the network"
    if isinstance(error, OSError):
        return Kind.UNREACHABLE, f"connecting to {broker} failed: {error.strerror or type(error).__name__}"
    if isinstance(error, exceptions.AMQPError):
        return Kind.LOST, f"the connection to {broker} was lost ({type(error).__name__}: {_text(error, broker)})"
    # Whatever it is, the connection is of no use and another may be.
    what = f"{type(error).__name__}: {_text(error, broker)}"
    return Kind.OTHER, f"the connection to {broker} failed unexpectedly: {what}"


def _text(error: BaseException, broker: _Who) -> str:
    return broker.clean(" ".join(str(argument) for argument in error.args))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def is_missing(error: BaseException) -> bool:
    """Whether the broker has said 404: there is no such queue, or it cannot be used now."""
    return isinstance(error, exceptions.ChannelClosedByBroker) and error.reply_code == 404


def is_refusal(error: BaseException) -> bool:
    """Whether the broker has closed the channel, or the connection, for what was sent last."""
    is_too_long = isinstance(error, exceptions.ConnectionClosedByBroker) and error.reply_code == _FRAME_ERROR
    return is_too_long or isinstance(error, exceptions.ChannelClosedByBroker)


def refusal(error: BaseException) -> str:
    """The text with which the broker has closed the channel; empty when it has not."""
    return str(error.reply_text) if isinstance(error, exceptions.ChannelClosedByBroker) else ""
