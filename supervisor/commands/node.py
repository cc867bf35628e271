"""A private RabbitMQ node as a child process, from the installed package: for development, benchmarks and tests.

It listens on loopback only, needs no epmd, keeps everything it writes in one directory, and dies with its parent.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from supervisor.clock import now
from supervisor.values import dataclass

INSTALLED: Final = Path("/usr/lib/rabbitmq/lib")
"""Parent of `rabbitmq_server-VERSION` in the packages of Debian, Ubuntu and rabbitmq.com."""

INSTALL: Final = "apt-get install --no-install-recommends rabbitmq-server"

ALWAYS: Final = ("rabbit", "rabbitmq_prelaunch", "cuttlefish", "getopt", "systemd", "jsx", "thoas", "enough")
"""Applications that a node needs. Cuttlefish does not list its own dependencies."""

PORTS: Final = range(10240, 32768)
"""Below the ephemeral ports (ip(7), ip_local_port_range): a client that keeps connecting to a dead node on an ephemeral
port ends up connected to itself, and holds the node's port."""

UNLISTED: Final = "unlisted"
_MODULES: Final = re.compile(r"\{\s*modules\s*,\s*\[[^]]*]\s*}")

STOP_SECONDS: Final = 30.0

VM: Final = (
    "-noinput +B i "  # what the wrapper script would have added: no shell, no break handler
    "+S 2:2 +SDio 2 +sbwt none +sbwtdcpu none +sbwtdio none +stbt u "  # small, idle when idle, bound to no CPU
    "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
)


class NodeError(RuntimeError):
    """The node cannot be found, started or reached; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A RabbitMQ server: this system's, or one in another system's unpacked file tree."""

    home: Path
    """`rabbitmq_server-VERSION`, as found from here."""
    usr: Path | None = None
    """The other system's /usr, with its Erlang; None: this system's."""

    @property
    def version(self) -> str:
        """`3.10.8`; empty when its directory does not say."""
        found = applications(self.home).get("rabbit")
        return found.name.removeprefix("rabbit-") if found else ""

    def inside(self, path: Path) -> Path:
        """Where the server itself sees a file of its installation."""
        return path if self.usr is None else Path("/usr") / path.relative_to(self.usr)

    def command(self, *words: str) -> list[str]:
        """What to execute so that `words` run where the server lives."""
        return beneath(self.usr, *words)


def beneath(usr: Path | None, *words: str) -> list[str]:
    """What to execute so that `words` run with this /usr; ends in an exec.

    That of another system takes the place of ours, in a mount namespace that ends with the process (unshare(1)), so any
    number run from one. A chroot would need /proc, /etc/hosts and the node's directory mounted below it. Needs root, or
    unprivileged user namespaces.
    """
    if usr is None:
        return list(words)
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    there = ["sh", "-c", 'mount --bind "$1" /usr && shift && exec "$@"', "sh", str(usr)]
    return ["unshare", *user, "--mount", *there, *words]


