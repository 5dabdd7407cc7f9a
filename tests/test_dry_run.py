"""`sweep --dry-run`: files of weights, sizes of images, and the time that a step takes here."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, inside
from PIL import Image
from shared import demo

from soupray.core.errors import CheckpointError, ConfigError
from soupray.operations.estimate import dry_run
from soupray.operations.measuring import measure, room_here
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store.weights_file import write_weights
from soupray.tasks import task_of

DIGITS = ROOT / "soupray" / "assets" / "digits" / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of ten images."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for k in range(10):
            pixels = drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def spec_of(folder: Path, data: str = "size: 32", task: str = "", more: str = "") -> SweepSpec:
    return parse(
        f"""
name: pets
task: {{kind: timm, model: resnet10t, args: {{stem_width: 8, channels: [8, 8, 8, 8]}},
       classes: [cat, dog], size: 32, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]{task}}}
data: {{kind: folder, train: {folder}, test: 4, held_out: 4, {data}}}
init: {{trained: {{lr: 1e-3, epochs: 1, batch_size: 4}}}}
anchor: init
search: {{trials: 2, space: {{lr: 1e-3, epochs: 2, batch_size: 5}}}}
{more}
""",
        "x",
    )


def test_what_is_measured_gives_the_time_of_the_samples_that_the_plan_counts(tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text((ROOT / "sweeps" / "digits.yaml").read_text())
    home = tmp_path / "home"
    done = inside("sweep", path, "--home", home, "--dry-run", "--measure", "--json")
    said = json.loads(done.stdout)
    found, cost = said["measured"], said["cost"]
    assert (found["batch_size"], found["pass_samples"], found["device"]) == (20, 50, "cpu")
    assert found["step_seconds"] > 0
    assert found["pass_seconds"] > 0
    step, one = found["step_seconds"] / 20, found["pass_seconds"] / 50
    total = cost["training_samples"] * step + cost["held_out_samples"] * one
    assert found["sweep_seconds"] == pytest.approx(total / found["at_a_time"])
    assert not (home / "stack").exists()  # no store was opened
    assert not (home / "cache").exists()
    shown = inside("sweep", path, "--home", home, "--dry-run", "--measure").stdout
    assert "s a step of 20 samples" in " ".join(shown.split())


def test_a_step_of_files_and_of_heads_alone_is_measured_too(pictures):
    spec = spec_of(pictures)
    found = measure(spec, dry_run(spec))
    assert (found.batch_size, found.threads) == (5, 1)
    streamed = spec_of(pictures, "size: 32, keep: stream")
    assert measure(streamed, dry_run(streamed)).step_seconds is not None
    head = spec.search.model_copy(update={"train": "head"})
    heads = spec.model_copy(update={"search": head})
    cost = dry_run(heads)
    found = measure(heads, cost)
    assert found.step_seconds is None  # features are computed once, by a forward pass
    each = found.pass_seconds / found.pass_samples
    total = (cost.training_samples + cost.held_out_samples) * each
    assert found.sweep_seconds == pytest.approx(total / found.at_a_time)


def test_room_on_this_machine_is_by_cpus_and_the_limit_of_the_spec(pictures, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    def room(resources: str, trials: int = 100) -> int:
        spec = spec_of(pictures, more=f"resources: {resources}")
        search = spec.search.model_copy(update={"trials": trials})
        return room_here(spec.model_copy(update={"search": search}))

    assert room("{cpu: 1}") == 8
    assert room("{cpu: 3}") == 2
    assert room("{cpu: 16}") == 1
    assert room("{cpu: 1, at_most: 3}") == 3
    assert room("{cpu: 1}", trials=2) == 2


def test_what_cannot_be_measured_is_said(tmp_path):
    pool = demo(("trials: 2", "trials: 0"))
    with pytest.raises(ConfigError, match="plans no trial"):
        measure(pool, dry_run(demo()))
    if not torch.cuda.is_available():
        gpu = demo(("gpu: 0", "gpu: 1"))
        with pytest.raises(ConfigError, match="there is no GPU on this machine"):
            measure(gpu, dry_run(demo()))
    spec = ROOT / "sweeps" / "digits.yaml"
    done = inside("sweep", spec, "--home", tmp_path, "--measure", check=False)
    assert done.returncode == 2
    assert "--measure goes with --dry-run" in done.stderr


def test_files_of_weights_are_named_with_size_and_digest(pictures, tmp_path):
    (file,) = dry_run(demo()).weights
    data = DIGITS.read_bytes()
    assert (file.field, file.size_bytes) == ("task.model", len(data))
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    weights = tmp_path / "start.safetensors"
    write_weights(weights, task_of(spec_of(pictures).task).init(), {})
    spec = spec_of(pictures, task=f", pretrained: {weights}")
    (file,) = dry_run(spec).weights
    assert (file.field, file.path) == ("task.pretrained", str(weights))
    shown = tmp_path / "pets.yaml"
    shown.write_text(spec.model_dump_json())
    said = inside("sweep", shown, "--home", tmp_path / "h", "--dry-run").stdout
    assert f"weights: {weights} (task.pretrained, " in said
    assert f"sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()}" in said


def test_a_file_of_weights_that_is_missing_or_holds_none_is_refused(pictures, tmp_path):
    gone = spec_of(pictures, task=f", pretrained: {tmp_path}/gone.pt")
    with pytest.raises(ConfigError, match=r"task.pretrained = .*gone.pt.*there is no file"):
        dry_run(gone)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        dry_run(spec_of(pictures, task=f", pretrained: {broken}"))
    text = spec_of(pictures).model_dump(mode="json") | {"init": {"file": str(broken)}}
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        dry_run(parse(json.dumps(text), "x"))
    text["init"] = {"file": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError, match=r"init.file = .*nowhere"):
        dry_run(parse(json.dumps(text), "x"))


@pytest.mark.parametrize(("size", "how"), [(64, "made smaller"), (16, "enlarged"), (32, None)])
def test_a_size_of_the_data_that_the_model_does_not_read_is_said(pictures, size, how, heard):
    notes = dry_run(spec_of(pictures, f"size: {size}")).notes
    if how is None:
        assert notes == ()
        return
    (note,) = notes
    assert note.startswith(f"data.size = {size}, but the model reads 32 x 32 pixels")
    assert f"then {how}. Write data.size: 32" in note
    assert note in heard()
