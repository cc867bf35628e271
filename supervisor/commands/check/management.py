"""Facts about a broker that only the management API and rabbitmqctl show. Changes nothing."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shlex
import ssl
import subprocess
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from supervisor import queues
from supervisor.commands.check.facts import Managed, Policy, Rule
from supervisor.endpoint import Endpoint

TIMEOUT: Final = 5.0
CTL_TIMEOUT: Final = 30.0
LARGEST: Final = 8 * 1024**2
PORTS: Final = {"http": 15672, "https": 15671}

Unanswered = tuple[str, str]
"""The reason, and the line that fixes it."""


class BadStatus(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def usual(endpoint: Endpoint) -> str:
    """Where the management API of this node usually is. Encrypted if AMQP is: so is the password."""
    scheme = "https" if endpoint.tls else "http"
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{scheme}://{host}:{PORTS[scheme]}"


def checked(url: str) -> str:
    """The URL, without a slash at its end. Raises ValueError, which does not quote it."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in PORTS and parts.hostname and not parts.query and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("http://HOST:15672 or https://HOST:15671 is expected")
    if "@" in parts.netloc:
        raise ValueError("it is asked with the user and the password of --url; leave them out here")
    return url.rstrip("/")


def ask(url: str, endpoint: Endpoint, queue: str) -> Managed | Unanswered:
    """Everything about this queue, with the endpoint's own login."""
    enable = "rabbitmq-plugins enable rabbitmq_management"
    api = _Api(url, endpoint)
    try:
        # Who is there? The login is for RabbitMQ only.
        if api.realm() is None:
            return f"what answers at {url} is not RabbitMQ's management API", enable
        api.get("whoami")
        return _managed(api, endpoint, queue)
    except BadStatus as refused:
        if refused.status in (401, 403):
            tag = f"rabbitmqctl set_user_tags {shlex.quote(endpoint.user)} management  # in place of the tags it has"
            return f"the management API at {url} does not let user {endpoint.user} in", tag
        return f"the management API at {url} answers {refused}", ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return f"no management API answers at {url} ({reason}); --management URL names another", enable
    finally:
        api.close()


class _Api:
    """GET only; no proxy, no redirect, bounded in time and size."""

    def __init__(self, url: str, endpoint: Endpoint) -> None:
        self.url = url
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        self._prefix = parts.path.rstrip("/") + "/api/"
        self._login = base64.b64encode(f"{endpoint.user}:{endpoint.password}".encode()).decode()
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=endpoint.option("cafile"))
            self._connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)

    def realm(self) -> str | None:
        """What it says of itself to somebody without a login, if it is RabbitMQ's."""
        _, _, realm = self._answer("overview", {})
        return realm if "RabbitMQ" in realm else None

    def get(self, *path: str) -> Any:
        """The JSON that is there. Raises BadStatus, OSError, HTTPException, ValueError."""
        place = "/".join(quote(part, safe="") for part in path)
        status, body, _ = self._answer(place, {"Authorization": f"Basic {self._login}"})
        if status != 200:
            raise BadStatus(status)
        return json.loads(body)

    def try_get(self, *path: str) -> Any:
        """None where it is not there, or not for us to see."""
        try:
            return self.get(*path)
        except BadStatus as refused:
            if refused.status in (401, 403, 404):
                return None
            raise

    def _answer(self, place: str, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        self._connection.request("GET", self._prefix + place, headers={"Accept": "application/json", **headers})
        answer = self._connection.getresponse()
        body = answer.read(LARGEST + 1)
        if len(body) > LARGEST:
            raise ValueError("the answer is too long")
        return answer.status, body, answer.headers.get("WWW-Authenticate", "")

    def close(self) -> None:
        self._connection.close()


def _managed(api: _Api, endpoint: Endpoint, queue: str) -> Managed:
    policies = api.try_get("policies", endpoint.vhost)
    operators = api.try_get("operator-policies", endpoint.vhost) or []
    nodes = api.try_get("nodes")

    def seen(name: str) -> Mapping[str, Any]:
        return api.try_get("queues", endpoint.vhost, name) or {}

    def rule(name: str, kind: str | None, page: Mapping[str, Any]) -> Rule:
        # Reckoned from the list rather than taken from the queue's own page, which lags by seconds.
        policy = obeyed(policies, name, kind) if policies is not None else _as_said(page)
        operator = obeyed(operators, name, kind)
        return Rule(policy, operator.definition if operator else {})

    own, dead = seen(queue), queues.dead(queue)
    others = {dead: rule(dead, (page := seen(dead)).get("type"), page)}
    for name in (queues.delay(queue, ms) for ms in queues.LADDER):
        others[name] = rule(name, "quorum", {} if policies is not None else seen(name))
    limit = own.get("delivery_limit")
    return Managed(
        api.url,
        rule(queue, own.get("type"), own),
        delivery_limit=limit if isinstance(limit, int) else None,
        alarms=None if nodes is None else tuple(_alarms(nodes)),
        vhost_connections=_limit(api.try_get("vhost-limits", endpoint.vhost)),
        user_connections=_limit(api.try_get("user-limits", endpoint.user)),
        others=others,
    )


def obeyed(policies: list[dict[str, Any]], queue: str, kind: str | None) -> Policy | None:
    """The matching policy of highest priority (https://www.rabbitmq.com/docs/policies). The broker matches by PCRE."""
    kinds = {"all", "queues"} | ({f"{kind}_queues"} if kind else set())
    matching = [each for each in policies if each.get("apply-to") in kinds and _matches(each.get("pattern", ""), queue)]
    best = max(matching, key=lambda each: int(each.get("priority", 0)), default=None)
    return Policy(best["name"], int(best["priority"]), dict(best["definition"])) if best else None


def _matches(pattern: str, queue: str) -> bool:
    try:
        return re.search(pattern, queue) is not None
    except re.error:
        return False


def _as_said(seen: Mapping[str, Any]) -> Policy | None:
    name = seen.get("policy")
    return Policy(name, 0, dict(seen.get("effective_policy_definition") or {})) if name else None


def _alarms(nodes: list[dict[str, Any]]) -> list[str]:
    found = []
    for node in nodes:
        for key, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk")):
            if node.get(key) is True:
                found.append(f"{what} on {node.get('name')}")
    return found


def _limit(limits: Any) -> int | None:
    for limit in limits or ():
        value = (limit.get("value") or {}).get("max-connections")
        if isinstance(value, int):
            return value
    return None


# ---------------------------------------------------------------------------------------------------- rabbitmqctl


def consumer_timeout(command: str) -> int:
    """The node's acknowledgement timeout, milliseconds; 0: none. Raises OSError or ValueError."""
    words = [*shlex.split(command), "eval", "application:get_env(rabbit, consumer_timeout)."]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CTL_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it does not answer within {CTL_TIMEOUT:g} s") from None
    found = re.search(r"\{ok,\s*(\d+|undefined|infinity)\}|^undefined$", done.stdout, re.M)
    if found is None:
        raise ValueError((done.stderr or done.stdout or f"exit {done.returncode}").strip().splitlines()[-1][:200])
    return int(found[1]) if found[1] and found[1].isdigit() else 0
