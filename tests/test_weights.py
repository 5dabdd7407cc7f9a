"""Averages of weights, to the last bit."""

import itertools

import pytest
import torch

from soupray.core.candidates import (
    FisherSoup,
    LayerSoup,
    WeightCandidate,
    mean_of,
    weight_soup,
)
from soupray.core.errors import IncompatibleWeights
from soupray.maths.weights import CHUNK, Mixer, distance
from soupray.recipes.starts import interpolate


class Model(dict):
    """A checkpoint in memory."""

    @property
    def names(self):
        return tuple(sorted(self))


def random_model(seed: int, dtype: torch.dtype = torch.float32) -> Model:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(64, 33, generator=generator).to(dtype)
    w[:2] = torch.tensor([0.0, -0.0]).to(dtype)[:, None]  # equal, but not the same bytes
    return Model(
        w=w,
        long=torch.randn(CHUNK + 3, generator=generator).to(dtype),
        b=torch.randn(33, generator=generator).to(dtype) * 1e-3,
        steps=torch.tensor(7),
    )


def mix(models: dict[str, Model], soup: WeightCandidate) -> dict[str, torch.Tensor]:
    return dict(Mixer(models.__getitem__).tensors(soup))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """To the last bit: torch.equal takes -0.0 for 0.0."""

    def raw(tensor: torch.Tensor) -> tuple:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tensor.dtype, tensor.shape, data

    return a.keys() == b.keys() and all(raw(a[n]) == raw(b[n]) for n in a)


@pytest.mark.parametrize("k", [1, 3, 7, 11])
def test_the_mean_of_k_equal_models_is_that_model_bit_for_bit(k):
    model = random_model(0)
    models = {f"m{i}": model for i in range(k)}
    assert same(mix(models, mean_of(list(models))), model)


def test_an_average_worked_out_by_hand():
    models = {
        "a": Model(w=torch.tensor([1.0, 2.0])),
        "b": Model(w=torch.tensor([3.0, 10.0])),
        "c": Model(w=torch.tensor([5.0, 0.0])),
    }
    assert mix(models, mean_of(["a", "b", "c"]))["w"].tolist() == [3.0, 4.0]
    # a/4 + 3c/4
    assert mix(models, weight_soup([("a", 1), ("c", 3)], 4))["w"].tolist() == [4.0, 0.5]


def test_the_distance_from_theta_0_by_hand():
    start = Model(w=torch.tensor([1.0, 2.0]), b=torch.zeros(1), steps=torch.tensor(1))
    start["bn.running_mean"] = torch.zeros(1)
    moved = Model(start | {"w": torch.tensor([4.0, 2.0]), "b": torch.tensor([4.0])})
    moved |= {"steps": torch.tensor(9), "bn.running_mean": torch.ones(1)}  # no gradient moved them
    assert distance(moved, start) == 5
    assert distance(start, start) == 0
    long = {"w": torch.full((CHUNK + 2,), 1e-4), "b": torch.zeros(1), "steps": torch.tensor(0)}
    other = Model({n: 2 * t for n, t in long.items()})
    tenth = float(torch.tensor(1e-4))
    assert distance(other, Model(long)) == pytest.approx(tenth * (CHUNK + 2) ** 0.5, rel=1e-12)


def test_incremental_and_fresh_sums_give_equal_bytes():
    models = {f"m{i}": random_model(i) for i in range(12)}
    incremental = Mixer(models.__getitem__)
    kept = ["m0"]
    for i in range(1, 12):
        soup = mean_of([*kept, f"m{i}"])
        assert same(dict(incremental.tensors(soup)), mix(models, soup))
        if i % 3 != 0:
            kept.append(f"m{i}")
    assert same(dict(incremental.tensors(mean_of(kept))), mix(models, mean_of(kept)))


def test_a_mixer_is_right_after_any_sequence_of_soups():
    models = {f"m{i}": random_model(i) for i in range(4)}
    mixer = Mixer(models.__getitem__)
    for size in (1, 2, 3, 4):
        for names in itertools.permutations(models, size):
            soup = mean_of(list(names))
            assert same(dict(mixer.tensors(soup)), mix(models, soup))


def test_an_accepted_ingredient_is_read_twice_and_a_rejected_one_once():
    reads: dict[str, int] = {}

    class Counted(Model):
        def __init__(self, name, model):
            super().__init__(model)
            self.name = name

        def __getitem__(self, key):
            if key == "w":
                reads[self.name] = reads.get(self.name, 0) + 1
            return super().__getitem__(key)

    models = {f"m{i}": Counted(f"m{i}", random_model(i)) for i in range(6)}
    mixer = Mixer(models.__getitem__)
    for kept, tried in [(["m0"], "m1"), (["m0", "m1"], "m2"), (["m0", "m1"], "m3")]:
        dict(mixer.tensors(mean_of([*kept, tried])))
    assert (reads["m1"], reads["m2"], reads["m3"]) == (2, 1, 1)


