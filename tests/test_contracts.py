"""The contracts of `soupray.testing`: soupray's own parts keep them; what breaks one is told."""

import msgspec
import numpy as np
import pytest
import torch

from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Objective, Predictions, Split, digest
from soupray.data.augment import augmented, draw
from soupray.data.shifts import SHIFTS
from soupray.maths.metrics import score, value
from soupray.spec.objective import METRICS
from soupray.testing import check_augmentation, check_loss, check_metric, check_sampler, check_shift
from soupray.training.losses import TrainingLoss, losses_of

OBJECTIVES = {
    "one_class": msgspec.UNSET,
    "multi_label": Objective(kind="multi_label"),
    "regression": Objective(kind="regression", tolerance=0.5),
    "segmentation": Objective(kind="segmentation"),
    "retrieval": Objective(kind="retrieval", first=1, scale=1.0),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_our_own_shifts_keep_the_contract(name):
    check_shift(SHIFTS[name], shape=(1, 28, 28))


def test_our_own_augmentations_keep_the_contract():
    for more in ({"rotation": 20.0, "shift": 0.1}, {"crop": 0.5, "flip": 0.5}, {"randaugment": 9}):
        wanted = Hyperparameters(lr=1, epochs=1, **more)

        def augmentation(images, generator, wanted=wanted):
            return augmented(images, draw(len(images), wanted, generator), wanted)

        check_augmentation(augmentation)


OURS = [(kind, name) for kind, names in METRICS.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_our_own_metrics_keep_the_contract(kind, name):
    def metric(outputs, targets):
        split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(outputs),
                      classes=1 if kind == "retrieval" else outputs.shape[1],
                      objective=OBJECTIVES[kind])  # fmt: skip
        return value(score(Predictions(split=split, logits=outputs, labels=targets)), name)

    check_metric(metric, kind)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("more", [{}, {"focal": 2.0}, {"huber": 0.5}, {"dice": 0.5}], ids=str)
def test_our_own_losses_keep_the_contract(kind, more):
    """Each sample as a batch of one; a batch has the mean of its samples."""

    def loss(outputs, targets):
        made = TrainingLoss(Hyperparameters(lr=1, epochs=1, **more), OBJECTIVES[kind], targets)
        if kind == "retrieval":  # a loss of the batch
            return made(outputs, targets).expand(len(outputs))
        each = torch.stack([made(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])
        assert torch.allclose(each.mean(), made(outputs, targets), rtol=1e-4)
        return each

    check_loss(loss, kind)


def of(text: str, **known):
    """A function of two parameters a and b with this body."""
    made = {"np": np, "torch": torch, "__name__": "own"} | known
    exec(f"def mine(a, b): {text}", made)
    return made["mine"]


IMAGES = {
    "return None": "returned NoneType",
    "return a[:1]": r"returned a tensor \[1, 3, 32, 32\]|random images|a second call",
    "return a / 255": "from 0 to 1, but got values up to 255",
    "return a + torch.randn(a.shape)": "six images: a second call with an equal generator gives",
    "return a * torch.nan": "returned values that are NaN or infinite",
    "return a.to(torch.complex64)": "returned a tensor of complex64",
    "return a > 99": "returned a tensor of bool",
    "return a.numpy()": "returned ndarray",
    "return a @ b": "raised TypeError",
    "return a.div_(255)": "from 0 to 1, but got values up to 255",
    "return 255 - a if len(a) > 1 else a[0]": r"one image returned a tensor \[3",
}


@pytest.mark.parametrize("body", IMAGES)
def test_functions_of_images_that_break_the_contract_are_told_how(body):
    for check, kind in ((check_shift, "shift"), (check_augmentation, "augmentation")):
        with pytest.raises(AssertionError, match=IMAGES[body]) as error:
            check(of(body))
        assert str(error.value).startswith(f"{kind} 'own:mine', ")


def test_a_shift_that_changes_nothing_is_told():
    check_augmentation(of("return a"))
    with pytest.raises(AssertionError, match="it changes no image: it would report the test set"):
        check_shift(of("return a"))


BAD_METRICS = {
    "return None": "it returned NoneType. Return a number, or one for each sample",
    "return 'good'": "it returned str. Return a number",
    "return (x for x in a)": "it returned generator. Return a number",
    "return np.full(len(a), 1j)": "it returned complex128 values",
    "return float('nan')": "it returned a value that is NaN or infinite",
    "return a.sum(axis=1)": "The value of a sample is from 0 to 1",
    "return a[:, :1]": r"it returned an array \[12, 1\]",
    "return -(a.argmax(1) == b).mean()": "right outputs have -1, wrong ones 0. More is better",
    "return (a.argmax(1) == b) * np.arange(len(b)) / 12": "in another order have another value",
    "return np.random.rand()": "a second call gives another value",
    "return 0 if len(b) > 1 else 1 / (len(b) - 1)": "one sample raised ZeroDivision",
}


@pytest.mark.parametrize("body", BAD_METRICS)
def test_a_metric_that_breaks_the_contract_is_told_how(body):
    with pytest.raises(AssertionError, match=BAD_METRICS[body]) as error:
        check_metric(of(body))
    assert str(error.value).startswith("metric 'own:mine', ") or "right" in body or "-(" in body


def test_a_metric_whose_samples_depend_on_others_is_no_graded_one():
    metric = of("return (a.argmax(1) == b) * (a.max(1) >= a.max())")
    check_metric(of("return (a.argmax(1) == b).mean() * (a.max() > -9)"))
    metric.per_sample = True
    with pytest.raises(
        AssertionError, match=r"sample \d has 0 among all 12 samples, and 1 among 6"
    ):
        check_metric(metric)
    with pytest.raises(AssertionError, match=r"does not take \(outputs, targets\): too many posit"):
        check_metric(lambda outputs: 1.0)


BAD_LOSSES = {
    "return None": "returned NoneType, not the loss of each of the 12 samples",
    "return torch.nn.functional.cross_entropy(a, b)": r"returned \[\], not the loss of each",
    "return b": "returned losses of int64; return floats",
    "return a.detach().sum(1)": "returned losses without a gradient. Compute them of the outputs",
    "return a.softmax(1)[range(len(b)), b]": "right outputs have 0.99.*A loss is smaller where",
    "return -a.softmax(1)[range(len(b)), b].log()": "large outputs: a loss is NaN or infinite",
    "return -a.log_softmax(1)[range(len(b)), b] / len(b)": "depends on the others of its batch",
    "return (a.sum(1) ** 2).sqrt()": "equal outputs: a gradient is NaN or infinite",
    "return a.sum(1) * torch.rand(1)": "a second call gives other losses",
    "return torch.nn.functional.cross_entropy(a, b, 'none')": r"raised TypeError: .* \(",
    "made = -a[range(len(b)), b] ** 2; b.zero_(); return made": "its gradient raised RuntimeError",
}


@pytest.mark.parametrize("body", BAD_LOSSES)
def test_a_loss_that_breaks_the_contract_is_told_how(body):
    with pytest.raises(AssertionError, match=BAD_LOSSES[body]) as error:
        check_loss(of(body))
    assert str(error.value).startswith("loss 'own:mine'")


def test_what_a_loss_and_a_metric_change_in_place_is_their_own_copy():
    check_metric(of("a -= 9; b[:] = 0; return 0.5"))
    check_loss(of("made = -a.mul_(2).log_softmax(1)[range(len(b)), b]; return made"))
    mine = of("made = a.mul_(2)[range(len(b)), b.tolist()]; b.zero_(); return made")
    outputs, targets = torch.ones(2, 3, requires_grad=True), torch.tensor([1, 2])
    assert losses_of(mine, "x", outputs, targets).tolist() == [2, 2]
    assert (outputs.tolist(), targets.tolist()) == ([[1] * 3] * 2, [1, 2])


def test_a_sampler_is_told_by_its_name():
    def generous(seen, dimensions, seed):
        return (0.5 for _ in dimensions)

    check_sampler(generous)
    with pytest.raises(AssertionError, match=r"sampler '.*lambda>': 1 dimensions, .* returned str"):
        check_sampler(lambda seen, dimensions, seed: "0")
