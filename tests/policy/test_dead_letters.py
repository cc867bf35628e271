"""`workq dead`, without a broker: which dead letters are meant, what they died of, how they are shown."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from typing import Any

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from supervisor import queues
from supervisor.amqp.properties import decoded, fields, split_whole
from supervisor.commands.dead import edit, groups, pace, table
from supervisor.commands.dead.choice import Choice, Condition, Conditions, moment
from supervisor.commands.dead.letter import Letter
from supervisor.commands.plain import plain

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
TRACE = """Traceback (most recent call last):
  File "/srv/app/tasks.py", line 12, in work
    return int(text)
ValueError: no
"""


def letter(body: bytes = b"", headers: dict[str, Any] | None = None, **properties: Any) -> Letter:
    encoded = pika.BasicProperties(headers=headers, **properties).encode()
    return Letter(1, b"".join(encoded), body, "q")


def chosen(said: str, one: Letter) -> bool:
    return Choice(conditions=Conditions([Condition.parse(said)])).has(one)


# ------------------------------------------------------------------------------------------------------- chosen


ONE = letter(
    b'{"order": 17}',
    {
        "x-workq-reason": "exception",
        "x-workq-error": "ValueError: no\nsuch",
        "x-workq-traceback": TRACE,
        "x-workq-host": "web1",
        "x-workq-queue": "orders",
        "tenant": "blue",
        "tries": 3,
    },
    message_id="a-1",
    correlation_id="c-1",
)


@pytest.mark.parametrize(
    "said",
    [
        "id~a-", "id=a-1", "reason=exception", "error~no", "error~ValueError: no\nsuch", "error~no\\nsuch", "cause=",
        "traceback~line 12", "host=web1", "queue~order", "body~order", 'body={"order": 17}', "header.tenant=blue",
        "header.tries=3", "header.gone=", "property.correlation_id=c-1", "header.x-workq-host~web", "evidence=",
        "group=ValueError at /srv/app/tasks.py:12 in work", "group~tasks.py:12", "error~ValueError: n",
    ],
)  # fmt: skip
def test_a_condition_holds(said: str) -> None:
    assert chosen(said, ONE)


@pytest.mark.parametrize(
    "said",
    [
        "id~A-", "id=a-", "id=a-11", "reason=exceptio", "error~valueerror", "cause~x", "body=order", "body~18",
        "header.tenant=green", "header.gone~b", "property.app_id~x", "host=", "group=ValueError", "queue=q",
    ],
)  # fmt: skip
def test_a_condition_does_not_hold(said: str) -> None:
    assert not chosen(said, ONE)


def test_a_body_is_searched_as_bytes() -> None:
    binary = letter(b"\x00\xff\xc3\xbcber")
    assert chosen("body~\u00fcber", binary)
    assert chosen("body~\udcff", binary)  # as Python gives an argument that is not UTF-8
    assert not chosen("header.x~\udcff", binary)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("eror~x", "there is no field eror. Did you mean error? The fields are id,"),
        ("trace~x", "Did you mean traceback?"),
        ("headers.tenant~x", "Did you mean header.tenant?"),
        ("header~x", "there is no field header"),
        ("header.~x", "Did you mean header.NAME?"),
        ("correlation_id~x", "Did you mean property.correlation_id?"),
        ("property.correlationid~x", "Did you mean property.correlation_id?"),
        ("property.headers~x", "there is no field"),
        ("zzzzzz~x", "there is no field zzzzzz. The fields are id, "),
        ("~x", "there is no field"),
        ("\x1b[31m~x", "there is no field \\x1b[31m"),
        ("error", "expected FIELD~TEXT"),
        ("error~", "every dead letter contains that"),
    ],
)
def test_what_is_no_condition_is_said(said: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Condition.parse(said)
    assert words in str(caught.value)


def test_all_conditions_must_hold() -> None:
    both = Conditions([Condition.parse("error~ValueError"), Condition.parse("host=web1")])
    assert Choice(conditions=both).has(ONE)
    one = Conditions([Condition.parse("error~ValueError"), Condition.parse("host=web2")])
    assert not Choice(conditions=one).has(ONE)


@pytest.mark.parametrize(
    ("said", "time"),
    [
        ("90s", NOON - datetime.timedelta(seconds=90)),
        ("2h", NOON - datetime.timedelta(hours=2)),
        (" 3d ", NOON - datetime.timedelta(days=3)),
        ("1.5h", NOON - datetime.timedelta(minutes=90)),
        ("2026-02-28", datetime.datetime(2026, 2, 28, tzinfo=datetime.UTC)),
        ("2026-02-28T10:30", datetime.datetime(2026, 2, 28, 10, 30, tzinfo=datetime.UTC)),
        ("2026-02-28T10:30+02:00", datetime.datetime(2026, 2, 28, 8, 30, tzinfo=datetime.UTC)),
        ("2026-02-28 10:30:01.5Z", datetime.datetime(2026, 2, 28, 10, 30, 1, 500000, tzinfo=datetime.UTC)),
    ],
)
def test_a_moment_is_a_time_ago_or_a_time(said: str, time: datetime.datetime) -> None:
    assert moment(said, NOON) == time


@pytest.mark.parametrize(
    "said", ["", "soon", "90", "3x", "9999999d", "9000h", "2026-02-30", "0001-01-01T00:00+14:00", "-1h"]
)
def test_what_is_no_moment_is_said(said: str) -> None:
    with pytest.raises(ValueError, match="expected a time ago"):
        moment(said, NOON)


def test_since_is_included_until_is_not_and_what_has_no_time_is_left_out_and_counted() -> None:
    def seen(text: str) -> Letter:
        return letter(headers={"x-workq-first-seen": text})

    hour = datetime.timedelta(hours=1)
    choice = Choice(conditions=Conditions(since=NOON - hour, until=NOON))
    times = ["2026-03-01T10:59:59.999Z", "2026-03-01T11:00:00Z", "2026-03-01T11:59:59", "2026-03-01T13:00+01:00", "no"]
    assert [choice.has(seen(time)) for time in times] == [False, True, True, False, False]
    assert choice.undated == 1
    sent = letter(timestamp=int((NOON - hour / 2).timestamp()))
    assert choice.has(sent)
    assert Choice(conditions=Conditions(since=NOON)).has(seen("2026-03-01T12:00Z"))
    assert not Choice(conditions=Conditions(until=NOON)).has(seen("2026-03-01T12:00Z"))


def test_ids_are_found_as_they_are_and_as_they_are_shown() -> None:
    choice = Choice(["a", "b\\n", "c"])
    assert [choice.has(letter(message_id=name)) for name in ("a", "b\n", "a", "x")] == [True, True, True, False]
    assert (choice.missing, choice.found["a"]) == (["c"], 2)


def test_what_was_not_shown_is_not_meant() -> None:
    choice = Choice(conditions=Conditions([Condition.parse("error~ValueError")])).among({ONE.fingerprint})
    again = letter(b"other", {"x-workq-error": "ValueError"}, message_id="a-1")
    assert (choice.has(ONE), choice.has(again)) == (True, False)


# ------------------------------------------------------------------------------------------------------- groups


def raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return "".join(traceback.format_exception(error))
    raise AssertionError("it did not raise")


def plain_error() -> None:
    raise ValueError("first line\nKeyError: second line")


def chained() -> None:
    try:
        plain_error()
    except ValueError as error:
        raise LookupError("outer") from error


def recursive() -> None:
    recursive()


def several() -> None:
    raise ExceptionGroup("both", [ValueError("1"), LookupError("2")])


def several_raised() -> None:
    errors: list[Exception] = []
    for work in (plain_error, chained):
        try:
            work()
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("both", errors)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (plain_error, "ValueError"),
        (chained, "LookupError"),
        (recursive, "RecursionError"),
        (several, "ExceptionGroup"),
        (several_raised, "ExceptionGroup"),
    ],
)
def test_an_exception_is_grouped_by_type_and_last_frame(work: Callable[[], object], kind: str) -> None:
    told = raised(work)
    assert f"in {work.__name__}" in told
    line = max(work.__code__.co_positions(), key=lambda position: position[0] or 0)[0]
    name = groups.name(letter(headers={"x-workq-reason": "exception", "x-workq-traceback": told}))
    assert name.startswith(f"{kind} at {__file__}:")
    assert name.endswith(f"in {work.__name__}")
    assert line is not None and f":{line} " in name


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"x-workq-reason": "crash", "x-workq-cause": "SIGSEGV"}, "crash: SIGSEGV"),
        ({"x-workq-reason": "crash", "x-workq-cause": "timeout", "x-workq-evidence": TRACE}, "crash: timeout"),
        ({"x-workq-reason": "timeout", "x-workq-cause": "timeout"}, "timeout"),
        ({"x-workq-reason": "exception", "x-workq-error": "app.errors.Odd: 12"}, "app.errors.Odd"),
        ({"x-workq-reason": "exception", "x-workq-error": "12 is odd"}, "exception"),
        ({"x-workq-reason": "rejected", "x-workq-error": "no: such customer"}, "rejected"),
        ({"x-workq-reason": "too_large", "x-workq-error": "the body has ..."}, "too_large"),
        ({"x-workq-reason": "\x1b"}, "\\x1b"),
        ({}, "unknown"),
        (
            {"x-workq-traceback": '  File "/opt/lib/site-packages/requests/api.py", line 5, in get\nrequests.Gone: x'},
            "requests.Gone at requests/api.py:5 in get",
        ),
    ],
)  # fmt: skip
def test_the_others_are_grouped_by_reason_and_cause(headers: dict[str, str], name: str) -> None:
    assert groups.name(letter(headers=headers)) == name


def test_a_group_has_its_count_its_times_and_its_latest() -> None:
    found = groups.Groups()
    for number, hour in enumerate((11, 9, 10)):
        headers = {"x-workq-reason": "expired", "x-workq-first-seen": f"2026-03-01T{hour:02}:00Z"}
        found.add(letter(headers=headers, message_id=f"m{number}"))
    found.add(letter(headers={"x-workq-reason": "rejected"}, message_id="r"))
    assert found.rows() == [
        {
            "group": "expired",
            "count": 3,
            "first": "2026-03-01T09:00:00+00:00",
            "last": "2026-03-01T11:00:00+00:00",
            "example": "m0",
        },
        {"group": "rejected", "count": 1, "first": None, "last": None, "example": "r"},
    ]


def test_there_are_never_more_groups_than_fit_into_memory() -> None:
    found = groups.Groups()
    for number in range(groups.MOST + 50):
        found.add(letter(headers={"x-workq-reason": f"r{number}"}))
    rows = found.rows()
    assert (len(rows), sum(row["count"] for row in rows)) == (groups.MOST + 1, groups.MOST + 50)
    assert rows[0]["group"] == groups.OTHERS


# -------------------------------------------------------------------------------------------------------- tables


def told(identity: str, **others: Any) -> dict[str, Any]:
    row = {"id": identity, "reason": "exception", "cause": "", "error": "E" * 300, "attempts": 3, "crashes": 0,
           "age_seconds": 99.0, "host": "h" * 30, "size": 5}  # fmt: skip
    return row | others


@given(st.lists(st.text(min_size=1, max_size=70), min_size=1, max_size=8), st.integers(80, 200))
def test_every_id_is_whole_in_one_line_and_lines_fit(names: list[str], width: int) -> None:
    rows = [told(name, error=name, host=name) for name in names]
    heading, *lines = table.of_letters(lambda: rows, width)
    assert heading.startswith("id ")
    for name in map(plain, names):
        assert any(line in (name, name.rstrip()) or line.startswith(f"{name} ") for line in lines)
    shown = {plain(name) for name in names}
    assert all(cell_len(line) <= width for line in lines if line not in shown)


def test_uuids_and_digests_leave_room_for_the_error_at_80_columns() -> None:
    for name in ("0b1f6a52-8a3a-4d4f-9a53-6b4f0a8e1c11", "digest:" + 32 * "a"):
        heading, line = table.of_letters(lambda name=name: [told(name, error="ValueError: bad literal")], 80)
        assert heading.split() == ["id", "reason", "error", "tries", "age"]
        assert line.startswith(f"{name} exception ValueError: bad l")
        assert len(line) <= 80
    heading, *_ = table.of_letters(lambda: [told("short")], 80)
    assert heading.split() == ["id", "reason", "error", "tries", "age", "host", "size"]


@pytest.mark.parametrize(
    ("crashes", "attempts", "shown"),
    [(0, 4, "ValueError: no 4"), (1, 1, "SIGSEGV, 1 crash 1"), (3, None, "SIGSEGV, 3 crashes -")],
)
def test_tries_are_the_handlers_and_crashes_stand_beside_their_cause(
    crashes: int, attempts: int | None, shown: str
) -> None:
    cause, error = ("SIGSEGV", "") if crashes else ("", "ValueError: no")
    row = told("id", cause=cause, error=error, crashes=crashes, attempts=attempts)
    _, line = table.of_letters(lambda: [row], 100)
    assert " ".join(line.split()[2:]).startswith(shown)


def test_where_there_is_little_room_an_exception_is_without_its_module() -> None:
    error = "requests.exceptions.ConnectionError: no route"
    _, line = table.of_letters(lambda: [told("digest:" + 32 * "a", error=error)], 80)
    assert "exception ConnectionError: n… " in line
    _, line = table.of_letters(lambda: [told("a", error=error)], None)
    assert line.endswith(error)
    _, line = table.of_letters(lambda: [told("a", error="see http://a.b.c: x")], 80)
    assert "see http://a.b.c: x" in line


def test_one_long_id_does_not_squeeze_the_others() -> None:
    heading, first, long, rest = table.of_letters(lambda: [told("a"), told("x" * 200)], 80)
    assert first.startswith("a  exception")
    assert long == "x" * 200
    assert rest.startswith("   exception")
    assert heading.endswith("host      size")


def test_wide_cuts_nothing() -> None:
    _, line, _ = table.of_letters(lambda: [told("x" * 200), told("a")], None)
    assert all(text in line for text in ("x" * 200, "E" * 300, "h" * 30))


def test_a_group_is_shown_whole_with_an_example() -> None:
    name = "ValueError at /srv/a/very/long/path/to/the/module/which/goes/on/and/on/and/on.py:12 in work"
    row = {"group": name, "count": 1234, "first": None, "last": "2026-03-01T11:00:00+00:00", "example": "m\x1b" * 60}
    heading, *lines = table.of_groups([row], 80)
    assert heading.split() == ["count", "first", "last", "group"]
    assert lines[0].split()[:2] == ["1,234", "-"]
    # A path, too, stays in one piece.
    assert [line[23:] for line in lines] == ["ValueError at", name.split()[2], "in work", "such as " + "m\\x1b" * 60]
    assert name in list(table.of_groups([row], None))[1]


# ---------------------------------------------------------------------------------------------------------- pace


@pytest.mark.parametrize(("said", "rate"), [("10/s", 10.0), (" 30 / m ", 0.5), ("1800/h", 0.5), ("1/m", 1 / 60)])
def test_a_rate_is_so_many_a_second_or_a_minute(said: str, rate: float) -> None:
    assert pace.parse(said) == pytest.approx(rate)


@pytest.mark.parametrize("said", ["", "10", "0/s", "-1/s", "1/h", "0.5/m", "59/h", "ten/s", "1e9/s"])
def test_what_is_no_rate_is_said(said: str) -> None:
    with pytest.raises(ValueError, match="such as 20/s"):
        pace.parse(said)


@given(st.floats(1 / 60, 1e6), st.integers(1, 2000), st.lists(st.floats(0, 30), max_size=50))
def test_a_pace_is_never_faster_than_its_rate_and_takes_little_in_advance(
    rate: float, count: int, delays: list[float]
) -> None:
    one = pace.Spread(rate)
    assert 1 <= one.window(200) <= max(1, min(200, rate * 60 + 1))
    clock = start = 1000.0
    gone = last = 0
    for delay in (*delays, 0.0):
        clock = max(clock + delay, one.due)
        # All that went before has had its time.
        assert gone <= (clock - start) * rate + 1e-6
        last = one.share(count)
        assert 1 <= last <= count
        one.went(last, clock)
        gone += last


# ---------------------------------------------------------------------------------------------------------- edit


def test_the_old_body_is_a_header_in_place_of_an_older_one() -> None:
    headers = {"x-workq-reason": "exception", "tenant": "blue", "x-workq-was-x-workq-edited-from": "oldest",
               "x-workq-edited-from": "older"}  # fmt: skip
    encoded = edit.labelled(letter("gr\u00fcn".encode(), headers, message_id="m"), "guest")
    kept = {field.text: decoded(field.value) for field in fields(split_whole(encoded.raw)["headers"])}
    assert kept == {"tenant": "blue", queues.EDITED_FROM: "gr\u00fcn"}
    assert encoded.message_id == "m"


@pytest.mark.parametrize(
    ("body", "is_text"),
    [(b"a\r\n\tb", True), ("\u00fc\u00a0".encode(), True), (b"\xff", False), (b"a\x00b", False), (b"", True)],
)
def test_text_is_utf_8_without_control_characters(body: bytes, is_text: bool) -> None:
    assert edit.is_text(body) is is_text
