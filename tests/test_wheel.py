"""An installed soupray, away from its checkout: the demo's spec is there."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

from conftest import ROOT

FIND = (
    "import sys, pathlib; from soupray.services.home import load_spec; "
    "path, spec, said = load_spec(None, pathlib.Path(sys.argv[1])); print(path, spec.name, said)"
)


def found_from(site, folder) -> list[str]:
    """What a fresh interpreter takes for the spec, with soupray installed in `site`."""
    env = {n: v for n, v in os.environ.items() if n != "SOUPRAY_SPEC"} | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", FIND, str(folder)],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_demo_is_found_where_the_wheel_puts_it(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (put,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"].items()
    site = tmp_path / "site"
    shutil.copytree(ROOT / "soupray", site / "soupray")
    shutil.copytree(ROOT / put[0], site / put[1])
    path, name, *why = found_from(site, tmp_path)
    assert path == str(site / "soupray" / "sweeps" / "digits.yaml")
    assert name == "digits"
    assert why[-2:] == ["(the", "demo)"]


def test_the_demo_is_found_in_a_checkout(tmp_path):
    assert found_from(ROOT, tmp_path)[0] == str(ROOT / "sweeps" / "digits.yaml")


def test_a_built_wheel_has_the_demo_and_the_packaged_model(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "soupray/sweeps/digits.yaml",
        "soupray/sweeps/schema.json",
        "soupray/cli/__init__.py",
        "soupray/assets/digits/open_clip_model.safetensors",
    }
