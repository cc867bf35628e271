"""Sixty tasks, four workers, one SIGKILL, nothing lost.

Boots a private RabbitMQ, publishes tasks of mixed weight, runs `workq-supervise` on them, kills a worker in the middle
of a task, and shows what follows. The last line is the account; the exit code is 0 when it balances. What is done is
counted from the handler's own notes (demo_tasks.py), by message id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pika.exceptions import ChannelClosedByBroker
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.benches.notes import Note, Notes
from scripts.benches.queues import channel
from supervisor import Publisher
from supervisor.clock import now
from supervisor.commands.node import LocalNode, NodeError

SCRIPTS: Final = Path(__file__).resolve().parent
QUEUE: Final = "demo"
WORKERS: Final = 4
WEIGHTS: Final = (0.4, 0.8, 0.3, 1.6, 0.6, 2.5, 0.2, 1.2, 0.5, 1.0)
"""Seconds that tasks take, over and over: 60 of them keep four workers busy for 14 s."""


def named(number: int) -> str:
    """The message id of a task."""
    return f"task-{number:02}"


TASKS: Final = {named(number): WEIGHTS[number % len(WEIGHTS)] for number in range(1, 61)}
KILL_AFTER: Final = len(TASKS) // 3
"""So many tasks are done when a worker is killed."""
FRAME: Final = 0.08
"""Seconds between two looks."""
LIMIT: Final = 90.0
"""Seconds after which the demo gives up and says what it has."""


# ------------------------------------------------------------------------------------------------- the account


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the messages, by their ids."""

    published: int
    done: int
    lost: tuple[str, ...]
    """Published, and neither done, nor dead-lettered, nor still in the queue."""
    redelivered: int
    problems: tuple[str, ...]
    """Why it does not balance; empty when it does."""

    def __str__(self) -> str:
        counts = f"published {self.published}, done {self.done}, lost {len(self.lost)}, redelivered {self.redelivered}"
        return counts if not self.problems else f"{counts}: does not balance"


def account(
    published: Collection[str],
    began: Collection[str],
    done: Collection[str],
    dead: Collection[str],
    queued: Collection[str],
    redelivered: int,
) -> Account:
    """Set message ids against each other. `began` and `done` name a message once for each run; `redelivered` is the
    supervisor's own count, which the handler's notes must confirm: every run beyond the first comes from a redelivery.
    """
    finished = set(done) & set(published)
    lost = sorted(set(published) - finished - set(dead) - set(queued))
    extra = len(began) - len(set(began))
    problems = []
    if lost:
        problems.append(f"lost: {', '.join(lost)}")
    if dead:
        problems.append(f"dead-lettered: {', '.join(sorted(set(dead)))}")
    if set(queued) - finished:
        problems.append(f"still in the queue: {', '.join(sorted(set(queued) - finished))}")
    if set(done) - set(published):
        problems.append(f"done, but never published: {', '.join(sorted(set(done) - set(published)))}")
    if len(done) != len(set(done)):
        problems.append(f"{len(done) - len(set(done))} completed more than once")
    if extra != redelivered:
        problems.append(f"the supervisor counts {redelivered} redelivered, the handler began {extra} a second time")
    return Account(len(set(published)), len(finished), tuple(lost), redelivered, tuple(problems))


# ---------------------------------------------------------------------------------------- what the demo watches


