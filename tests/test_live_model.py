"""BatchNorm statistics of soups, and the model in bfloat16."""

import numpy as np
import pytest
import torch

from soupray.core.candidates import mean_of, weight_soup
from soupray.core.records import CheckpointRef, Setting
from soupray.evaluation.live_model import LiveModel, estimate_statistics
from soupray.reporting.recipe_file import RecipeFile, weights_of
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.testing.linear import CLASSES, LinearTask, make_data


class Normed(torch.nn.Module):
    """BatchNorm on the pixels, dropout that must stay off, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.norm.num_batches_tracked = None
        self.norm.register_load_state_dict_pre_hook(
            lambda m, state, prefix, *rest: state.pop(f"{prefix}num_batches_tracked", None)
        )
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, CLASSES, bias=False)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(inputs.flatten(1)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs))


class NormedTask(LinearTask):
    def model(self) -> torch.nn.Module:
        return Normed()


def network(
    folder, batch_size: int = 7, checkpoints: Checkpoints | None = None
) -> tuple[LiveModel, Checkpoints]:
    data = make_data(folder / "data")
    checkpoints = checkpoints or Checkpoints(open_store("memory://"), folder / "weights")
    train = data.split("train")
    setting = Setting(batch_size=batch_size)
    images = data.samples(train)[0]
    return LiveModel(NormedTask(), checkpoints, setting, (train, images)), checkpoints


def train_images(folder) -> np.ndarray:
    data = make_data(folder / "data")
    return data.samples(data.split("train"))[0]


def saved(checkpoints: Checkpoints, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "norm.weight": torch.rand(4, generator=generator) + 0.5,
        "norm.bias": torch.randn(4, generator=generator),
        "norm.running_mean": torch.randn(4, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator) + 0.5,
        "head.weight": torch.randn(CLASSES, 4, generator=generator),
    }
    return checkpoints.save(weights, {"seed": str(seed)}).sha256


@pytest.mark.parametrize("batch_size", [7, 60, 59])  # of 60 images: 7s, one, two
def test_statistics_are_those_of_all_samples_at_once_whatever_the_batches(tmp_path, batch_size):
    images = np.asarray(make_data(tmp_path).samples(make_data(tmp_path).split("train"))[0])
    model = Normed()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    setting = Setting(batch_size=batch_size)
    found = estimate_statistics(model, NormedTask(), images, setting)
    x = images.reshape(len(images), -1) / 255 - 0.5
    # The layer's input is the pixels: mean, and unbiased variance, over all 60 samples.
    assert np.allclose(found["norm.running_mean"], x.mean(axis=0), atol=1e-6)
    assert np.allclose(found["norm.running_var"], x.var(axis=0, ddof=1), atol=1e-6)
    assert not model.training
    assert model.norm.momentum == 0.1
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_soup_gets_statistics_of_its_own_and_a_single_model_keeps_its(tmp_path):
    net, checkpoints = network(tmp_path)
    a, b = saved(checkpoints, 1), saved(checkpoints, 2)
    alone = net.tensors(mean_of([a]))
    assert torch.equal(alone["norm.running_mean"], checkpoints.load(a)["norm.running_mean"])
    soup = net.tensors(mean_of([a, b]))
    images = train_images(tmp_path)
    x = np.asarray(images).reshape(len(images), -1) / 255 - 0.5
    assert np.allclose(soup["norm.running_mean"], x.mean(axis=0), atol=1e-6)
    head = (checkpoints.load(a)["head.weight"] + checkpoints.load(b)["head.weight"]) / 2
    assert torch.allclose(soup["head.weight"], head)
    # The same model put together by hand gives the same logits: statistics are in the live model.
    by_hand = Normed()
    by_hand.load_state_dict(soup)
    with torch.inference_mode():
        inputs = net.inputs(images[:7])
        expected = by_hand.eval()(inputs).numpy()
    logits, _ = net.predict(mean_of([a, b]), images[:7])
    assert (logits == expected).all()
    back, _ = net.predict(mean_of([a]), images[:7])
    assert not np.allclose(back, logits)


def test_statistics_are_estimated_once_and_are_part_of_the_recipe(tmp_path, monkeypatch):
    net, checkpoints = network(tmp_path)
    a, b = saved(checkpoints, 1), saved(checkpoints, 2)
    soup = weight_soup([(a, 1), (b, 3)], 4)
    first = net.tensors(soup)
    again, _ = network(tmp_path / "again", checkpoints=checkpoints)

    def refuse(*arguments):
        raise AssertionError("estimated twice")

    monkeypatch.setattr("soupray.evaluation.live_model.estimate_statistics", refuse)
    second = again.tensors(soup)
    assert all(torch.equal(first[n], second[n]) for n in first)
    (record,) = checkpoints.store.list("statistics")
    ref = CheckpointRef(**__import__("json").loads(checkpoints.store.get(record)))
    recipe = RecipeFile(
        name="x", recipe="x", options={}, candidate=soup, ingredients={}, sha256=None, spec={},
        statistics={soup.digest: ref},
    )  # fmt: skip
    rebuilt = weights_of(soup, recipe, checkpoints)
    assert all(torch.equal(first[n], rebuilt[n]) for n in first)


def test_bfloat16_is_close_and_not_equal(tmp_path):
    net, checkpoints = network(tmp_path)
    single = mean_of([saved(checkpoints, 1)])
    images = train_images(tmp_path)
    low, _ = net.predict(single, images, low=True)
    high, _ = net.predict(single, images)
    assert low.dtype == np.float32
    assert 0 < np.abs(low - high).max() < 0.1


@pytest.mark.parametrize("count", [1, 2], ids=["single", "soup"])
def test_bfloat16_is_the_same_before_float32_and_after_it(tmp_path, count):
    first, checkpoints = network(tmp_path)
    soup = mean_of([saved(checkpoints, k) for k in range(count)])
    other, _ = network(tmp_path, checkpoints=checkpoints)
    alone = {n: t.clone() for n, t in first.load(soup, torch.bfloat16).state_dict().items()}
    wide = {n: t.clone() for n, t in other.load(soup, torch.float32).state_dict().items()}
    # Its statistics are unknown: they are estimated on the float32 model, which is then another.
    other.load(mean_of([saved(checkpoints, k) for k in (6, 7)]), torch.bfloat16)
    after = other.load(soup, torch.bfloat16).state_dict()
    assert {n: t.dtype for n, t in after.items()} == dict.fromkeys(alone, torch.bfloat16)
    for name, tensor in alone.items():
        assert torch.equal(after[name], tensor), name
        assert torch.equal(tensor, wide[name].bfloat16()), name


def test_statistics_that_were_not_to_be_kept_are_stored_by_the_next_who_wants_them(tmp_path):
    here, checkpoints = network(tmp_path)
    soup = mean_of([saved(checkpoints, k) for k in range(2)])
    here.load(soup, torch.float32, keep=False)
    assert checkpoints.store.list("statistics") == []
    here.load(soup, torch.bfloat16)
    assert len(checkpoints.store.list("statistics")) == 1
