"""What a user gives a model: read as in evaluation, refused by name, counted where changed."""

import logging
import threading

import numpy as np
import pytest
import torch
from image_files import png
from pictures import encoded, pixels, spec_of
from PIL import Image

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, InputError, NotFound
from soupray.data.building import look_of_evaluation
from soupray.data.cache import open_data
from soupray.data.decoding import Look
from soupray.inference.inputs import ImageReader, TextReader, all_read
from soupray.inference.load import found_device
from soupray.inference.model import Model, Runs
from soupray.inference.what import find_recipe
from soupray.reporting.recipe_file import RecipeFile

SHAPES = [(20, 24), (16, 16), (40, 16), (16, 50), (9, 9), (100, 13)]


def nothing(url: str) -> bytes:
    raise NotFound(f"{url} is not there")


def test_files_arrays_and_pillows_images_become_what_the_data_cache_has(tmp_path):
    for kind in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            for seed, shape in enumerate(SHAPES):
                folder = tmp_path / kind / name
                folder.mkdir(parents=True, exist_ok=True)
                number = 100 * (kind == "val") + 10 * len(name) + seed + ord(name[0])
                data = encoded(pixels(number, shape))
                (folder / f"{seed}.jpg").write_bytes(data)
    spec = spec_of(
        f"kind: folder\ntrain: {tmp_path}/train\ntest: {tmp_path}/val\nheld_out: 3\nsize: 16"
    )
    data = open_data(spec, tmp_path / "cache")
    test = data.split("test")
    cached, _ = data.samples(test)
    files = sorted((tmp_path / "val").rglob("*.jpg"))
    names = {tuple(p.relative_to(tmp_path / "val").parts): p for p in files}
    assert len(names) == len(cached)
    reader = ImageReader(look_of_evaluation(spec, None), nothing)
    by_bytes = {image.tobytes() for image in np.array(cached)}
    forms = [
        files,
        [str(f) for f in files],
        [f.read_bytes() for f in files],
        [Image.open(f) for f in files],
        [np.asarray(Image.open(f)) for f in files],
        [np.asarray(Image.open(f)).transpose(2, 0, 1) for f in files],
    ]
    for form in forms:
        found = all_read(reader.read(reader.split(form)), form, 0)
        assert found.shape == (len(files), 3, 16, 16)
        assert {image.tobytes() for image in found} == by_bytes
    once = reader.read(reader.split(files)).samples
    again = reader.split(once)
    assert np.array_equal(reader.read(again).samples, once)  # what is ready stays as it is
    channels_last = reader.split(once.transpose(0, 2, 3, 1))
    assert np.array_equal(reader.read(channels_last).samples, once)


LOOK = Look(16, 3)


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(pixels(1), "PNG"))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    given = [
        tmp_path / "good.png",
        tmp_path / "empty.png",
        str(tmp_path / "text.png"),
        tmp_path / "missing.png",
        "s3://b/x.png",
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        None,
    ]
    read = ImageReader(LOOK, nothing).read(given)
    assert read.rows == [0]
    assert read.samples.shape == (1, 3, 16, 16)
    says = {
        1: "not an image", 2: "not an image", 3: "No such file", 4: "s3://b/x.png is not there",
        5: "2 channels", 6: "float32", 7: "no pixels", 8: "NoneType",
    }  # fmt: skip
    assert read.problems.keys() == says.keys()
    for row, words in says.items():
        assert words in read.problems[row]
    with pytest.raises(InputError, match=r"8 of 9 inputs cannot be read: input 11 \(.*empty\.png"):
        all_read(read, given, 10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), "uint8 with values from 0 to 255, not float32"),
        (torch.zeros(2, 3, 4, 4), "not float32"),
        (np.zeros((2, 4, 5, 5), np.uint8), "1 or 3 channels, not 4"),
        (np.zeros((3, 4, 4), np.uint8), r"not \[3, 4, 4\]. Put one image into a list"),
        ([[1.0, 2.0]], r"not float64 \[1, 2\]"),
        (3, "int64"),
        ([[1, 2], [3]], "no array of images: "),
    ],
)
def test_arrays_that_are_no_images_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        ImageReader(LOOK, nothing).split(given)


def test_without_a_known_size_only_arrays_are_read():
    reader = ImageReader(None, nothing)
    array = np.zeros((2, 1, 28, 28), np.uint8)
    assert reader.read(reader.split(array)).samples.shape == array.shape
    with pytest.raises(InputError, match="did not note the size"):
        reader.read(["a.png"])


