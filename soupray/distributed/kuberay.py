"""Check RayCluster, RayJob and RayService with the rules of KubeRay, Ray's autoscaler and Serve."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from soupray.core.errors import ConfigError
from soupray.distributed.nodes import Checked, NodeType
from soupray.spec.yaml import parse_yaml

LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
IDLE_S = 300
"""Lowest idle timeout in seconds: longer than pulling an image of 8 GB takes (assumed).

KubeRay's default of 60 s is too short.
"""

MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")

CLUSTERS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Where the cluster is in a manifest of another kind than RayCluster."""


def check_kuberay(document: dict[str, Any], crd: dict[str, Any] | None = None) -> Checked:
    """Check a RayCluster, a RayJob or a RayService.

    Args:
        document: the manifest.
        crd: the CRD of its kind, which finds unknown keys; None to skip this check.
    """
    spec = document.get("spec") or {}
    problems = [*_name(document)]
    key = CLUSTERS.get(document["kind"])
    inner = spec if key is None else spec.get(key) or {}
    if document["kind"] == "RayJob":
        problems += [f"spec.{said}" for said in _job(spec)]
    elif document["kind"] == "RayService":
        problems += [f"spec.{said}" for said in _service(spec)]
    where = "spec" if key is None else f"spec.{key}"
    problems += [f"{where}.{said}" for said in _cluster(inner)]
    if crd is not None:
        problems += _by_crd(document, crd)
    refused, types = _as_autoscaler(document, inner)
    return Checked([*problems, *refused], types, sum(t.most for t in types))


