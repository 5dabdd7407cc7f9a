"""The raylet of this machine is killed in a sweep: Ray starts again, and the sweep ends well."""

import os
import signal
from pathlib import Path

import pytest
from conftest import FEW, HANG_S, ONE_SLOT, inside, mini_text
from test_killed import started
from test_ray_job import descendants

from soupray.store.objects import open_store

pytestmark = pytest.mark.slow


def raylets(pid: int) -> list[int]:
    """The raylets that this process started, and that still run."""
    return [p for p in descendants(pid) if Path(f"/proc/{p}/comm").read_text() == "raylet\n"]


def test_a_sweep_starts_its_ray_again_when_the_raylet_is_killed(tmp_path: Path) -> None:
    # So many that some are still to train when the driver sees that the raylet died, which takes
    # seconds, in which workers go on.
    edits = {"storage: embedded": f"storage: file://{tmp_path}/store", "trials: 16": "trials: 30"}
    text = mini_text(**ONE_SLOT | FEW | edits)
    text = text.replace("tracking: embedded", "tracking: off")
    spec = tmp_path / "mini.yaml"
    spec.write_text(text)
    where = (spec, "--home", tmp_path / "home")
    (tmp_path / "store").mkdir()
    store = open_store(f"file://{tmp_path}/store")

    def stored() -> list[str]:
        return [path for path in store.list("trials") if path.endswith(".json")]

    process = started(stored, "sweep", *where)
    before = {path: store.get(path) for path in stored()}
    (raylet,) = raylets(process.pid)
    os.kill(raylet, signal.SIGKILL)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 0, said
    assert "Starting Ray again, 1 of at most 3 times" in said
    assert "Traceback" not in said
    assert len(stored()) == 30
    assert all(store.get(path) == data for path, data in before.items())
    assert "30 in the store, 0 to train" in inside("sweep", *where).stderr
