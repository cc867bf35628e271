"""A RabbitMQ node for tests: a `LocalNode` that answers questions by Erlang's distribution."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

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
