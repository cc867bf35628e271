"""Where settings come from: command line over environment over file over default; every problem at once.

tomllib and difflib are imported where they are needed: workers import this package.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import supervisor.settings.parsers as parsers
from supervisor.endpoint import Endpoint
from supervisor.settings.options import ENVIRONMENT_PREFIX, OPTIONS, Option, Settings
from supervisor.settings.parsers import AUTO, Address

CREDENTIAL: Final = "amqp-url"
"""The name under which systemd's LoadCredential= is expected to hold the URL."""
UNITS: Final = Path("/etc/workq")
"""Where the unit workq-supervise@NAME has NAME.toml and NAME.amqp-url."""
UNITS_RUN: Final = Path("/run/workq")
"""Where it has its control socket, in a directory of its own."""

_OTHERS_VARIABLES: Final = ("rabbitmq_", "test_")
"""`WORKQ_RABBITMQ_HOME` and the like are read elsewhere and never a misspelt option."""
_SHOWN: Final = 60
"""Characters of a refused value that a report quotes."""


class SettingsError(Exception):
    """The settings cannot be used. Carries every problem, one line each; none of them quotes a URL."""

    def __init__(self, problems: list[str], *, handler_missing: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.handler_missing = handler_missing
        """No source names a handler: the command line is incomplete."""


@dataclass(frozen=True, slots=True)
class _Given:
    """A value somebody gave, and the name of the place where to correct it."""

    value: object
    source: str


_Source = dict[str, _Given]


def load(
    handler: str | None, command_line: Mapping[str, str | tuple[str, ...] | bool], environ: Mapping[str, str]
) -> Settings:
    """Put the settings together: command line over environment over file over default.

    `command_line` maps names of `OPTIONS` to what was given there, and holds nothing that was not given. An environment
    variable that is set and empty counts as not set. Raises SettingsError with every problem; of an option given in
    several places only the value that counts is checked.
    """
    problems: list[str] = []
    found = _look(handler, command_line, environ, problems)
    sources, file_read = found.sources, found.file_read
    values = _take_all([name for name in OPTIONS if name not in ("url_file", "config")], found, problems)
    values["health_explicit"] = any("health" in source for source in sources)
    values["control_explicit"] = values.get("control") != AUTO and any("control" in source for source in sources)
    if values.get("control") == AUTO and "queue" in values:
        values["control"] = _default_control(values["queue"], found.runtime, environ)
    if values.get("reload") and not _has_watchfiles():
        problems.append("reload: needs the library watchfiles: pip install 'workq-supervise[reload]'")

    # When the file cannot be read, it may be the one that names the handler.
    missing = file_read and not any("handler" in source for source in sources)
    if missing:
        problems.append("no handler: name it as MODULE:FUNCTION, WORKQ_HANDLER or handler in the file")
    if problems:
        raise SettingsError(problems, handler_missing=missing)
    return Settings(**values)


def read(
    names: Sequence[str], command_line: Mapping[str, str | tuple[str, ...] | bool], environ: Mapping[str, str]
) -> dict[str, Any]:
    """These settings by name, for a command that needs no others: from the places where `load` finds them; with `unit`
    in the command line, from those of that unit.

    What is wrong with other settings is not looked at, but for names that nobody knows: a misspelt `queue` would have
    the command act on another one. Raises SettingsError.
    """
    problems: list[str] = []
    found = _look(None, command_line, environ, problems)
    values = _take_all(names, found, problems)
    if problems:
        raise SettingsError(problems)
    return values


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a running supervisor may be found."""

    queue: str
    control: str | None
    health: Address | None
    explicit: frozenset[str]
    """Which of the three somebody named."""


def locate(
    command_line: Mapping[str, str | tuple[str, ...] | bool],
    environ: Mapping[str, str],
    names: tuple[str, ...] = ("queue", "control", "health"),
) -> Whereabouts:
    """Where the supervisor with these sources of settings would be, for whoever wants a word with it.

    Only these three are looked at: what else is wrong with the settings is the supervisor's business. Of sources that
    `names` leaves out the default counts. Raises SettingsError.
    """
    unread: list[str] = []
    found = _look(None, command_line, environ, unread)
    problems = [] if found.file_read else [problem for problem in unread if problem not in found.misspelt]
    values: dict[str, Any] = {}
    explicit = set()
    for name in ("queue", "control", "health"):
        sources = found.sources if name in names else []
        given = next((source[name] for source in sources if name in source), None)
        if given is not None and given.value != AUTO:
            explicit.add(name)
        given = given or _Given(OPTIONS[name].default, OPTIONS[name].flag)
        # A socket that is not there, or not for us, is found out by trying it.
        option = replace(OPTIONS[name], parse=_anywhere) if name == "control" else OPTIONS[name]
        _take(values, option, given, problems)
    if problems:
        raise SettingsError(problems)
    if values["control"] == AUTO:
        values["control"] = _default_control(values["queue"], found.runtime, environ)
    return Whereabouts(values["queue"], values["control"], values["health"], frozenset(explicit))


def _anywhere(value: object) -> str | None:
    return None if value == "off" else AUTO if value == AUTO else str(parsers.path(value).absolute())


def _default_control(queue: str, runtime: str, environ: Mapping[str, str]) -> str | None:
    """Where the control socket is unless somebody says so. Nothing is checked: whoever binds it says what is wrong."""
    if runtime:
        return str(Path(runtime).absolute() / "workq.sock")
    if user := environ.get("XDG_RUNTIME_DIR"):
        from urllib.parse import quote

        return str(Path(user).absolute() / f"workq-{quote(queue, safe='')}.sock")
    return None


def _has_watchfiles() -> bool:
    from importlib.util import find_spec

    return find_spec("watchfiles") is not None


@dataclass(frozen=True, slots=True)
class _Found:
    """What all sources hold."""

    sources: list[_Source]
    """The one that counts most first."""
    file_read: bool
    misspelt: list[str]
    """Problems with variables that nobody knows."""
    credential: _Given | None
    """Where the URL is when none of them has it."""
    runtime: str
    """The directory for what is there while a supervisor runs; empty where there is none."""


def _look(
    handler: str | None,
    command_line: Mapping[str, str | tuple[str, ...] | bool],
    environ: Mapping[str, str],
    problems: list[str],
) -> _Found:
    named = dict(command_line)
    unit = named.pop("unit", None)
    if unit is not None:
        return _look_at_unit(str(unit), _from_command_line(handler, named), problems)
    given = _from_command_line(handler, named)
    misspelt: list[str] = []
    variables = _from_environment(environ, misspelt)
    problems += misspelt
    file, file_read = _from_file(given.get("config") or variables.get("config"), problems)
    credential = Path(environ.get("CREDENTIALS_DIRECTORY") or os.devnull) / CREDENTIAL
    # systemd names several directories, with colons between, if the unit has several (systemd.exec(5)).
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return _Found(
        [given, variables, file], file_read, misspelt, _credential(credential, "$CREDENTIALS_DIRECTORY/"), runtime
    )


def _look_at_unit(unit: str, given: _Source, problems: list[str]) -> _Found:
    """The variables of whoever asks are not the unit's: one that names another queue would win over its file."""
    name = _instance(unit)
    if "config" in given or not re.fullmatch(r"[\w.:\\-]+", name):
        wrong = "and --config: give one of them" if "config" in given else "expected the NAME of workq-supervise@NAME"
        problems.append(f"--unit {wrong}")
        return _Found([given], False, [], None, "")
    file, file_read = _from_file(_Given(str(UNITS / f"{name}.toml"), "--unit"), problems)
    credential = _credential(UNITS / f"{name}.{CREDENTIAL}", f"{UNITS}/{name}.")
    return _Found([given, file], file_read, [], credential, str(UNITS_RUN / name))


def _instance(unit: str) -> str:
    return unit.removeprefix("workq-supervise@").removesuffix(".service")


def has_settings(unit: str) -> bool:
    """Whether this is a unit of ours, with settings where those have them."""
    return parsers.holds((UNITS / f"{_instance(unit)}.toml").exists)


def _credential(path: Path, where: str) -> _Given | None:
    return _Given(str(path), f"{where}{CREDENTIAL}") if parsers.holds(path.exists) else None


def _from_command_line(handler: str | None, command_line: Mapping[str, str | tuple[str, ...] | bool]) -> _Source:
    given = {name: _Given(value, OPTIONS[name].flag) for name, value in command_line.items()}
    if handler is not None:
        given["handler"] = _Given(handler, OPTIONS["handler"].flag)
    return given


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> _Source:
    """Foreign `WORKQ_*` variables are left alone, since the prefix is not ours alone; near misses are problems."""
    given: _Source = {}
    for variable, text in sorted(environ.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text.strip() or name.startswith(_OTHERS_VARIABLES):
            continue
        if name in OPTIONS and variable == OPTIONS[name].variable:
            given[name] = _Given(text, variable)
        elif nearest := _nearest(name, 0.8):
            problems.append(f"{variable}: unknown, did you mean {OPTIONS[nearest].variable}?")
    return given


def _from_file(config: _Given | None, problems: list[str]) -> tuple[_Source, bool]:
    """What the TOML file holds, and whether it could be read (or was not asked for)."""
    if config is None:
        return {}, True
    import tomllib

    try:
        path = parsers.path(config.value)
    except ValueError as error:
        problems.append(_problem(config, str(error), secret=False))
        return {}, False
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{config.source}: cannot read {_shown(config.value)}: {error.strerror}")
        return {}, False
    except ValueError as error:
        # Only the place: tomllib quotes characters and keys, and the broken line may be the one with the password.
        place = re.search(r"at line \d+, column \d+|at end of document", str(error))
        problems.append(f"{path.name}: not valid TOML {place[0] if place else '(is it UTF-8?)'}")
        return {}, False
    return dict(_from_document(document, path.name, problems)), True


def _from_document(document: dict[str, Any], file: str, problems: list[str]) -> Iterator[tuple[str, _Given]]:
    for key, value in document.items():
        if key in OPTIONS and OPTIONS[key].in_file:
            yield key, _Given(value, f"{file}: {key}")
            continue
        source = f"{file}: {_shown(key).strip(chr(39))}"
        if key in OPTIONS:
            problems.append(f"{source}: not for the file, give {OPTIONS[key].flag} or {OPTIONS[key].variable}")
        else:
            nearest = _nearest(key, 0.6, in_file=True)
            problems.append(f"{source}: unknown key" + (f", did you mean {nearest}?" if nearest else ""))


def _take_all(names: Sequence[str], found: _Found, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in names:
        option = OPTIONS[name]
        if name == "url":
            _take_urls(values, found, problems)
            continue
        given = next((source[name] for source in found.sources if name in source), None)
        if given is None and option.default:
            # Checked as well: `.` may be a directory that has been removed.
            given = _Given(option.default, f"{option.flag} (the default)")
        if given is not None:
            _take(values, option, given, problems)
    return values


def _take(values: dict[str, Any], option: Option, given: _Given, problems: list[str]) -> None:
    try:
        values[option.name] = option.parse(given.value)
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=option.secret))


def _take_urls(values: dict[str, Any], found: _Found, problems: list[str]) -> None:
    """`url` and `url_file` are two ways to say one thing: the first source that has either decides."""
    for source in found.sources:
        url, file = source.get("url"), source.get("url_file")
        if url and file:
            problems.append(f"{url.source} and {file.source}: give one of them")
        elif url:
            _take(values, OPTIONS["url"], url, problems)
        elif file:
            _take_url_file(values, file, problems)
        if url or file:
            return
    if found.credential is not None:
        _take_url_file(values, found.credential, problems)
    else:
        values["url"] = OPTIONS["url"].parse(OPTIONS["url"].default)


def _take_url_file(values: dict[str, Any], given: _Given, problems: list[str]) -> None:
    try:
        path = parsers.path(given.value)
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=False))
        return
    try:
        values["url"] = _read_urls(path)
        if mode := _mode_for_all(path):
            values |= {"url_open": str(path), "url_mode": mode}
    except OSError as error:
        problems.append(f"{given.source}: cannot read {_shown(given.value)}: {error.strerror}")
    except ValueError as error:
        problems.append(_problem(given, str(error), secret=True))


