"""Code of a user, from the pages of the documentation: as files of a folder, and as wheels."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import HANG_S, ROOT
from hatchling import build

from soupray.core import plugins

PORTS = (
    "task", "data", "shift", "metric", "loss", "augmentation", "sampler", "recipe", "tracker",
)  # fmt: skip
"""The pages about plug-ins, each with an example that is a wheel."""


def files_of(*pages: str) -> dict[str, str]:
    """The files that pages about plug-ins show, by name."""
    texts = [(ROOT / "docs" / "plugins" / f"{page}.md").read_text() for page in pages]
    return dict(re.findall(r'```\w+ title="(\S+)"\n(.*?)```', "".join(texts), re.DOTALL))


def forget(folder: Path, before: set[str]) -> None:
    """Forget the modules of a folder, as a new process would."""
    plugins.forget()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {p.stem for p in folder.iterdir()}:
            del sys.modules[name]


@contextmanager
def standing_in(
    folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A new folder with these files, from which commands are run."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before, path = set(sys.modules), list(sys.path)
    forget(folder, before)
    try:
        yield folder
    finally:
        forget(folder, before)
        sys.path[:] = path


def installed_wheels(folder: Path) -> Path:
    """A folder into which pip installed the wheels of all pages. Each is built from its page."""
    made = folder / "wheels"
    for page in PORTS:
        source = folder / page
        source.mkdir(parents=True)
        for name, text in files_of(page).items():
            (source / name).write_text(text)
        with contextlib.chdir(source):
            build.build_wheel(str(made))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    command = [*pip, "--target", str(folder / "site"), *map(str, made.glob("*.whl"))]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_S)
    return folder / "site"
