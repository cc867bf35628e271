"""config/kubernetes and compose.yaml: valid by the published schemas, and numbers that depend on each other agree."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.commands.check.machine import MIB, OVERHEAD, STOP_MARGIN
from supervisor.settings import OPTIONS, load, parse_duration

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "config" / "kubernetes"
CONTAINERFILE = (ROOT / "config" / "container" / "Containerfile").read_text()
COMPOSE = ROOT / "config" / "container" / "compose.yaml"
PAGE = (ROOT / "docs" / "containers.md").read_text()
OBJECTS = {
    (each["kind"], file.name): each
    for file in sorted(KUBERNETES.glob("*.yaml"))
    for each in yaml.safe_load_all(file.read_text())
}
CORE = ("apps/v1", "policy/v1", "networking.k8s.io/v1")


SECRET = r"kubectl create secret generic (\S+) --from-file=(\S+)"
"""Its name, and the key, which is the file's name."""


def the(kind: str) -> Any:
    [found] = [each for (name, _), each in OBJECTS.items() if name == kind]
    return found


DEPLOYMENT = the("Deployment")["spec"]
POD = DEPLOYMENT["template"]["spec"]
[CONTAINER] = POD["containers"]
ENV = {each["name"]: each["value"] for each in CONTAINER["env"]}
POOL = yaml.safe_load(COMPOSE.read_text())["services"]["pool"]
IMAGE_ENV = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", CONTAINERFILE, re.MULTILINE))


def validate(manifest: dict[str, Any], version: str = "latest") -> None:
    """By the schemas of this Kubernetes, without fields that it does not know. Raises ValueError."""
    # Imported late: its grammars take a second, in each process of the tests.
    import kubernetes_validate

    if version == "latest":
        version = kubernetes_validate.latest_version()
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise ValueError(str(error)) from error


@pytest.mark.parametrize("version", ["latest", "1.28"])
def test_the_objects_of_kubernetes_itself_are_valid(version: str) -> None:
    core = [each for each in OBJECTS.values() if each["apiVersion"] in CORE]
    assert sorted(each["kind"] for each in core) == ["Deployment", "NetworkPolicy", "PodDisruptionBudget"]
    for each in core:
        validate(each, version)


def test_no_manifest_has_a_secret_which_an_apply_would_put_in_place_of_the_users() -> None:
    assert "Secret" not in {kind for kind, _ in OBJECTS}
    written = re.findall(SECRET, (KUBERNETES / "workq.yaml").read_text() + PAGE)
    assert len(written) > 1 and len(set(written)) == 1, "what makes it is written in the manifest and on the page"


def test_a_misspelt_field_would_be_noticed() -> None:
    wrong = json.loads(json.dumps(the("Deployment")))
    wrong["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    with pytest.raises(ValueError, match="terminationGraceSeconds"):
        validate(wrong)


def test_compose_is_valid_by_its_specification() -> None:
    text = (resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
    schema = json.loads(text)
    from jsonschema.validators import validator_for  # late, see `validate`

    check = validator_for(schema)(schema)
    compose = yaml.safe_load(COMPOSE.read_text())
    assert [error.message for error in check.iter_errors(compose)] == []
    compose["services"]["pool"]["stop_grace"] = "60s"
    assert [error.message for error in check.iter_errors(compose)]


# ------------------------------------------------------------------------------------------------ custom resources
# No schema of theirs is in a package: the fields that we use, as https://prometheus-operator.dev/docs/api-reference/api
# and https://keda.sh/docs/latest/reference describe them.


def test_the_pod_monitor_has_the_operators_fields_and_scrapes_the_health_port() -> None:
    monitor = the("PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "path", "interval"}
    assert endpoint["port"] in [port["name"] for port in CONTAINER["ports"]]
    assert endpoint["path"] == "/metrics" and re.fullmatch(r"\d+s", endpoint["interval"])


def test_the_scaled_object_has_kedas_fields_and_scales_the_deployment_by_its_queue() -> None:
    scaled, login = the("ScaledObject"), the("TriggerAuthentication")
    assert scaled["apiVersion"] == login["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    known = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced"}
    assert spec.keys() == known | {"triggers"}
    assert spec["scaleTargetRef"] == {"name": the("Deployment")["metadata"]["name"]}
    assert 1 <= spec["minReplicaCount"] <= DEPLOYMENT["replicas"] <= spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    assert trigger["type"] == "rabbitmq"
    assert trigger["authenticationRef"] == {"name": login["metadata"]["name"]}
    metadata = trigger["metadata"]
    assert metadata.keys() == {"protocol", "queueName", "mode", "value"}
    # All of a trigger's metadata are strings.
    assert (metadata["protocol"], metadata["mode"]) == ("amqp", "QueueLength")
    assert metadata["queueName"] == ENV["WORKQ_QUEUE"]
    assert int(metadata["value"]) % int(ENV["WORKQ_WORKERS"]) == 0
    [reference] = login["spec"]["secretTargetRef"]
    [secret] = set(re.findall(SECRET, PAGE))
    assert reference["parameter"] == "host" and (reference["name"], reference["key"]) == secret


def test_the_autoscaler_that_keda_makes_would_be_valid() -> None:
    spec = the("ScaledObject")["spec"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]}
    limits = {"minReplicas": spec["minReplicaCount"], "maxReplicas": spec["maxReplicaCount"]}
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "x"},
        "spec": {"scaleTargetRef": target, **limits, "behavior": behavior},
    }
    validate(scaler)


