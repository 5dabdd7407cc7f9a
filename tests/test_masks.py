"""Segmentation: masks of a dataset, augmentations and shifts that move them, what a user gets."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from own_code import standing_in
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from test_objectives import handed_over, registered, short, tracked

from soupray.core import plugins
from soupray.core.errors import ConfigError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Objective
from soupray.data.augment import Draws, augmented, draw, with_images
from soupray.data.cache import open_data, planned
from soupray.data.targets import mask_of, notes_on
from soupray.inference.meaning import Meaning, Wanted, run_lengths
from soupray.recipes import BY_NAME, check_objective
from soupray.reporting.model_folder import answers_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.tasks import task_of
from soupray.training.loop import Loop
from soupray.training.losses import TrainingLoss, soft_dice
from soupray.training.start import Start

MASKS = Objective(kind="segmentation", side=4)

CODE = '''
import numpy as np
import torch
from PIL import Image
from torch import nn


def model():
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))


def masks(split, count=12):
    """The image is its own mask: white rectangles."""
    draw = np.random.default_rng(len(split))
    made = []
    for _ in range(count):
        mask = np.zeros((14, 14), np.uint8)
        top, left = draw.integers(2, 5, 2)
        mask[top : top + draw.integers(3, 9), left : left + draw.integers(3, 9)] = 255
        made.append((Image.fromarray(mask), mask // 255))
    return made
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    with standing_in(tmp_path / "mine", {"own.py": CODE}, monkeypatch) as folder:
        yield folder


def code(folder, text: str) -> None:
    """More code in `own`."""
    import sys

    (folder / "own.py").write_text(f"{CODE}\n{text}\n")
    plugins.load.cache_clear()
    sys.modules.pop("own", None)


def spec(**keys) -> SweepSpec:
    plain = {
        "name": "own",
        "metric": "iou",
        "task": {"kind": "torch", "model": "own:model", "classes": ["box"], "size": 14,
                 "mean": [0.5], "std": [0.5]},
        "data": {"kind": "torch", "dataset": "own:masks", "held_out": 4, "size": 14,
                 "train_size": 14, "channels": 1},
        "objective": "segmentation",
        "init": {"trained": {"lr": 0.1, "epochs": 1}},
        "anchor": "init",
        "search": {"trials": 1, "space": {"lr": 0.1, "epochs": 1}},
    }  # fmt: skip
    merged = {
        name: {**plain[name], **value} if name in ("task", "data", "search") else value
        for name, value in keys.items()
    }
    return SweepSpec(**{**plain, **merged})


# ---- targets


def test_every_form_of_a_mask_is_the_same_mask():
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    grey = Image.fromarray(mask * 255)
    forms = [
        mask, mask * 255, mask.astype(bool), mask.astype(np.float32), mask[None], mask[..., None],
        torch.from_numpy(mask), torch.from_numpy(mask)[None].float().requires_grad_(),
        mask.tolist(), grey, grey.convert("1"), Image.fromarray(mask).convert("P"),
    ]  # fmt: skip
    for form in forms:
        found = mask_of(form, 2, "here")
        assert found.dtype == np.uint8
        assert found.tolist() == [0, 1, 1, 0]
    assert not mask_of(np.zeros((2, 2)), 2, "here").any()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (np.zeros((3, 2)), r"its mask is 2 x 3 pixels, not 2 x 2 as task\.size"),
        (np.full((2, 2), np.nan), "its mask has the value nan"),
        (np.full((2, 2), 0.5), r"its mask has the value 0\.5"),
        (np.array([[0, 1], [255, 0]]), "its mask has the value 1"),
        (np.array([[0, 2], [1, 0]]), "its mask has the value 2"),
        (Image.new("RGB", (2, 2)), "an image of mode RGB, 2 x 2. Allowed are masks"),
        (np.zeros((2, 2, 2)), r"an array \[2, 2, 2\] float64"),
        (3, "Allowed are masks"),
        ("a mask", "Allowed are masks"),
        (None, "Allowed are masks"),
        (np.zeros((2, 2), complex), "Allowed are masks"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(target, says):
    with pytest.raises(ConfigError, match=rf"here: its .*{says}|here: {says}"):
        mask_of(target, 2, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def masks(split): return [(Image.new('L', (14, 14)), np.zeros((7, 7)))] * 9",
         r"own:masks.*sample 0: its mask is 7 x 7 pixels, not 14 x 14"),
        ("def masks(split): return [(Image.new('L', (28, 14)), np.zeros((14, 14)))] * 9",
         "sample 0: its image is 28 x 14 pixels, but its mask 14 x 14"),
        ("def masks(split):\n    image = Image.new('L', (14, 14))\n    exif = image.getexif()\n"
         "    exif[274] = 6\n    return [(image, np.zeros((14, 14)))] * 9",
         "sample 0: its image is turned as EXIF says, and its mask is not"),
        ("class D(list):\n    def __getitem__(self, k):\n"
         "        return Image.new('L', (14, 14)), np.random.rand(14, 14) > 0.5\n"
         "def masks(split): return D(range(9))",
         "the target of sample 0 changes from one read to the next"),
    ],
)  # fmt: skip
def test_images_and_masks_that_do_not_lie_on_each_other_are_refused(here, text, says):
    code(here, text)
    with pytest.raises(ConfigError, match=says):
        planned(spec())


def test_a_mask_that_is_made_in_each_read_is_no_random_one(here):
    code(here, "class D(list):\n    def __getitem__(self, k):\n"
               "        image = Image.new('L', (14, 14), 255 * (k > 3))\n"
               "        return image, image.copy()\n"
               "def masks(split): return D(range(9))")  # fmt: skip
    data = planned(spec(data={"overlap": "drop"}))
    assert data.classes[0].name == "box"
    assert data.classes[0].train + data.classes[0].held_out == 5  # samples whose mask has a pixel


def test_masks_without_anything_to_learn_are_said():
    assert notes_on(np.zeros((2, 4), np.uint8), ["box"], MASKS) == (
        "all masks of 'box' in split 'train' are empty: there is nothing to learn",
    )
    assert "are full" in notes_on(np.ones((2, 4), np.uint8), ["box"], MASKS)[0]
    assert notes_on(np.eye(2, dtype=np.uint8), ["box"], MASKS) == ()


# ---- what moves pixels moves masks


def test_shifts_that_move_an_image_move_its_mask(here):
    shifts = ["rotated", "moved", "faded", "blurred"]
    made = spec(data={"shifts": shifts})
    data = open_data(made, here / "cache")
    test = data.samples(data.split("test"))[1]
    splits = {name: data.samples(data.split(name)) for name in shifts}
    for name in ("rotated", "moved"):
        images, masks = splits[name]
        # The image is its mask: they moved alike if the image still is.
        assert ((images[:, 0] > 127).reshape(masks.shape) == (masks == 1)).all()
        assert (masks != test).any(axis=1).all()
    for name in ("faded", "blurred"):
        assert (splits[name][1] == test).all()
    digests = {data.split(name).digest for name in shifts}
    assert len(digests) == 4


def test_the_digest_of_a_split_knows_its_masks(here):
    first = open_data(spec(), here / "one")
    code(here, """
