"""Our cluster files pass; mistakes injected into them are named, each with its file and field."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, inside, mini_text

from soupray.core.errors import ConfigError
from soupray.operations.cluster_files import validate
from soupray.spec.sweep_spec import parse

CLUSTER = ROOT / "cluster"
FILES = [p for p in sorted(CLUSTER.iterdir()) if p.suffix in (".yaml", ".json", "")]
AWS, RAY, SWEEP = "ray-aws.yaml", "kuberay-cluster.yaml", "kuberay-sweep.yaml"
SERVE = "kuberay-serve.yaml"


def spec(cpu: float = 8, gpu: float = 1, workers: int = 1):
    edits = {
        "\nresources": f"\ntraining: {{workers: {workers}}}\nresources",
        "{cpu: 1, gpu: 0}": f"{{cpu: {cpu}, gpu: {gpu}}}",
        "storage: embedded": "storage: s3://bucket/x",
        "tracking: embedded": "tracking: http://mlflow:5000",
    }
    return parse(mini_text(**edits), "mini.yaml")


def test_all_our_own_files_pass_and_hold_a_trial_of_a_gpu():
    assert {p.name for p in FILES} == {
        "ray-aws.yaml", "kuberay-cluster.yaml", "kuberay-sweep.yaml", "kuberay-soup.yaml",
        "kuberay-serve.yaml", "mlflow.yaml", "s3.yaml", "Dockerfile", "bucket-policy.json",
    }  # fmt: skip
    assert validate(FILES, spec()) == []
    assert "9 files are well." in inside("cluster", "validate", *FILES).stdout


def test_what_comes_out_with_the_variables_filled_in_as_envsubst_does_it_passes_too(tmp_path):
    values = {
        "SOUPRAY_REGISTRY": "registry.example.com:5000/team",
        "SOUPRAY_BUCKET": "my-bucket",
        "SOUPRAY_PROFILE_ARN": "arn:aws:iam::123456789012:instance-profile/soupray",
        "AWS_REGION": "eu-central-1",
    }
    made = []
    for path in FILES:
        if path.suffix:
            filled = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], path.read_text())
            assert "${" not in filled
            made.append(tmp_path / path.name)
            made[-1].write_text(filled)
    assert validate(made, spec()) == []


MISTAKES = [
    # Ray's own
    (AWS, "upscaling_speed:", "upscaling_sped:", "upscaling_sped"),
    (AWS, "head_node_type: head", "head_node_type: haed", "head_node_type"),
    (AWS, "resources: {CPU: 8, GPU: 1}", "resources: {CPU: 8, GPU: 0.5}",
     r"gpu_spot.resources.GPU: 0.5 is not of type"),
    (AWS, "  container_name: soupray\n", "", "Ray refuses it: .*container & image name"),
    (AWS, "    min_workers: 0\n    max_workers: 4", "    min_workers: 40\n    max_workers: 4",
     "Ray refuses it"),
    # what Ray does not see
    (AWS, "InstanceMarketOptions", "InstanceMarketOptionz",
     "gpu_spot.node_config.InstanceMarketOptionz: unknown to EC2; did you mean "
     "InstanceMarketOptions?"),
    (AWS, "resources: {CPU: 0}", "resources: {CPU: 4}", "head_node_type: .*'CPU': 4"),
    (AWS, "resources: {CPU: 8, GPU: 1}", "resources: {CPU: 8}",
     r"gpu_spot.resources: g6.2xlarge has GPUs, but none are listed"),
    (AWS, "\nsetup_commands: []", "", "setup_commands: missing: .* another version of Ray"),
    (AWS, "idle_timeout_minutes: 15", "idle_timeout_minutes: 2",
     "idle_timeout_minutes: 2 is shorter than a node's boot"),
    (AWS, "cache_stopped_nodes: false", "cache_stopped_nodes: true", "provider.cache_stopped_node"),
    (AWS, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "leave Ray's token on"),
    (AWS, "ray2.60.0-torch2.14.1-cpu", "ray2.59.0-torch2.14.1-cpu",
     "ray 2.59.0, but soupray requires .*2.60"),
    (AWS, "ray2.60.0-torch2.14.1-cpu", "ray2.60.0-torch2.13.0-cpu", "torch 2.13.0, but .*2.14.1"),
    # KubeRay's rules
    (RAY, "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1", "apiVersion: 'ray.io/v1alpha1'"),
    (RAY, "name: soupray\nspec", f"name: {'s' * 54}\nspec", "metadata.name: .*at most 53"),
    (RAY, "name: soupray\nspec", "name: Soup_ray\nspec", "metadata.name: 'Soup_ray'"),
    (RAY, "idleTimeoutSeconds: 600", "idleTimeoutSecond: 600",
     "autoscalerOptions.idleTimeoutSeconds: 60 is shorter than pulling"),
    (RAY, "idleTimeoutSeconds: 600", "idleTimeoutSeconds: 60", "60 is shorter than pulling"),
    (RAY, "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "no worker ever"),
    (RAY, 'num-cpus: "0"', 'num-cpus: "4"', "the head runs no trial"),
    (RAY, "minReplicas: 0\n      maxReplicas: 4", "minReplicas: 9\n      maxReplicas: 4",
     "gpu-on-demand: minReplicas 9 is more than maxReplicas 4"),
    (RAY, "minReplicas: 0\n      maxReplicas: 4", 'minReplicas: "0"\n      maxReplicas: 4',
     "minReplicas '0' .* no number"),
    (RAY, "      maxReplicas: 4\n", "", "gpu-on-demand.maxReplicas: missing"),
    (RAY, "restartPolicy: Never", "restartPolicy: Always", "autoscaler v2 wants Never"),
    (RAY, "rayStartParams: {}", 'rayStartParams: {num-cpus: "8"}\n      resources: {CPU: "8"}',
     "exclude each other"),
    (RAY, "rayStartParams: {}", 'rayStartParams: {labels: "a=b"}', "write labels beside"),
    (RAY, "  authOptions: {mode: token} ", "  #", "authOptions: Ray's token is off"),
    (RAY, '  rayVersion: "2.60.0"\n', "", "rayVersion: missing"),
    (RAY, 'rayVersion: "2.60.0"', 'rayVersion: "2.61.0"', "ray 2.61.0"),
    (RAY, "soupray:0.1.0-ray2.60.0-torch2.14.1-gpu", "soupray", "has no fixed version"),
    (SWEEP, "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false",
     "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"),
    (SWEEP, "K8sJobMode", "KubernetesMode", "submissionMode: 'KubernetesMode'; allowed: K8sJobMo"),
    (SWEEP, "K8sJobMode", "InteractiveMode", "backoffLimit: not with InteractiveMode"),
    (SWEEP, "K8sJobMode", "SidecarMode\n  clusterSelector: {a: b}", "SidecarMode allows neither"),
    (SWEEP, "submitterConfig: {backoffLimit: 0}", "submitterConfig: {}", "submits the job again"),
    (SWEEP, "  name: soupray-sweep", f"  name: {'s' * 48}", "metadata.name: .*at most 47"),
    (SWEEP, "entrypoint: ", "entrypont: ", "spec.entrypoint: missing"),
    (SWEEP, "- secretRef: {name: soupray}\n",
     "- secretRef: {name: soupray}\n              env:\n"
     "                - {name: AWS_SECRET_ACCESS_KEY, value: abcdef}\n",
     "container ray-head: AWS_SECRET_ACCESS_KEY is written out"),
    # Ray Serve's rules, and ours for what it serves
    (SERVE, "  name: soupray-serve", f"  name: {'s' * 48}", "a RayService's is at most 47"),
    (SERVE, "  serveConfigV2: |", "  upgradeStrategy: {type: Now}\n  serveConfigV2: |",
     "upgradeStrategy.type: 'Now'; allowed: NewCluster,"),
    (SERVE, "    headGroupSpec:\n",
     "    headGroupSpec:\n      headService: {metadata: {name: x}}\n",
     "headService.metadata.name: the operator sets it"),
    (SERVE, "serveConfigV2: |", "serveConfig: |", "spec.serveConfigV2: missing, or not a text"),
    (SERVE, "    applications:", "    application:", "serveConfigV2: it has no list of applicat"),
    (SERVE, "{host: 0.0.0.0,", "{host: [},", "serveConfigV2: not YAML: line 1"),
    (SERVE, "host: 0.0.0.0", "host: 127.0.0.1", "http_options.host: 127.0.0.1 is not reached"),
    (SERVE, "port: 8000, r", "port: none, r", r"http_options.port .*valid integer.* \(Ray Serve\)"),
    (SERVE, "route_prefix:", "route_prefx:",
     "applications.soupray.route_prefx: unknown to Ray Serve; did you mean route_prefix?"),
    (SERVE, "replicas: 2,", "replica: 2,",
     r"applications.soupray.args: .*unknown field `replica`.*; there are: what, home, batch_size"),
    (SERVE, "{what: /specs/greedy.recipe.json, ", "{", "args: .*missing required field `what`"),
    (SERVE, "replicas: 2,", "replicas: 5,", "5 replicas of 7 CPU and 1 GPU never fit: .* hold 4"),
    (SERVE, "cpus: 7,", "cpus: 9,", "2 replicas of 9 CPU and 1 GPU never fit: .* hold 0"),
    (SERVE, 'num-cpus: "0"', 'num-cpus: "4"', "rayClusterConfig.headGroupSpec.*: the head runs no"),
    # services, policy, image
    ("mlflow.yaml", "mlflow,mlflow:*,localhost", "localhost", "403 to clients .*'mlflow:5000'"),
    ("mlflow.yaml", "mlflow,mlflow:*,localhost", "mlflow,localhost", "403 .*'mlflow:5000'"),
    ("mlflow.yaml", "            - --app-name=basic-auth\n", "", "--app-name=basic-auth: missing"),
    ("mlflow.yaml", "postgres:17.2", "postgres:latest", "container postgres: image .*latest"),
    ("bucket-policy.json", '"s3:ListBucket"', '"s3:*"', "s3:. is more than a sweep needs"),
    ("bucket-policy.json", '"arn:aws:s3:::${SOUPRAY_BUCKET}"', '"*"', "every bucket"),
    ("Dockerfile", "ARG RAY=2.60.0\nARG DEVICE=gpu\nFROM", "ARG RAY=2.60.1\nARG DEVICE=gpu\nFROM",
     "ray 2.60"),
    ("Dockerfile", "ARG TORCH=2.14.1", "ARG TORCH=2.8.0", "torch 2.8.0, but soupray requires"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), MISTAKES)
def test_a_mistake_is_named(tmp_path, name, old, new, said):
    text = (CLUSTER / name).read_text()
    assert old in text, old
    (tmp_path / name).write_text(text.replace(old, new))
    problems = validate([tmp_path / name], spec())
    assert any(matches(said, p) for p in problems), problems
    assert all(str(tmp_path / name) in p for p in problems)


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("name", [AWS, RAY, SWEEP])
def test_a_request_that_no_node_type_can_hold_is_told_before_anything_starts(name):
    (problem,) = validate([CLUSTER / name], spec(cpu=9))
    assert "no node type can ever run a trial that asks for 9 CPU and 1 GPU" in problem
    assert "(8 CPU, 1 GPU, at most 16)" in problem


def test_a_trial_of_more_workers_than_all_nodes_can_hold_is_told():
    # 16 nodes in all, each of 8 CPUs and a GPU.
    assert validate([CLUSTER / AWS], spec(cpu=4, workers=16)) == []
    (problem,) = validate([CLUSTER / AWS], spec(cpu=4, workers=17))
    assert (
        "not even all nodes together can ever run a trial of 17 workers that ask for 4" in problem
    )
    # Without GPUs two of them fit on a node.
    assert validate([CLUSTER / AWS], spec(cpu=4, gpu=0, workers=32)) == []
    assert len(validate([CLUSTER / AWS], spec(cpu=4, gpu=0, workers=33))) == 1
    # KubeRay adds its groups up: 16 and 4 nodes.
    assert validate([CLUSTER / RAY], spec(cpu=4, workers=20)) == []
    assert len(validate([CLUSTER / RAY], spec(cpu=4, workers=21))) == 1


def test_what_is_on_one_machine_is_told(tmp_path):
    problems = validate([CLUSTER / AWS], parse(mini_text(), "mini.yaml"))
    assert [p.split(":")[1].strip() for p in problems] == ["storage", "tracking"]


def test_files_must_agree_with_each_other(tmp_path):
    other = tmp_path / RAY
    other.write_text((CLUSTER / RAY).read_text().replace("2.14.1", "2.14.0"))
    problems = validate([CLUSTER / AWS, other])
    assert problems
    assert all(f"torch 2.14.0, but {CLUSTER / AWS} has 2.14.1" in p for p in problems)


def test_a_secret_that_is_written_out_is_told(tmp_path):
    path = tmp_path / "secret.yaml"
    path.write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {a: b}\n")
    assert "Secret x: a secret in a file" in validate([path])[0]


def test_what_is_no_cluster_file_is_an_error(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(mini_text())
    with pytest.raises(ConfigError, match="neither a cluster file nor a manifest nor a policy"):
        validate([path])
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        validate([path])


def a_crd(tmp_path: Path) -> Path:
    """The operator's form, cut down to what the test needs: not its whole content."""
    quantity = {"anyOf": [], "x-kubernetes-int-or-string": True}
    group = {
        "type": "object",
        "properties": {
            "groupName": {"type": "string"},
            "minReplicas": {"type": "integer"},
            "maxReplicas": {"type": "integer"},
            "replicas": {"type": "integer"},
            "priority": {"type": "integer"},
            "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
            "template": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "cpu": quantity,
        },
        "required": ["template"],
    }
    cluster = {
        "rayVersion": {"type": "string"},
        "authOptions": {"type": "object", "properties": {"mode": {"type": "string"}}},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "headGroupSpec": group,
        "workerGroupSpecs": {"type": "array", "items": group},
    }
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": cluster},
        },
    }
    version = {"name": "v1", "schema": {"openAPIV3Schema": schema}}
    crd = {"spec": {"names": {"kind": "RayCluster"}, "versions": [version]}}
    path = tmp_path / "crd.yaml"
    path.write_text(yaml.safe_dump(crd))
    return path


def test_the_operators_own_schema_is_asked_if_it_is_given(tmp_path):
    crd = a_crd(tmp_path)
    assert validate([CLUSTER / RAY], crd=crd) == []
    document = yaml.safe_load((CLUSTER / RAY).read_text())
    wrong = copy.deepcopy(document)
    wrong["spec"]["workerGroupSpecs"][0]["minReplicas"] = "none"
    wrong["spec"]["headGroupSpec"]["tepmlate"] = {}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(wrong))
    done = inside("cluster", "validate", path, "--crd", crd, "--json", check=False)
    assert done.returncode == 1
    problems = [p for p in json.loads(done.stdout) if "(CRD)" in p]
    assert len(problems) == 2
    assert "spec.headGroupSpec: Additional properties are not allowed ('tepmlate'" in problems[0]
    assert "spec.workerGroupSpecs.0.minReplicas: 'none' is not of type 'integer'" in problems[1]
    assert "--crd" not in done.stderr
    unasked = inside("cluster", "validate", CLUSTER / RAY)
    assert "unknown keys of KubeRay's files pass without KubeRay's CRDs (--crd)" in (unasked.stderr)
