"""The live page in a real browser, of a real pool: what it shows, and what nobody can make it do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests import amqp, workq
from tests.browser import FAINT, Chromium, Tab
from tests.supervision import Runs, Supervision, eventually, supervised

pytestmark = [pytest.mark.any_broker, pytest.mark.timeout(300)]  # the first of them may have to install the browser

CROSS = "<img src=x onerror=window.pwned=1>"
SCRIPT = "</pre><script>window.pwned=1</script>"
CHANGES = """(async () => {
    let changes = 0;
    const observer = new MutationObserver((list) => { changes += list.length; });
    observer.observe($("workers"), {subtree: true, childList: true, attributes: true, characterData: true});
    showWorkers();
    await null;
    observer.disconnect();
    return changes;
})()"""
"""What an answer that says the same as the last one changes in the document: nothing, so that it costs nothing."""


def watch(tab: Tab, pool: Supervision, workers: int) -> Tab:
    """Open the page and wait until it shows that many workers, idle."""
    pool.ready()
    tab.open(pool.health + "/")
    tab.sees(lambda tab: tab.texts(".tile .state") == ["idle"] * workers)
    return tab


def assert_no_complaints(tab: Tab, pool: Supervision) -> None:
    """Nothing on the console, nothing refused by the policy, nobody else asked."""
    assert tab.complaints == []
    assert set(tab.requests) == {f"{pool.health}/", f"{pool.health}/status"}


# ------------------------------------------------------------------------------------------------------ what it shows


def test_a_worker_killed_in_the_middle_of_a_task_is_shown_with_cause_and_message(
    tab: Tab, broker_url: str, queue: str, runs: Runs
) -> None:
    with supervised("handlers:work", "--workers", "3", url=broker_url, queue=queue, env=runs.env) as pool:
        watch(tab, pool, 3)
        assert tab.text("#word") == "running, ready"
        assert "3 of 3 workers consume" in tab.text("#second")
        assert queue in tab.text("h1")

        amqp.publish(broker_url, queue, ["60"], ids=["long-one"])
        busy = '.tile[data-state="busy"] '
        tab.sees(lambda tab: tab.text(busy + ".message") == "long-one")
        assert tab.text(busy + ".state") == "busy"
        clock = tab.text(busy + ".clock")
        tab.sees(lambda tab: tab.text(busy + ".clock") != clock)
        assert re.fullmatch(r"\d+(\.\d)? s", clock)
        tab.sees(lambda tab: re.fullmatch(r"\d+ MiB", tab.text(busy + ".memory")))

        victim = next(worker for worker in pool.workers() if worker["message_id"] == "long-one")
        assert tab.text(busy + ".pid") == f"pid {victim['pid']}"
        os.kill(victim["pid"], signal.SIGKILL)
        hurt = f"#workers > :nth-child({victim['slot'] + 1})[data-hurt] "
        tab.sees(lambda tab: tab.text(hurt + ".fate") == "SIGKILL · long-one")
        assert re.fullmatch(r"\d+ s ago", tab.text(hurt + ".ago"))
        assert "1 restart" in tab.text(hurt + ".sums")
        decision = next(text for text in tab.texts(".decision") if "worker.exited" in text)
        assert f"worker {victim['slot']} · SIGKILL · long-one" in decision
        assert "SIGKILL with a message in flight" in decision
        assert tab.text("#totals").endswith("worker exits\n1")
        tab.sees(lambda tab: tab.text(busy + ".message") == "long-one")
        assert_no_complaints(tab, pool)


def test_charts_and_totals_follow_the_work(tab: Tab, broker_url: str, queue: str, runs: Runs) -> None:
    options = ("--workers", "1", "--retries", "0")
    with supervised("handlers:work", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        watch(tab, pool, 1)
        amqp.publish(broker_url, queue, ["nonsense", *["0.01"] * 10, *["0.3"] * 100])
        tab.sees(lambda tab: float(tab.text("#rate .number").replace("–", "0")) > 0)
        tab.sees(lambda tab: int(tab.text("#depth .number").replace("–", "0")) > 10)
        assert "1 consumer" in tab.text("#depth")
        points = "document.querySelector('#depth .curve').getAttribute('d').split('L').length"
        tab.sees(lambda tab: tab.run(points) > 2)
        assert re.fullmatch(
            r"Messages waiting in the queue, last 1 minutes: now \d+, at most \d+",
            tab.run("document.querySelector('#depth svg').getAttribute('aria-label')"),
        )
        tab.sees(lambda tab: {"failed\n1", "dead-lettered\n1"} <= set(tab.texts("#totals div")))
        assert_no_complaints(tab, pool)


def test_a_canary_is_shown_while_it_runs(tab: Tab, broker_url: str, queue: str, tmp_path: Path) -> None:
    control = str(tmp_path / "control.sock")
    with supervised("handlers:work", "--workers", "2", "--control", control, url=broker_url, queue=queue) as pool:
        watch(tab, pool, 2)
        hidden = "document.querySelector('#canary').parentNode.hidden"
        assert tab.run(hidden)
        workq.run("reload", "--control", control, "--canary", "50%", "--for", "1h", "--no-wait")
        amqp.publish(broker_url, queue, ["0.01"] * 60)
        shown = r"generation 2 in 1 of 2 workers, [\w ]+ left: \d+ tries, 0 failed, 0 crashes.*; the others: \d+ tries"
        tab.sees(lambda tab: re.search(shown, tab.text("#canary")))
        workq.run("reload", "--control", control)
        tab.sees(lambda tab: tab.run(hidden))
        assert_no_complaints(tab, pool)
        assert pool.stop() == 0


def test_dead_letters_are_shown_with_evidence_and_looking_at_them_takes_none(
    tab: Tab, broker_url: str, queue: str, runs: Runs
) -> None:
    options = ("--workers", "2", "--max-crashes", "1", "--retries", "0")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        watch(tab, pool, 2)
        tab.sees(lambda tab: tab.text("#dead-count") == f"0 in {queue}.dead")
        assert tab.text("#undead") == "No dead letters."
        orders = {
            "killer": {"print": "the last words", "kill": "SIGSEGV"},
            "wrong": {"raise": "ValueError"},
            "unwanted": {"reject": "no such customer"},
        }
        amqp.publish(broker_url, queue, map(json.dumps, orders.values()), ids=orders)
        tab.sees(lambda tab: set(tab.texts(".letter .id")) == set(orders))
        tab.sees(lambda tab: tab.text("#dead-count") == f"3 in {queue}.dead")
        tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        letters = {text.splitlines()[0]: text for text in tab.texts(".letter")}
        assert "crash · it has killed 1 worker by SIGSEGV" in letters["killer"]
        assert "the last words" in letters["killer"] and "Fatal Python error: Segmentation fault" in letters["killer"]
        assert re.search(r"death 1: \S+Z worker \d \(pid \d+\): SIGSEGV", letters["killer"])
        assert f"workq dead show --queue {queue} killer" in letters["killer"]
        assert f"workq dead requeue --queue {queue} killer" in letters["killer"]
        assert "exception · ValueError: as told" in letters["wrong"] and "Traceback" in letters["wrong"]
        assert "rejected · no such customer" in letters["unwanted"]

        # What the reader has opened stays open.
        asked = len(tab.requests)
        tab.sees(lambda tab: len(tab.requests) > asked + 1)
        assert tab.run("[...document.querySelectorAll('details')].every((each) => each.open)")

        letters = pool.status()["dead_letters"]
        assert letters["queue"] == f"{queue}.dead" and letters["ready"] == 3
        assert pool.metric("workq_dead_letters_ready") == 3
        assert_no_complaints(tab, pool)
        taken = amqp.drain(broker_url, f"{queue}.dead")
        assert [got.redelivered for got, _, _ in taken] == [False] * 3
        tab.sees(lambda tab: tab.text("#dead-count") == f"0 in {queue}.dead")


def test_a_broker_that_cannot_be_reached_is_told_in_words(tab: Tab, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url="amqp://guest:guest@127.0.0.1:1/", queue=queue) as pool:
        pool.hear("worker.exited")
        tab.open(pool.health + "/")
        tab.sees(lambda tab: tab.text("#word") == "starting, not ready")
        assert "refused" in tab.text("#second")
        assert "refused" in tab.text("#trouble")
        assert tab.text("#broker") == "none reached yet"
        assert tab.text(".tile .state") in ("backoff", "starting", "connecting")
        assert_no_complaints(tab, pool)


def test_a_supervisor_that_is_gone_is_told_and_its_successor_is_found(tab: Tab, broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "2", url=broker_url, queue=queue) as pool:
        watch(tab, pool, 2)
        health = pool.health
        assert pool.stop() == 0
    tab.sees(lambda tab: tab.text("#word") == "no answer")
    assert re.search(r"has not answered for \d+ s", tab.text("#first"))
    assert "may not be so any more" in tab.text("#second")
    tab.sees(lambda tab: tab.run("getComputedStyle(document.querySelector('main')).filter") == "grayscale(1)")
    assert tab.run("document.title").startswith("no answer")
    options = ("--workers", "1", "--health", health.removeprefix("http://"))
    with supervised("handlers:work", *options, url=broker_url, queue=queue) as pool:
        tab.sees(lambda tab: tab.text("#word") == "running, ready")
        tab.sees(lambda tab: tab.texts(".tile .state") == ["idle"])
        assert not tab.run("document.body.classList.contains('old')")
        assert tab.run("document.title") == f"1/1 running · {queue}"


def test_a_page_that_nobody_sees_asks_nothing(browser: Chromium, tab: Tab, broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        watch(tab, pool, 1)
        other = watch(Tab(browser), pool, 1)
        other.front()
        tab.sees(lambda tab: tab.run("document.hidden && !isAsking"))
        asked, seen = len(tab.requests), len(other.requests)
        eventually(lambda: len(other.requests) >= seen + 3)
        assert len(tab.requests) == asked
        tab.front()
        eventually(lambda: len(tab.requests) >= asked + 2)
        other.close()


# -------------------------------------------------------------------------------------------- what it cannot be made to


def test_markup_in_ids_errors_headers_and_evidence_stays_text(
    tab: Tab, broker_url: str, queue: str, runs: Runs
) -> None:
    options = ("--workers", "2", "--max-crashes", "1", "--retries", "0")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        watch(tab, pool, 2)
        orders = {
            CROSS: {"print": SCRIPT, "kill": "SIGKILL"},
            f"rejected {CROSS}": {"reject": f"{SCRIPT} {CROSS}"},
            f"long {CROSS}": {"sleep": 600},
            "two\nlines; rm -rf ~": {"reject": "\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}txt.exe"},
        }
        bodies = map(json.dumps, orders.values())
        amqp.publish(broker_url, queue, bodies, ids=orders, headers={CROSS: SCRIPT}, content_type=CROSS)
        tab.sees(lambda tab: len(tab.texts(".letter")) == 3)
        tab.sees(lambda tab: tab.text('.tile[data-state="busy"] .message') == f"long {CROSS}")
        tab.sees(lambda tab: f"SIGKILL · {CROSS}" in tab.texts(".tile .fate"))
        tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        letters = {text.splitlines()[0]: text for text in tab.texts(".letter")}
        assert SCRIPT in letters[CROSS]
        assert f"workq dead show --queue {queue} '{CROSS}'" in letters[CROSS]
        assert f"{SCRIPT} {CROSS}" in letters[f"rejected {CROSS}"]
        # What cannot be seen is made visible, and what does harm in a terminal is not offered for pasting.
        odd = letters["two\\u{a}lines; rm -rf ~"]
        assert "\\u{1b}[2J\\u{202e}txt.exe" in odd
        assert "not for pasting" in odd and "requeue" not in odd
        assert any(CROSS in text for text in tab.texts(".decision"))
        assert tab.run("document.querySelectorAll('img, body script:not(body > script), iframe, b b').length") == 0
        assert tab.run("window.pwned === undefined")
        assert_no_complaints(tab, pool)


def test_the_policy_lets_nothing_in_that_is_not_the_pages_own(tab: Tab, broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        watch(tab, pool, 1)
        assert_no_complaints(tab, pool)
        with urllib.request.urlopen(pool.health + "/") as answer:
            headers, page = answer.headers, answer.read()
        with urllib.request.urlopen(pool.health + "/status") as answer:
            assert "script-src 'none'; style-src 'none'" in answer.headers["content-security-policy"]
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        for element, directive in (("script", "script-src"), ("style", "style-src")):
            (content,) = re.findall(rb"<%b>(.*?)</%b>" % ((element.encode(),) * 2), page, re.S)
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            assert policy[directive] == f"'sha256-{digest}'"
        assert {policy[name] for name in ("default-src", "frame-ancestors", "base-uri", "form-action")} == {"'none'"}
        assert policy["connect-src"] == "'self'" and policy["img-src"] == "data:"
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert not re.search(rb"""(?:src|href)=["']?(?:https?:)?//""", page)

        with socket.create_server(("127.0.0.1", 0)) as elsewhere:
            elsewhere.setblocking(False)
            url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
            for attempt in (
                "document.body.innerHTML = '<b>'",
                "document.createElement('script').textContent = 'window.pwned = 1'",
                "eval('window.pwned = 1')",
                f"fetch('{url}')",
                f"new Promise((_, refused) => {{ Object.assign(new Image(), {{onerror: refused, src: '{url}'}}); }})",
            ):
                assert tab.run(f"(async () => await ({attempt}))().then(() => 'done', () => 'refused')") == "refused"
            with pytest.raises(BlockingIOError):
                elsewhere.accept()
        assert tab.run("window.pwned === undefined")
        assert len([complaint for complaint in tab.complaints if "Content Security Policy" in complaint]) >= 2