plain = masks
def masks(split):
    made = plain(split)
    made[0][1][7, 7] ^= split == "test"  # one pixel of one mask of test, and no image
    return made
""")  # fmt: skip
    second = open_data(spec(), here / "two")
    assert first.split("test").digest != second.split("test").digest
    for name in ("train", "held_out"):
        assert first.split(name).digest == second.split(name).digest


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0]), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_mask_is_augmented_as_an_image_that_is_its_mask(seed, flip, shift):
    """Flips and shifts by whole pixels are exact: then both are equal to the last bit."""
    side, n = 8, 5
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 2, (n, side * side), generator=generator, dtype=torch.uint8)
    signs = torch.randint(0, 2, (3, n), generator=generator).float()  # angle, x, y: -1 or 1
    signs[0] = 0.5  # no turn
    draws = Draws(signs if shift else None, torch.full((5, n), 0.4), None)
    wanted = Hyperparameters(lr=1, epochs=1, flip=flip, shift=shift / side)
    images = masks.view(n, 1, side, side) * 255
    pictures = augmented(images, draws, wanted)
    found = with_images(masks, side, draws, wanted)
    assert found.dtype == torch.uint8
    assert torch.equal(pictures.flatten(1) > 127, found == 1)
    expected = images[:, 0]
    if flip:
        expected = expected.flip(-1)
    if not shift:
        assert torch.equal(found.view(n, side, side) * 255, expected)


@pytest.mark.parametrize("seed", range(10))
def test_under_any_turn_and_crop_large_areas_stay_on_each_other(seed):
    """Nearest and bilinear pixels differ at edges alone: one pixel on either side."""
    side = 64
    mask = torch.zeros(4, side, side)
    mask[:, 16:48, 20:44] = 1
    wanted = Hyperparameters(lr=1, epochs=1, rotation=180, shift=0.2, crop=0.3, flip=0.5)
    draws = draw(4, wanted, torch.Generator().manual_seed(seed))
    image = augmented((mask * 255)[:, None], draws, wanted)[:, 0]
    found = with_images(mask.flatten(1), side, draws, wanted).view(4, side, side)
    apart = (image > 127) != (found == 1)
    inner = -F.max_pool2d(-found[:, None], 3, 1, 1)[:, 0]
    outer = F.max_pool2d(found[:, None], 3, 1, 1)[:, 0]
    assert not (apart & ((inner == 1) | (outer == 0))).any()
    assert 0 < float(found.mean()) < 1


def test_the_loop_moves_masks_with_their_images(here):
    made = spec(search={"space": {"lr": 0.1, "epochs": 1}})
    data, task = open_data(made, here / "cache"), task_of(made.task)
    start = Start(weights=task.init(), seed=0, device="cpu")
    loop = Loop(task, data, Hyperparameters(lr=0.1, epochs=1, batch_size=3, flip=0.5,
                                            shift=0.2), start)  # fmt: skip
    seen = []
    plain = loop.gradients

    def kept(inputs, targets, n):
        seen.append((inputs, targets.labels))
        return plain(inputs, targets, n)

    loop.gradients = kept
    loop.epoch(1)
    inputs, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    assert inputs.shape == (8, 1, 14, 14)
    assert labels.shape == (8, 196)
    # Of an image that is its own mask, bilinear pixels above the half are those of the mask, but
    # for edges half-way between two pixels.
    agree = ((inputs.flatten(1) > 0) == (labels == 1)).float().mean()
    assert agree > 0.93
    still = torch.from_numpy(np.array(data.samples(data.split("train"))[1]))
    rows = [(label == still).all(dim=1).any() for label in labels]
    assert not all(rows)  # they moved


# ---- losses


def loss(targets, **hparams: float) -> TrainingLoss:
    return TrainingLoss(Hyperparameters(lr=1, epochs=1, **hparams), MASKS, torch.as_tensor(targets))


def test_losses_of_masks_by_hand():
    outputs, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([[1, 0]])
    bce = [math.log(1 + math.exp(-2)), math.log(2)]
    assert float(loss(targets)(outputs, targets)) == pytest.approx(sum(bce) / 2)
    p, half = 1 / (1 + math.exp(-2)), 0.5
    dice = 1 - (2 * p + 1) / (p**2 + half**2 + 1 + 1)
    assert float(soft_dice(outputs, targets)) == pytest.approx(dice)
    mixed = float(loss(targets, dice=0.25)(outputs, targets))
    assert mixed == pytest.approx(0.75 * sum(bce) / 2 + 0.25 * dice)
    nothing = torch.zeros(1, 2)
    assert float(soft_dice(torch.full((1, 2), -60.0), nothing)) == pytest.approx(0)
    # One pixel in four belongs to a mask: those weigh 3, wherever they are.
    weighted = loss([[1, 0], [0, 0]], class_weight=1)(outputs, targets)
    assert float(weighted) == pytest.approx((3 * bce[0] + bce[1]) / 2)


# ---- what a spec may say, and a model


def test_a_spec_of_masks_says_so_to_its_model_and_its_splits(here):
    made = spec()
    assert made.targets == Objective(kind="segmentation", side=14)
    assert made.task.outputs == "masks"
    again = SweepSpec(**made.model_dump(mode="json"))
    assert again == made
    assert again.digest == made.digest
    plain = {"kind": "torch", "model": "own:model", "classes": ["a", "b"], "size": 14,
             "mean": [0.5], "std": [0.5]}  # fmt: skip
    other = SweepSpec(**{**spec().model_dump(mode="json"), "task": plain, "objective": "one_class",
                         "metric": "accuracy"})  # fmt: skip
    assert "outputs" not in other.task.model_dump(mode="json")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metric": "accuracy"}, "segmentation has no metric accuracy; write metric: iou, dice"),
        ({"task": {"classes": ["a", "b"]}}, "one mask for each image: task.classes is its name"),
        ({"task": {"crop": 0.9}}, r"task\.crop = 0\.9 cuts images, not masks"),
        ({"data": {"size": 12}}, r"data\.size is 12, and task\.size is 14: masks are not resized"),
        ({"data": {"train_size": 16}}, r"data\.train_size is 16, and task\.size is 14"),
        ({"data": {"train_size": None}}, r"data\.train_size is 16, and task\.size is 14"),
        ({"data": {"shifts": ["thickened"]}}, "thickened changes what is in an image"),
        ({"data": {"shifts": ["occluded"]}}, "occluded changes what is in an image"),
        ({"data": {"shifts": ["own:masks"]}}, "own:masks changes what is in an image"),
        ({"augmentation": "own:masks"}, "a function of yours gets images and no masks"),
        ({"search": {"train": "head"}}, "train: head is a linear layer for classes"),
        ({"search": {"space": {"lr": 1, "epochs": 1, "randaugment": 5}}},
         "randaugment moves images without their masks"),
        ({"search": {"space": {"lr": 1, "epochs": 1, "huber": 1.0}}}, "huber is for regression"),
        ({"search": {"space": {"lr": 1, "epochs": 1, "balanced": 1.0}}},
         "balanced is for one class, not for segmentation"),
        ({"init": {"probe": {"l2": 1}}}, "a probe is a logistic regression for one class"),
        ({"precision": "cascade"}, "precision: cascade counts one class; with segmentation"),
        ({"task": {"outputs": "classes"}}, r"task\.outputs is classes, but segmentation has masks"),
    ],
)  # fmt: skip
def test_what_would_part_images_and_masks_is_refused(here, keys, says):
    with pytest.raises(ConfigError, match=says):
        spec(**keys)


def test_masks_are_for_models_and_losses_of_masks_alone(here):
    plain = spec().model_dump(mode="json")
    timm = {"kind": "timm", "model": "resnet10t", "classes": ["a"], "size": 14,
            "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    with pytest.raises(ConfigError, match="a timm model has a head for classes; segmentation"):
        SweepSpec(**{**plain, "task": timm})
    task = {**plain["task"], "classes": ["a", "b"]}
    with pytest.raises(ConfigError, match=r"task\.outputs is masks, but multi_label has classes"):
        SweepSpec(**{**plain, "objective": "multi_label", "metric": "map", "task": task})
    del task["outputs"]
    wrong = {"objective": "multi_label", "metric": "map", "task": task,
             "search": {"trials": 1, "space": {"lr": 1, "epochs": 1, "dice": 0.5}}}  # fmt: skip
    with pytest.raises(ConfigError, match="dice is for segmentation"):
        SweepSpec(**{**plain, **wrong})
    with pytest.raises(ConfigError, match=r"vrf is for one_class; .* of segmentation"):
        check_objective("vrf", "segmentation")
    for name in ("learned", "greedy", "ensemble", "model_stock", "ties"):
        assert "segmentation" in BY_NAME[name].objectives


MODELS = {
    "def model(): return nn.Sequential(nn.Flatten(), nn.Linear(196, 1))":
        r"its outputs are \[2, 1\], not \[2, 1, 14, 14\]: with objective: segmentation",
    "def model(): return nn.Conv2d(1, 1, 3)": r"its outputs are \[2, 1, 12, 12\]",
    "def model(): return nn.Conv2d(1, 2, 3, padding=1)": r"its outputs are \[2, 2, 14, 14\]",
    "class M(nn.Module):\n    def __init__(self): super().__init__(); self.a = nn.Conv2d(1, 1, 1)\n"
    "    def forward(self, x): return self.a(x) + torch.rand(1)\ndef model(): return M()":
        "in eval mode, two runs on the same inputs differ",
    "class M(nn.Module):\n    def __init__(self): super().__init__(); self.a = nn.Conv2d(1, 1, 1)\n"
    "    def forward(self, x): return {'out': self.a(x)}\ndef model(): return M()":
        "forward returned dict, not a tensor",
    "ONE = nn.Conv2d(1, 1, 1)\ndef model(): return ONE": "two calls return one and the same tensor",
}  # fmt: skip


@pytest.mark.parametrize("text", MODELS)
def test_models_without_masks_are_refused_by_name(here, text):
    code(here, text)
    with pytest.raises(ConfigError, match=MODELS[text]) as error:
        task_of(spec().task)
    assert "own:model" in str(error.value)


def test_weights_of_a_module_of_masks_come_and_go_by_its_own_names(here, tmp_path):
    code(here, """
