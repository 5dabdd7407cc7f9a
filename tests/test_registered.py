"""The champion in MLflow's registry and model folders: the same answers without the store."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import HANG_S, ROOT, inside, leaderboard
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import soupray
from soupray.core.errors import CheckpointError, ChecksumMismatch, ConfigError
from soupray.data.decoding import png
from soupray.reporting.history import recipe_name
from soupray.reporting.model_folder import moved_specs, write_folder
from soupray.reporting.recipe_file import read_recipe
from soupray.search.state import find_basis
from soupray.training.worker import worker_context

REGISTERED = "models:/soupray-mini@champion"


@pytest.fixture(scope="module")
def images(run):
    """(images [N, C, H, W], labels) of ID test."""
    spec, place, store = run.world()
    found = worker_context(spec, place).data.samples(find_basis(store, spec).split("test"))
    return np.array(found[0]), found[1]


@pytest.fixture(scope="module")
def database(run) -> str:
    return f"sqlite:///{run.home}/mlflow/mlflow.db"


@pytest.fixture
def registry(database, monkeypatch):
    """MLflow with the database of the main job."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
    yield
    mlflow.set_tracking_uri(None)


def frame(images) -> pd.DataFrame:
    return pd.DataFrame({"image": [png(image[0]) for image in images]})


def test_mlflow_loads_the_champion_with_the_counts_of_the_leaderboard(run, images, registry):
    model = mlflow.pyfunc.load_model(REGISTERED)
    name = json.loads((run.output / "run.json").read_text())["champion"]["name"]
    entry = next(e for e in leaderboard(run.output) if e["name"] == name)
    found = model.predict(frame(images[0]))
    classes = run.world()[0].task.classes
    right = sum(
        classes[label] == said for label, said in zip(images[1], found["class"], strict=True)
    )
    assert right == entry["test"]["correct"]
    few, ours = frame(images[0][:7]), soupray.load(f"mini:{name}", home=run.home)
    more = {"top": 2, "probabilities": True, "calibrated": True}
    shown = model.predict(few, params=more)
    expected = ours.calibrated().predict_proba(images[0][:7])
    assert list(shown.columns[:4]) == ["class", "probability", "class_2", "probability_2"]
    assert np.array_equal(shown[[f"p({c})" for c in classes]].to_numpy(np.float32), expected)
    facts = model.metadata.metadata
    recipe = read_recipe(run.output / recipe_name(name))
    assert facts["soupray.ingredients"] == recipe.ingredients
    assert facts["soupray.classes"] == list(classes)
    assert model.metadata.signature.inputs.input_names() == ["image"]
    assert not list(Path(model._model_impl.context.artifacts["model"]).rglob("*.pkl"))
    with pytest.raises(MlflowException, match="not an image of a known format"):
        model.predict(pd.DataFrame({"image": [b"hello"]}))
    with pytest.raises(MlflowException, match=r"missing inputs \['image'\]"):
        model.predict(pd.DataFrame({"picture": [b"hello"]}))


def test_what_is_registered_is_loaded_without_the_store(
    database, run, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    away = soupray.load(REGISTERED, home=tmp_path / "other")
    here = soupray.load("mini@champion", home=run.home)
    assert away.name == here.name
    assert np.array_equal(away.logits(images[0]), here.logits(images[0]))
    again = soupray.load(REGISTERED, home=tmp_path / "other")  # from the copy of the first time
    assert np.array_equal(again.logits(images[0][:3]), here.logits(images[0][:3]))


def test_a_version_without_files_is_read_from_the_store(run, fresh, monkeypatch):
    """Older versions of soupray registered models as external."""
    url = f"sqlite:///{fresh.home}/mlflow/mlflow.db"
    client = MlflowClient(url)
    client.set_model_version_tag("soupray-mini", "1", "mlflow.model.is_external", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    name = soupray.load(REGISTERED, home=run.home).name
    assert name == soupray.load("mini@champion", home=run.home).name


@pytest.fixture(scope="module")
def folders(run, tmp_path_factory):
    """Model folders of entries of each kind, by name."""
    root, place = tmp_path_factory.mktemp("folders"), run.world()[1]
    found = {}
    for name in ("best_single", "greedy", "ensemble", "vrf(greedy)", "learned_by_layer"):
        found[name] = root / recipe_name(name).partition(".")[0]
        write_folder(read_recipe(run.output / recipe_name(name)), lambda spec: place, found[name])
    return found


def test_a_model_folder_gives_the_logits_of_the_store_bit_for_bit(run, folders, images, tmp_path):
    for name, folder in folders.items():
        moved = shutil.copytree(folder, tmp_path / folder.name)
        away = soupray.load(moved, home=tmp_path / "none")
        here = soupray.load(f"mini:{name}", home=run.home)
        assert np.array_equal(away.logits(images[0]), here.logits(images[0])), name
        for path in moved.rglob("*"):  # as in an image of a container
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert away.summary() == here.summary()
        assert soupray.load(str(moved), home=tmp_path / "none").name == name
    assert not (tmp_path / "none").exists()


def test_export_writes_a_model_folder(run, images, tmp_path):
    out = tmp_path / "model"
    said = inside("export", "mini:ensemble", *run.where, "--format", "folder", "--output", out)
    assert f"soupray.load('{out}')" in said.stdout
    here = soupray.load("mini:ensemble", home=run.home).logits(images[0][:9])
    assert np.array_equal(soupray.load(out, home=tmp_path / "none").logits(images[0][:9]), here)


def test_a_folder_that_was_edited_or_copied_in_part_is_named(folders, tmp_path):
    folder = shutil.copytree(folders["greedy"], tmp_path / "greedy")
    (weights,) = (folder / "weights").iterdir()
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ChecksumMismatch, match="it was edited, or copied in part"):
        soupray.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="The folder is not complete: copy it again"):
        soupray.load(folder)
    (folder / "recipe.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a recipe file"):
        soupray.load(folder)