class Supervised:
    """A running `workq-supervise`. Its log goes to a file, read when there is time: each line carries its own."""

    def __init__(self, handler: str, *options: str, url: str, queue: str, place: Path, env: dict[str, str]) -> None:
        self._log = (place / "supervisor.log").open("w+b")
        self._offset = 0
        self._rest = b""
        self._url = ""
        # Lines carry wall-clock time; everything here is monotonic.
        self._wall = time.time() - now()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
        # setpriv: should this process be killed, the supervisor follows (PR_SET_PDEATHSIG, prctl(2)). A session of its
        # own: Ctrl-C is for this process, which then ends everything in order.
        follow = ("setpriv", "--pdeathsig", "TERM")
        run = (sys.executable, "-P", "-m", "supervisor")
        observed = ("--health", "127.0.0.1:0", "--log-format", "json")
        self.process = subprocess.Popen(
            [*follow, *run, "--queue", queue, "--app-dir", str(SCRIPTS), *observed, *options, handler],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**clean, **env, "WORKQ_URL": url},
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def lines(self, about: bytes = b"") -> list[dict[str, Any]]:
        """What it has logged since the last call, of lines that contain `about`; each with `at`, monotonic seconds."""
        read = os.pread(self._log.fileno(), 1 << 26, self._offset)
        self._offset += len(read)
        *whole, self._rest = (self._rest + read).split(b"\n")
        lines = []
        for line in whole:
            if about in line:
                event = json.loads(line)
                event["at"] = datetime.fromisoformat(event["timestamp"]).timestamp() - self._wall
                lines.append(event)
                if event["event"] == "health.listening":
                    self._url = event["url"]
        return lines

    def status(self) -> dict[str, Any]:
        """/status; empty when nobody answers (yet)."""
        if not self._url:
            return {}
        try:
            with urllib.request.urlopen(f"{self._url}/status", timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def stop(self) -> int | None:
        """Let the tasks in flight come to their end. The exit code; None when it had to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """At once, whatever it is doing, and whatever it has in flight."""
        for patience in (0.3, 5.0):  # the second SIGTERM means: now
            if self.alive:
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(patience)
        self.process.kill()
        self.process.wait()
        self._log.close()

    def tail(self) -> str:
        """The end of its log, for when things go wrong."""
        return Path(self._log.name).read_text(errors="replace")[-2000:]


def waiting(url: str, queue: str) -> list[str]:
    """The ids of the messages in a queue; they stay there. Empty when there is no such queue."""
    try:
        with channel(url) as link:
            found: list[str] = []
            while True:
                method, properties, _ = link.basic_get(queue)
                if method is None or properties is None:
                    return found
                found.append(properties.message_id or "?")
    except ChannelClosedByBroker:
        return []


@dataclass(slots=True)
class Death:
    """The kill, and what followed. Times are monotonic seconds."""

    slot: int
    pid: int
    message_id: str
    at: float
    into: float
    """Seconds that the task had run."""
    seen: float | None = None
    ready: float | None = None
    again: Note | None = None
    done: Note | None = None

    def ms(self, then: float | None) -> str:
        return f"{(then - self.at) * 1000:.1f} ms" if then is not None else "?"


@dataclass(slots=True)
class Progress:
    """What a frame shows."""

    began: float
    done: int = 0
    workers: list[dict[str, Any]] = field(default_factory=list)
    slots: dict[int, int] = field(default_factory=dict)
    """Whose slot a pid's is, or was."""
    death: Death | None = None


# ------------------------------------------------------------------------------------------------- how it looks


class Lines:
    """For pipes and CI: plain lines, one for each event that matters."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = 0

    def line(self, text: str = "", style: str = "", *, end: str = "\n") -> None:
        self._console.print(Text(text, style), end=end, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Something to wait for: says what, and then how long it took."""
        self.line(f"  {what} ...".ljust(64), end="")
        began = now()
        try:
            yield
        except BaseException:
            self.line()
            raise
        self.line(f"{now() - began:8.1f} s", "dim")

    def event(self, when: str, name: str, text: str, style: str = "") -> None:
        """One thing that happened."""
        happened = Text.assemble((when.rjust(10), "dim"), "  ", (name.ljust(13), style), f"  {text}")
        self._console.print(happened, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """How far it is: a line for every few completions."""
        if progress.done - self._shown >= 10 or (progress.done == len(TASKS) != self._shown):
            self._shown = progress.done
            self.event(f"{now() - progress.began:.1f} s", "progress", f"{progress.done} of {len(TASKS)} done")

    def settle(self) -> None:
        """What was shown stays as it is."""


class Screen(Lines):
    """For a terminal: above, what has happened; below it, repainted in place, who works on what."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._progress: Progress | None = None

    def show(self, progress: Progress) -> None:
        self._progress = progress
        self._live.start()
        self._live.update(Group("", _workers(progress), "", _all_tasks(progress)), refresh=True)

    def settle(self) -> None:
        if self._progress is not None:
            self._live.update(Group("", _all_tasks(self._progress)))  # the workers have nothing more to show
        self._live.stop()


def _workers(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 1))
    for worker in progress.workers:
        table.add_row(*_worker(worker, progress.death))
    return table


def _worker(worker: dict[str, Any], death: Death | None) -> Iterator[RenderableType]:
    slot, pid, name = worker["slot"], worker["pid"], worker["message_id"]
    yield Text(f"  worker {slot}")
    yield Text(f"pid {pid or '-'}", "dim")
    weight = TASKS.get(name or "")
    is_again = death is not None and name == death.message_id and pid != death.pid
    if weight is None:
        yield from (Text(worker["state"], "dim"), "", "")
    else:
        style = "yellow" if is_again else "cyan"
        seconds = min(worker["busy_seconds"] or 0.0, weight)
        yield from (Text(name, style), ProgressBar(weight, seconds, 16, complete_style=style, finished_style=style))
        yield Text(f"{seconds:.1f} of {weight:.1f} s")
    if is_again:
        yield Text("once more", "yellow")
    elif death is not None and slot == death.slot:
        yield Text(f"killed: {death.pid}", "red")


def _all_tasks(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 1))
    bar = ProgressBar(len(TASKS), progress.done, 40, complete_style="green", finished_style="green")
    table.add_row("  all tasks", bar, f"{progress.done:2} of {len(TASKS)} done {now() - progress.began:7.1f} s")
    return table


def view() -> Lines:
    """What suits the place that this writes to."""
    console = Console(highlight=False)
    is_screen = console.is_terminal and not console.is_dumb_terminal and console.width >= 72 and console.height >= 16
    return Screen(console) if is_screen else Lines(console)


# ---------------------------------------------------------------------------------------------------- the story


class Demo:
    """One run: watch, kill once, watch on, until every message has come to an end."""

    def __init__(self, supervised: Supervised, notes: Notes, show: Lines, began: float) -> None:
        self._supervised = supervised
        self._reader = notes
        self.notes: list[Note] = []
        """What the handler has noted so far."""
        self._show = show
        self.progress = Progress(began)
        self.death: Death | None = None
        self.totals: dict[str, Any] = {}

    def run(self) -> None:
        until = now() + LIMIT
        while now() < until and self._supervised.alive:
            self._look()
            done = self.progress.done
            if self.death is None and done >= KILL_AFTER:
                self._kill(self._victim(hurry=done >= 2 * KILL_AFTER))
            self._show.show(self.progress)
            if done == len(TASKS) and self.totals.get("succeeded") == done:
                return
            time.sleep(FRAME)

    def _look(self) -> None:
        for line in self._supervised.lines(b'"worker.'):
            self._hear(line)
        status = self._supervised.status()
        if status:
            self.totals = status["totals"]
            self.progress.workers = status["workers"]
            self.progress.slots |= {worker["pid"]: worker["slot"] for worker in status["workers"] if worker["pid"]}
        for note in self.read():
            self._note(note)
        self.progress.done = len(set(self.ids(ended=True)))

    def read(self) -> list[Note]:
        """What the handler has noted since."""
        new = self._reader.read()
        self.notes += new
        return new

    def ids(self, *, ended: bool) -> list[str]:
        """Of the messages whose task has begun, or has ended; once for each run."""
        return [named(note.number) for note in self.notes if note.has_ended is ended]

    def _victim(self, *, hurry: bool) -> dict[str, Any] | None:
        """A worker in the middle of a task of some weight."""
        least = 0.2 if hurry else 0.8
        for worker in self.progress.workers:
            weight, busy = TASKS.get(worker["message_id"] or ""), worker["busy_seconds"]
            if weight is not None and weight - busy >= least and 0.3 <= busy <= 0.7:
                return worker
        return None

    def _kill(self, worker: dict[str, Any] | None) -> None:
        if worker is None:
            return
        slot, pid, name, busy = (worker[key] for key in ("slot", "pid", "message_id", "busy_seconds"))
        self._show.show(self.progress)
        death = Death(slot, pid, name, now(), busy)
        os.kill(pid, signal.SIGKILL)
        self.death = self.progress.death = death
        text = f"worker {slot}, {busy:.1f} s into {name}, which takes {TASKS[name]:.1f} s"
        self._show.event(f"{death.at - self.progress.began:.1f} s", f"kill -9 {pid}", text, "red")

    def _hear(self, line: dict[str, Any]) -> None:
        death, show = self.death, self._show
        if death is None or line.get("slot") != death.slot or line["at"] < death.at:
            return
        after = f"+{death.ms(line['at'])}"
        if line["event"] == "worker.exited" and death.seen is None:
            death.seen = line["at"]
            death.message_id = line["message_id"] or "nothing"
            show.event(after, "worker.exited", f"{line['because']}: {line['message_id']}", "red")
            show.event("", "", line["next"])
        elif line["event"] == "worker.ready" and death.ready is None:
            death.ready = line["at"]
            show.event(after, "worker.ready", f"a new worker {death.slot} is consuming", "green")

    def _note(self, note: Note) -> None:
        death, show = self.death, self._show
        if death is None or named(note.number) != death.message_id or note.at < death.at:
            return
        if not note.has_ended:
            death.again = note
            text = f"RabbitMQ gave {death.message_id} to {self.who(note.pid)}"
            show.event(f"+{death.ms(note.at)}", "redelivered", text, "yellow")
        else:
            death.done = note
            show.event(f"+{note.at - death.at:.1f} s", "done", f"{death.message_id}, by {self.who(note.pid)}", "green")

    def who(self, pid: int) -> str:
        slot = self.progress.slots.get(pid)
        return f"worker {slot} (pid {pid})" if slot is not None else f"pid {pid}"

    def words(self) -> str:
        """What happened, for people."""
        death = self.death
        if death is None:
            return "No worker was killed: none was ever in the middle of a task long enough."
        given = (
            f"RabbitMQ gave {death.message_id} to {self.who(death.again.pid)}" if death.again else "nobody got it again"
        )
        if death.done:
            given += ", which finished it"
        return (
            f"Worker {death.slot} (pid {death.pid}) was killed with SIGKILL while it had {death.message_id} in flight. "
            f"The supervisor saw it after {death.ms(death.seen)}, "
            f"a new worker was consuming after {death.ms(death.ready)}; {given}."
        )


def main() -> int:
    show = view()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            try:
                return perform(stack, show)
            finally:
                quieten()
    except KeyboardInterrupt:
        show.line("\ninterrupted; everything that was started has been stopped")
        return 130
    except NodeError as error:
        show.line(f"\n{error}")
        return 1


def perform(stack: contextlib.ExitStack, show: Lines) -> int:
    """The demo. What it starts, `stack` ends."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workq-demo-", ignore_cleanup_errors=True)))
    node = LocalNode(place / "node")
    stack.callback(node.kill)
    notes = stack.enter_context(contextlib.closing(Notes(place / "notes")))
    stack.callback(show.settle)

    show.line(f"\n  workq-supervise: {len(TASKS)} tasks, {WORKERS} workers, one of them killed in mid-task\n", "bold")
    with show.step(f"booting a private RabbitMQ {node.version} on 127.0.0.1:{node.port}"):
        node.start()
    with show.step(f"publishing {len(TASKS)} tasks"), Publisher(node.url, QUEUE) as publisher:
        publisher.publish_many((str(weight), {"message_id": name}) for name, weight in TASKS.items())
    with show.step(f"workq-supervise --workers {WORKERS} demo_tasks:work"):
        env = {"DEMO_NOTES": str(notes.path)}
        supervised = Supervised(
            "demo_tasks:work", "--workers", str(WORKERS), url=node.url, queue=QUEUE, place=place, env=env
        )
        stack.callback(supervised.end)
        await_ready(supervised)

    demo = Demo(supervised, notes, show, now())
    demo.run()
    show.settle()
    supervised.stop()
    demo.read()
    outcome = account(
        published=list(TASKS),
        began=demo.ids(ended=False),
        done=demo.ids(ended=True),
        dead=waiting(node.url, f"{QUEUE}.dead"),
        queued=waiting(node.url, QUEUE),
        redelivered=demo.totals.get("redelivered", 0),
    )
    show.line()
    width = min(76, shutil.get_terminal_size().columns - 2)
    words = textwrap.fill(demo.words(), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    show.line(words)
    show.line()
    for problem in outcome.problems:
        show.line(f"  {problem}", "red")
    show.line(str(outcome), "red" if outcome.problems else "green")
    return 1 if outcome.problems else 0


def await_ready(supervised: Supervised) -> None:
    until = now() + 30.0
    while not any(line["event"] == "supervisor.ready" for line in supervised.lines()):
        if not supervised.alive or now() > until:
            raise NodeError(f"the supervisor did not become ready. The end of its log:\n{supervised.tail()}")
        time.sleep(0.01)


def quieten() -> None:
    """While everything is being ended: a second Ctrl-C would leave half of it behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
