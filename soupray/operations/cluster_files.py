"""Check cluster files before they cost money: rules of Ray and KubeRay, versions, the spec.

A file is a YAML file of Ray's launcher, Kubernetes manifests (RayCluster, RayJob, RayService and
the services beside them), a Dockerfile, or the policy of a bucket.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from soupray.core.errors import ConfigError
from soupray.spec.files import read_text
from soupray.spec.resources import Resources
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.yaml import read_documents

if TYPE_CHECKING:
    from soupray.distributed.nodes import Checked

log = logging.getLogger(__name__)

PINNED = ("ray", "torch", "mlflow")
"""Packages that must have the same version in all files, and one that soupray supports."""

SECRET = re.compile(r"SECRET|PASSWORD|TOKEN$|ACCESS_KEY_ID", re.IGNORECASE)
POLICY = {
    "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
}  # fmt: skip
"""All actions on a bucket that a sweep, a soup and gc need."""


def validate(
    files: Sequence[Path], spec: SweepSpec | None = None, crd: Path | None = None
) -> list[str]:
    """Return the problems of `files`, each with its file and field; empty if there are none.

    Args:
        files: the files to check.
        spec: a sweep that must be able to run on the cluster; None to skip this check.
        crd: YAML file with KubeRay's CRDs, which find unknown keys.

    Raises:
        ConfigError: a file cannot be read.
    """
    crds = {d["spec"]["names"]["kind"]: d for d in (read_documents(crd) if crd else [])}
    problems: list[str] = []
    if crd is None:
        log.warning("unknown keys of KubeRay's files pass without KubeRay's CRDs (--crd)")
    for path in files:
        problems += [f"{path}: {said}." for said in _one(path, spec, crds)]
    if spec is not None:
        problems += [f"{spec.name}: {said}." for said in _elsewhere(spec)]
    return [*problems, *(f"{said}." for said in _versions(files))]


def _one(path: Path, spec: SweepSpec | None, crds: dict[str, Any]) -> Iterator[str]:
    if path.name.startswith("Dockerfile"):
        return
    documents = read_documents(path)
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise ConfigError(f"{path}: neither a cluster file nor a manifest nor a policy.")
    services = [d["metadata"]["name"] for d in documents if d.get("kind") == "Service"]
    for document in documents:
        if "cluster_name" in document or "available_node_types" in document:
            yield from _launcher(document, spec)
        elif document.get("kind") in ("RayCluster", "RayJob", "RayService"):
            yield from _kuberay(document, spec, crds.get(document["kind"]))
        elif "Statement" in document:
            yield from _policy(document)
        elif "kind" in document:
            yield from _workload(document, services)
        else:
            raise ConfigError(f"{path}: neither a cluster file nor a manifest nor a policy.")


def _launcher(document: dict[str, Any], spec: SweepSpec | None) -> Iterator[str]:
    from soupray.distributed.launcher import check_launcher
    from soupray.distributed.nodes import why_never

    checked = check_launcher(document)
    yield from checked.problems
    if spec is not None and (never := why_never(spec, checked)):
        yield never


def _kuberay(
    document: dict[str, Any], spec: SweepSpec | None, crd: dict[str, Any] | None
) -> Iterator[str]:
    from soupray.distributed.kuberay import check_kuberay
    from soupray.distributed.nodes import why_never

    checked = check_kuberay(document, crd)
    yield from (f"{document['kind']}: {said}" for said in checked.problems)
    yield from _containers(document)
    if document["kind"] == "RayService":
        yield from (f"RayService: {said}" for said in _replicas(document["spec"], checked))
    elif spec is not None and checked.types and (never := why_never(spec, checked)):
        yield f"{document['kind']}: {never}"


def _replicas(spec: dict[str, Any], may: Checked) -> Iterator[str]:
    """Check what a RayService says to our application, and whether its replicas fit."""
    from soupray.distributed.kuberay import serve_config
    from soupray.distributed.nodes import room
    from soupray.inference.serve import APPLICATION, arguments

    try:
        apps = serve_config(spec)["applications"]
    except ConfigError:
        return  # `check_kuberay` has said it
    for app in apps:
        if not isinstance(app, dict) or app.get("import_path") != APPLICATION:
            continue
        try:
            said = arguments(app.get("args") or {})
        except ConfigError as error:
            yield f"serveConfigV2.applications.{app.get('name')}.{str(error).removesuffix('.')}"
            continue
        wanted = Resources(cpu=said.cpus or 1, gpu=said.gpus or 0)
        held = sum(room(wanted, t.cpu, t.gpu) * t.most for t in may.types)
        if may.types and held < said.replicas:
            yield (
                f"{said.replicas} replicas of {wanted.cpu:g} CPU and {wanted.gpu:g} GPU never fit: "
                f"all nodes together hold {held}. Lower replicas, cpus or gpus, or add nodes"
            )


def _elsewhere(spec: SweepSpec) -> Iterator[str]:
    """Yield settings of the spec that work on one machine only."""
    if spec.storage.startswith(("embedded", "file:")):
        yield (
            f"storage: {spec.storage} is on one machine; a cluster needs `storage: s3://BUCKET/..`"
        )
    if spec.tracking.startswith(("embedded", "sqlite:")):
        yield (
            f"tracking: {spec.tracking} is on one machine; write the URL of an MLflow server, or "
            "`tracking: off` and publish later"
        )


def _policy(document: dict[str, Any]) -> Iterator[str]:
    for statement in document["Statement"]:
        actions, resources = (_listed(statement.get(k, [])) for k in ("Action", "Resource"))
        more = sorted(set(actions) - POLICY)
        if more and statement.get("Effect") == "Allow":
            yield f"Action: {', '.join(more)} is more than a sweep needs ({', '.join(POLICY)})"
        if "*" in resources:
            yield "Resource: * is every bucket of the account; name the bucket"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _workload(document: dict[str, Any], services: list[str]) -> Iterator[str]:
    """Check a manifest beside the cluster, such as a Deployment or a Secret."""
    kind, name = document["kind"], (document.get("metadata") or {}).get("name", "")
    if "apiVersion" not in document or not name:
        yield f"{kind} {name!r}: apiVersion and metadata.name are required"
    if kind == "Secret" and (document.get("data") or document.get("stringData")):
        yield f"Secret {name}: a secret in a file; make it with `kubectl create secret`"
    yield from _containers(document)
    for container in _all_containers(document):
        words = [*container.get("command", []), *container.get("args", [])]
        if {"mlflow", "server"} <= set(words):
            yield from (f"{kind} {name}: {said}" for said in _mlflow(words, services))


def _mlflow(words: list[str], services: list[str]) -> Iterator[str]:
    given = dict(w.removeprefix("--").split("=", 1) for w in words if re.match("--.*=", w))
    hosts = given.get("allowed-hosts", "").split(",")
    for service in services:
        for host in (service, f"{service}:5000"):
            if "mlflow" in service and not any(fnmatch.fnmatch(host, h) for h in hosts):
                yield f"--allowed-hosts: MLflow would answer 403 to clients that call it {host!r}"
    if given.get("app-name") != "basic-auth":
        yield "--app-name=basic-auth: missing: everybody in the network could write"


def _all_containers(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("containers", "initContainers"):
                yield from value
            yield from _all_containers(value)
    elif isinstance(part, list):
        for value in part:
            yield from _all_containers(value)


def _containers(document: dict[str, Any]) -> Iterator[str]:
    """Yield images without a fixed version, and secrets that are written in the file."""
    for container in _all_containers(document):
        name, image = container.get("name", "?"), str(container.get("image", ""))
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield f"container {name}: image {image!r} has no fixed version; write NAME:TAG"
        for variable in container.get("env") or []:
            if SECRET.search(variable.get("name", "")) and "value" in variable:
                yield (
                    f"container {name}: {variable['name']} is written out; write valueFrom: "
                    "{secretKeyRef: ...}"
                )
            if variable.get("name") == "RAY_AUTH_MODE" and variable.get("value") == "disabled":
                yield f"container {name}: RAY_AUTH_MODE disabled: leave Ray's token on"


def _versions(files: Sequence[Path]) -> Iterator[str]:
    """Check that all files name one version of each package, and one that soupray supports."""
    required = {r.name: r.specifier for r in map(Requirement, requires("soupray") or [])}
    for package in PINNED:
        found = [(str(p), v) for p in files for v in _named(package, read_text(p))]
        for where, seen in found:
            if not required[package].contains(seen):
                yield f"{where}: {package} {seen}, but soupray requires {required[package]}"
            elif seen != found[0][1]:
                yield f"{where}: {package} {seen}, but {found[0][0]} has {found[0][1]}"
        if package == "ray" and found and found[0][1] != version("ray"):
            yield (
                f"{found[0][0]}: ray {found[0][1]}, but this machine has {version('ray')}: jobs "
                "are submitted with the cluster's version"
            )


def _named(package: str, text: str) -> list[str]:
    """Return the versions of `package` in image tags, rayVersion, ARG lines and requirements."""
    number = r"v?(\d+\.\d+(?:\.\d+)?)"
    forms = [
        rf"/{package}:{number}",
        rf"[-:]{package}{number}",
        rf"(?m)^ARG {package.upper()}={number}",
        rf"\b{package}(?:\[[^\]]*\])?=={number}",
    ]
    if package == "ray":
        forms.append(rf"rayVersion:\s*[\"']?{number}")
    return [v for form in forms for v in re.findall(form, text)]
