"""The main job with what is installed in this Python's environment, and nothing of this tree: a broker, 20 tasks, each
done once, and not a word on stderr that is no event. `scripts/test pythons` runs it, on every Python.

    VENV/bin/python -I tests/first_job.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

BIN = Path(sys.executable).parent
TASKS = 20
HANDLER = """
def work(task):
    print("done", task.text)
"""


def first_job(where: Path) -> None:
    (where / "job_tasks.py").write_text(HANDLER)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("WORKQ_", "PYTHON"))}
    environ |= {name: value for name, value in os.environ.items() if name == "WORKQ_RABBITMQ_HOME"}
    environ["PYTHONWARNINGS"] = "default"
    broker = subprocess.Popen([BIN / "workq", "broker", "run"], stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert broker.stdout is not None
        said = broker.stdout.readline()
        url = re.search(r"amqp://\S+", said)
        assert url is not None, f"no broker: {said!r}"
        environ["WORKQ_URL"] = url[0]
        bodies = [f"task-{number}" for number in range(TASKS)]
        published = subprocess.run([BIN / "workq", "publish", *bodies], env=environ, capture_output=True, text=True)
        assert published.returncode == 0 and f"confirmed {TASKS}" in published.stdout, published
        options = ["--workers", "2", "--burst", "--health", "off", "--log-format", "json"]
        command = [BIN / "workq-supervise", *options, "job_tasks:work"]
        ran = subprocess.run(command, env=environ, cwd=where, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr[-4000:]
        events = [json.loads(line) for line in ran.stderr.splitlines()]
        done = Counter(line for event in events for line in re.findall(r"done (task-\d+)", event.get("line", "")))
        assert done == Counter(bodies), f"{done}\n{ran.stderr[-4000:]}"
        assert [event for event in events if event["level"] in ("warning", "error")] == []
        assert (published.stderr, ran.stdout) == ("", "")
    finally:
        broker.send_signal(signal.SIGTERM)
        broker.wait(60)


if __name__ == "__main__":
    with TemporaryDirectory(prefix="workq-job-") as directory:
        first_job(Path(directory))
    print(f"Python {sys.version.split()[0]}: {TASKS} tasks, each done once")
