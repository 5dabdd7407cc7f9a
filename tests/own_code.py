"""Code of a user, from the pages of the guide: a folder with its files, as of a new process."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from soupray.core import plugins


def files_of(*pages: str) -> dict[str, str]:
    """The files that pages of the guide show, by name."""
    texts = [(ROOT / "docs" / "guide" / f"{page}.md").read_text() for page in pages]
    return dict(re.findall(r'```\w+ title="(\S+)"\n(.*?)```', "".join(texts), re.DOTALL))


def forget(folder: Path, before: set[str]) -> None:
    """Forget the modules of a folder, as a new process would."""
    plugins.load.cache_clear()
    plugins.installed.cache_clear()
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
