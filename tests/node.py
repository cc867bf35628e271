"""RabbitMQ nodes for tests: a `LocalNode` that answers questions by Erlang's distribution, and one to use again."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess

import pytest

from supervisor.clock import now
from supervisor.commands.node import LocalNode, NodeError

_serial = itertools.count()


class PrivateNode(LocalNode):
    """Raises NodeError when there is nobody to ask."""

    def eval(self, erlang: str) -> str:
        """Evaluate Erlang in the node (`1 + 1.`; the full stop may be left out) and return what Erlang prints of it.

        Costs 10 ms, a fortieth of rabbitmqctl. Raises NodeError when the node does not answer or the expression fails.
        """
        self._running()
        self._await_booted()
        done = self._call("-e", text=erlang.rstrip().removesuffix(".") + ".\n")
        if done.returncode != 0 or not done.stdout.startswith("{ok, "):
            raise NodeError(f"the node could not evaluate {erlang!r}: {(done.stdout + done.stderr).strip()}")
        return done.stdout.removeprefix("{ok, ").rstrip().removesuffix("}")

    def sync(self) -> None:
        """Bring what the node buffers about its queues to disk; call it between declaring a queue and `kill`.

        Mnesia's log and the tables of quorum queues are flushed late: on 3.10.8 a SIGKILL can take a queue with it that
        was declared in the seconds before, seen with quorum queues and, once, with a classic one. Raises NodeError when
        the node does not answer.
        """
        self.eval("disk_log:sync(latest_log), [dets:sync(Table) || Table <- dets:all()].")

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl on this node and return its output. Costs about a second. Raises NodeError when it fails."""
        self._running()
        reach = f"-start_epmd false -dist_listen false {self._found_by()}"
        program = self.installation.inside(self.installation.home / "sbin/rabbitmqctl")
        done = subprocess.run(
            self.installation.command(str(program), *args),
            env=self._environment() | {"RABBITMQ_CTL_ERL_ARGS": reach},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise NodeError(f"rabbitmqctl {args[0] if args else ''} failed: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    def _call(self, *how: str, text: str = "") -> subprocess.CompletedProcess[str]:
        usr = self.installation.usr
        if shutil.which("erl_call", path=str(usr / "bin") if usr else self._environment()["PATH"]) is None:
            raise NodeError("erl_call is not installed; it belongs to Erlang itself: apt-get install erlang-base")
        # The cookie is read from HOME rather than given as an argument, which ps would show. A name of its own for each
        # call: the node refuses two callers of one name at a time.
        name, address = f"eval{os.getpid()}x{next(_serial)}", f"localhost:{self._dist.number}"
        return subprocess.run(
            self.installation.command("erl_call", "-h", name, "-address", address, *how),
            env=self._environment(),
            input=text,
            capture_output=True,
            text=True,
        )

    def _await_booted(self) -> None:
        """AMQP is answered shortly before init calls the boot finished; until then remote calls sometimes break off."""
        deadline = now() + 30.0
        while not self._call("-a", "init get_status").stdout.startswith("{started,"):
            if self.wait(0.03) or now() > deadline:
                raise NodeError(f"{self!r} does not answer Erlang calls. The end of its output:\n{self._output()}")


class SpareNode:
    """The node that tests may kill and change, one after the other. It is emptied after each, and stands still until
    the next: a boot costs six times the CPU, and an idle node takes some, too."""

    def __init__(self, directories: pytest.TempPathFactory) -> None:
        self._directories = directories
        self._node: PrivateNode | None = None
        self._settings = ""

    def wake(self) -> PrivateNode:
        """It runs, and is as if it had been booted."""
        if self._node is not None:
            try:
                os.kill(self._node.pid, signal.SIGCONT)
                self._node.eval("ok = rabbit:start()")
            except NodeError:
                self.kill()
        if self._node is None:
            self._node = PrivateNode(self._directories.mktemp("spare-node"))
            self._node.start()
            self._settings = self._node.eval("base64:encode(term_to_binary(application:get_all_env(rabbit)))")
        return self._node

    def rest(self) -> None:
        """Take from it all that is kept, queues, users and policies, and what has been set while it ran."""
        assert self._node is not None
        try:
            self._node.eval(
                "ok = rabbit:stop(), "
                "ok = case code:which(rabbit_db) of non_existing -> rabbit_mnesia:reset(); _ -> rabbit_db:reset() end, "
                "[application:unset_env(rabbit, Key) || {Key, _} <- application:get_all_env(rabbit)], "
                "[application:set_env(rabbit, Key, Value) || "
                f"{{Key, Value}} <- binary_to_term(base64:decode({self._settings}))]"
            )
            os.kill(self._node.pid, signal.SIGSTOP)
        except NodeError:
            self.kill()

    def kill(self) -> None:
        if self._node is not None:
            self._node.kill()
            self._node = None