def test_a_recipe_without_the_digest_of_its_weights_makes_no_folder(run, tmp_path):
    old = json.loads((run.output / "greedy.recipe.json").read_text())
    path = tmp_path / "old.recipe.json"
    path.write_text(json.dumps(old | {"sha256": None, "digests": {}}))
    place = run.world()[1]
    with pytest.raises(ConfigError, match="without the digest of its weights"):
        write_folder(read_recipe(path), lambda spec: place, tmp_path / "folder")


def test_the_specs_of_a_folder_name_its_files(folders):
    recipe = read_recipe(folders["greedy"] / "recipe.json")
    specs = moved_specs(recipe, folders["greedy"])
    assert specs[""].task.model == "soupray:digits"  # nothing beside the package is needed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """An environment with the wheel of soupray; the libraries are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(
        subprocess.run([python, "-c", where], capture_output=True, text=True).stdout.strip()
    )
    (built,) = folder.glob("*.whl")
    zipfile.ZipFile(built).extractall(site)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    uvicorn = python.with_name("uvicorn")  # pip makes it; `mlflow models serve` runs it
    uvicorn.write_text(f"#!{python}\nfrom uvicorn.main import main\n\nmain()\n")
    uvicorn.chmod(0o755)
    found = subprocess.run(
        [python, "-c", "import soupray; print(soupray.__file__)"],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert found.stdout.strip() == str(site / "soupray" / "__init__.py")
    return python


def test_mlflow_serves_and_predicts_where_the_wheel_is_installed(
    run, wheel, database, images, tmp_path
):
    ours = soupray.load("mini@champion", home=run.home)
    encoded = [[base64.b64encode(png(image[0])).decode()] for image in images[0][:5]]
    asked = {"dataframe_split": {"columns": ["image"], "data": encoded}}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    env = os.environ | {
        "MLFLOW_TRACKING_URI": database,
        "PATH": f"{wheel.parent}:{os.environ['PATH']}",
        "SOUPRAY_HOME": str(tmp_path / "none"),
    }
    models = [wheel, "-m", "mlflow", "models"]
    which = ["-m", REGISTERED, "--env-manager", "local"]
    answer = tmp_path / "answer.json"
    done = subprocess.run(
        [*models, "predict", *which, "-i", tmp_path / "asked.json", "-o", answer],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = ours.predict(images[0][:5])
    assert [row["class"] for row in json.loads(answer.read_text())["predictions"]] == expected

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "served.log").open("w") as log:
        server = subprocess.Popen(
            [*models, "serve", *which, "--port", str(port)],
            env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + HANG_S
        while time.monotonic() < end and server.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/ping").close()
                break
            time.sleep(0.2)

        def invoke(body: dict):
            head = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), head)
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)["predictions"]

        rows = invoke(asked | {"params": {"probabilities": True}})
        shares = [[row[f"p({name})"] for name in ours.classes] for row in rows]
        assert np.allclose(shares, ours.predict_proba(images[0][:5]), rtol=1e-6)
        asked["dataframe_split"]["data"] = [["aGVsbG8="]]
        with pytest.raises(urllib.error.HTTPError) as refused:
            invoke(asked)
        assert refused.value.code == 400
        assert "not an image of a known format" in json.load(refused.value)["message"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(HANG_S)
