"""Check files of Ray's cluster launcher (`ray up`) with Ray's rules and additional ones."""

from __future__ import annotations

import copy
import difflib
import functools
import json
from typing import Any

from botocore.loaders import Loader
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from soupray.distributed.nodes import Checked, NodeType

IDLE_MINUTES = 10
"""Lowest idle timeout in minutes.

A GPU node needs 4 to 8 minutes to boot, pull its image and join (assumed). Ray's default of 5 is
too short.
"""

COMMANDS = ("setup_commands", "head_setup_commands", "worker_setup_commands")


def check_launcher(config: dict[str, Any]) -> Checked:
    """Check a file with `cluster_name` and `provider`.

    Args:
        config: the content of the file.
    """
    types = config.get("available_node_types") or {}
    head = types.get(config.get("head_node_type")) or {}
    problems = [*_by_ray(config), *_head(head), *_cluster(config)]
    for name, node in types.items():
        problems += [f"available_node_types.{name}.{said}" for said in _node(node)]
    return Checked(problems, _node_types(config, types), config.get("max_workers", 2))


def _by_ray(config: dict[str, Any]) -> list[str]:
    """Return what `ray up` itself would reject."""
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "(top level)"
        return [f"{where}: {error.message.splitlines()[0]} (Ray)"]
    except (ValueError, AssertionError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        return [f"Ray refuses it: {type(error).__name__}: {str(error) or 'no reason given'}"]
    return []


def _head(head: dict[str, Any]) -> list[str]:
    resources = head.get("resources") or {}
    if resources.get("CPU") != 0 or resources.get("GPU", 0) != 0:
        return [
            "head_node_type: its resources must say CPU: 0 and no GPU, so that no trial takes the "
            f"head down with it; they are {resources}"
        ]
    return []


def _cluster(config: dict[str, Any]) -> list[str]:
    problems = [
        f"{name}: missing: Ray would add its own, which install another version of Ray; write []"
        for name in COMMANDS
        if name not in config
    ]
    idle = config.get("idle_timeout_minutes", 5)
    if idle < IDLE_MINUTES:
        problems.append(
            f"idle_timeout_minutes: {idle} is shorter than a node's boot: nodes would go before "
            f"they are used; write {IDLE_MINUTES} or more"
        )
    if (config.get("provider") or {}).get("cache_stopped_nodes", True):
        problems.append(
            "provider.cache_stopped_nodes: write false: stopped nodes keep disks that are paid for"
        )
    text = json.dumps(config)
    if "RAY_AUTH_MODE=disabled" in text:
        problems.append("RAY_AUTH_MODE=disabled: leave Ray's token on")
    if "auth_token" not in text and "RAY_AUTH_TOKEN" not in text:
        problems.append("file_mounts: Ray's token (~/.ray/auth_token) is not brought to the nodes")
    return problems


def _node(node: dict[str, Any]) -> list[str]:
    config = node.get("node_config") or {}
    known, problems = _known_to_ec2(), []
    for key in sorted(set(config) - known):
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"node_config.{key}: unknown to EC2{hint}")
    kind = str(config.get("InstanceType", ""))
    if kind.startswith(("g", "p")) and not (node.get("resources") or {}).get("GPU"):
        problems.append(f"resources: {kind} has GPUs, but none are listed: no trial would get one")
    return problems


@functools.cache
def _known_to_ec2() -> set[str]:
    """Return the keys that a node's configuration may have: those of RunInstances, and SubnetIds.

    Ray passes all keys on, and EC2 rejects unknown ones only when the node starts.
    """
    model = Loader().load_service_model("ec2", "service-2")
    return {"SubnetIds", *model["shapes"]["RunInstancesRequest"]["members"]}


def _node_types(config: dict[str, Any], types: dict[str, Any]) -> list[NodeType]:
    cluster = config.get("max_workers", 2)
    found = []
    for name, node in types.items():
        held = node.get("resources") or {}
        most = 0 if name == config.get("head_node_type") else node.get("max_workers", cluster)
        found.append(NodeType(name, held.get("CPU", 0), held.get("GPU", 0), min(most, cluster)))
    return found