def _name(document: dict[str, Any]) -> Iterator[str]:
    kind, name = document["kind"], (document.get("metadata") or {}).get("name", "")
    if document.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion: {document.get('apiVersion')!r}; write ray.io/v1"
    if len(name) > LONGEST[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield (
            f"metadata.name: {name!r}; a {kind}'s is at most {LONGEST[kind]} lower-case letters, "
            "digits and -, and starts with a letter"
        )


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    scaler = spec.get("autoscalerOptions") or {}
    idle = scaler.get("idleTimeoutSeconds", 60)
    if not isinstance(idle, int) or idle < IDLE_S:
        yield (
            f"autoscalerOptions.idleTimeoutSeconds: {idle} is shorter than pulling the image: pods "
            f"would go before they are used; write {IDLE_S} or more"
        )
    if spec.get("enableInTreeAutoscaling") is not True:
        yield "enableInTreeAutoscaling: write true, else no worker ever starts for a trial"
    if "rayVersion" not in spec:
        yield "rayVersion: missing: the operator needs it for the autoscaler"
    head = spec.get("headGroupSpec") or {}
    if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams: write num-cpus: "0": the head runs no trial'
    groups = {"headGroupSpec": head}
    for at, group in enumerate(spec.get("workerGroupSpecs") or []):
        groups[f"workerGroupSpecs.{group.get('groupName', at)}"] = group
    for where, group in groups.items():
        yield from _group(group, where, scaler.get("version") == "v2")
    yield from _token(spec, groups)


def _group(group: dict[str, Any], where: str, second: bool) -> Iterator[str]:
    started = group.get("rayStartParams") or {}
    pod = (group.get("template") or {}).get("spec") or {}
    if where != "headGroupSpec":
        if "maxReplicas" not in group:
            yield f"{where}.maxReplicas: missing: it would be 2147483647"
        elif not _at_most(group.get("minReplicas", 0), group["maxReplicas"]):
            yield (
                f"{where}: minReplicas {group.get('minReplicas', 0)!r} is more than maxReplicas "
                f"{group['maxReplicas']!r}, or no number"
            )
    if group.get("resources") and {"num-cpus", "num-gpus"} & set(started):
        yield f"{where}: resources and rayStartParams.num-cpus exclude each other"
    if "labels" in started:
        yield f"{where}.rayStartParams.labels: write labels beside rayStartParams"
    if second and pod.get("restartPolicy", "Never") != "Never":
        yield f"{where}.template.spec.restartPolicy: autoscaler v2 wants Never"


def _at_most(low: Any, high: Any) -> bool:
    return isinstance(low, int) and isinstance(high, int) and low <= high


def _token(spec: dict[str, Any], groups: dict[str, Any]) -> Iterator[str]:
    if (spec.get("authOptions") or {}).get("mode") == "token":
        return
    for where, group in groups.items():
        containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
        names = {e.get("name") for e in containers[0].get("env") or []}
        if "RAY_AUTH_TOKEN" not in names:
            yield (
                f"authOptions: Ray's token is off, and {where} has no RAY_AUTH_TOKEN: write "
                "authOptions: {mode: token}"
            )
            return


def _job(spec: dict[str, Any]) -> Iterator[str]:
    mode, over = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes")
    if mode not in MODES:
        yield f"submissionMode: {mode!r}; allowed: {', '.join(MODES)}"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not over:
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes: true"
    if over and (spec.get("deletionStrategy") or {}).get("deletionRules"):
        yield "shutdownAfterJobFinishes and deletionStrategy.deletionRules exclude each other"
    if mode == "SidecarMode" and {"submitterPodTemplate", "clusterSelector"} & set(spec):
        yield "SidecarMode allows neither submitterPodTemplate nor clusterSelector"
    if spec.get("backoffLimit") and (mode == "InteractiveMode" or "clusterSelector" in spec):
        yield "backoffLimit: not with InteractiveMode or clusterSelector"
    if mode == "K8sJobMode" and (spec.get("submitterConfig") or {}).get("backoffLimit") != 0:
        yield "submitterConfig.backoffLimit: write 0, else a lost log stream submits the job again"
    if not spec.get("entrypoint") and mode != "InteractiveMode":
        yield "entrypoint: missing"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    kind = (spec.get("upgradeStrategy") or {}).get("type", "NewCluster")
    if kind not in UPGRADES:
        yield f"upgradeStrategy.type: {kind!r}; allowed: {', '.join(UPGRADES)}"
    head = (spec.get("rayClusterConfig") or {}).get("headGroupSpec") or {}
    if ((head.get("headService") or {}).get("metadata") or {}).get("name"):
        yield "rayClusterConfig.headGroupSpec.headService.metadata.name: the operator sets it"
    try:
        config = serve_config(spec)
    except ConfigError as error:
        yield str(error).removesuffix(".")
        return
    yield from (f"serveConfigV2.{said}" for said in _by_serve(config))
    host = (config.get("http_options") or {}).get("host", "0.0.0.0")  # noqa: S104 - in a pod
    if host not in ("0.0.0.0", "::"):  # noqa: S104
        yield f"serveConfigV2.http_options.host: {host} is not reached from outside; leave it out"


def serve_config(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of Ray Serve in the spec of a RayService.

    Raises:
        ConfigError: it is missing, or no mapping in YAML.
    """
    text = spec.get("serveConfigV2")
    if not isinstance(text, str):
        raise ConfigError("serveConfigV2: missing, or not a text: write `serveConfigV2: |`.")
    config = parse_yaml(text, "serveConfigV2")
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise ConfigError("serveConfigV2: it has no list of applications.")
    return config


def _by_serve(config: dict[str, Any]) -> Iterator[str]:
    """Yield what Ray Serve would reject, and keys that it would silently leave out."""
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except ValueError as error:
        yield f"{' '.join(str(error).split())[:300]} (Ray Serve)"
        return
    parts = [("", config, ServeDeploySchema)]
    for app in config["applications"]:
        where = f"applications.{app.get('name')}."
        parts.append((where, app, ServeApplicationSchema))
        inner = app.get("deployments") or []
        parts += [(f"{where}deployments.", one, DeploymentSchema) for one in inner]
    for where, part, schema in parts:
        for key in sorted(set(part) - set(schema.model_fields)):
            close = difflib.get_close_matches(key, schema.model_fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{where}{key}: unknown to Ray Serve{hint}"


def _as_autoscaler(
    document: dict[str, Any], spec: dict[str, Any]
) -> tuple[list[str], list[NodeType]]:
    """Return the node types that Ray's autoscaler derives, or the reason why it cannot."""
    name = (document.get("metadata") or {}).get("name", "")
    cluster = {"metadata": {"name": name, "namespace": "default"}, "spec": copy.deepcopy(spec)}
    try:
        config = _derive_autoscaling_config_from_ray_cr(cluster)
    except jsonschema.ValidationError as error:
        return [f"Ray's autoscaler refuses it: {error.message.splitlines()[0]}"], []
    except (ValueError, AssertionError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"Ray's autoscaler cannot read it: {type(error).__name__}: {error}"], []
    return [], [
        NodeType(
            name, node["resources"].get("CPU", 0), node["resources"].get("GPU", 0),
            node["max_workers"],
        )
        for name, node in config["available_node_types"].items()
    ]  # fmt: skip


def _by_crd(document: dict[str, Any], crd: dict[str, Any]) -> Iterator[str]:
    """Yield what the API server would reject, and unknown fields, which it would silently drop."""
    (schema,) = (
        v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"
    )
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    for error in jsonschema.Draft202012Validator(strict).iter_errors(document):
        where = ".".join(map(str, error.absolute_path)) or "(top level)"
        yield f"{where}: {error.message.splitlines()[0][:300]} (CRD)"


def _strict(schema: Any) -> Any:
    """Turn an OpenAPI schema of Kubernetes into a JSON schema that rejects unknown fields."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: _strict(v) for k, v in schema.items() if not str(k).startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    free = schema.get("x-kubernetes-preserve-unknown-fields") is True
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        made.setdefault("additionalProperties", False)
    return made
