"""What is learnt: a model, its head, and how samples become its inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from soupray.ports import Task
from soupray.subject import OpenClipSpec, TaskSpec


def task_of(spec: TaskSpec) -> Task:
    """The task that a spec describes. Raises ConfigError if its model cannot be made."""
    # Imported on use: each library takes seconds to import.
    if isinstance(spec, OpenClipSpec):
        from soupray.tasks.image import OpenClipTask

        return OpenClipTask(spec)
    from soupray.tasks.network import TimmTask

    return TimmTask(spec)


def local_digests(spec: TaskSpec) -> list[str]:
    """SHA-256 of the local files that the model is made of: a name does not say what is in them."""
    files = []
    if isinstance(spec, OpenClipSpec):
        from soupray.tasks.image import local_folder

        folder = local_folder(spec.model)
        files = sorted(p for p in folder.iterdir() if p.is_file()) if folder else []
    if spec.pretrained and Path(spec.pretrained).is_file():
        files.append(Path(spec.pretrained))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
