"""`workq dead` with many dead letters: grouped, chosen by what they say, paced, edited."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor import Publisher
from supervisor.commands.dead.queue import CROWD, DeadQueue
from supervisor.endpoint import Endpoint
from tests import amqp, workq
from tests.dead_letters import PATIENCE, bury, command, dead, declare, ids, rows
from tests.supervision import Runs, eventually, supervised
from tests.terminal import terminal

CHANGE = "path.write_text('other')"
TRACE = 'Traceback (most recent call last):\n  File "/srv/tasks.py", line {}, in work\n    ...\n{}: no\n'


def bury_mixed(url: str, queue: str, each: int) -> None:
    """So many of each of three groups, mixed: ids v0 ..., k0 ..., s0 ..."""
    for prefix, headers, body in (
        ("v", {"x-workq-error": "ValueError: no", "x-workq-traceback": TRACE.format(12, "ValueError")}, "order 1"),
        ("k", {"x-workq-error": "KeyError: 'x'", "x-workq-traceback": TRACE.format(30, "KeyError")}, "order 2"),
        ("s", {"x-workq-reason": "crash", "x-workq-error": "", "x-workq-cause": "SIGSEGV"}, "order 3"),
    ):
        bury(url, queue, [f"{prefix}{n}" for n in range(each)], body, headers={**headers, "tenant": prefix})


def left(url: str, queue: str) -> list[str]:
    return sorted(row["id"] for row in rows(url, queue))


# ----------------------------------------------------------------------------------------------------- grouped


def test_a_group_is_counted_and_requeued_by_its_name(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "classic")
    bury_mixed(broker_url, queue, 3)
    bury(broker_url, queue, ["v-late"], headers={
        "x-workq-traceback": TRACE.format(12, "ValueError"), "x-workq-first-seen": "2025-06-02T03:04:05Z"})  # fmt: skip
    found = rows(broker_url, queue, "--group")
    name = "ValueError at /srv/tasks.py:12 in work"
    first, last = "2025-01-02T03:04:05.678000+00:00", "2025-06-02T03:04:05+00:00"
    assert found[0] == {"group": name, "count": 4, "first": first, "last": last, "example": "v-late"}
    assert {row["group"]: row["count"] for row in found[1:]} == {
        "KeyError at /srv/tasks.py:30 in work": 3,
        "crash: SIGSEGV": 3,
    }
    out, _ = dead("list", "--group", "--where", "header.tenant~k", url=broker_url, queue=queue)
    assert [line.split()[-1] for line in out.splitlines()[:3]] == ["group", "work", "k0"]
    assert "3 of 10 dead letters" in out
    out, _ = dead("requeue", "--where", f"group={name}", "--yes", url=broker_url, queue=queue)
    assert "requeued 4 of 10" in out
    assert sorted(ids(amqp.drain(broker_url, queue))) == ["v-late", "v0", "v1", "v2"]
    assert left(broker_url, queue) == ["k0", "k1", "k2", "s0", "s1", "s2"]


def test_ids_for_scripts_are_one_a_line_and_nothing_else(broker_url: str, queue: str) -> None:
    names = ["a b", "x" * 200, "new\nline", "d"]
    declare(broker_url, queue, "classic")
    bury(broker_url, queue, names)
    out, err = dead("list", "--ids", url=broker_url, queue=queue)
    assert (out.splitlines(), err) == (["a b", "x" * 200, "new\\nline", "d"], "")
    dead("requeue", *out.splitlines(), url=broker_url, queue=queue)
    assert ids(amqp.drain(broker_url, queue)) == names
    assert dead("list", "--ids", url=broker_url, queue=queue) == ("", "")
    dead("list", "--ids", "--json", url=broker_url, queue=queue, code=2)


def test_a_wide_list_cuts_nothing(broker_url: str, queue: str) -> None:
    bury(broker_url, queue, ["x" * 100, "short"], headers={"x-workq-error": "E" * 500, "x-workq-host": "h" * 60})
    out, _ = dead("list", "--wide", url=broker_url, queue=queue)
    _, first, second, _ = out.splitlines()
    assert all(text in first for text in ("x" * 100, "E" * 500, "h" * 60))
    assert second.startswith("short  ")


# ------------------------------------------------------------------------------------------------------ chosen


def test_conditions_choose_what_is_listed_dropped_and_requeued(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "classic")
    bury_mixed(broker_url, queue, 4)
    bury(broker_url, queue, ["old"], headers={"x-workq-first-seen": "2020-01-01T00:00:00Z"})
    bury(broker_url, queue, ["new"], headers={"x-workq-first-seen": "2099-01-01T00:00:00Z"})
    amqp.publish(broker_url, f"{queue}.dead", ["0"], ids=["bare"])
    listed = rows(broker_url, queue, "--where", "cause=SIGSEGV", "--where", "id~2", "--limit", "3")
    assert [row["id"] for row in listed] == ["s2"]
    assert [row["id"] for row in rows(broker_url, queue, "--where", "body~order", "--limit", "2")] == ["v0", "v1"]
    out, err = dead("list", "--ids", "--since", "1h", url=broker_url, queue=queue)
    assert (out, "leave out 1 dead letter without" in err) == ("new\n", True)
    out, err = dead("drop", "--until", "2024-01-01", "--yes", url=broker_url, queue=queue)
    assert "dropped 1 of 15" in out
    assert "leave out 1 dead letter without" in err
    dead("drop", "--where", "property.app_id=nobody", "--yes", url=broker_url, queue=queue)
    out, _ = dead("requeue", "--all", "--where", "error~KeyError", "--yes", url=broker_url, queue=queue)
    assert "requeued 4 of 14" in out
    assert sorted(ids(amqp.drain(broker_url, queue))) == ["k0", "k1", "k2", "k3"]
    # The others are in their old order.
    assert [row["id"] for row in rows(broker_url, queue)] == [f"{p}{n}" for p in "vs" for n in range(4)] + [
        "new",
        "bare",
    ]


def test_without_a_terminal_to_ask_on_nothing_is_done(broker_url: str, queue: str) -> None:
    bury_mixed(broker_url, queue, 1)
    for verb in ("requeue", "drop"):
        _, err = dead(verb, "--where", "id~v", url=broker_url, queue=queue, code=2)
        assert "this means 1 of 3 dead letters in" in err
        assert "--yes" in err
    out, _ = dead("drop", "--where", "id~nobody", url=broker_url, queue=queue)
    assert "none of 3 dead letters" in out
    assert left(broker_url, queue) == ["k0", "s0", "v0"]


def test_what_is_chosen_is_shown_and_what_comes_after_the_question_is_not_meant(broker_url: str, queue: str) -> None:
    bury_mixed(broker_url, queue, 12)
    options = ("--where", "error~ValueError", "--url", broker_url, "--queue", queue)
    question = r"Delete 12 of 36 dead letters in .*\n?.* for good\? \[y/N\]"
    with terminal("dead", "drop", *options) as shown:
        screen = shown.see(question)
        assert [line.split()[0] for line in screen.splitlines() if "ValueError" in line] == [f"v{n}" for n in range(10)]
        assert "... and 2 more" in screen
        shown.press("n\n")
        shown.see("Aborted")
    with terminal("dead", "drop", *options) as shown:
        shown.see(question)
        bury(broker_url, queue, ["late"])
        shown.press("y\n")
        shown.see("dropped 12 of 37")
        assert shown.process.wait(PATIENCE) == 0
    assert left(broker_url, queue) == sorted(["late", *(f"{prefix}{n}" for prefix in "ks" for n in range(12))])


# ------------------------------------------------------------------------------------------------------- paced


def test_a_paced_requeue_waits_and_can_be_interrupted_while_it_waits(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "quorum")
    names = [f"m{n}" for n in range(300)]
    bury(broker_url, queue, names)
    process = subprocess.Popen(**command("requeue", "--all", "--rate", "1/m", "--yes", url=broker_url, queue=queue))
    try:
        eventually(lambda: amqp.depth(broker_url, queue) == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, b"requeued 1 of 300" in out) == (130, True), err
    assert ids(amqp.drain(broker_url, queue)) == ["m0"]
    assert left(broker_url, queue) == sorted(names[1:])
    out, _ = dead("requeue", "--where", "id~9", "--rate", "1000/s", "--yes", url=broker_url, queue=queue)
    expected = [name for name in names if "9" in name]
    assert f"requeued {len(expected)} of 299" in out
    assert ids(amqp.drain(broker_url, queue)) == expected


# ------------------------------------------------------------------------------------------------------ edited


@pytest.fixture
def editor(tmp_path: Path) -> Any:
    """Makes an editor of a piece of Python that has the file as `path`; the environment for it."""

    def make(code: str) -> dict[str, str]:
        script = tmp_path / "editor"
        script.write_text(
            f"#!{sys.executable}\nimport pathlib, subprocess, sys\npath = pathlib.Path(sys.argv[-1])\n{code}\n"
        )
        script.chmod(0o700)
        return {"VISUAL": str(script)}

    return make


def edit(name: str, env: dict[str, str], *options: str, url: str, queue: str, code: int = 0) -> tuple[str, str]:
    return workq.run("dead", "requeue", name, "--edit", *options, url=url, queue=queue, code=code, env=env)


def test_an_edited_body_is_requeued_and_the_old_one_kept(broker_url: str, queue: str, editor: Any) -> None:
    declare(broker_url, queue, "classic")
    bury(broker_url, queue, ["a", "m", "z"], "odd gr\u00fcn", headers={"tenant": "blue"}, correlation_id="c")
    out, _ = edit(
        "m",
        editor(
            "path.write_text(path.read_text().replace('odd', 'even') + '\\n'); assert path.stat().st_mode & 0o77 == 0"
        ),
        url=broker_url,
        queue=queue,
    )
    assert f"requeued 1 from {queue}.dead" in out
    [(_, properties, body)] = amqp.drain(broker_url, queue)
    assert body == "even gr\u00fcn".encode()  # the editor's final newline is not part of it
    headers = {name: value for name, value in (properties.headers or {}).items() if name != "x-delivery-count"}
    assert headers == {"tenant": "blue", "x-workq-edited-from": "odd gr\u00fcn"}
    assert (properties.message_id, properties.correlation_id, properties.delivery_mode) == ("m", "c", 2)
    assert left(broker_url, queue) == ["a", "z"]


def test_an_edit_that_is_none_changes_nothing(broker_url: str, queue: str, editor: Any) -> None:
    bury(broker_url, queue, ["m", "twin", "twin"], "body")
    for name, code, words in (
        ("m", "sys.exit(3)", "the editor failed"),
        ("twin", CHANGE, "2 dead letters have the id twin"),
        ("nobody", CHANGE, "there is no dead letter nobody"),
    ):
        _, err = edit(name, editor(code), url=broker_url, queue=queue, code=1)
        assert words in err
        assert "Nothing was requeued" in err
    assert amqp.depth(broker_url, queue) == 0
    assert ids(amqp.drain(broker_url, f"{queue}.dead")) == ["m", "twin", "twin"]


def test_an_edit_of_what_is_gone_meanwhile_is_kept_in_a_file(
    broker_url: str, queue: str, editor: Any, tmp_path: Path
) -> None:
    bury(broker_url, queue, ["m"], "body")
    drop = [workq.PROGRAM, "dead", "drop", "m", "--url", broker_url, "--queue", queue]
    env = editor(f"path.write_text('other'); subprocess.run({drop}, check=True)")
    _, err = edit("m", env | {"TMPDIR": str(tmp_path)}, url=broker_url, queue=queue, code=1)
    assert "no dead letter m" in err
    [kept] = tmp_path.glob("workq-edited-*")
    assert f"the edited body is in {kept}" in err
    assert kept.read_text() == "other"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert amqp.depth(broker_url, queue) == amqp.depth(broker_url, f"{queue}.dead") == 0


def test_an_edited_message_that_dies_again_still_has_its_old_body(
    broker_url: str, queue: str, runs: Runs, editor: Any
) -> None:
    bury(broker_url, queue, ["m"], "first nonsense")
    amqp.publish(broker_url, queue, [])
    edit("m", editor(CHANGE), url=broker_url, queue=queue)
    options = ("--workers", "1", "--retries", "1", "--retry-delay", "0.1")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        pool.hear("task.dead_lettered", message_id="m")
        assert pool.stop() == 0
    out, _ = dead("show", "m", url=broker_url, queue=queue)
    assert "x-workq-was-x-workq-edited-from  first nonsense" in out
    edit("m", editor("path.write_text('0')"), url=broker_url, queue=queue)
    [(_, properties, body)] = amqp.drain(broker_url, queue)
    assert (body, properties.headers) == (b"0", {"x-workq-edited-from": "other"})


# ------------------------------------------------------------------------------------------------- interrupted


def test_sigkill_in_mid_requeue_of_some_loses_nothing(broker_url: str, buried: str) -> None:
    bury_mixed(broker_url, buried, 800)
    names = {f"{prefix}{n}" for prefix in "vks" for n in range(800)}
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    gone: set[str] = set()
    interrupted = 0
    for n in range(3):
        slowly = ("--rate", "400/s")  # so slowly that it is met
        options = ("--where", "error~KeyError", "--yes", *(slowly if n == 0 else dice.choice(((), slowly))))
        process = subprocess.Popen(**command("requeue", *options, url=broker_url, queue=buried))
        goal = dice.randrange(1, 300)
        try:
            eventually(lambda: amqp.depth(broker_url, buried) >= goal or process.poll() is not None)  # noqa: B023
        finally:
            process.kill()
            interrupted += process.wait() == -signal.SIGKILL
            process.communicate()
        gone |= set(ids(amqp.drain(broker_url, buried)))
        assert gone | set(left(broker_url, buried)) == names, f"seed {seed}"
    assert interrupted, f"seed {seed}"
    assert all(name.startswith("k") for name in gone)


# -------------------------------------------------------------------------------------------------------- many


def test_what_was_looked_at_is_in_its_old_order_however_many_windows_it_took(broker_url: str, buried: str) -> None:
    names = [f"m{n}" for n in range(400)]
    bury(broker_url, buried, names)
    with DeadQueue([Endpoint.parse(broker_url)], buried) as letters:
        for window in letters.windows(size=4):
            letters.keep(window)
        letters.hand_back()
    assert ids(amqp.drain(broker_url, f"{buried}.dead")) == names


def test_what_is_left_of_many_is_in_its_old_order(broker_url: str, buried: str) -> None:
    """More than are held on one channel."""
    names = [f"m{n}" for n in range(CROWD + 300)]
    bury(broker_url, buried, names)
    dead("drop", "--where", "id~3", "--yes", url=broker_url, queue=buried)
    assert ids(amqp.drain(broker_url, f"{buried}.dead")) == [name for name in names if "3" not in name]


def peak(*arguments: str, url: str, queue: str) -> tuple[bytes, int]:
    """Run it to its end; its output, and the most memory that it had, bytes."""
    with subprocess.Popen(**(command(*arguments, url=url, queue=queue) | {"stderr": None})) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return out, usage.ru_maxrss * 1024


def test_20000_dead_letters_are_looked_at_and_chosen_without_keeping_their_bodies(broker_url: str, queue: str) -> None:
    declare(broker_url, queue, "classic")
    count, body = 20_000, b"x" * 6 * 1024
    with Publisher(broker_url, f"{queue}.dead") as publisher:
        publisher.publish_many((body, {"message_id": f"m{n}"}) for n in range(count))
    out, grouped = peak("list", "--group", "--json", url=broker_url, queue=queue)
    assert json.loads(out)["count"] == count
    _, requeued = peak("requeue", "--where", "body~xx", "--where", "id~m1", "--yes", url=broker_url, queue=queue)
    expected = sum(str(n).startswith("1") for n in range(count))
    assert (amqp.depth(broker_url, queue), amqp.depth(broker_url, f"{queue}.dead")) == (expected, count - expected)
    # What a process has used counts as its children's, too, until they use more (getrusage(2), exec).
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert max(grouped, requeued) < ours + count * len(body) // 2, (grouped, requeued, ours)