def test_what_is_changed_is_counted_and_a_loss_is_said_once(caplog):
    caplog.set_level(logging.WARNING, "soupray")
    reader = ImageReader(Look(16, 1, resize="squash"), nothing)
    rgba = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    deep = png(np.full((4, 4), 40_000), 16, 0)
    array = np.zeros((8, 4, 3), np.uint8)
    reader.read([rgba, deep, array, array])
    assert reader.counted.done == {
        "transparency laid over white": 1,
        "16 bits scaled to 8 bits": 1,
        "converted to 1 channels": 2,
        "squashed (16 x 16 pixels)": 3,
    }
    assert [r.getMessage() for r in caplog.records] == [
        "an image was squashed (16 x 16 pixels), as in evaluation; this is said once."
    ]


def lengths(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_texts_are_stripped_limited_and_named():
    given = [" a b ", "", 3, "\ud800", "one two three four", "abcdefghijklmnop"]
    read = TextReader((10, 3), False, lengths).read(given)
    assert read.rows == [0]
    assert bytes(read.samples[0]) == b"a b"
    assert read.problems.keys() == {1, 2, 3, 4, 5}
    assert read.problems[4] == "4 tokens in 18 bytes; the limits of the spec are 3 and 10"
    cuts = TextReader((10, 3), True, lengths)
    read = cuts.read(given)
    assert read.rows == [0, 4, 5]
    assert bytes(read.samples[2]) == b"abcdefghij"
    assert cuts.counted.done == {"cut to 3 tokens and 10 bytes": 2}
    assert cuts.split("alone") == ["alone"]
    with pytest.raises(InputError, match="a list of texts, not '3'"):
        TextReader((10, 3), False, lengths).split(3)


class Adding:
    """In the place of a predictor: logits are sums of pixels, and it notes the sizes of parts."""

    def __init__(self) -> None:
        self.parts: list[int] = []

    def logits(self, samples: np.ndarray) -> np.ndarray:
        self.parts.append(len(samples))
        total = samples.reshape(len(samples), -1).astype(np.float32).sum(axis=1)
        return np.stack([total, -total], axis=1)


def model(batch_size: int = 3) -> tuple[Model, Adding]:
    spec = spec_of("kind: folder\ntrain: a\ntest: b\nheld_out: 3\nsize: 16", "classes: [ant, bee]")
    recipe = RecipeFile(
        name="greedy", recipe="greedy", options={}, candidate=mean_of(["0" * 64]),
        ingredients={"0" * 64: "t0"}, statistics={}, sha256=None,
        spec=spec.model_dump(mode="json"),
    )  # fmt: skip
    predictor = Adding()
    return Model(recipe, predictor, ImageReader(LOOK, nothing), Runs("cpu", batch_size)), predictor


def test_parts_are_whole_batches_and_the_order_stays(monkeypatch):
    monkeypatch.setattr("soupray.inference.model.CHUNK", 7)
    made, predictor = model(batch_size=3)
    images = np.random.default_rng(0).integers(0, 256, (14, 3, 16, 16)).astype(np.uint8)
    found = made.logits(images)
    assert predictor.parts == [6, 6, 2]
    assert np.array_equal(found[:, 0], images.reshape(14, -1).astype(np.float32).sum(axis=1))
    assert made.predict(images[:2]) == ["ant", "ant"]
    assert made.predict_proba(images).sum(axis=1) == pytest.approx(1)
    assert made.logits([]).shape == (0, 2)
    assert made.classes == ("ant", "bee")
    assert "greedy of sweep pictures" in made.summary()
    assert "16 x 16 pixels, RGB" in made.summary()


def test_several_threads_get_their_own_answers():
    made, _ = model()
    groups = [pixels(seed, (16, 16))[None].repeat(9, axis=0) for seed in range(8)]
    wanted = [made.logits(list(group)) for group in groups]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = made.logits(list(groups[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], wanted[n]) for n in range(8))


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda:7", "torch sees"), ("gpu", "write cpu, cuda or cuda:N"), ("cuda:x", "write cpu")],
)
def test_a_device_that_is_not_there_is_refused(device, said):
    with pytest.raises(ConfigError, match=said):
        found_device(device)


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("nonsense", ConfigError, "neither a recipe file nor a model folder"),
        ("none@champion", ConfigError, "no sweep 'none' in the home .* It has: none"),
        ("none@best", ConfigError, "the only alias is champion"),
        ("missing.recipe.json", ConfigError, "missing.recipe.json: cannot be read"),
    ],
)
def test_what_names_nothing_says_what_could_be_named(tmp_path, what, error, said):
    with pytest.raises(error, match=said):
        find_recipe(what, tmp_path)


def test_an_entry_that_is_not_there_is_named_with_those_that_are(run):
    assert find_recipe("mini:greedy", run.home).name == "greedy"
    assert find_recipe(f"{run.spec}:wise_ft(greedy, best)", run.home).recipe == "wise_ft"
    with pytest.raises(NotFound, match=r"no entry 'gredy'. It has: .*greedy, "):
        find_recipe("mini:gredy", run.home)
