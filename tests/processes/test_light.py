"""What every process imports, and what it must not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


def ask(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("room", ["supervisor.worker.nursery", "supervisor.parent.main, supervisor.parent.http.server"])
def test_neither_parent_nor_worker_brings_rich_or_greenlet_along(room: str) -> None:
    assert importlib.util.find_spec("greenlet") is not None
    assert ask(f"import sys, {room}; print(*{{'structlog', 'rich', 'greenlet'}} & set(sys.modules))") == "structlog"


@pytest.mark.parametrize("room", ["supervisor.worker.nursery", "supervisor.parent.main", "supervisor.parent.zygote"])
def test_neither_parent_nor_worker_imports_asyncio_before_something_uses_it(room: str) -> None:
    assert ask(f"import sys, {room}; print('asyncio' in sys.modules)") == "False"


@pytest.mark.parametrize("room", ["supervisor.worker.nursery", "supervisor.parent.main", "supervisor.parent.zygote"])
def test_neither_parent_nor_worker_loads_openssl_before_something_uses_it(room: str) -> None:
    assert ask(f"import sys, {room}; print(*{{'ssl', '_ssl', '_hashlib'}} & set(sys.modules))") == ""


def test_pika_finds_ssl_when_it_uses_it() -> None:
    use = "import ssl, pika; print(pika.SSLOptions(ssl.create_default_context()).context.verify_mode.name)"
    assert ask(f"import supervisor.worker.nursery; {use}") == "CERT_REQUIRED"


def test_what_a_thread_does_without_others_find() -> None:
    other = "import threading; found = []; find = lambda: found.append(__import__('ssl'))"
    inside = "thread = threading.Thread(target=find); thread.start(); thread.join()"
    refused = "with without('ssl'):\n try: import ssl\n except ImportError as error: print(error.name)"
    block = f"from supervisor.late import without\n{other}\n{refused}\n {inside}\n import ssl; print(ssl is found[0])"
    assert ask(block).split() == ["ssl", "True"]


def test_who_uses_asyncio_finds_it_structlog_and_pika_among_them() -> None:
    load = "import supervisor.worker.nursery, structlog, pika.adapters.asyncio_connection as adapter"
    assert ask(f"{load}; print(adapter.asyncio.SelectorEventLoop.__name__)") == "_UnixSelectorEventLoop"
    say = "async def say(): await structlog.stdlib.get_logger().ainfo('said')"
    bound = "structlog.configure(wrapper_class=structlog.stdlib.BoundLogger)"
    assert "said" in ask(f"{load}; {bound}\n{say}\nimport asyncio; asyncio.run(say())")
    # Since Python 3.12; before, no record has the name of a task.
    name = "async def name(): print(getattr(logging.makeLogRecord({}), 'taskName', 'Task-1'))"
    assert ask(f"{load}, asyncio, logging\n{name}\nasyncio.run(name())") == "Task-1"
    theirs = "import asyncio, asyncio.events; print(asyncio.events.__name__, asyncio.__file__ is not None)"
    assert ask(f"{load}; {theirs}") == "asyncio.events True"


@pytest.mark.parametrize("use", ["import asyncio; asyncio.Queue", "from asyncio import Queue"])
def test_who_uses_asyncio_while_it_is_held_back_has_it_at_once(use: str) -> None:
    """A structlog or pika to come may use it where today's only names it."""
    block = f"import sys; from supervisor.late import later\nwith later('asyncio'): {use}"
    assert ask(f"{block}\nimport asyncio, asyncio.queues; print(asyncio.Queue is asyncio.queues.Queue)") == "True"


@pytest.mark.parametrize("hooked", ["pika", "structlog", "structlog.stdlib"])
@pytest.mark.parametrize("submodule", ["events", "base_futures"])
def test_an_import_hook_that_wants_a_submodule_of_asyncio_finds_it_and_only_once(hooked: str, submodule: str) -> None:
    """As agents that watch applications do, when they see what they know."""
    find = (
        f"def find_spec(self, name, *_):\n  if name == {hooked!r}: import asyncio.{submodule} as it; found.append(it)"
    )
    hook = f"import sys\nfound = []\nclass Hook:\n {find}\nsys.meta_path.insert(0, Hook())"
    same = f"found[0] is asyncio.{submodule} is sys.modules['asyncio.{submodule}']"
    told = f"print({same}, found[0].__spec__.loader.name, asyncio.run(asyncio.sleep(0, 'ran')))"
    assert ask(f"{hook}\nimport supervisor.worker.nursery, asyncio\n{told}") == f"True asyncio.{submodule} ran"


def test_a_submodule_that_asyncio_itself_does_not_import_is_found_too() -> None:
    block = "from supervisor.late import later\nwith later('xml'): import xml.dom.minidom"
    assert (
        ask(f"{block}\nimport xml; print(xml.dom.minidom.__name__, xml.__file__ is not None)") == "xml.dom.minidom True"
    )


def test_beside_other_threads_no_module_is_held_back_for_they_may_import_it_too() -> None:
    thread = "import sys, threading; done = threading.Event(); threading.Thread(target=done.wait).start()"
    said = ask(f"{thread}; import supervisor.light; print('asyncio' in sys.modules); done.set()")
    assert said == "True"


def test_what_serves_http_brings_neither_a_framework_nor_multiprocessing_nor_what_watches_files() -> None:
    serve = (
        "import contextlib, sys; from supervisor.parent.http import server; server.serve([], contextlib.nullcontext())"
    )
    heavy = "{'h11', 'uvicorn', 'starlette', 'anyio', 'multiprocessing', 'watchfiles', 'click'}"
    assert ask(f"{serve}; print(*{heavy} & set(sys.modules))") == "h11"


def test_no_command_but_ui_brings_the_web_framework() -> None:
    every = "[main.get_command(None, name) for name in COMMANDS]"
    load = f"import sys; from supervisor.commands import COMMANDS, main; {every}"
    assert ask(f"{load}; print(*{{'starlette', 'uvicorn', 'anyio'}} & set(sys.modules))") == ""


@pytest.mark.parametrize("verb", ["dead", "publish", "check", "kill", "status"])
def test_verbs_that_run_no_handler_bring_neither_structlog_nor_rich_before_they_draw(verb: str) -> None:
    load = f"import sys; from supervisor.commands import main; main.get_command(None, {verb!r})"
    assert ask(f"{load}; print(*{{'structlog', 'rich.console', 'supervisor.worker'}} & set(sys.modules))") == ""


def test_who_imports_rich_or_greenlet_afterwards_gets_it_and_structlog_colours_as_ever_for_who_had_it_before() -> None:
    assert ask("import supervisor.logs, rich.table; print(rich.table.Table.__name__)") == "Table"
    assert ask("import supervisor.logs, greenlet; print(greenlet.getcurrent is not None)") == "True"
    colours = "import structlog.dev; print(structlog.dev.rich is not None)"
    assert ask(f"import rich, supervisor.logs; {colours}") == "True"
    assert ask(f"import supervisor.logs; {colours}") == "False"
