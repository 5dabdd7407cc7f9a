"""Label noise as a wave over the inputs: by hand, in the loss, and in what is measured of it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from msgspec import structs
from shared import Given, demo, ingredient, scores, sha, small

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Basis, CheckpointRef, Split
from soupray.core.requests import Losses, NoisyLabels
from soupray.core.trials import Pool
from soupray.data.label_noise import noise_shares, noisy_losses
from soupray.diagnostics.measure import Inputs
from soupray.diagnostics.noise_fitting import NOISE_FITTING, measure_noise_fitting, noise_of
from soupray.evaluation.local import LocalWorkers
from soupray.spec.space import Space
from soupray.training.distillation import DistillationLoss, Targets
from soupray.training.loop import Loop
from soupray.training.losses import TrainingLoss
from soupray.training.start import Start

PUBLISHED = {"noise_frequency": 0.038, "noise_phase": 55.4211}
"""Of the radial wave on CIFAR-10 in the paper."""


def hparams(**values: float) -> Hyperparameters:
    return Hyperparameters(lr=1, epochs=1, **values)


def at(*norms: float) -> np.ndarray:
    """Samples [N, 1, 1, 2] with these lengths: 3/5 and 4/5 of each."""
    return np.array([[[[0.6 * z, 0.8 * z]]] for z in norms])


def test_a_radial_wave_by_hand():
    """At the phase and half a wave later r = 0, at a quarter r = 1, at three quarters r = -1."""
    wave = 1 / PUBLISHED["noise_frequency"]
    z = [PUBLISHED["noise_phase"] + share * wave for share in (0, 0.25, 0.5, 0.75)]
    found = noise_shares(lambda x: x, at(*z), hparams(noise=0.2, **PUBLISHED))
    assert found.tolist() == pytest.approx([0.2, 0.4, 0.2, 0.0], abs=1e-5)
    assert float(found.mean()) == pytest.approx(0.2)


def test_a_direction_is_a_wave_along_it():
    samples = np.random.default_rng(0).normal(size=(600, 1, 2, 2))
    wanted = hparams(noise=0.1, noise_frequency=0.2, noise_direction=3)
    found = noise_shares(lambda x: x, samples, wanted)
    generator = torch.Generator().manual_seed(3)
    way = torch.randn(4, generator=generator, dtype=torch.float64)
    z = torch.from_numpy(samples).flatten(1) @ (way / way.norm())
    r = torch.sin(2 * math.pi * 0.2 * z)
    assert torch.allclose(found, (0.1 * (1 + r) / (1 + r).mean()).float())
    assert not torch.allclose(found, noise_shares(lambda x: x, samples, hparams(
        noise=0.1, noise_frequency=0.2, noise_direction=4)))  # fmt: skip


def test_a_label_cannot_lose_more_than_itself():
    """All samples but one are where the wave is lowest."""
    z = [0.75] * 9 + [0.25]
    with pytest.raises(TrialError, match=r"noise = 0.5: a label would lose 5.00 of itself"):
        noise_shares(lambda x: x, at(*z), hparams(noise=0.5, noise_frequency=1.0))


def test_noisy_losses_are_cross_entropy_to_soft_labels():
    logits, labels = torch.tensor([[2.0, 0, 1], [0, 1, 0]]), torch.tensor([0, 2])
    shares = torch.tensor([0.3, 0.0])
    soft = torch.tensor([[0.8, 0.1, 0.1], [0, 0, 1.0]])
    assert torch.allclose(
        noisy_losses(logits, labels, shares), F.cross_entropy(logits, soft, reduction="none")
    )
    plain = TrainingLoss(hparams(), demo().targets, labels)
    made = DistillationLoss(plain, hparams(), demo().targets)
    assert torch.allclose(
        made(logits, Targets(labels, None, shares)), F.cross_entropy(logits, soft)
    )
    one = Targets(labels, None, shares).take(torch.tensor([1]))
    assert torch.allclose(made(logits[1:], one), F.cross_entropy(logits[1:], soft[1:]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small(tmp_path_factory.mktemp("small"))


def test_a_trial_learns_noisy_labels(world):
    """Its first step has the gradient of the soft labels of its samples."""
    noise = {"noise": 0.3, "noise_frequency": 0.1, "label_smoothing": 0.0}
    start = Start(
        weights=world.checkpoints.load(world.basis.init.sha256), seed=world.trial.seed,
        device="cpu",
    )  # fmt: skip
    wanted = Hyperparameters(**(world.trial.hparams | noise))
    loop = Loop(world.task, world.data, wanted, start)
    samples, _ = world.data.samples(world.data.split("train"))
    shares = noise_shares(world.task.inputs, samples, wanted)
    assert float(shares.mean()) == pytest.approx(0.3, abs=1e-6)
    assert torch.equal(loop._noise, shares)
    loss = loop.epoch(1)
    clean = Loop(world.task, world.data, Hyperparameters(**(world.trial.hparams | {
        "label_smoothing": 0.0})), start).epoch(1)  # fmt: skip
    assert loss > clean


def test_each_sample_has_its_own_noise_however_the_epoch_is_shuffled(world):
    """Two ways to the same losses: noise, and a teacher that says the noisy labels alone.

    The divergence to a teacher is the cross-entropy to its probabilities minus a constant.
    """
    plain = world.trial.hparams | {"label_smoothing": 0.0}
    noise = {"noise": 0.3, "noise_frequency": 0.1}
    samples, labels = world.data.samples(world.data.split("train"))
    shares = noise_shares(world.task.inputs, samples, Hyperparameters(**(plain | noise)))
    assert float(shares.std()) > 0.1
    own = F.one_hot(torch.from_numpy(np.array(labels)), 10)
    soft = own * (1 - shares[:, None]) + shares[:, None] / 10
    losses = []
    for more, teacher in ((noise, None), ({"distillation": 1.0}, soft.log().clamp(min=-60))):
        start = Start(
            weights=world.checkpoints.load(world.basis.init.sha256),
            seed=world.trial.seed,
            device="cpu",
            teacher=teacher,
        )
        loop = Loop(world.task, world.data, Hyperparameters(**(plain | more)), start)
        losses.append([loop.epoch(number) for number in (1, 2)])
    constant = float(torch.special.entr(soft).sum(dim=1).mean())
    assert constant > 0.5
    assert losses[0] == pytest.approx([loss + constant for loss in losses[1]], abs=2e-3)


def test_a_worker_compares_both_kinds_of_labels(world):
    workers = LocalWorkers(world.task, world.data, world.checkpoints, world.spec.setting)
    held_out = world.data.split("held_out")
    model = mean_of([world.basis.init.sha256])
    values = noise_of({"noise": 0.2, "noise_frequency": 0.1, "noise_direction": 2})
    (found,) = workers.measure([NoisyLabels(model=model, noise=values)], held_out)
    plain = workers.predictions(model, held_out)
    samples, labels = world.data.samples(held_out)
    shares = noise_shares(world.task.inputs, samples, hparams(
        noise=0.2, noise_frequency=0.1, noise_direction=2))  # fmt: skip
    logits, true = torch.from_numpy(plain.logits).double(), torch.from_numpy(np.array(labels))
    assert found.clean == pytest.approx(float(F.cross_entropy(logits, true)), rel=1e-6)
    soft = F.one_hot(true, 10) * (1 - shares[:, None]) + shares[:, None] / 10
    assert found.noisy == pytest.approx(float(F.cross_entropy(logits, soft.double())), rel=1e-6)


# ---- the measure

HELD_OUT = Split(name="held_out", role="held_out", digest=sha("held_out"), size=10, classes=10)
REF = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
BASIS = Basis(key="b", splits=(HELD_OUT,), init=REF, anchor=REF)


def trial(name: str, **more: float):
    made = ingredient(name, scores(9, 10))
    return structs.replace(made, trial=structs.replace(made.trial, hparams={"noise": 0.0} | more))


def inputs(*pool, asked=None) -> Inputs:
    return Inputs(
        spec=demo(), pool=Pool(init=REF, anchor=REF, ingredients=pool), basis=BASIS, board=None,
        answers=Given({}, asked),
    )  # fmt: skip


def test_noise_that_is_fitted_by_hand():
    """Four waves; the lower its frequency, the more of it is fitted beyond the clean trial."""
    clean = trial("clean")
    noisy = [trial(f"f{k}", noise=0.2, noise_frequency=0.1 * 2**k) for k in range(4)]
    asked = {}
    for k, one in enumerate(noisy):
        values = noise_of(one.trial.hparams)
        for model, loss in (("clean", 0.9), (f"f{k}", 0.7 + 0.02 * k)):
            asked[NoisyLabels(model=mean_of([sha(model)]), noise=values)] = Losses(
                clean=0.5, noisy=loss
            )
    made = measure_noise_fitting(inputs(noisy[2], clean, noisy[0], noisy[3], noisy[1], asked=asked))
    assert made.reference == "clean"
    assert [row.trial for row in made.trials] == ["f0", "f1", "f2", "f3"]
    assert [row.fitting for row in made.trials] == pytest.approx([-0.2, -0.22, -0.24, -0.26])
    assert all(row.reference == pytest.approx(-0.4) for row in made.trials)
    assert made.rho == pytest.approx(-1)
    section = NOISE_FITTING.section(made)
    assert section.sentences[0].startswith(
        "Whether noise of higher frequency is fitted less cannot be told: Spearman -1.00 of "
        "frequency and fitting beyond the reference"
    )
    assert made.p == pytest.approx(2 / 24, abs=0.01)  # two of the 24 orders are as far from 0
    alone = measure_noise_fitting(inputs(noisy[0], asked=asked))
    assert (alone.reference, alone.rho) == (None, None)
    assert "nothing to compare" in NOISE_FITTING.section(alone).sentences[-1]


def test_without_noise_there_is_nothing_to_measure():
    assert NOISE_FITTING.left_out(inputs(trial("clean"))) == (
        "no trial has label noise (`noise` in search.space)"
    )


# ---- the spec

LINE = "batch_size: 20"
SMOOTH = "    label_smoothing: {uniform: [0.02, 0.2], off: 0.5}   # off in half of the trials\n"


def test_noise_stands_alone_in_the_loss():
    with pytest.raises(ConfigError, match="label_smoothing changes the loss, and so does noise"):
        demo((LINE, f"{LINE}\n    noise: 0.2"))
    noisy = ((LINE, f"{LINE}\n    noise: 0.2"), (SMOOTH, ""))
    with pytest.raises(ConfigError, match="wave over pixels; train: head sees features"):
        demo(
            *noisy,
            ("trials: 2", "trials: 2\n  train: head"),
            ("    rotation: {uniform: [0, 15], off: 0.3} ", "    # "),
            ("    shift: {uniform: [0, 0.1], off: 0.3} ", "    # "),
        )
    spec = demo(*noisy)
    assert isinstance(spec.search.space, Space)
    with pytest.raises(ConfigError, match=r"noise = 0\.6"):
        demo((LINE, f"{LINE}\n    noise: 0.6"), (SMOOTH, ""))
