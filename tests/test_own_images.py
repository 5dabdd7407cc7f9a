"""Shifts and augmentations of the user: keys, resumed trials, and what breaks their contract."""

import re
import sys

import numpy as np
import pytest
import torch
from own_code import standing_in
from shared import DIGITS, small

from soupray.core import plugins
from soupray.core.errors import ConfigError, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.data.cache import open_data, planned
from soupray.search.plan import trials_of
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.training.loop import Loop
from soupray.training.start import Start

WEATHER = """
import torch

def fog(images, generator):
    return images / 2 + 64

def streaks(images, generator):
    rows = torch.randint(images.shape[2], (len(images),), generator=generator)
    hit = torch.rand(len(images), generator=generator) < 0.5
    made = images.clone()
    made[torch.arange(len(images))[hit], :, rows[hit]] = 255
    return made
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    with standing_in(tmp_path / "mine", {"weather.py": WEATHER}, monkeypatch) as folder:
        yield folder


def spec_of(shift: str = "weather:fog", augmentation: str = "weather:streaks") -> SweepSpec:
    text = DIGITS.read_text()
    text = re.sub(r"shifts: .*", f"shifts: [inverted, {shift}]", text)
    return parse(f"{text}\naugmentation: {augmentation}\n", "demo.yaml")


def test_a_shift_is_a_split_that_follows_the_code(here):
    spec = spec_of()
    assert [size[:2] for size in planned(spec).sizes][-2:] == [
        ("inverted", "shift"), ("fog", "shift")
    ]  # fmt: skip
    data = open_data(spec, here / "cache")
    test, labels = data.samples(data.split("test"))
    fog, same = data.samples(data.split("fog"))
    assert np.array_equal(fog, np.rint(test / 2 + 64).clip(0, 255).astype(np.uint8))
    assert np.array_equal(labels, same)
    (here / "weather.py").write_text(WEATHER.replace("+ 64", "+ 96"))
    plugins.load.cache_clear()
    sys.modules.pop("weather")
    other = open_data(spec_of(), here / "cache")
    assert other.split("fog").digest != data.split("fog").digest
    assert other.split("test").digest == data.split("test").digest
    with pytest.raises(ConfigError, match="the code here has the digest"):
        open_data(spec, here / "again")


def loop(world, spec: SweepSpec, **changes) -> Loop:
    start = Start(
        weights=world.checkpoints.load(world.trial.init), seed=0, device="cpu",
        augmentation=spec.own_augmentation, **changes,
    )  # fmt: skip
    return Loop(world.task, world.data, Hyperparameters(lr=1e-3, epochs=1), start)


def test_an_augmentation_draws_the_same_after_a_resume(here):
    world, spec = small(here), spec_of()
    first, second = loop(world, spec), loop(world, spec)
    assert first._seed_of_step() == second._seed_of_step()
    first.epoch(1)
    assert first._seed_of_step() != second._seed_of_step()
    second.epoch(1)
    a, b = first.weights(), second.weights()
    assert all(torch.equal(a[name], b[name]) for name in a)
    plain = spec.model_copy(update={"augmentation": None})
    third = loop(world, plain)
    third.epoch(1)
    assert not all(torch.equal(a[name], t) for name, t in third.weights().items())


def test_an_augmentation_is_a_part_of_the_keys_of_trials(here):
    world, spec = small(here), spec_of()
    plain = spec.model_copy(update={"augmentation": None})
    keys = [[t.key for t in trials_of(s, world.basis)] for s in (spec, plain)]
    assert not set(keys[0]) & set(keys[1])
    assert trials_of(spec, world.basis)[0].augmentation == spec.own_augmentation


BROKEN = {
    "return images / 255": "values from 0 to 1, but got values up to 255.*from 0 to 255 here",
    "return images / 128 - 1": "values from -1 to 0.992, but got values up to 255",
    "return images.div_(255)": "values from 0 to 1, but got values up to 255",
    "return images[:, :, 1:]": r"returned a tensor \[.*\]. Return images of the shape that it gets",
    "return images.numpy()": "returned ndarray",
    "return images / 0 - images / 0": "returned values that are NaN or infinite",
    "return images + nothing": r"raised NameError: .* \(.*broken.py:1\)",
}


@pytest.mark.parametrize("body", BROKEN)
def test_what_breaks_the_contract_is_named(here, body):
    (here / "broken.py").write_text(f"def change(images, generator): {body}\n")
    with pytest.raises(ConfigError, match=BROKEN[body]) as error:
        open_data(spec_of("broken:change"), here / "cache")
    assert "data.shifts: 'broken:change' (" in str(error.value)
    with pytest.raises(TrialError, match=BROKEN[body]) as error:
        loop(small(here), spec_of(augmentation="broken:change")).epoch(1)
    assert "augmentation 'broken:change' (" in str(error.value)


def test_a_shift_changes_copies(here):
    (here / "broken.py").write_text("def change(images, generator): return images.mul_(0)\n")
    data = open_data(spec_of("broken:change"), here / "cache")
    assert data.samples(data.split("test"))[0].any()
    assert not data.samples(data.split("change"))[0].any()


@pytest.mark.parametrize(
    ("shift", "says"),
    [
        ("away:fog", "there is no module 'away'"),
        ("weather:inverted", "has no 'inverted'|a shift is listed twice"),
        ("wether", "wether"),
    ],
)
def test_shifts_that_are_not_there_are_refused(here, shift, says):
    with pytest.raises(ConfigError, match=says):
        planned(spec_of(shift))
