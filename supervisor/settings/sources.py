"""The sources of settings. Light, since workers import it: tomllib and the like are imported where needed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import supervisor.settings.parsers as parsers
from supervisor.endpoint import Endpoint
from supervisor.settings.options import ENVIRONMENT_PREFIX, OPTIONS, Settings
from supervisor.settings.parsers import AUTO, Address
from supervisor.values import dataclass

CREDENTIAL: Final = "amqp-url"
"""The name of the URL's credential in systemd's LoadCredential=."""
UNITS: Final = Path("/etc/workq")
"""Where the unit workq-supervise@NAME has NAME.toml and NAME.amqp-url."""
UNITS_RUN: Final = Path("/run/workq")
"""Where it has its control socket."""

_OTHERS_VARIABLES: Final = ("rabbitmq_", "test_")
"""`WORKQ_RABBITMQ_HOME` and the like are read elsewhere and never a misspelt option."""
_SHOWN: Final = 60
"""Characters quoted of a refused value."""


class SettingsError(Exception):
    """Invalid settings. `problems` has a line for each; none quotes a URL."""

    def __init__(self, problems: list[str], *, handler_missing: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.handler_missing = handler_missing
        """No source names a handler: the command line is incomplete."""


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str
    """Where to correct it."""


_Layer = dict[str, _Given]
CommandLine = Mapping[str, str | tuple[str, ...] | bool]
"""Names of `OPTIONS`, or `unit`, and what was given for them; nothing that was not given."""


class _Layers:
    """The values from command line, environment and file, and what is wrong with the sources themselves."""

    def __init__(self, command_line: CommandLine, environ: Mapping[str, str]) -> None:
        self.unknown: list[str] = []
        """A problem for each unknown name."""
        self.unread: list[str] = []
        """Why the file or the unit cannot be read; empty: it can, or there is none."""
        given = {name: _Given(value, OPTIONS[name].flag) for name, value in command_line.items() if name != "unit"}
        self.in_order = [given]
        """In order of precedence."""
        self.credential: _Given | None = None
        """The URL's file if no source has it."""
        self.runtime = ""
        """$RUNTIME_DIRECTORY; empty when unset."""
        if "unit" in command_line:
            self._look_at_unit(str(command_line["unit"]), given)
            return
        variables = self._from_environment(environ)
        self.in_order += [variables, self._from_file(given.get("config") or variables.get("config"))]
        directory = Path(environ.get("CREDENTIALS_DIRECTORY") or os.devnull)
        self.credential = _credential(directory / CREDENTIAL, "$CREDENTIALS_DIRECTORY/")
        # systemd names several directories, with colons between, if the unit has several (systemd.exec(5)).
        self.runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]

    def given(self, name: str) -> _Given | None:
        """The value in effect."""
        return next((source[name] for source in self.in_order if name in source), None)

    def read(self, names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
        """These settings, and all problems."""
        values: dict[str, Any] = {}
        problems = [*self.unknown, *self.unread]
        for option in map(OPTIONS.__getitem__, names):
            given = self.given(option.name)
            if given is None and option.default:
                # Defaults are checked too: `.` may be a directory that has been removed.
                given = _Given(option.default, f"{option.flag} (the default)")
            try:
                if option.name == "url":
                    values |= self._urls()
                elif given is not None:
                    values[option.name] = _parsed(given, option.parse, option.secret)
            except SettingsError as error:
                problems += error.problems
        return values, problems

    def _look_at_unit(self, unit: str, given: _Layer) -> None:
        """Ignores the caller's variables, which are not the unit's: one for another queue would override its file."""
        name = _instance(unit)
        if "config" in given:
            self.unread = ["--unit and --config: give only one"]
        elif not re.fullmatch(r"[\w.:\\-]+", name):
            self.unread = ["--unit expected the NAME of workq-supervise@NAME"]
        else:
            self.in_order.append(self._from_file(_Given(str(UNITS / f"{name}.toml"), "--unit")))
            self.credential = _credential(UNITS / f"{name}.{CREDENTIAL}", f"{UNITS}/{name}.")
            self.runtime = str(UNITS_RUN / name)

    def _from_environment(self, environ: Mapping[str, str]) -> _Layer:
        """Ignores unknown `WORKQ_*` variables, as others use the prefix too, but reports near misses."""
        given: _Layer = {}
        for variable, text in sorted(environ.items()):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            if not variable.startswith(ENVIRONMENT_PREFIX) or not text.strip() or name.startswith(_OTHERS_VARIABLES):
                continue
            if name in OPTIONS and variable == OPTIONS[name].variable:
                given[name] = _Given(text, variable)
            elif nearest := _nearest(name, 0.8):
                self.unknown.append(f"{variable}: unknown, did you mean {OPTIONS[nearest].variable}?")
        return given

    def _from_file(self, config: _Given | None) -> _Layer:
        try:
            file, document = _document(config) if config is not None else ("", {})
        except SettingsError as error:
            self.unread = error.problems
            return {}
        given: _Layer = {}
        for key, value in document.items():
            source = f"{file}: {_shown(key).strip(chr(39))}"
            if (option := OPTIONS.get(key)) and option.in_file:
                given[key] = _Given(value, source)
            elif option:
                self.unknown.append(f"{source}: not allowed in the file, use {option.flag} or {option.variable}")
            else:
                nearest = _nearest(key, 0.6, in_file=True)
                self.unknown.append(f"{source}: unknown key" + (f", did you mean {nearest}?" if nearest else ""))
        return given

    def _urls(self) -> dict[str, Any]:
        """`url` and `url_file` are alternatives: the first source that has either decides."""
        for source in self.in_order:
            url, file = source.get("url"), source.get("url_file")
            if url and file:
                raise SettingsError([f"{url.source} and {file.source}: give only one"])
            if url:
                return {"url": _parsed(url, OPTIONS["url"].parse, secret=True)}
            if file:
                return _url_file(file)
        if self.credential is not None:
            return _url_file(self.credential)
        return {"url": OPTIONS["url"].parse(OPTIONS["url"].default)}


def load(handler: str | None, command_line: CommandLine, environ: Mapping[str, str]) -> Settings:
    """Command line over environment over file over default; an empty variable counts as unset. Raises SettingsError
    with all problems; of an option given several times only the value in effect is checked."""
    sources = _Layers(command_line if handler is None else {**command_line, "handler": handler}, environ)
    values, problems = sources.read(name for name in OPTIONS if name not in ("url_file", "config"))
    values["health_explicit"] = sources.given("health") is not None
    values["control_explicit"] = values.get("control") != AUTO and sources.given("control") is not None
    if values.get("control") == AUTO and "queue" in values:
        values["control"] = _default_control(values["queue"], sources.runtime, environ)
    if values.get("reload"):
        from importlib.util import find_spec

        if find_spec("watchfiles") is None:
            from supervisor import extras

            problems.append(f"reload: needs watchfiles: {extras.line('reload')}")

    # A file that cannot be read may name the handler.
    missing = not sources.unread and sources.given("handler") is None
    if missing:
        problems.append("no handler: give MODULE:FUNCTION, WORKQ_HANDLER, or handler in the file")
    if problems:
        raise SettingsError(problems, handler_missing=missing)
    return Settings(**values)


def read(names: Sequence[str], command_line: CommandLine, environ: Mapping[str, str]) -> dict[str, Any]:
    """These settings by name, from the sources of `load`; with `unit` in the command line, from the unit's. Raises
    SettingsError, also for unknown names: with a misspelt `queue` a command would act on another one."""
    values, problems = _Layers(command_line, environ).read(names)
    if problems:
        raise SettingsError(problems)
    return values


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where to find a running supervisor."""

    queue: str
    control: str | None
    health: Address | None
    explicit: frozenset[str]
    """Those of the three that were given."""


def locate(
    command_line: CommandLine,
    environ: Mapping[str, str],
    names: tuple[str, ...] = ("queue", "control", "health"),
) -> Whereabouts:
    """Where that supervisor would be; settings not in `names` have their default. Raises SettingsError."""
    sources = _Layers(command_line, environ)
    values: dict[str, Any] = {}
    problems = list(sources.unread)
    named = {name: given for name in names if (given := sources.given(name)) is not None}
    for name in ("queue", "control", "health"):
        # Whether a socket exists and admits us, only connecting shows.
        parse = _anywhere if name == "control" else OPTIONS[name].parse
        try:
            values[name] = _parsed(named.get(name) or _Given(OPTIONS[name].default, OPTIONS[name].flag), parse)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    if values["control"] == AUTO:
        values["control"] = _default_control(values["queue"], sources.runtime, environ)
    return Whereabouts(**values, explicit=frozenset(name for name, given in named.items() if given.value != AUTO))


def _anywhere(value: object) -> str | None:
    return None if value == "off" else AUTO if value == AUTO else str(parsers.path(value).absolute())


def _default_control(queue: str, runtime: str, environ: Mapping[str, str]) -> str | None:
    """Unchecked: binding it will raise."""
    if runtime:
        return str(Path(runtime).absolute() / "workq.sock")
    if user := environ.get("XDG_RUNTIME_DIR"):
        from urllib.parse import quote

        return str(Path(user).absolute() / f"workq-{quote(queue, safe='')}.sock")
    return None


def _instance(unit: str) -> str:
    return unit.removeprefix("workq-supervise@").removesuffix(".service")


def has_settings(unit: str) -> bool:
    """Whether this is a unit of ours, with its settings in the usual place."""
    return parsers.holds((UNITS / f"{_instance(unit)}.toml").exists)


def _credential(path: Path, where: str) -> _Given | None:
    return _Given(str(path), f"{where}{CREDENTIAL}") if parsers.holds(path.exists) else None


def _parsed(given: _Given, parse: parsers.Parser, secret: bool = False) -> Any:
    try:
        return parse(given.value)
    except ValueError as error:
        got = "" if secret else f"got {_shown(given.value)}, "
        raise SettingsError([f"{given.source}: {got}expected {error}"]) from None


def _document(config: _Given) -> tuple[str, dict[str, Any]]:
    """The TOML file's name and content. Raises SettingsError."""
    import tomllib

    path = _parsed(config, parsers.path)
    try:
        return path.name, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(config, error) from None
    except ValueError as error:
        # Only the position: tomllib quotes characters and keys, and the broken line may have the password.
        place = re.search(r"at line \d+, column \d+|at end of document", str(error))
        raise SettingsError([f"{path.name}: not valid TOML {place[0] if place else '(is it UTF-8?)'}"]) from None


def _url_file(given: _Given) -> dict[str, Any]:
    path = _parsed(given, parsers.path)
    try:
        urls = _parsed(given, lambda _: _read_urls(path), secret=True)
    except OSError as error:
        raise _unreadable(given, error) from None
    mode = _mode_for_all(path)
    return {"url": urls} | ({"url_open": str(path), "url_mode": mode} if mode else {})


def _unreadable(given: _Given, error: OSError) -> SettingsError:
    return SettingsError([f"{given.source}: cannot read {_shown(given.value)}: {error.strerror}"])


def _mode_for_all(path: Path) -> str:
    """The mode of a file that other users can read, by its own mode and those of the directories above; else empty."""
    try:
        real = path.resolve()
        mode = real.stat().st_mode
        is_open = stat.S_ISREG(mode) and mode & stat.S_IROTH
        is_passable = all(directory.stat().st_mode & stat.S_IXOTH for directory in real.parents)
        return f"{stat.S_IMODE(mode):04o}" if is_open and is_passable else ""
    except OSError:
        return ""  # it was read, so this is not in the file system: /dev/fd/3


def _read_urls(path: Path) -> tuple[Endpoint, ...]:
    # Bytes that are not UTF-8 become escapes that Endpoint refuses: a decoding error would hold the file's content.
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    named = [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1)]
    named = [(name, line) for name, line in named if line and not line.startswith("#")]
    if not named:
        raise ValueError("a file with one URL per line, but it has none")
    return parsers.named_urls(named)


def _shown(value: object) -> str:
    """A refused value, for a report. A URL in the wrong place (`--queue "$URL"`) is not shown."""
    text = repr(value)
    if "://" in text or "@" in text:
        return "something like a URL (not shown)"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _nearest(name: str, likeness: float, *, in_file: bool = False) -> str | None:
    from difflib import get_close_matches

    known = [option.name for option in OPTIONS.values() if option.in_file or not in_file]
    return next(iter(get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=likeness)), None)