class LocalNode:
    """One RabbitMQ node, a context manager. `start` works again after `stop` and `kill`: same port, same data. The node
    is killed when the *thread* that called `start` ends (PR_SET_PDEATHSIG, prctl(2))."""

    def __init__(
        self,
        directory: Path,
        *,
        conf: str = "",
        port: int | None = None,
        plugins: Sequence[str] = (),
        nodename: str = "rabbit@localhost",
        epmd: int | None = None,
        cookie: str | None = None,
        installation: Installation | None = None,
    ) -> None:
        """`conf` is added to rabbitmq.conf, `port` is the AMQP port on 127.0.0.1 (default: a free one), `plugins` are
        enabled, `installation` is run (default: `find_installation`'s). Nodes of a cluster have names of their own, one
        `cookie`, and the caller's epmd on the port `epmd` of 127.0.0.1. Nothing is written before `start`. Raises
        NodeError when RabbitMQ is not installed."""
        self.directory = directory.resolve()
        self.nodename = nodename
        self.installation = installation or find_installation()
        if self.installation.usr is not None and self.directory.is_relative_to("/usr"):
            raise NodeError(f"{self.installation.home} hides what is below /usr: choose another directory for the node")
        self._conf = conf
        self._plugins = tuple(plugins)
        self._amqp = Port(port)
        self._dist = Port()
        self._epmd = epmd
        self._cookie = cookie
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._has_answered = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.nodename} port={self.port} directory={str(self.directory)!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self._amqp.number

    @property
    def url(self) -> str:
        """With the password of the default user, which RabbitMQ accepts from loopback only."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    @property
    def pid(self) -> int:
        """The Erlang VM's own, not a wrapper's. Raises NodeError when the node is not running."""
        return self._running().pid

    @property
    def version(self) -> str:
        """Of the installed package: `3.10.8`; empty when its directory does not say."""
        return self.installation.version

    @property
    def alive(self) -> bool:
        return self._process is not None and not self.wait(0.0)

    def start(self, timeout: float = 60.0) -> None:
        """Boot, and return when the broker answers AMQP. Raises NodeError, with the end of what the node wrote."""
        if self.alive and self._has_answered:
            return  # a node drained for maintenance runs, and does not answer
        deadline = now() + timeout
        try:
            self.launch()
            while not answers(self.port):
                how = "ended while it booted" if self.wait(0.02) else ""
                if not how and now() > deadline:
                    how = f"did not answer on port {self.port} within {timeout:g} s"
                if how:
                    raise NodeError(f"the RabbitMQ node {how}. The end of its output:\n{self._output()}")
            self._has_answered = True
        except BaseException:
            self.kill()
            raise

    def launch(self) -> None:
        """Begin to boot; `start` waits for it. Raises NodeError when the directory or the port is in use."""
        if self.alive:
            return
        try:
            self._has_answered = False
            self._lock_directory()
            self._amqp.check()
            self._spawn(self._furnish())
        except BaseException:
            self.kill()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) for the node to end. True when it has, or was never started."""
        try:
            if self._process is not None:
                self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """End the node in its own time (SIGTERM, a second or two); kill it when that takes over 30 s."""
        if self.alive:
            self._running().terminate()
            self.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, and reap. Nothing to do when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------------------------------------- inside

    def _lock_directory(self) -> None:
        """Two nodes on one directory would corrupt its data, and without epmd nothing else prevents that."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.directory / "lock", os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise NodeError(
                f"another private node runs in {self.directory}: stop it, or choose another directory"
            ) from None
        self._lock = lock

    def _furnish(self) -> Path:
        """Write what the node reads, and return the installation to boot from: the package may have been upgraded."""
        (self.directory / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n{self._conf}\n")
        (self.directory / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        cookie = self.directory / ".erlang.cookie"
        cookie.touch(0o600)  # Erlang refuses one that others can read
        cookie.write_text(self._cookie or secrets.token_hex(16))
        return trimmed(self.installation, self.directory / "home", self._plugins)

    def _environment(self) -> dict[str, str]:
        """Nothing of /etc/rabbitmq, and no NOTIFY_SOCKET, by which it would report to the systemd unit we may be."""
        place = self.directory
        return {
            "PATH": os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(place),
            "LANG": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": str(place / "none"),
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_MNESIA_BASE": str(place / "mnesia"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(place / "advanced.config"),
            "RABBITMQ_DIST_PORT": str(self._dist.number),
            # Port 1: an epmd that happens to run on this machine is not ours to talk to.
            "ERL_EPMD_PORT": str(self._epmd or 1),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_ZFLAGS": "-start_epmd false",
        }

    def _spawn(self, home: Path) -> None:
        number = self._dist.number
        listen = self._found_by() or f"-kernel inet_dist_listen_min {number} inet_dist_listen_max {number}"
        environment = self._environment() | {
            "RABBITMQ_ALLOW_INPUT": "1",  # the script then execs the VM: our child is the broker, with no shell between
            "RABBITMQ_SERVER_START_ARGS": f"{VM} -pa {home / UNLISTED} -sname {self.nodename} {listen}",
        }
        # setpriv rather than a preexec_fn, which is unsafe in a parent that has threads. A session of its own: Ctrl-C
        # in the terminal is for the parent, which then stops the node in order.
        with (self.directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.installation.command(str(home / "sbin/rabbitmq-server"))],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _found_by(self) -> str:
        """How Erlang finds the port of any node (erl(1), `-erl_epmd_port`); empty: by epmd."""
        return f"-erl_epmd_port {self._dist.number}" if self._epmd is None else ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.alive:
            raise NodeError(f"{self!r} is not running: start it first")
        return self._process

    def _output(self) -> str:
        return (self.directory / "output").read_text(errors="replace")[-4000:].strip() or "(nothing)"


class Port:
    """A TCP port on loopback that no other Port on this machine has: claimed by an abstract socket's name (unix(7))."""

    def __init__(self, number: int | None = None) -> None:
        """`number`: this port, even if taken; default: a free one. Raises NodeError when there is none."""
        self.number = self._free() if number is None else number

    def _free(self) -> int:
        for _ in range(1000):
            number = secrets.choice(PORTS)
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0workq-port-{number}")
            except OSError:
                claim.close()
                continue
            weakref.finalize(self, claim.close)
            if bindable(number):
                return number
        raise NodeError(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop - 1}: choose one")

    def check(self) -> None:
        """Raises NodeError when the port is in use."""
        if not bindable(self.number):
            raise NodeError(
                f"port {self.number} on 127.0.0.1 cannot be had: stop what listens there, or choose another port"
            )


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the broker does: old connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether a broker answers AMQP: its port opens before it serves."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as client:
            client.settimeout(2.0)
            client.sendall(b"AMQP\0\0\x09\x01")
            return client.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


def find_installation(chosen: str | None = None) -> Installation:
    """The newest RabbitMQ installed, or the one at `chosen` (default: `$WORKQ_RABBITMQ_HOME`): a
    `rabbitmq_server-VERSION`, or an unpacked Debian (`scripts/rabbitmq`). Raises NodeError."""
    chosen = chosen or os.environ.get("WORKQ_RABBITMQ_HOME")
    root = Path(chosen or "/").resolve()
    installed = root / INSTALLED.relative_to("/")
    found = sorted(installed.glob("rabbitmq_server-*"), key=version_order, reverse=True)
    if chosen and not found:
        found = [Path(chosen)]
    for home in found:
        if (home / "sbin" / "rabbitmq-server").is_file():
            return Installation(home, root / "usr" if chosen and home.is_relative_to(installed) else None)
    where = (
        f"WORKQ_RABBITMQ_HOME is {chosen}, which has no sbin/rabbitmq-server" if chosen else f"nothing in {INSTALLED}"
    )
    raise NodeError(
        f"RabbitMQ is not installed ({where}). Install it: {INSTALL} (or scripts/setup in a checkout), "
        "or set WORKQ_RABBITMQ_HOME to an unpacked rabbitmq_server-VERSION."
    )


def version_order(home: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", home.name)]


def applications(home: Path) -> dict[str, Path]:
    """The Erlang applications in a server's plugin directory, by name without the version."""
    return {path.name.partition("-")[0]: path for path in (home / "plugins").glob("*-[0-9]*") if path.is_dir()}


def needed(available: dict[str, Path], wanted: Sequence[str]) -> list[Path]:
    """`wanted` and their dependencies in the plugin directory; the others are part of Erlang."""
    chosen: dict[str, Path] = {}
    open_ends = list(wanted)
    while open_ends:
        name = open_ends.pop()
        if name in chosen or name not in available:
            continue
        chosen[name] = available[name]
        specification = re.sub(r"%.*", "", (available[name] / "ebin" / f"{name}.app").read_text())
        for listed in re.findall(r"\{\s*(?:included_)?applications\s*,\s*\[(.*?)\]", specification, re.DOTALL):
            open_ends += re.findall(r"\w+", listed)
    return list(chosen.values())


def trimmed(installation: Installation, home: Path, plugins: Sequence[str]) -> Path:
    """Make `home` an installation with only the needed plugins, by symbolic links, and return it: with 10 instead of 70
    a node boots in half the time.

    To find its boot steps, RabbitMQ before 3.12 loads each module that an application lists
    (`rabbit_misc:all_module_attributes`): Erlang's own, in `home`/UNLISTED, list none, for another quarter. They are
    loaded when they are called, as always.

    RabbitMQ's scripts do not quote their own directory, and ERL_LIBS splits at colons: for paths that would break
    there, use the whole installation."""
    original = installation.home
    available = applications(original)
    if "rabbit" not in available or not re.fullmatch(r"[\w./+,=@-]+", str(home), re.ASCII):
        return installation.inside(original)
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(original / "sbin", home / "sbin")
    (home / "escript").symlink_to(installation.inside(original / "escript"))
    (home / "plugins").mkdir()
    for path in needed(available, [*ALWAYS, *plugins]):
        (home / "plugins" / path.name).symlink_to(installation.inside(path))
    (home / UNLISTED).mkdir()
    for path in sorted((installation.usr or Path("/usr")).glob("lib/erlang/lib/*/ebin/*.app")):
        (home / UNLISTED / path.name).write_text(_MODULES.sub("{modules, []}", path.read_text()))
    return home
