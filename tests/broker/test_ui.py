"""`workq ui` in a real browser, of real pools: what it shows, and what is done from it. Who is let in:
tests/processes/test_ui.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import amqp
from tests.browser import FAINT, Tab
from tests.supervision import supervised
from tests.ui import Ui, ui

pytestmark = [pytest.mark.any_broker, pytest.mark.timeout(300)]  # the first of them may have to install the browser


def enter(tab: Tab, page: Ui, supervisors: int) -> Tab:
    """Open the printed URL, and wait until the first supervisor is shown."""
    tab.go(page.url)
    tab.sees(lambda tab: len(tab.texts("#fleet button")) == supervisors)
    tab.sees(lambda tab: "running" in tab.text("#word"))
    return tab


def press(tab: Tab, selector: str) -> None:
    """As somebody with a keyboard does: it must be there, enabled, and can be focused."""
    tab.sees(
        lambda tab: tab.run(
            f"(b => b && !b.disabled && b.checkVisibility())(document.querySelector({json.dumps(selector)}))"
        )
    )
    tab.run(f"document.querySelector({json.dumps(selector)}).focus()")
    assert tab.run(f"document.activeElement === document.querySelector({json.dumps(selector)})"), selector
    tab.key("Enter")


def fill(tab: Tab, selector: str, text: str) -> None:
    tab.run(f"(b => {{ b.focus(); b.select(); }})(document.querySelector({json.dumps(selector)}))")
    tab.type(text)


def agree(tab: Tab, title: str) -> None:
    """Say yes to the question with this title. What destroys is not what has the focus."""
    tab.sees(lambda tab: title in tab.text("#question-title"))
    if tab.run("$('question-yes').classList.contains('danger')"):
        assert tab.run("document.activeElement.id") == "question-no"
    press(tab, "#question-yes")
    tab.sees(lambda tab: not tab.run("$('question').open"))


def test_two_supervisors_on_one_page_are_steered_each_by_itself_and_the_log_says_by_whom(
    tab: Tab, broker_url: str, queue: str, tmp_path: Path
) -> None:
    one, other = str(tmp_path / "one.sock"), str(tmp_path / "other.sock")
    named = ("--control", one, "--control", other)
    with (
        supervised("handlers:act", "--workers", "1..4", "--control", one, url=broker_url, queue=queue) as first,
        supervised("handlers:act", "--workers", "1", "--control", other, url=broker_url, queue=f"{queue}-2") as second,
        ui(*named, "--target", first.ready().health.removeprefix("http://"), WORKQ_URL=broker_url) as page,
    ):
        second.ready()
        enter(tab, page, 3)
        assert [text.split("\n")[0] for text in tab.texts("#fleet button")] == [queue, f"{queue}-2", queue]
        assert tab.text("#wanted") == "1 worker"
        assert tab.run("$('fewer').disabled"), "not below MIN"
        press(tab, "#more")
        tab.sees(lambda tab: tab.text("#wanted") == "2 workers")
        assert "1 -> 2 workers" in tab.text("#outcome")
        asked = first.hear("control.requested", verb="scale")
        assert f"uid {os.getuid()}" in asked["user"] and asked["client"].endswith(", workq ui")

        press(tab, "#pause")
        tab.key("ArrowDown")  # for 10 minutes
        press(tab, "#question-yes")
        tab.sees(lambda tab: "paused" in tab.text("#word"))
        assert "for 600 s" in first.hear("pool.paused")["because"] or "10 min" in first.hear("pool.paused")["because"]
        tab.sees(lambda tab: "paused" in tab.texts("#fleet .about")[0])
        press(tab, "#resume")
        tab.sees(lambda tab: "paused" not in tab.text("#word"))

        press(tab, "#reload")
        agree(tab, "Reload")
        first.hear("reload.finished")
        tab.sees(lambda tab: tab.text("#generation") == "2")

        # The other one, by the keyboard; the first is as it was.
        press(tab, "#fleet li:nth-child(2) button")
        tab.sees(lambda tab: tab.text("h1") == f"{queue}-2")
        tab.sees(lambda tab: tab.text("#wanted") == "1 worker")
        assert tab.run("document.querySelector('[aria-current]').innerText").startswith(f"{queue}-2")
        press(tab, "#drain")
        agree(tab, "Drain")
        assert second.wait() == 0
        tab.sees(lambda tab: tab.text("#word") == "no answer")
        assert "no control socket" in tab.text("#first")
        assert tab.run("$('reload').disabled")
        tab.sees(lambda tab: "no control socket" in tab.texts("#fleet .about")[1])
        assert "running" in tab.texts("#fleet .about")[0]

        # It comes back, at the same place.
        with supervised("handlers:act", "--workers", "2", "--control", other, url=broker_url, queue=f"{queue}-2"):
            tab.sees(lambda tab: tab.text("#wanted") == "2 workers")
            tab.sees(lambda tab: not tab.run("$('reload').disabled"))

        # By its health port it is read-only.
        press(tab, "#fleet li:nth-child(3) button")
        tab.sees(lambda tab: tab.text("h1") == queue and tab.text("#generation") == "2")
        assert not tab.run("$('hands').checkVisibility() || $('search').checkVisibility()")
        assert "read-only" in tab.texts("#fleet .about")[2]
        page.cookie = cookie_of(tab)
        refused = page.ask("POST", "supervisors/2/reload")
        assert refused.status == 403 and "read-only" in refused.because
        assert page.ask("POST", "supervisors/2/letters/list").status == 403
        assert not first.named("control.requested", verb="drain")
        assert all(url == "data:," or url.startswith(f"{page.origin}{page.path}") for url in tab.requests)
        assert tab.complaints == []


def cookie_of(tab: Tab) -> str:
    [cookie] = tab.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["name"] == "workq-ui"
    return f"{cookie['name']}={cookie['value']}"


def test_a_message_is_killed_dead_lettered_edited_requeued_and_done(
    tab: Tab, broker_url: str, queue: str, tmp_path: Path
) -> None:
    control = str(tmp_path / "workq.sock")
    options = ("--workers", "2", "--control", control)
    with (
        supervised("handlers:act", *options, url=broker_url, queue=queue) as pool,
        ui("--control", control, WORKQ_URL=broker_url) as page,
    ):
        pool.ready()
        enter(tab, page, 1)
        amqp.publish(broker_url, queue, ['{"sleep": 600}'], ["album-3"])
        busy = '.tile[data-state="busy"]'
        tab.sees(lambda tab: tab.text(f"{busy} .message") == "album-3")
        press(tab, f"{busy} .kill")
        tab.sees(lambda tab: "It runs album-3." in tab.text("#question-text"))
        tab.run("document.querySelector('#question input:checked').focus()")
        tab.key("ArrowDown")  # dead-letter it
        press(tab, "#question-yes")
        asked = pool.hear("control.requested", verb="kill")
        assert f"uid {os.getuid()}" in asked["user"]
        tab.sees(lambda tab: "operator" in tab.text(".letter .reason"))
        assert tab.text(".letter .id") == "album-3"

        tab.run("document.querySelector('.letter details').open = true")
        press(tab, ".letter .act button")
        tab.sees(lambda tab: tab.run("$('letter').open"))
        assert "operator" in tab.text("#letter-about")
        assert tab.run("$('letter-body').value") == '{"sleep": 600}'
        assert tab.text("#letter-requeue") == "Requeue"
        fill(tab, "#letter-body", '{"sleep": 0}')
        assert tab.text("#letter-requeue") == "Requeue with this body"
        press(tab, "#letter-requeue")
        pool.hear("task.succeeded", message_id="album-3")
        tab.sees(lambda tab: "requeued 1" in tab.text(".letter .outcome"))
        tab.sees(lambda tab: tab.text(".letter .gone") == "requeued from here")
        noted = pool.hear("control.requested", verb="note")
        assert "requeued 1" in noted["because"] and noted["client"].endswith(", workq ui")
        assert tab.complaints == []


def test_dead_letters_are_found_counted_requeued_and_dropped_and_an_error_is_told_where_it_occurs(
    tab: Tab, broker_url: str, queue: str, tmp_path: Path
) -> None:
    control = str(tmp_path / "workq.sock")
    options = ("--workers", "1", "--retries", "0", "--control", control)
    with (
        supervised("handlers:act", *options, url=broker_url, queue=queue) as pool,
        ui("--control", control, WORKQ_URL=broker_url) as page,
    ):
        bodies = ['{"reject": "no such customer"}'] * 3 + ['{"raise": "ValueError"}', '{"reject": "<img src=x>"}']
        amqp.publish(broker_url, queue, bodies, ["a", "b", "c", "d", "<b>e</b>"])
        pool.hear("task.dead_lettered", count=5)
        enter(tab, page, 1)
        press(tab, "#look")
        tab.sees(lambda tab: tab.texts("#found .id") == ["a", "b", "c", "d", "<b>e</b>"])
        assert f"5 dead letters in {queue}.dead on amqp://" in tab.text("#search-count")
        assert "<img src=x>" in tab.text("#found li:nth-child(5) .error")
        assert tab.run("$('requeue-these').disabled && $('drop-these').disabled")
        for scheme in ("light", "dark"):
            tab.prefer(color_scheme=scheme, reduced_motion="reduce")
            assert tab.run(FAINT) == [], scheme

        press(tab, "#group")
        tab.sees(lambda tab: tab.texts("#found .number") == ["4", "1"])
        assert "ValueError" in tab.text("#found li:nth-child(2)")
        press(tab, "#found li:nth-child(2) button")
        tab.sees(lambda tab: tab.texts("#found .id") == ["d"])
        assert "1 dead letter of 5 in" in tab.text("#search-count")

        # Requeued as it is, it fails again.
        press(tab, "#found button")
        tab.sees(lambda tab: "ValueError" in tab.text("#letter-traceback pre"))
        for scheme in ("light", "dark"):
            tab.prefer(color_scheme=scheme, reduced_motion="reduce")
            assert tab.run(FAINT) == [], scheme
        press(tab, "#letter-requeue")
        pool.hear("task.dead_lettered", count=2, message_id="d")
        tab.sees(lambda tab: "requeued 1" in tab.text("#search-outcome"))

        tab.run("$('field').value = 'error'; $('field').dispatchEvent(new Event('change'))")
        fill(tab, "#needle", "no such customer")
        tab.key("Enter")
        tab.sees(lambda tab: tab.texts("#found .id") == ["a", "b", "c"])
        for number in (1, 2):
            tab.run(f"document.querySelector('#found li:nth-child({number}) input').click()")
        assert tab.text("#ticked") == "2 selected"
        press(tab, "#drop-these")
        tab.sees(lambda tab: f"deleted from {queue}.dead" in tab.text("#question-text"))
        tab.key("Escape")
        tab.sees(lambda tab: not tab.run("$('question').open"))
        press(tab, "#drop-these")
        agree(tab, "Drop 2 dead letters for good?")
        tab.sees(lambda tab: tab.texts("#found .id") == ["c"])
        assert "dropped 2" in tab.text("#search-outcome")
        assert "dropped 2" in pool.hear("control.requested", verb="note", count=2)["because"]

        # Somebody else takes it meanwhile.
        press(tab, "#found button")
        tab.sees(lambda tab: tab.run("$('letter').open"))
        workq = Path(sys.executable).with_name("workq")
        where = ("--url", broker_url, "--queue", queue)
        assert subprocess.run([workq, "dead", "drop", *where, "c"], capture_output=True, timeout=60).returncode == 0
        press(tab, "#letter-requeue")
        tab.sees(lambda tab: "no dead letter c" in tab.text("#letter-outcome"))
        assert tab.run("$('letter').open")
        press(tab, "#letter-drop")
        tab.sees(lambda tab: "for good" in tab.text("#question-title"))
        press(tab, "#question-yes")
        tab.sees(lambda tab: "no dead letter c" in tab.text("#question-outcome"))
        tab.key("Escape")
        tab.key("Escape")
        tab.sees(lambda tab: not tab.run("$('letter').open"))
        assert all("status of 409" in complaint for complaint in tab.complaints)  # the two refusals


def test_dead_letters_of_another_broker_are_left_alone(tab: Tab, broker_url: str, queue: str, tmp_path: Path) -> None:
    control = str(tmp_path / "workq.sock")
    with (
        supervised("handlers:act", "--workers", "1", "--control", control, url=broker_url, queue=queue) as pool,
        ui("--control", control, WORKQ_URL="amqp://guest:guest@127.0.0.1:1/%2F") as page,
    ):
        pool.ready()
        enter(tab, page, 1)
        tab.sees(lambda tab: "has the URL of" in tab.text("#search-note"))
        assert "guest:guest" not in tab.text()
        assert tab.run("$('look').disabled && $('group').disabled")
        page.cookie = cookie_of(tab)
        refused = page.ask("POST", "supervisors/0/letters/drop", {"ids": ["x"]})
        assert refused.status == 403 and "has the URL of" in refused.because


def test_sockets_of_this_user_are_found_and_one_that_hangs_delays_nobody(
    tab: Tab, broker_url: str, queue: str, tmp_path: Path
) -> None:
    place = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with (
        supervised("handlers:act", "--workers", "1", url=broker_url, queue=queue, env=place) as first,
        ui(WORKQ_URL=broker_url, **place) as page,
    ):
        first.ready()
        enter(tab, page, 1)
        with supervised("handlers:act", "--workers", "1", url=broker_url, queue=f"{queue}-2", env=place) as second:
            second.ready()
            tab.sees(lambda tab: len(tab.texts("#fleet button")) == 2)
            tab.sees(lambda tab: "running" in tab.texts("#fleet .about")[1])
            second.send(signal.SIGSTOP)
            tab.sees(lambda tab: "has not answered for" in tab.texts("#fleet .about")[1])
            assert "running" in tab.texts("#fleet .about")[0] and "running" in tab.text("#word")
            press(tab, "#more")
            first.hear("control.requested", verb="scale")
            second.send(signal.SIGCONT)
            tab.sees(lambda tab: "running" in tab.texts("#fleet .about")[1])
