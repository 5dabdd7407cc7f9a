"""What the libraries of models know by name: ImageNet's classes, and how weights were trained.

open_clip and timm import torch, which takes seconds. A list is read from its file alone; an answer
is remembered on this machine, by the version of the library. So `soupray status` imports neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from soupray.core.records import digest
from soupray.spec.files import atomic_write


@cache
def imagenet() -> Any:
    """open_clip's module with the names of ImageNet's classes and its templates for prompts."""
    package = find_spec("open_clip")
    assert package is not None, "open_clip is a dependency"
    assert package.origin is not None, "it has an __init__.py"
    file = Path(package.origin).with_name("zero_shot_metadata.py")  # it imports nothing
    found = spec_from_file_location("zero_shot_metadata", file)
    assert found is not None, "a file of Python"
    assert found.loader is not None, "a file of Python"
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Memory:
    """Answers of libraries, kept in a folder.

    Args:
        folder: where the answers are. None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def answer(self, distribution: str, question: str, ask: Callable[[], Any]) -> Any:
        """Return what `ask` returned before, or returns now, as plain data of JSON.

        A kept answer that is damaged is asked for again.

        Args:
            distribution: the package of the library; an answer is that of its installed version.
            question: what is asked.
            ask: asks the library, which imports it.
        """
        if self._folder is None:
            return ask()
        of = [distribution, version(distribution), question]
        file = self._folder / f"{digest(of)[:32]}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            kept = json.loads(file.read_bytes())
            if kept["sha256"] == digest(kept["answer"]):
                return kept["answer"]
        found = json.loads(json.dumps(ask()))
        kept = {"of": of, "answer": found, "sha256": digest(found)}
        with suppress(OSError):  # a home that cannot be written to: it is asked for again
            atomic_write(file, json.dumps(kept).encode())
        return found