def test_half_precision_is_summed_in_double_and_rounded_once():
    # In bfloat16 256 + 1 is 256: a running sum in that type would lose every small term.
    models = {"big": Model(w=torch.tensor([256.0], dtype=torch.bfloat16))}
    models |= {f"s{i}": Model(w=torch.tensor([1.0], dtype=torch.bfloat16)) for i in range(31)}
    mean = mix(models, mean_of(list(models)))["w"]
    assert mean.dtype == torch.bfloat16
    assert mean.item() == torch.tensor((256 + 31) / 32, dtype=torch.bfloat16).item()


def test_wise_ft_end_points_are_their_models_bit_for_bit_and_so_are_their_records():
    models = {n: random_model(i) for i, n in enumerate(["anchor", "x", "y"])}
    theta_1 = mean_of(["x", "y"])
    assert interpolate(mean_of(["anchor"]), theta_1, 0, 20) == mean_of(["anchor"])
    assert interpolate(mean_of(["anchor"]), theta_1, 20, 20) == theta_1
    assert same(mix(models, interpolate(mean_of(["anchor"]), theta_1, 0, 20)), models["anchor"])
    half = interpolate(mean_of(["anchor"]), theta_1, 10, 20)
    assert half.parts == (("anchor", 2), ("x", 1), ("y", 1))
    assert half.denominator == 4


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda m: m.update(extra=torch.zeros(1)), "'extra' is in one model but not the other"),
        (lambda m: m.pop("b"), "'b' is in one model but not the other"),
        (lambda m: m.update(w=torch.zeros(64, 32)), r"'w' is torch.float32 \[64, 32\], but .*33"),
        (lambda m: m.update(b=m["b"].half()), "'b' is torch.float16"),
        (lambda m: m.update(steps=torch.tensor(8)), "integer buffer 'steps' differs"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_the_tensor_named(odd, said):
    models = {"a": random_model(0), "b": random_model(1)}
    odd(models["b"])
    with pytest.raises(IncompatibleWeights, match=said):
        mix(models, mean_of(["a", "b"]))
    with pytest.raises(IncompatibleWeights):
        mix(models, mean_of(["b", "a"]))


def test_a_failed_read_leaves_no_half_sum_behind():
    models = {f"m{i}": random_model(i) for i in range(3)}
    failing = {"m1"}

    class Broken(Model):
        def __getitem__(self, name):
            if name == "w" and failing:
                raise OSError("the disk went away")
            return super().__getitem__(name)

    models["m1"] = Broken(models["m1"])
    mixer = Mixer(models.__getitem__)
    soup = mean_of(["m0", "m1", "m2"])
    with pytest.raises(OSError, match="the disk went away"):
        dict(mixer.tensors(soup))
    failing.clear()
    assert same(dict(mixer.tensors(soup)), mix(models, soup))


def test_a_soup_by_layer_by_hand():
    models = {
        "a": Model(x=torch.tensor([1.0, float("inf")]), y=torch.tensor([2.0]), z=torch.tensor(7)),
        "b": Model(x=torch.tensor([5.0, -0.0]), y=torch.tensor([4.0]), z=torch.tensor(7)),
    }
    soup = LayerSoup(checkpoints=("a", "b"), layers=((("x",), (0, 4)),), rest=(1, 3), denominator=4)
    made = mix(models, soup)
    # x is that of b to the last bit: what has no share is not added, whatever it is.
    assert same({"x": made["x"]}, {"x": models["b"]["x"]})
    assert made["y"].tolist() == [3.5]
    assert made["z"].item() == 7
    alone = LayerSoup(checkpoints=("b",), layers=(), rest=(4,), denominator=4)
    assert same(mix(models, alone), models["b"])
    models["b"] = Model(models["b"], z=torch.tensor(8))
    with pytest.raises(IncompatibleWeights, match=r"^b: the integer buffer 'z' differs"):
        mix(models, soup)


def test_a_fisher_soup_by_hand_with_tensors_that_nothing_is_known_of():
    models = {
        "a": Model(mean=torch.tensor([2.0]), steps=torch.tensor(7), w=torch.tensor([1.0, 4.0])),
        "b": Model(mean=torch.tensor([10.0]), steps=torch.tensor(7), w=torch.tensor([5.0, 8.0])),
        "fisher of a": Model(w=torch.tensor([2.0, 0.0])),
        "fisher of b": Model(w=torch.tensor([1.0, 0.0])),
    }
    soup = FisherSoup(parts=(("a", "fisher of a", 1), ("b", "fisher of b", 1)))
    made = mix(models, soup)
    # (2 * 1 + 1 * 5) / (2 + 1); below the floor both count the same: (4 + 8) / 2
    assert made["w"].tolist() == pytest.approx([7 / 3, 6.0])
    assert (made["mean"].tolist(), made["steps"].item()) == ([6.0], 7)
    assert made["w"].dtype == torch.float32
    # The floor, 1e-8, beside 3e-8: (4 + 3 * 8) / 4
    models["fisher of b"] = Model(w=torch.tensor([1.0, 3e-8]))
    equal = FisherSoup(parts=(("a", "fisher of a", 1), ("b", "fisher of b", 1)))
    assert mix(models, equal)["w"].tolist() == pytest.approx([7 / 3, 7.0])