def test_without_javascript_it_says_where_to_look(tab: Tab, broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        pool.ready()
        tab.forbid_scripts()
        tab.open(pool.health + "/")
        assert "/status" in tab.text()
        assert "Tasks per second" not in tab.text()


# ------------------------------------------------------------------------------------------------------ how it looks


def test_it_is_readable_in_the_dark_and_in_the_light(tab: Tab, broker_url: str, queue: str, runs: Runs) -> None:
    options = ("--workers", "2", "--max-crashes", "1")
    with supervised("handlers:act", *options, url=broker_url, queue=queue, env=runs.env) as pool:
        watch(tab, pool, 2)
        orders = {"killer": {"kill": "SIGSEGV"}, "unwanted": {"reject": "no such customer"}, "long": {"sleep": 600}}
        amqp.publish(broker_url, queue, map(json.dumps, orders.values()), ids=orders)
        tab.sees(lambda tab: len(tab.texts(".letter")) == 2)
        tab.sees(lambda tab: tab.text('.tile[data-state="busy"] .message') == "long")
        tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        pictures, grounds = {}, {}
        for scheme in ("light", "dark"):
            tab.prefer(color_scheme=scheme, reduced_motion="reduce")
            assert tab.run(FAINT) == [], scheme
            assert tab.run("getComputedStyle(document.querySelector('.tile')).transitionDuration") == "0s"
            grounds[scheme] = tab.run("getComputedStyle(document.body).backgroundColor")
            pictures[scheme] = tab.screenshot()
        assert grounds["light"] != grounds["dark"]
        assert pictures["light"] != pictures["dark"]
        assert_no_complaints(tab, pool)


def test_many_workers_have_smaller_tiles_and_fit_on_a_telephone(tab: Tab, broker_url: str, queue: str) -> None:
    with supervised("handlers:work", "--workers", "1", url=broker_url, queue=queue) as pool:
        watch(tab, pool, 1)
        said, one = pool.status() | {"loop_seconds": 0}, pool.workers()[0]
        # The real answers would bring back the one worker.
        tab.run("heard = () => { window.isDeaf = true; return new Promise(() => {}); }")
        tab.sees(lambda tab: tab.run("window.isDeaf"))
        for workers, density in ((24, "roomy"), (96, "close"), (256, "tight")):
            tab.run(f"show({json.dumps(said | {'workers': crowd(one, workers)})})")
            assert tab.run("document.querySelector('#workers').dataset.density") == density
            assert len(tab.texts(".tile")) == workers
            busy = len(range(0, workers, 3))
            assert tab.text("#census") == f"{workers}: {workers - busy} idle, {busy} busy"
            for width in (320, 390, 1280):
                tab.resize(width, 800)
                assert tab.run("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width} px"
            assert tab.run(CHANGES) == 0


def crowd(worker: dict[str, Any], workers: int) -> list[dict[str, Any]]:
    """So many like this one; each third has a message with a long name in hand, each seventeenth was killed."""
    killed = {"cause": "SIGKILL", "message_id": "m" * 200, "at": "2024-02-29T12:00:00.000Z", "planned": False}
    return [
        worker
        | {"slot": slot, "state": "idle"}
        | ({"state": "busy", "message_id": f"{slot}-" + "long" * 60, "busy_seconds": 12.5} if slot % 3 == 0 else {})
        | ({"last_exit": killed, "restarts": 1} if slot % 17 == 0 else {})
        for slot in range(workers)
    ]
