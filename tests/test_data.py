"""Data: who gets which sample, what a shift does, and one cache for all processes."""

import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from conftest import HANG_S
from shared import demo, shifted_images

from soupray.core.errors import ConfigError, EvaluationError
from soupray.data import cache as cache_module
from soupray.data.cache import Data, open_data
from soupray.data.digits import WORDS, load_digits, split_digits
from soupray.data.shifts import SHIFTS
from soupray.spec.data import DigitsSpec
from soupray.spec.sweep_spec import SweepSpec

SPEC = demo().data
PARTS = ("train", "held_out", "test")
# 1797 images by class, as scikit-learn documents them.
COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(cache) -> Data:
    return open_data(demo(), cache)


def data_spec(**fields: int) -> DigitsSpec:
    return DigitsSpec.model_validate(SPEC.model_dump() | fields)


def digests(spec: SweepSpec, cache) -> dict[str, str]:
    return {s.name: s.digest for s in open_data(spec, cache).splits}


def test_the_digits_are_white_on_black_in_32_by_32():
    samples = load_digits()
    assert np.bincount(samples.labels).tolist() == COUNTS
    assert samples.images.shape == (1797, 1, 32, 32)
    assert samples.images.dtype == np.uint8
    assert (samples.images[:, :, :, 0] == 0).mean() > 0.9
    assert samples.images.max() == 255


def test_no_sample_is_in_two_splits_and_none_is_lost():
    parts = split_digits(SPEC, 0, WORDS)[0]
    ids = [i for name in PARTS for i in parts[name].ids]
    assert len(ids) == len(set(ids)) == 1797
    every = load_digits()
    row = {sample_id: i for i, sample_id in enumerate(every.ids)}
    for part in parts.values():
        rows = [row[i] for i in part.ids]
        assert (part.images == every.images[rows]).all()
        assert (part.labels == every.labels[rows]).all()


def test_each_split_has_its_share_of_each_class():
    parts = split_digits(data_spec(train_per_class=7, held_out=103), 3, WORDS)[0]
    held_out = [11, 11, 11, 10, 10, 10, 10, 10, 10, 10]  # 103 in 10 parts
    assert np.bincount(parts["train"].labels).tolist() == [7] * 10
    assert np.bincount(parts["held_out"].labels).tolist() == held_out
    rest = [all_ - 7 - held for all_, held in zip(COUNTS, held_out, strict=True)]
    assert np.bincount(parts["test"].labels).tolist() == rest


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (split_digits(SPEC, seed, WORDS)[0] for seed in (0, 0, 1))
    for name in PARTS:
        assert first[name].ids == again[name].ids
        assert first[name].ids != other[name].ids