def _mode_for_all(path: Path) -> str:
    """The mode of a file that others can read. Empty where they cannot: by the mode, since a directory on the way there
    is closed to them (as systemd's credentials are), or since it is a pipe."""
    try:
        real = path.resolve()
        mode = real.stat().st_mode
        is_open = stat.S_ISREG(mode) and mode & stat.S_IROTH
        return f"{stat.S_IMODE(mode):04o}" if is_open and all(map(_is_passable, real.parents)) else ""
    except OSError:
        return ""  # it has been read, so this is no name in the file system: /dev/fd/3


def _is_passable(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IXOTH)


def _read_urls(path: Path) -> tuple[Endpoint, ...]:
    # Bytes that are not UTF-8 become escapes that Endpoint refuses: a decoding error would hold the file's content.
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    named = [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1)]
    named = [(name, line) for name, line in named if line and not line.startswith("#")]
    if not named:
        raise ValueError("a file with a URL on a line of its own, but it has none")
    return parsers.named_urls(named)


# ---------------------------------------------------------------------------------------------------- the report


def _problem(given: _Given, expected: str, *, secret: bool) -> str:
    return f"{given.source}: {'' if secret else f'got {_shown(given.value)}, '}expected {expected}"


def _shown(value: object) -> str:
    """A refused value, for a report. A URL in the wrong place (`--queue "$URL"`) is not shown there either."""
    text = repr(value)
    if "://" in text or "@" in text:
        return "something like a URL (not shown)"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _nearest(name: str, likeness: float, *, in_file: bool = False) -> str | None:
    from difflib import get_close_matches

    known = [option.name for option in OPTIONS.values() if option.in_file or not in_file]
    return next(iter(get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=likeness)), None)
