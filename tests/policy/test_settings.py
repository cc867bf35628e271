"""Where settings come from, which source counts, and what the report says when they are wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.endpoint import Endpoint
from supervisor.settings import (
    OPTIONS,
    Address,
    Cpus,
    Rate,
    Settings,
    SettingsError,
    Span,
    Whereabouts,
    load,
    locate,
    parse_duration,
    parse_size,
    unreloadable,
    usable_cpus,
)

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "config" / "workq.toml"
SECRET = "Zq7xK"
CPUS = usable_cpus().workers
NO_VALUES = ("handler", "declare", "preload", "burst", "reload")
"""Options that take none on the command line, and the one that is no option there."""


def problems_of(
    command_line: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, handler: str | None = "a:b"
) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(handler, command_line or {}, environ or {})
    return caught.value.problems


def toml(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "workq.toml"
    path.write_text(text)
    return {"config": str(path)}


# ---------------------------------------------------------------------------------------------------- the table


def test_every_setting_is_an_option_and_has_the_default_that_the_table_shows() -> None:
    settings = Settings("a:b")
    others = ("handler", "url_open", "url_mode", "control", "health_explicit", "control_explicit")
    names = [each.name for each in fields(Settings) if each.name not in others]
    assert {*names, "handler", "control", "url_file", "config"} == set(OPTIONS)
    for name in names:
        assert getattr(settings, name) == OPTIONS[name].parse(OPTIONS[name].default), name
    assert load("a:b", {}, {}) == settings


def test_the_defaults_are_the_documented_ones() -> None:
    assert Settings("a:b") == Settings(
        handler="a:b",
        url=(Endpoint("127.0.0.1", 5672, "/", "guest", "guest"),),
        queue="task_queue",
        queue_type="default",
        declare=True,
        workers=Span(CPUS, CPUS),
        prefetch=1,
        heartbeat=15.0,
        task_timeout=None,
        soft_timeout=None,
        rate=None,
        boot_timeout=60.0,
        boot_retry=False,
        grace=30.0,
        max_tasks=None,
        max_memory=None,
        max_crashes=3,
        breaker=None,
        breaker_reset=30.0,
        max_body=16 * 1024**2,
        health=Address("127.0.0.1", 9191),
        health_explicit=False,
        health_host=(),
        ready_when="consuming",
        log_format="auto",
        log_level="info",
        report=None,
        app_dir=str(Path.cwd()),
        preload=True,
        burst=False,
        burst_wait=30.0,
        control=None,
        control_explicit=False,
        reload=False,
    )


# ----------------------------------------------------------------------------------------------- config/workq.toml


def uncommented() -> dict[str, Any]:
    lines = re.findall(r"^# ([a-z_]+ = .+)$", TEMPLATE.read_text(), re.MULTILINE)
    return tomllib.loads("\n".join(lines))


def test_the_template_changes_nothing_until_it_is_edited() -> None:
    assert tomllib.loads(TEMPLATE.read_text()) == {}
    assert load("a:b", {"config": str(TEMPLATE)}, {}) == load("a:b", {}, {})


def test_the_template_names_every_key_once_with_its_default() -> None:
    keys = uncommented()
    assert set(keys) == {name for name, option in OPTIONS.items() if option.in_file}
    for name in set(keys) - {"handler", "url_file"}:
        assert OPTIONS[name].parse(keys[name]) == OPTIONS[name].parse(OPTIONS[name].default), name


def test_the_template_uncommented_gives_the_defaults(tmp_path: Path) -> None:
    keys = uncommented()
    del keys["url_file"]  # which stands beside url as the other way to say it
    config = toml(tmp_path, "\n".join(f"{name} = {json.dumps(value)}" for name, value in keys.items()))
    assert load(None, config, {}) == replace(load("tasks:resize", {}, {}), health_explicit=True)


# ---------------------------------------------------------------------------------------------------- precedence


@pytest.mark.parametrize(
    ("command_line", "environ", "file", "expected"),
    [
        ({}, {}, "", 1),
        ({}, {}, "prefetch = 2", 2),
        ({}, {"WORKQ_PREFETCH": "3"}, "prefetch = 2", 3),
        ({"prefetch": "4"}, {"WORKQ_PREFETCH": "3"}, "prefetch = 2", 4),
        ({}, {"WORKQ_PREFETCH": " "}, "prefetch = 2", 2),
    ],
)
def test_command_line_over_environment_over_file_over_default(
    tmp_path: Path, command_line: dict[str, Any], environ: dict[str, str], file: str, expected: int
) -> None:
    assert load("a:b", {**command_line, **toml(tmp_path, file)}, environ).prefetch == expected


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "prefetch = 2")["config"]
    assert load("a:b", {}, {"WORKQ_CONFIG": path}).prefetch == 2


def test_a_wrong_value_that_is_overruled_does_not_matter() -> None:
    assert load("a:b", {"workers": "2"}, {"WORKQ_WORKERS": "many"}).workers == Span(2, 2)


def test_switches_are_overruled_in_both_directions() -> None:
    environ = {"WORKQ_PRELOAD": "off", "WORKQ_BURST": "yes", "WORKQ_DECLARE": "0"}
    settings = load("a:b", {}, environ)
    assert (settings.preload, settings.burst, settings.declare) == (False, True, False)
    settings = load("a:b", {"preload": True, "burst": False, "declare": True}, environ)
    assert (settings.preload, settings.burst, settings.declare) == (True, False, True)


@pytest.mark.parametrize(
    ("argument", "environ", "file", "expected"),
    [
        ("a:b", {"WORKQ_HANDLER": "c:d"}, "handler = 'e:f'", "a:b"),
        (None, {"WORKQ_HANDLER": "c:d"}, "handler = 'e:f'", "c:d"),
        (None, {}, "handler = 'e:f'", "e:f"),
    ],
)
def test_the_handler_has_the_same_sources(
    tmp_path: Path, argument: str | None, environ: dict[str, str], file: str, expected: str
) -> None:
    assert load(argument, toml(tmp_path, file), environ).handler == expected


def test_no_handler_anywhere_is_told_apart_from_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {}, {})
    assert caught.value.handler_missing
    for handler, config in [("nonsense", ""), (None, "this is not TOML, and may name the handler")]:
        with pytest.raises(SettingsError) as caught:
            load(handler, toml(tmp_path, config), {})
        assert not caught.value.handler_missing


def test_health_is_explicit_when_somebody_asked_for_it_even_with_the_default_value() -> None:
    assert not load("a:b", {}, {}).health_explicit
    assert load("a:b", {"health": "127.0.0.1:9191"}, {}).health_explicit
    assert load("a:b", {}, {"WORKQ_HEALTH": "off"}) == replace(Settings("a:b"), health=None, health_explicit=True)


# ----------------------------------------------------------------------------------------------------------- URLs

A, B = Endpoint("a"), Endpoint("b", user="u", password="p,q")


@pytest.mark.parametrize(
    ("command_line", "environ", "file"),
    [
        ({"url": ("amqp://a", "amqp://u:p,q@b")}, {"WORKQ_URL": "amqp://c"}, "url = 'amqp://d'"),
        ({}, {"WORKQ_URL": "amqp://a amqp://u:p,q@b"}, "url = 'amqp://d'"),
        ({}, {"WORKQ_URL": "amqp://a,amqp://u:p,q@b"}, ""),
        ({}, {"WORKQ_URL": "amqp://a,\n  AMQP://u:p,q@b,"}, ""),
        ({}, {}, "url = ['amqp://a', 'amqp://u:p,q@b']"),
        ({}, {}, "url = 'amqp://a amqp://u:p,q@b'"),
        ({"url_file": "FILE"}, {"WORKQ_URL": "amqp://c"}, "url = 'amqp://d'"),
        ({}, {"WORKQ_URL_FILE": "FILE"}, "url = 'amqp://d'"),
        ({}, {}, "url_file = 'FILE'"),
        ({}, {"CREDENTIALS_DIRECTORY": "DIRECTORY"}, ""),
    ],
)
def test_several_urls_from_every_source(
    tmp_path: Path, command_line: dict[str, Any], environ: dict[str, str], file: str
) -> None:
    credential = tmp_path / "amqp-url"
    credential.write_text("# the cluster\n\n amqp://a \namqp://u:p,q@b\n")
    names = {"FILE": str(credential), "DIRECTORY": str(tmp_path)}
    command_line = {name: names.get(str(value), value) for name, value in command_line.items()}
    environ = {name: names.get(value, value) for name, value in environ.items()}
    config = toml(tmp_path, file.replace("FILE", str(credential)))
    assert load("a:b", command_line | config, environ).url == (A, B)


def test_systemds_credential_yields_to_any_url_and_may_be_absent(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load("a:b", {}, environ).url == (Endpoint(),)
    (tmp_path / "amqp-url").write_text("amqp://a")
    assert load("a:b", {}, environ).url == (A,)
    assert load("a:b", {"url": ("amqp://c",)}, environ).url == (Endpoint("c"),)


def test_a_wrong_url_file_is_reported_by_line_and_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "urls"
    path.write_bytes(f"# cluster\namqp://u:{SECRET}\namqp://h\namqp://u:{SECRET}\xff@h/x y\n".encode("latin-1"))
    [problem] = problems_of({"url_file": str(path)})
    assert problem.startswith("--url-file: ")
    assert "line 2: " in problem
    assert "line 4: " in problem
    assert "line 3" not in problem
    assert SECRET not in problem

    path.write_text("# nothing\n")
    assert "it has none" in problems_of({"url_file": str(path)})[0]
    assert "No such file" in problems_of({"url_file": str(tmp_path / "absent")})[0]
    assert "directory" in problems_of({"url_file": str(tmp_path)})[0]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o640, 0o600, 0o400])
@pytest.mark.parametrize("is_closed", [False, True])
def test_f102_a_url_file_that_everybody_can_read_is_known_by_its_mode(mode: int, is_closed: bool) -> None:
    # Not in tmp_path, which nobody else may look into.
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o700 if is_closed else 0o755)
        file = Path(directory) / "url"
        file.write_text(f"amqp://u:{SECRET}@h/\n")
        file.chmod(mode)
        settings = load("a:b", {"url_file": str(file)}, {})
    is_open = bool(mode & 0o004) and not is_closed
    assert (f"{mode:04o}" in settings.exposure, settings.url_open) == (is_open, str(file) if is_open else "")
    assert SECRET not in settings.exposure


def test_f102_urls_from_a_pipe_or_from_a_closed_directory_of_credentials_are_no_file_that_others_can_read(
    tmp_path: Path,
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"amqp://h/")
    os.close(writer)
    assert load("a:b", {"url_file": f"/dev/fd/{reader}"}, {}).exposure == ""
    os.close(reader)
    tmp_path.chmod(0o500)
    (tmp_path / "amqp-url").write_text("amqp://h/")
    assert load("a:b", {}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).exposure == ""
    tmp_path.chmod(0o700)


def test_url_and_url_file_in_one_source_is_a_problem() -> None:
    assert problems_of({"url": ("amqp://a",), "url_file": "x"}) == ["--url and --url-file: give only one"]


def test_a_certificate_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "cafile is not a file" in problems_of({"url": ("amqps://h?cafile=/nonexistent/ca.pem",)})[0]
    (tmp_path / "ca.pem").touch()
    url = f"amqps://h?cafile={tmp_path}/ca.pem"
    assert load("a:b", {"url": (url,)}, {}).url[0].option("cafile") == f"{tmp_path}/ca.pem"


# --------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("workers", "1", Span(1, 1)),
        ("workers", "1024", Span(1024, 1024)),
        ("workers", "auto", Span(CPUS, CPUS)),
        ("workers", "2..8", Span(2, 8)),
        ("workers", " 2 .. 8 ", Span(2, 8)),
        ("workers", "1..1024", Span(1, 1024)),
        ("workers", "3..3", Span(3, 3)),
        ("workers", "1..auto", Span(1, CPUS)),
        ("workers", "1024..auto", Span(1024, 1024)),
        ("prefetch", "65535", 65535),
        ("heartbeat", "1", 1.0),
        ("heartbeat", "1500ms", 2.0),
        ("heartbeat", "2m", 120.0),
        ("task_timeout", "off", None),
        ("task_timeout", "1.5h", 5400.0),
        ("grace", "0", 0.0),
        ("rate", "off", None),
        ("rate", "20/s", Rate(20, "s")),
        ("rate", " 600 / m ", Rate(600, "m")),
        ("rate", "1/h", Rate(1, "h")),
        ("max_tasks", "off", None),
        ("max_tasks", "1000", 1000),
        ("max_memory", "512M", 512 * 1024**2),
        ("max_memory", "1g", 1024**3),
        ("max_memory", "off", None),
        ("max_body", "512K", 512 * 1024),
        ("health", "off", None),
        ("health", "0.0.0.0:0", Address("0.0.0.0", 0)),
        ("health", "[::1]:9191", Address("::1", 9191)),
        ("health_host", "Workers.example.org, other.", ("workers.example.org", "other")),
        ("queue", "q" * 250, "q" * 250),
        ("queue", "größe/1", "größe/1"),
        ("queue_type", "quorum", "quorum"),
        ("log_format", "json", "json"),
        ("log_level", "error", "error"),
        ("report", "alerts:send", "alerts:send"),
        ("report", "off", None),
        ("handler", "pkg.mod:Class.method", "pkg.mod:Class.method"),
    ],
)
def test_a_value_reads_the_same_from_every_source(tmp_path: Path, name: str, text: str, expected: object) -> None:
    option = OPTIONS[name]
    command_line = (text, {}) if name == "handler" else ("a:b", {name: text})
    assert getattr(load(*command_line, {}), name) == expected
    handler = None if name == "handler" else "a:b"
    assert getattr(load(handler, {}, {option.variable: text}), name) == expected
    assert getattr(load(handler, toml(tmp_path, f"{name} = {json.dumps(text)}"), {}), name) == expected


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("workers = 3", "workers", Span(3, 3)),
        ("heartbeat = 20", "heartbeat", 20.0),
        ("task_timeout = 0.25", "task_timeout", 0.25),
        ("max_body = 1000", "max_body", 1000),
        ("preload = false", "preload", False),
        ("burst = 'yes'", "burst", True),
    ],
)
def test_the_file_may_use_tomls_own_types(tmp_path: Path, line: str, name: str, expected: object) -> None:
    assert getattr(load("a:b", toml(tmp_path, line), {}), name) == expected


WRONG: list[tuple[str, object]] = [
    ("workers", "0"),
    ("workers", "1025"),
    ("workers", "-1"),
    ("workers", "1_0"),
    ("workers", "٣"),
    ("workers", "8..2"),
    ("workers", "0..4"),
    ("workers", "4.."),
    ("workers", "..4"),
    ("workers", ".."),
    ("workers", "1..1025"),
    ("workers", "1...4"),
    ("workers", "1..2..3"),
    ("workers", "auto..4"),
    ("workers", "-1..4"),
    ("workers", "2-8"),
    ("workers", ""),
    ("prefetch", "0"),
    ("prefetch", "65536"),
    ("heartbeat", "0"),
    ("heartbeat", "off"),
    ("heartbeat", "999ms"),
    ("heartbeat", "19h"),
    ("task_timeout", "0"),
    ("task_timeout", "nan"),
    ("task_timeout", "5 minutes"),
    ("boot_timeout", "off"),
    ("boot_timeout", "inf"),
    ("grace", "-1"),
    ("grace", "9999h"),
    ("max_tasks", "0"),
    ("rate", "20"),
    ("rate", "0/s"),
    ("rate", "20/d"),
    ("rate", "2.5/s"),
    ("rate", "-1/s"),
    ("rate", "10000000/s"),
    ("max_memory", "512"),
    ("max_memory", "512MB"),
    ("max_memory", "1.5G"),
    ("max_body", "0"),
    ("max_body", "999999999999999G"),
    ("max_crashes", "0"),
    ("queue", ""),
    ("queue", "q" * 251),
    ("queue", "ö" * 126),
    ("queue", "amq.gen-1"),
    ("queue", "a\tb"),
    ("queue", "a\udcff"),
    ("queue_type", "stream"),
    ("health", "9191"),
    ("health", ":9191"),
    ("health", "::1:9191"),
    ("health", "127.0.0.1:65536"),
    ("health", "127.0.0.1:http"),
    ("health", "[localhost]:1"),
    ("health_host", "name:9191"),
    ("health_host", "*"),
    ("log_format", "xml"),
    ("log_level", "INFO!"),
    ("report", "alerts"),
    ("app_dir", "/nonexistent/directory"),
    ("app_dir", "/" + "x" * 300),
    ("app_dir", "a\0b"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_reported_with_its_source_itself_and_what_is_expected(name: str, value: str) -> None:
    [problem] = problems_of({name: value})
    assert problem.startswith(f"{OPTIONS[name].flag}: got ")
    assert repr(value)[:50] in problem
    assert ", expected " in problem


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("workers = true", "workers"),
        ("workers = 2.0", "workers"),
        ("workers = [2, 8]", "workers"),
        ("heartbeat = true", "heartbeat"),
        ("task_timeout = inf", "task_timeout"),
        ("grace = -1", "grace"),
        ("max_body = 1.5", "max_body"),
        ("preload = 1", "preload"),
        ("queue = ['a']", "queue"),
        ("handler = 3", "handler"),
        ("health = {host = 'h'}", "health"),
        ("log_level = {}", "log_level"),
        ("url = 3", "url"),
        ("url = []", "url"),
        ("url = ['amqp://h', 3]", "url"),
        ("url_file = 3", "url_file"),
        ("app_dir = 2020-01-01", "app_dir"),
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_a_problem(tmp_path: Path, line: str, source: str) -> None:
    handler = None if source == "handler" else "a:b"
    [problem] = problems_of(toml(tmp_path, line), handler=handler)
    assert problem.startswith(f"workq.toml: {source}: ")


@pytest.mark.parametrize("handler", ["", "tasks", "tasks:", ":f", "a b:c", "a:b:c", "a/b.py:c", "a..b:c", "1a:b"])
def test_a_handler_is_module_and_function(handler: str) -> None:
    [problem] = problems_of(handler=handler)
    assert problem == f"MODULE:FUNCTION: got {handler!r}, expected module:function, such as tasks:resize"


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", ""]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    seconds = number / 1000 if unit == "ms" else number * {"s": 1, "": 1, "m": 60, "h": 3600}[unit]
    if seconds <= 8760 * 3600:
        assert parse_duration(f"{number}{unit}") == seconds == parse_duration(seconds)
    else:
        with pytest.raises(ValueError, match="8760h"):
            parse_duration(f"{number}{unit}")


@given(st.floats(0, 8760 * 3600).map(lambda seconds: round(seconds, 6)))
def test_a_duration_in_plain_seconds_comes_back_as_it_was(seconds: float) -> None:
    assert parse_duration(f"{seconds:.6f}") == parse_duration(f" {seconds:.6f} s ") == seconds


@given(st.integers(0, 10**12), st.sampled_from(["", "K", "M", "G", "k", "m", "g"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    size = number * 1024 ** "KMG".find(unit.upper() or "-").__add__(1)
    assert parse_size(f"{number}{unit}") == size == parse_size(size)


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.text()))
def test_whatever_a_source_holds_a_parser_returns_or_raises_a_value_error(value: object) -> None:
    for option in OPTIONS.values():
        try:
            option.parse(value)
        except ValueError as error:
            assert str(error)


# --------------------------------------------------------------------------------------------------------- report


def test_all_problems_are_reported_at_once_each_under_the_name_of_its_source(tmp_path: Path) -> None:
    config = toml(tmp_path, "heartbeat = 0\nworkrs = 4\nreload = 3\nconfig = 'x'\nxyzzy = 1")
    environ = {"WORKQ_MAX_TASKS": "few", "WORKQ_MAX_BODDY": "1", "WORKQ_CONTROL": "/nowhere/x", "WORKQ_QUEUE": "amq.x"}
    problems = problems_of({"grace": "soon", "url": ("amqp://u:Zq7xK",), **config}, environ, handler="tasks")
    assert sorted(problem.partition(", ")[0].partition("; ")[0] for problem in problems) == [
        "--grace: got 'soon'",
        "--url: expected amqp://USER:PASSWORD@HOST:PORT/VHOST",
        "MODULE:FUNCTION: got 'tasks'",
        "WORKQ_CONTROL: got '/nowhere/x'",
        "WORKQ_MAX_BODDY: unknown",
        "WORKQ_MAX_TASKS: got 'few'",
        "WORKQ_QUEUE: got 'amq.x'",
        "workq.toml: config: not allowed in the file",
        "workq.toml: heartbeat: got 0",
        "workq.toml: reload: got 3",
        "workq.toml: workrs: unknown key",
        "workq.toml: xyzzy: unknown key",
    ]
    assert SECRET not in "".join(problems)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("workrs", "did you mean workers?"),
        ("max-tasks", "did you mean max_tasks?"),
        ("Heartbeat", "did you mean heartbeat?"),
        ("loglevel", "did you mean log_level?"),
    ],
)
def test_an_unknown_key_or_variable_suggests_the_nearest(tmp_path: Path, key: str, hint: str) -> None:
    assert problems_of(toml(tmp_path, f"{key} = 1")) == [f"workq.toml: {key}: unknown key, {hint}"]


def test_a_near_miss_among_the_variables_is_a_problem_and_a_foreign_one_is_not() -> None:
    assert problems_of({}, {"WORKQ_WORKER": "4"}) == ["WORKQ_WORKER: unknown, did you mean WORKQ_WORKERS?"]
    assert problems_of({}, {"WORKQ_workers": "4"}) == ["WORKQ_workers: unknown, did you mean WORKQ_WORKERS?"]
    foreign = {"WORKQ_RABBITMQ_HOME": "/x", "WORKQ_TEST_TIMEOUT": "3", "WORKQ_BADGE": "x", "WORKQ": "x", "QUEUE": "x"}
    assert load("a:b", {}, foreign) == load("a:b", {}, {})


@pytest.mark.parametrize(
    "text",
    [
        f"url = 'amqp://u:{SECRET}@h",
        f"url = amqp://u:{SECRET}@h",
        f"[{SECRET}",
        f"{SECRET} = 1\n{SECRET} = 2",
        f"url = '''{SECRET}",
    ],
)
def test_a_file_that_is_not_toml_is_reported_by_place_and_not_quoted(tmp_path: Path, text: str) -> None:
    [problem] = problems_of(toml(tmp_path, text))
    assert re.fullmatch(r"workq\.toml: not valid TOML at (line \d+, column \d+|end of document)", problem)


def test_a_file_that_cannot_be_read_is_reported_with_the_system_s_reason(tmp_path: Path) -> None:
    assert problems_of({"config": "/nonexistent/x.toml"}) == [
        "--config: cannot read '/nonexistent/x.toml': No such file or directory"
    ]
    (tmp_path / "latin.toml").write_bytes(b"queue = '\xff'")
    assert "UTF-8" in problems_of({}, {"WORKQ_CONFIG": str(tmp_path / "latin.toml")})[0]
    assert problems_of({"config": ""}) == ["--config: got '', expected a path"]


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in NO_VALUES])
def test_a_url_in_the_wrong_place_is_refused_and_not_shown(name: str) -> None:
    [problem] = problems_of({name: (url := f"amqp://u:{SECRET}")})
    assert SECRET not in problem
    [problem] = problems_of({}, {OPTIONS[name].variable: url})
    assert SECRET not in problem


def test_a_url_as_handler_or_as_a_key_is_not_shown(tmp_path: Path) -> None:
    assert SECRET not in problems_of(handler=f"amqp://u:{SECRET}@h")[0]
    assert SECRET not in problems_of(toml(tmp_path, f'"amqp://u:{SECRET}@h" = 1'))[0]


@given(st.text(alphabet=st.sampled_from("@:/?#%[]&=, '\"é"), max_size=8))
def test_no_password_is_in_a_report_or_a_repr(noise: str) -> None:
    urls = f"amqp://u:{SECRET}{noise}{SECRET}@h/v", f"amqp://u:{SECRET}{noise}", f"amqp://h amqp://u:{SECRET}{noise}@"
    for url in urls:
        try:
            settings = load("a:b", {"url": (url,)}, {})
            assert SECRET in settings.url[-1].password
            assert SECRET not in repr(settings)
        except SettingsError as error:
            assert SECRET not in repr(error) + str(error) + repr(error.problems)


# ------------------------------------------------------------------------------------------------ the control socket


def test_the_control_socket_is_in_the_runtime_directory_else_the_user_s_else_there_is_none() -> None:
    unit, user = {"RUNTIME_DIRECTORY": "/run/a:/run/b"}, {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert load("a:b", {}, unit | user).control == "/run/a/workq.sock"
    assert load("a:b", {"queue": "eu/ä b"}, user).control == "/run/user/7/workq-eu%2F%C3%A4%20b.sock"
    assert load("a:b", {}, {}).control is None
    assert load("a:b", {"control": "off"}, unit).control is None
    assert load("a:b", {"control": "auto"}, unit) == load("a:b", {}, unit)
    assert not load("a:b", {}, unit).control_explicit


def test_a_control_socket_that_somebody_names_is_absolute_and_fits_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "workq.sock"
    settings = load("a:b", {"control": str(path)}, {})
    assert (settings.control, settings.control_explicit) == (str(path), True)
    assert load("a:b", {"control": "x.sock"}, {}).control == str(Path.cwd() / "x.sock")
    (tmp_path / "file").touch()
    for wrong, why in (
        (tmp_path / ("x" * 108), "at most 107 bytes"),
        (tmp_path / "none" / "x", "a directory that exists"),
        (tmp_path / "file", "where no other file exists"),
    ):
        [problem] = problems_of({"control": str(wrong)})
        assert problem.startswith("--control: got ") and why in problem


def test_reload_without_its_library_is_a_problem_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("a:b", {"reload": True}, {}).reload
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    [problem] = problems_of({"reload": True})
    assert f"{sys.executable} -m pip install 'watchfiles>=0.24'" in problem
    assert not load("a:b", {}, {}).reload


def test_whoever_looks_for_a_supervisor_finds_it_by_the_same_sources(tmp_path: Path) -> None:
    file = toml(tmp_path, "queue = 'mine'\nhealth = 'off'\nnonsense = 1\nurl = 'nowhere'")
    found = locate(file, {"XDG_RUNTIME_DIR": "/run/user/7"})
    assert found == Whereabouts("mine", "/run/user/7/workq-mine.sock", None, frozenset({"queue", "health"}))
    assert locate({"control": "/root/x"} | file, {}).control == "/root/x"
    assert locate({}, {"WORKQ_HEALTH": "[::1]:1"}).health == Address("::1", 1)
    assert locate({}, {"WORKQ_HEALTH": "[::1]:1"}, ("queue", "control")).health == Address("127.0.0.1", 9191)
    with pytest.raises(SettingsError, match="cannot read"):
        locate({"config": "/nonexistent/x.toml"}, {})


def test_a_reload_may_change_credentials_and_limits_and_not_what_is_bound_to_the_process(tmp_path: Path) -> None:
    before = load("a:b", {}, {})
    changed = load("a:c", {"url": ("amqp://u:p@h",), "retries": "0", "workers": "1..9", "log_level": "debug"}, {})
    assert unreloadable(before, changed) == []
    other = load("a:b", {"queue": "q", "health": "off", "log_format": "json", "burst": True}, {})
    assert unreloadable(before, other) == ["queue", "burst", "health", "log_format"]


# ---------------------------------------------------------------------------------------------------------- wire


def test_settings_survive_json_passwords_included() -> None:
    given = {
        "url": ("amqp://u:p%40@a/v", "amqps://[::1]"),
        "health": "[::1]:0",
        "max_memory": "1G",
        "rate": "600/m",
        "workers": "2..8",
        "health_host": ("a", "b"),
    }
    for settings in (load("a:b", {}, {}), load("a:b", given, {}), load("a:b", {"health": "off"}, {})):
        assert Settings.from_wire(json.loads(json.dumps(settings.to_wire()))) == settings


def test_importing_settings_brings_nothing_heavy_into_a_worker() -> None:
    code = (
        "import sys, supervisor.settings; print(*{'click', 'pika', 'tomllib', 'difflib', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("affinity", "quota", "workers", "by"),
    [
        (8, None, 8, "auto: 8 CPUs by affinity"),
        (1, None, 1, "auto: 1 CPU by affinity"),
        (8, 8.0, 8, "auto: 8 CPUs by affinity"),
        (8, 64.0, 8, "auto: 8 CPUs by affinity"),
        (8, 2.0, 2, "auto: the cgroup's CPU quota of 2"),
        (8, 1.5, 2, "auto: the cgroup's CPU quota of 1.5"),
        (8, 0.1, 1, "auto: the cgroup's CPU quota of 0.1"),
        (2, 1.5, 2, "auto: the cgroup's CPU quota of 1.5"),
        (4096, None, 1024, "auto: 4096 CPUs by affinity"),
    ],
)
def test_f83_auto_is_the_smaller_of_affinity_and_quota_and_a_part_of_a_cpu_is_worth_a_worker(
    affinity: int, quota: float | None, workers: int, by: str
) -> None:
    cpus = Cpus(affinity, quota)
    assert (cpus.workers, str(cpus)) == (workers, by)


def test_f83_what_the_number_of_workers_comes_from_is_no_part_of_it() -> None:
    assert load("a:b", {"workers": "3"}, {}).workers.by == "given"
    assert load("a:b", {}, {}).workers.by == str(usable_cpus())
    assert load("a:b", {"workers": "1..auto"}, {}).workers.by == str(usable_cpus())
    assert Span(2, 2, "auto") == Span(2, 2), "a reload that finds the same number has changed nothing"
