"""Tasks: a model, its head, and the way from samples to model inputs."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.core.imports import importing
from soupray.core.plugins import code_files, digest_of, package_of
from soupray.core.ports import Task
from soupray.spec.plugged_in import TASKS
from soupray.spec.task import OpenClipSpec, TaskSpec, TorchSpec, TransformersSpec
from soupray.tasks.files import LOCAL, clip_folder, local_path

log = logging.getLogger(__name__)

# huggingface_hub reads this when it is imported, by open_clip, timm or transformers.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def task_of(spec: TaskSpec) -> Task:
    """The task that a spec describes.

    Raises:
        ConfigError: the model cannot be made.
    """
    # The imports are here because each library takes seconds to import.
    if isinstance(spec, OpenClipSpec):
        with importing():
            from soupray.tasks.open_clip import OpenClipTask

        return OpenClipTask(spec)
    if isinstance(spec, TransformersSpec):
        _require_transformers()
        with importing():
            from soupray.tasks.transformers import TextTask

        return TextTask(spec)
    if isinstance(spec, TorchSpec):
        from soupray.tasks.torch import TorchTask

        return TorchTask(spec)
    with importing():
        from soupray.tasks.timm import TimmTask

    return TimmTask(spec)


def recorded_task(spec: TaskSpec) -> Task:
    """The task of a spec in a record, which somebody else may have written.

    Args:
        spec: the task.

    Raises:
        ConfigError: the model cannot be made, or the spec names code that a record may not name.
    """
    if isinstance(spec, TorchSpec) and package_of(TASKS, spec.model) is None:
        module = spec.model.partition(":")[0]
        here = Path.cwd().resolve()
        inside = any(file.resolve().is_relative_to(here) for file in code_files(TASKS, spec.model))
        if not inside and module.partition(".")[0] not in TRUSTED:
            raise ConfigError(
                f"task.model = {spec.model!r} is neither in {here} nor an entry point of the group "
                f"{TASKS}: a recipe from elsewhere must not name any function of this machine. Run "
                "where the module is, or declare the entry point in its package."
            )
    if changed := other_code(spec):
        log.warning(f"{changed}.")
    return task_of(spec)


TRUSTED = ("torchvision",)
"""Packages whose functions a record may name: they make models, and run no other code."""


def other_code(spec: TaskSpec) -> str | None:
    """What is to be said if the code of a plug-in is not that with which a spec was read.

    Args:
        spec: the task.

    Returns:
        None: it is the same, or the model is no plug-in.
    """
    if not isinstance(spec, TorchSpec) or not spec.code:
        return None
    here = digest_of(TASKS, spec.model)
    if here == spec.code:
        return None
    return (
        f"task.model = {spec.model!r}: the code here has the digest {here[:12]}, that of the sweep "
        f"had {spec.code[:12]}. Models of other code may compute something else"
    )


def reads_from(spec: TaskSpec, folder: Path) -> TaskSpec:
    """The spec whose task reads its configuration and tokenizer from a folder.

    Args:
        spec: the task.
        folder: what `write_files` of the task wrote. If it wrote nothing, the spec stays as it is.
    """
    if not folder.is_dir():
        return spec
    prefix = LOCAL if isinstance(spec, OpenClipSpec) else ""
    return spec.model_copy(update={"model": f"{prefix}{folder}"})


def local_digests(spec: TaskSpec) -> list[str]:
    """SHA-256 (hex) of the local files of a model. Their names do not identify their content."""
    files = []
    if isinstance(spec, OpenClipSpec):
        folder = clip_folder(spec.model)
        files = _files_in(folder) if folder else []
    elif isinstance(spec, TransformersSpec):
        folder = local_path(spec.model)
        return _digests(_files_in(folder) if folder.is_dir() else [])
    if spec.pretrained and local_path(spec.pretrained).is_file():
        files.append(local_path(spec.pretrained))
    return _digests(files)


def file_digests(named: str) -> list[str]:
    """SHA-256 (hex) of a file that a spec names, or of each file in a folder.

    Raises:
        ConfigError: there is no such file or folder.
    """
    path = local_path(named)
    if not (path.is_dir() or path.is_file()):
        raise ConfigError(f"init.file = {named!r}: there is no file or folder {path}.")
    return _digests(_files_in(path) if path.is_dir() else [path])


def _files_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file())


def _digests(files: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _require_transformers() -> None:
    """Refuse the spec if transformers is missing. It is an extra: most sweeps are about images."""
    if find_spec("transformers") is None:
        raise ConfigError(
            "task.kind = transformers needs the library of that name, which is not installed "
            "here: pip install 'soupray[text]'."
        )