def test_a_longer_training_set_begins_with_the_shorter_one():
    small, large = (
        set(split_digits(data_spec(train_per_class=n), 0, WORDS)[0]["train"].ids) for n in (5, 9)
    )
    assert small < large


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"held_out": 0}, "data.held_out = 0: held-out data chooses the soup"),
        ({"held_out": 9}, "at least one image of each of the 10 classes. Write 10 or more."),
        # Class 0 has 178 images: 129 to train and 50 held out are one too many.
        (
            {"train_per_class": 129},
            "data.train_per_class = 129 and data.held_out = 500 need 179 images of class 0 and "
            "leave none for test: the class has 178 images.",
        ),
        ({"train_per_class": 500}, "need 550 images of class 0"),
        # Class 8 has the fewest, 174: with 124 + 50 none is left for test.
        ({"train_per_class": 124}, "need 174 images of class 8 and leave none for test"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_the_numbers(fields, said):
    with pytest.raises(ConfigError) as error:
        split_digits(data_spec(**fields), 0, WORDS)
    assert said in str(error.value)


def test_class_names_must_be_ten(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"task\.classes has 9 names; data of kind digits have 10 classes, labelled 0 to 9\.",
    ):
        open_data(demo((", nine]", "]")), tmp_path)


def test_splits_have_their_roles_and_sizes(data):
    shifts = ["inverted", "rotated", "noise", "low_contrast", "thickened"]
    found = [(s.name, s.role, s.size) for s in data.splits]
    assert found == [
        ("train", "train", 200),
        ("held_out", "held_out", 500),
        ("test", "test", 1097),
        *((name, "shift", 1097) for name in shifts),
    ]
    assert len({s.digest for s in data.splits}) == 8


def test_a_digest_covers_seed_label_map_and_corruption(data, cache):
    base = digests(demo(), cache)
    assert digests(demo(("trials: 2", "trials: 3")), cache) == base
    other_seed = digests(demo(("seed: 0\n", "seed: 1\n")), cache)
    assert all(other_seed[name] != base[name] for name in base)
    other_names = digests(demo(("classes: [zero, one", "classes: [one, zero")), cache)
    assert all(other_names[name] != base[name] for name in base)
    fewer = digests(demo(("[inverted, rotated, noise,", "[noise,")), cache)
    assert fewer == {name: base[name] for name in fewer}  # each shift has a seed of its own


def test_samples_are_memory_maps_of_uint8_that_nobody_can_write(data):
    for split in data.splits:
        images, labels = data.samples(split)
        assert isinstance(images, np.memmap)
        assert isinstance(labels, np.memmap)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        assert len(images) == len(labels) == split.size
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_a_shift_is_of_the_test_images_in_their_order(data):
    images, labels = data.samples(data.split("test"))
    inverted, same_labels = data.samples(data.split("inverted"))
    assert (inverted == 255 - images).all()
    assert (same_labels == labels).all()


def test_samples_of_a_split_with_another_digest_are_refused(data):
    other = msgspec.structs.replace(data.split("held_out"), digest="0123456789abcdef")
    with pytest.raises(
        EvaluationError, match=r"split held_out.*data of the sweep had 0123456789ab"
    ):
        data.samples(other)


BUILD = """
import pathlib, sys, time
from soupray.data import cache
from soupray.spec.sweep_spec import SweepSpec
folder, build = pathlib.Path(sys.argv[1]), cache.build_folder
def counted(spec, into):
    (folder / "built there").touch()
    build(spec, into)
cache.build_folder = counted
spec = SweepSpec.model_validate_json(sys.argv[2])
(folder / "ready").touch()
while not (folder / "go").exists():
    pass
print([s.digest for s in cache.open_data(spec, folder / "cache").splits])
"""


def test_of_two_processes_that_come_at_once_one_builds_the_cache(data, tmp_path, monkeypatch):
    def counted(spec, into):
        (tmp_path / "built here").touch()
        build(spec, into)

    build = cache_module.build_folder
    monkeypatch.setattr(cache_module, "build_folder", counted)
    command = [sys.executable, "-c", BUILD, str(tmp_path), demo().model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        while not (tmp_path / "ready").exists():
            assert other.poll() is None
            time.sleep(0.001)
        (tmp_path / "go").touch()
        mine = [s.digest for s in open_data(demo(), tmp_path / "cache").splits]
        printed, _ = other.communicate(timeout=HANG_S)
    assert mine == [s.digest for s in data.splits]
    assert printed == f"{mine}\n"
    assert len(list(tmp_path.glob("built*"))) == 1
    assert list((tmp_path / "cache").glob("*part*")) == []


@pytest.mark.parametrize("name", ["held_out.images.npy", "splits.json", "sizes.json"])
def test_a_cache_that_was_cut_short_is_built_again_and_a_whole_one_is_not(
    data, tmp_path, name, monkeypatch
):
    built = []
    build = cache_module.build_folder
    monkeypatch.setattr(
        cache_module, "build_folder", lambda *about: built.append(1) or build(*about)
    )
    open_data(demo(), tmp_path)
    open_data(demo(), tmp_path)
    assert len(built) == 1
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[:-50])
    again = open_data(demo(), tmp_path)
    assert len(built) == 2
    assert again.splits == data.splits
    split = data.split("held_out")
    assert np.array_equal(again.samples(split)[0], data.samples(split)[0])


def image(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)[None, None]


def test_inverted_by_hand():
    assert shifted_images("inverted", image([[0, 255, 100]]), 0).tolist() == [[[[255, 0, 155]]]]


def test_low_contrast_by_hand():
    # 127.5 + (x - 127.5) / 5 = 102, 153, 122; 127 is 127.4
    shifted = shifted_images("low_contrast", image([[0, 255, 100, 127]]), 0)
    assert shifted.tolist() == [[[[102, 153, 122, 127]]]]


def test_thickened_grows_a_dot_by_two_pixels_on_each_side():
    dot = np.zeros((1, 1, 9, 9), np.uint8)
    dot[0, 0, 4, 3] = 200
    square = np.zeros_like(dot)
    square[0, 0, 2:7, 1:6] = 200
    assert (shifted_images("thickened", dot, 0) == square).all()


def test_rotated_turns_counter_clockwise_and_keeps_a_centred_disc():
    y, x = np.mgrid[:32, :32] - 15.5
    disc = (np.hypot(x, y) < 9).astype(np.uint8)[None, None] * 255
    difference = np.abs(shifted_images("rotated", disc, 0).astype(int) - disc)
    assert difference[0, 0][np.abs(np.hypot(x, y) - 9) > 1.5].max() == 0
    mark = np.zeros((1, 1, 32, 32), np.uint8)
    mark[0, 0, 15:17, 25:27] = 255  # 10 to the right of the centre
    rows, columns = np.nonzero(shifted_images("rotated", mark, 0)[0, 0] > 60)
    # 10 (cos 25, sin 25) = (9.1, 4.2), and up is towards row 0
    assert columns.mean() - 15.5 == pytest.approx(9.1, abs=0.5)
    assert 15.5 - rows.mean() == pytest.approx(4.2, abs=0.5)


def test_noise_has_a_standard_deviation_of_three_tenths_before_it_is_clipped():
    grey = np.full((20, 1, 64, 64), 128, np.uint8)
    noisy = shifted_images("noise", grey, 0).astype(float)
    assert np.median(noisy) == pytest.approx(128, abs=1)
    low, high = np.percentile(noisy, [25, 75])  # clipping leaves these: .674 deviations away
    assert (high - low) / (2 * 0.6745) == pytest.approx(0.3 * 255, rel=0.02)
    # Below 0 is P(z < -128 / 76.5) = .047
    assert (noisy == 0).mean() == pytest.approx(0.047, abs=0.003)


DRAWN = ("noise", "grainy", "moved", "occluded")


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_is_deterministic_and_leaves_its_input_alone(name):
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32)).astype(np.uint8)
    before = images.copy()
    shifted = shifted_images(name, images, 7)
    assert (shifted == shifted_images(name, images, 7)).all()
    assert (images == before).all()
    assert (shifted.shape, shifted.dtype) == (images.shape, np.uint8)
    assert (shifted == shifted_images(name, images, 8)).all() == (name not in DRAWN)