class M(nn.Module):
    def __init__(self): super().__init__(); self.head = nn.Conv2d(1, 1, 1)
    def forward(self, x): return self.head(x)[:, 0]
def model(): return M()
""")  # fmt: skip
    task = task_of(spec().task)
    torch.manual_seed(0)
    weights = task.init()
    assert set(weights) == {"body.head.weight", "body.head.bias"}
    theirs = {name.removeprefix("body."): tensor for name, tensor in weights.items()}
    for given_ in (theirs, weights):
        adopted = task.adopt(given_, "here")
        assert all(torch.equal(adopted[name], weights[name]) for name in weights)
    task.export(weights, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == theirs.keys()
    model = task.model()
    model.load_state_dict(weights)
    inputs = torch.rand(3, 1, 14, 14)
    hidden = model.features(inputs)
    assert hidden.shape == (3, 196)
    assert torch.equal(model.head(hidden), model(inputs))
    by_hand = inputs[:, 0] * theirs["head.weight"].item() + theirs["head.bias"].item()
    assert torch.allclose(model(inputs).view(3, 14, 14), by_hand, atol=1e-6)


# ---- what a user gets


def test_masks_are_written_as_lengths_of_runs():
    mask = np.array([[0, 0, 1], [1, 0, 0]], bool)
    assert run_lengths(mask) == "2 2 2"
    assert run_lengths(np.array([[1, 1], [0, 1]], bool)) == "0 2 1 1"
    assert run_lengths(np.zeros((2, 2), bool)) == "4"
    assert run_lengths(np.ones((2, 2), bool)) == "0 4"
    meaning = Meaning(("box",), Objective(kind="segmentation", side=2))
    logits = np.array([[1, -1, 0, 3]], np.float32)
    assert meaning.predicted(logits).tolist() == [[[True, False], [False, True]]]
    assert meaning.outputs(logits)[0, 1, 0] == 0.5
    assert meaning.rows(["x"], logits, Wanted()) == [
        {"input": "x", "size": "2x2", "mask": "0 1 2 1", "share": 0.5}
    ]
    assert meaning.columns(Wanted()) == {"input": str, "size": str, "mask": str, "share": float}
    assert not meaning.counted(logits)
    assert (meaning.width, Meaning(("a", "b")).width) == (4, 2)
    for wanted in (Wanted(top=2), Wanted(probabilities=True)):
        with pytest.raises(ConfigError, match=r"--top 2|--probabilities: a table has no 2 x 2"):
            meaning.check(wanted)


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_a_mask_is_read_back_from_its_runs(pixels, seed):
    mask = np.random.default_rng(seed).random((1, pixels)) < 0.5
    lengths = [int(length) for length in run_lengths(mask).split()]
    assert np.repeat(np.arange(len(lengths)) % 2, lengths).tolist() == mask[0].tolist()


def test_a_registered_model_of_masks_says_the_columns_of_its_predictions(here):
    made = spec()
    columns = Meaning(made.task.classes, made.targets).columns(Wanted())
    assert {"input": str, **answers_of(made)} == columns


def test_masks_from_the_sweep_to_a_table_of_predictions(tmp_path, without_ray):
    import ast

    from conftest import inside, leaderboard

    import soupray
    from sweeps.digit_tasks import digit_masks

    path = short("digit_masks", tmp_path, tracked(tmp_path, "digit_masks"), small=MASK_EDITS)
    where = ["--home", tmp_path / "home"]
    try:
        inside("sweep", path, *where)
        shown = inside("soup", path, *where, "--output", tmp_path / "out").stdout
        assert "Scores: mean iou of the samples, in %" in " ".join(shown.split())
        entries = {e["name"]: e for e in leaderboard(tmp_path / "out")}
        uniform = entries["uniform"]["test"]
        assert uniform["graded"] == "iou"
        assert set(uniform["others"]) == {"dice", "pixel_accuracy"}
        # The leaderboard's numbers from the masks of the model, by scikit-learn.
        model = soupray.load("digit_masks:uniform", home=tmp_path / "home")
        images, masks = zip(*digit_masks("test", 200), strict=True)
        truth = np.stack([np.asarray(mask) > 0 for mask in masks])
        found = model.predict(list(images))
        assert (found.dtype, found.shape) == (bool, (200, 32, 32))
        each = [jaccard_score(t.ravel(), f.ravel()) for t, f in zip(truth, found, strict=True)]
        assert uniform["accuracy"] == pytest.approx(np.mean(each), abs=1e-4)
        assert uniform["others"]["pixel_accuracy"] == pytest.approx((truth == found).mean())
        assert uniform["low"] < uniform["accuracy"] < uniform["high"]
        assert ((model.predict_proba(images[7])[0] > 0.5) == found[7]).all()
        # As a table, and as MLflow's model.
        images[7].save(tmp_path / "seven.png")
        inside("predict", "digit_masks:uniform", tmp_path / "seven.png", *where,
               "--output", tmp_path / "p.csv")  # fmt: skip
        (row,) = csv.DictReader((tmp_path / "p.csv").open())
        assert (row["size"], row["mask"]) == ("32x32", run_lengths(found[7]))
        champion = soupray.load("digit_masks@champion", home=tmp_path / "home")
        said = registered("digit_masks", tmp_path, images[7], {})
        assert said["mask"] == run_lengths(champion.predict(images[7])[0])
        refused = inside("serve", "digit_masks@champion", *where, check=False)
        assert "is of segmentation: the server answers with one class" in refused.stderr
        refused = inside("predict", "digit_masks:uniform", tmp_path / "seven.png", *where,
                         "--calibrated", check=False)  # fmt: skip
        assert "gives masks: `soup` fits no temperature" in refused.stderr
        card, answer = handed_over("digit_masks:uniform", tmp_path, images[7])
        assert "A model for masks of torch" in card
        assert "| split | samples | iou | 95 % interval | NLL | ECE | dice |" in card
        assert "pipeline_tag: image-segmentation" in card
        share = ast.literal_eval(answer.partition("#")[0])["stroke"]
        assert share == pytest.approx(found[7].mean(), abs=2e-3)
        assert inside("report", path, *where, "--output", tmp_path / "r.html").returncode == 0
        rows = json.loads(inside("trials", path, *where, "--json").stdout)
        assert rows[0]["graded"] == "iou"
        assert rows[0]["score"] == rows[0]["accuracy"]
        assert "held-out: iou in %" in " ".join(inside("trials", path, *where).stdout.split())
        best = json.loads(inside("status", path, *where, "--json").stdout)["best"]
        assert best["accuracy"] == rows[0]["accuracy"]
        checked = inside("check", path, *where)
        assert checked.returncode == 0
    finally:
        inside("down", *where)


MASK_EDITS = (
    ("epochs: {integer: [3, 5]}", "epochs: 1"),
    ("epochs: 3}", "epochs: 1}"),
    ("shifts: [grainy, pixelated, blurred, moved]   # moved moves the masks too",
     "shifts: [moved]"),
)  # fmt: skip
