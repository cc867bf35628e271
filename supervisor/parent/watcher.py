"""`--reload`, for development: a thread that requests a reload when a Python file changes. Needs the `reload` extra."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from supervisor import logs
from supervisor.parent.control import Wishes
from supervisor.parent.snapshot import Look
from supervisor.policy.events import Asked, Wish
from supervisor.policy.reload import Stage

_SETTLES: Final = 300
"""Milliseconds within which changes count as one: an editor, or a checkout, writes several files."""
_LOOK_EVERY: Final = 100
"""Milliseconds."""
_LEAVES_WITHIN: Final = 2.0


class Changes:
    """Watches the Python files below a directory (`watchfiles.PythonFilter`); not settings, perhaps half edited."""

    def __init__(self, directory: str, look: Look, wishes: Wishes) -> None:
        self._directory = directory
        self._look = look
        self._wishes = wishes
        self._log: Any = logs.get_logger()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workq-reload", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """A thread inside Rust at interpreter exit would abort it (https://github.com/PyO3/pyo3/pull/4874)."""
        self._end.set()
        self._thread.join(_LEAVES_WITHIN)

    def _watch(self) -> None:
        try:
            import watchfiles

            logging.getLogger("watchfiles").setLevel(logging.WARNING)
            for changes in watchfiles.watch(
                self._directory,
                watch_filter=watchfiles.PythonFilter(),
                debounce=_SETTLES,
                step=_LOOK_EVERY,
                stop_event=self._end,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                first, *others = sorted(path for _, path in changes)
                name = Path(first).name
                self._changed(f"{name} and {len(others)} more" if others else name)
        except Exception as error:  # noqa: BLE001 - inotify has limits, a directory may vanish: workers run on without
            because = f"{self._directory} is not watched: {error}; use SIGHUP or workq reload"
            self._log.error("reload.not_watching", because=because)

    def _changed(self, what: str) -> None:
        """Request a reload, once the previous one is so far that it would not be refused."""
        while (latest := self._look().view.reload) and latest.stage in (Stage.LOADING, Stage.TRYING):
            if self._end.wait(_LOOK_EVERY / 1000):
                return
        wish: Future[Any] = self._wishes.make(Asked(Wish.RELOAD, f"--reload: {what} changed"))
        while not wish.done() and not self._end.wait(_LOOK_EVERY / 1000):
            pass
