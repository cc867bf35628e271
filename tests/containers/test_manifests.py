"""The pod of config/kubernetes and the pool of compose.yaml, as far as a container alone can be what they describe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from supervisor.commands.node import Port
from tests import amqp
from tests.containers.engine import ROOT, Contained, Engine
from tests.node import PrivateNode

OBJECTS = list(yaml.safe_load_all((ROOT / "config/kubernetes/workq.yaml").read_text()))
POD = next(each for each in OBJECTS if each["kind"] == "Deployment")["spec"]["template"]["spec"]
POOL = yaml.safe_load((ROOT / "config/container/compose.yaml").read_text())["services"]["pool"]


def kubernetes(url: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Variables, options of podman, arguments."""
    return as_user(url, POD["securityContext"]["runAsUser"], POD["securityContext"]["fsGroup"])


def openshift(url: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Ids that no image knows."""
    return as_user(url, 1_000_620_000, 1_000_620_000)


def as_user(url: Path, user: int, group: int) -> tuple[dict[str, str], list[str], list[str]]:
    [container] = POD["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    # As the kubelet does with a Secret's file.
    os.chown(url, 0, group)
    url.chmod(next(each["secret"]["defaultMode"] for each in POD["volumes"] if "secret" in each))
    assert container["securityContext"]["readOnlyRootFilesystem"]
    options = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
    options += [
        "--user",
        f"{user}:0",
        "--group-add",
        str(group),
        "--memory",
        "1g",
        "-v",
        f"{url}:{env['WORKQ_URL_FILE']}:ro",
    ]
    options += [option for mount in container["volumeMounts"] if mount["name"] == "tmp"
                for option in ("--tmpfs", mount["mountPath"])]  # fmt: skip
    return env, options, container["args"]


def compose(url: Path) -> tuple[dict[str, str], list[str], list[str]]:
    env = {**POOL["environment"], "WORKQ_URL": url.read_text()}
    options = ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", POOL["mem_limit"]]
    options += ["--read-only", "--read-only-tmpfs=false"] if POOL["read_only"] else []
    options += [option for path in POOL["tmpfs"] for option in ("--tmpfs", path)]
    return env, options, POOL["command"]


@pytest.mark.parametrize("described", [kubernetes, openshift, compose])
def test_what_is_described_consumes_answers_its_probes_and_drains(
    engine: Engine, app: str, node: PrivateNode, queue: str, name: str, tmp_path: Path, described: object
) -> None:
    url = tmp_path / "amqp-url"
    url.write_text(node.url)
    env, options, arguments = described(url)  # type: ignore[operator]
    port = Port()
    # On the host's network, beside others.
    env |= {"WORKQ_QUEUE": queue, "WORKQ_HEALTH": f"127.0.0.1:{port.number}"}
    variables = [option for each, value in env.items() for option in ("-e", f"{each}={value}")]
    pool = Contained(engine, name, *arguments, options=(*options, *variables, app), queue=queue)
    try:
        pool.ready()
        assert [pool.get(path)[0] for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
        assert pool.hear("control.listening")["path"] == "/tmp/workq.sock"
        assert pool.exec("workq", "status", "--ready").stdout == "4 of 4 workers consume\n"
        amqp.publish(node.url, queue, ["0"])
        pool.hear("worker.output", line="resized 1 Byte")
        assert pool.stop() == 0
    finally:
        pool.end()
