"""The manifests of Kubernetes: valid without a cluster, and in agreement with the server and the image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dockerfiles import stages

from tnn_runtime.commands.predict import build_parser

DOCKER = Path(__file__).parents[2] / "docker"
FOLDER = DOCKER / "kubernetes"
_, IMAGE = stages(DOCKER / "Dockerfile")
NAMES = sorted(path.name for path in FOLDER.iterdir())
OURS = [name for name in NAMES if "triton" not in name]
VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())

Manifest = dict[str, Any]

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
MODEL = {
    "modelFormat": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": TEXT, "version": TEXT},
        "additionalProperties": False,
    },
    "protocolVersion": {"enum": ["v2", "grpc-v2"]},
    "runtime": TEXT,
    "storageUri": {"type": "string", "pattern": r"^(pvc|s3|gs|https?|hf|oci)://."},
}
PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": COUNT,
    "model": {"type": "object", "required": ["modelFormat", "storageUri"], "properties": MODEL},
}
INFERENCE_SERVICE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {
            "type": "object",
            "properties": {
                "annotations": {
                    "type": "object",
                    "properties": {"serving.kserve.io/deploymentMode": {"enum": ["Standard", "Knative"]}},
                }
            },
        },
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "properties": {
                "predictor": {
                    "type": "object",
                    "properties": PREDICTOR,
                    "oneOf": [{"required": ["model"]}, {"required": ["containers"]}],
                }
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
"""What KServe adds to Kubernetes, as far as the manifests use it. The rest of a predictor is the spec of a pod."""


def load(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pod_of(manifest: Manifest) -> Manifest:
    """Return the pod that comes of a Deployment or of an InferenceService."""
    if manifest["kind"] == "Deployment":
        return {"apiVersion": "v1", "kind": "Pod", **manifest["spec"]["template"]}
    predictor = manifest["spec"]["predictor"]
    spec = {key: value for key, value in predictor.items() if key not in PREDICTOR}
    if "model" in predictor:
        container = {key: value for key, value in predictor["model"].items() if key not in MODEL}
        spec["containers"] = [{"name": "kserve-container", **container}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": spec}


def check(manifest: Manifest) -> None:
    """Raise a ValidationError if an API server would not take a manifest."""
    resource = manifest
    if manifest["apiVersion"].startswith("serving.kserve.io"):
        jsonschema.validate(manifest, INFERENCE_SERVICE)
        resource = pod_of(manifest)
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


def pods(name: str) -> list[Manifest]:
    return [pod_of(manifest) for manifest in load(name) if manifest["kind"] != "Service"]


def container(name: str) -> Manifest:
    (pod,) = pods(name)
    (only,) = pod["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", NAMES)
def test_an_api_server_takes_a_manifest(name: str) -> None:
    for manifest in load(name):
        check(manifest)


def misspell(manifest: Manifest) -> None:
    pod = manifest["spec"].get("template", {}).get("spec") or manifest["spec"]["predictor"]
    pod["terminationGracePeriod"] = pod.pop("terminationGracePeriodSeconds")


def miscount(manifest: Manifest) -> None:
    owner = manifest["spec"].get("predictor", manifest["spec"])
    owner["minReplicas" if "predictor" in manifest["spec"] else "replicas"] = "two"


def misplace(manifest: Manifest) -> None:
    manifest["spec"]["image"] = "tnn-runtime"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [misspell, miscount, misplace])
def test_an_api_server_does_not_take_a_faulty_one(name: str, fault: Callable[[Manifest], None]) -> None:
    manifest = copy.deepcopy(load(name)[0])
    check(manifest)
    fault(manifest)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


@pytest.mark.parametrize("name", NAMES)
def test_probes_ask_what_the_protocol_defines(name: str) -> None:
    asked = {key: value["httpGet"]["path"] for key, value in container(name).items() if key.endswith("Probe")}
    ready, live = "/v2/health/ready", "/v2/health/live"
    assert asked == {"startupProbe": ready, "readinessProbe": ready, "livenessProbe": live}


@pytest.mark.parametrize("name", OURS)
def test_pods_need_no_rights(name: str) -> None:
    (pod,) = pods(name)
    security, spec = container(name)["securityContext"], pod["spec"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"]
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == IMAGE.values("USER")[0]
    assert not spec["automountServiceAccountToken"]
    writable = [mount["mountPath"] for mount in container(name)["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]


@pytest.mark.parametrize("name", OURS)
def test_the_server_takes_its_arguments_and_drains_before_it_is_killed(name: str) -> None:
    options = build_parser().parse_args([*IMAGE.command("ENTRYPOINT")[1:], *container(name)["args"]])
    (pod,) = pods(name)
    assert options.ready_delay_s + options.drain_s < pod["spec"]["terminationGracePeriodSeconds"]
    readiness = container(name)["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < options.ready_delay_s
    assert str(options.threads) == container(name)["resources"]["limits"]["cpu"]
    assert container(name)["resources"]["requests"]["cpu"] == container(name)["resources"]["limits"]["cpu"]


@pytest.mark.parametrize("name", OURS)
def test_ports_are_those_of_the_image(name: str) -> None:
    assert [str(port["containerPort"]) for port in container(name)["ports"]] == IMAGE.values("EXPOSE")[0].split()


def test_the_service_leads_to_the_pods() -> None:
    deployment, service = load("deployment.yaml")
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    named = {port["name"] for port in container("deployment.yaml")["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == named