# ------------------------------------------------------------------------------------------------ what must agree


def test_every_selector_selects_the_pods() -> None:
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    for selector in (
        DEPLOYMENT["selector"],
        the("PodDisruptionBudget")["spec"]["selector"],
        the("NetworkPolicy")["spec"]["podSelector"],
        the("PodMonitor")["spec"]["selector"],
    ):
        assert selector == {"matchLabels": labels}


def test_whoever_stops_waits_for_the_grace_and_a_little_longer() -> None:
    assert POD["terminationGracePeriodSeconds"] == parse_duration(ENV["WORKQ_GRACE"]) + STOP_MARGIN
    assert "lifecycle" not in CONTAINER
    compose = POOL["environment"]["WORKQ_GRACE"]
    assert parse_duration(POOL["stop_grace_period"]) == parse_duration(compose) + STOP_MARGIN
    assert parse_duration(IMAGE_ENV["WORKQ_GRACE"]) + STOP_MARGIN == 10  # docker stop, podman stop


def test_probes_ports_and_policies_name_the_health_port() -> None:
    [port] = CONTAINER["ports"]
    for value in (ENV["WORKQ_HEALTH"], IMAGE_ENV["WORKQ_HEALTH"]):
        assert value == f"0.0.0.0:{port['containerPort']}"
    assert f"EXPOSE {port['containerPort']}\n" in CONTAINERFILE
    assert POOL["ports"] == [f"127.0.0.1:{port['containerPort']}:{port['containerPort']}"]
    paths = {"livenessProbe": "/healthz", "readinessProbe": "/readyz", "startupProbe": "/healthz"}
    for probe, path in paths.items():
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": port["name"]}
    [rule] = the("NetworkPolicy")["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [port["name"]]


def test_a_release_has_longer_to_become_ready_than_its_start_may_take() -> None:
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] < DEPLOYMENT["progressDeadlineSeconds"]


def test_the_workers_fit_into_the_memory() -> None:
    [size] = re.findall(r"(\d+)M", ENV["WORKQ_MAX_MEMORY"])
    [limit] = re.findall(r"(\d+)Gi", CONTAINER["resources"]["limits"]["memory"])
    assert int(ENV["WORKQ_WORKERS"]) * int(size) * MIB + OVERHEAD <= int(limit) * 1024 * MIB


def test_the_url_is_read_from_the_mounted_secret_and_stands_in_no_variable() -> None:
    [(secret, key)] = set(re.findall(SECRET, PAGE))
    [mounted] = [each["mountPath"] for each in CONTAINER["volumeMounts"] if each["name"] == "amqp-url"]
    [volume] = [each["secret"] for each in POD["volumes"] if each["name"] == "amqp-url"]
    assert volume["secretName"] == secret
    assert ENV["WORKQ_URL_FILE"] == f"{mounted}/{key}"
    assert "WORKQ_URL" not in ENV
    # Kubernetes makes the file root's: the group may read it, and fsGroup is the pod's.
    assert volume["defaultMode"] == 0o440 and POD["securityContext"]["fsGroup"] > 0


def test_the_policy_lets_the_pods_out_to_names_and_to_a_broker_wherever_it_is() -> None:
    rules = the("NetworkPolicy")["spec"]["egress"]
    assert not any("to" in rule for rule in rules), "a selector of pods alone is for those of the pool's own namespace"
    ports = {(port["protocol"], port["port"]) for rule in rules for port in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("TCP", 5672), ("TCP", 5671)}


def test_the_control_socket_is_where_the_pod_may_write() -> None:
    assert IMAGE_ENV["RUNTIME_DIRECTORY"] == "/tmp"
    [volume] = [each["name"] for each in CONTAINER["volumeMounts"] if each["mountPath"] == "/tmp"]
    assert "emptyDir" in next(each for each in POD["volumes"] if each["name"] == volume)
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] and POOL["read_only"] and POOL["tmpfs"] == ["/tmp"]


def test_the_pod_meets_the_restricted_standard() -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert POD["securityContext"]["runAsNonRoot"] and POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = CONTAINER["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(each.keys() - {"name"})) for each in POD["volumes"]} <= {"secret", "emptyDir"}
    assert f"USER {POD['securityContext']['runAsUser']}\n" in CONTAINERFILE


@pytest.mark.parametrize("env", [ENV, POOL["environment"], IMAGE_ENV], ids=["kubernetes", "compose", "image"])
def test_every_variable_is_an_option_that_takes_its_value(env: dict[str, str]) -> None:
    ours = {name: value for name, value in env.items() if name.startswith("WORKQ_")}
    assert ours and ours.keys() <= {option.variable for option in OPTIONS.values()}
    readable = {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in ours.items()}
    load("tasks:resize", {}, {name: value for name, value in readable.items() if name != "WORKQ_URL_FILE"})


def test_what_the_manifests_start_is_what_compose_starts() -> None:
    assert CONTAINER["args"] == POOL["command"] == ["tasks:resize"]
    assert "command" not in CONTAINER and "entrypoint" not in POOL
