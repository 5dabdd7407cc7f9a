"""The training loop: parts of a batch, memory, mixtures, and a state that is taken up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import Small, small

from soupray.core.errors import TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.trials import Training
from soupray.tasks.foreign import leave_out_batch_counts
from soupray.training.distillation import Targets
from soupray.training.loop import Loop
from soupray.training.start import Alone, Start


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Small:
    return small(tmp_path_factory.mktemp("here"))


def loop(world: Small, training: Training | None = None, task=None, **hparams: float) -> Loop:
    start = Start(
        weights=world.checkpoints.load(world.trial.init),
        seed=world.trial.seed,
        device="cpu",
        training=training or Training(),
    )
    chosen = Hyperparameters(**(world.trial.hparams | hparams))
    return Loop(task or world.task, world.data, chosen, start)


def after(made: Loop, epochs: int = 1) -> dict[str, torch.Tensor]:
    for number in range(1, epochs + 1):
        made.epoch(number)
    return made.weights()


def close(a, b, **tolerance: float) -> bool:
    return all(torch.allclose(a[n], b[n], **tolerance) for n in a)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_micro_batches_have_the_gradients_of_the_whole_batch(here):
    images, labels = here.data.samples(here.data.split("train"))
    inputs = here.task.inputs(torch.from_numpy(np.array(images[:20])))
    found = []
    for training in (Training(), Training(micro_batch=7)):
        made = loop(here, training)
        loss = made.gradients(inputs, Targets(torch.from_numpy(np.array(labels[:20]))), 20)
        found.append({n: p.grad for n, p in made.in_training.named_parameters()})
        found[-1]["loss"] = loss
    assert close(*found, rtol=1e-4, atol=1e-6)
    assert not equal(*found)  # sums in another order


def test_checkpointed_activations_train_the_same_model(here):
    assert close(after(loop(here)), after(loop(here, Training(checkpointing=True))), atol=1e-6)


def test_a_model_that_cannot_checkpoint_says_so(here):
    from test_training import Constant

    task = Constant()
    start = Start(
        weights=task.state_dict(), seed=0, device="cpu", training=Training(checkpointing=True)
    )
    with pytest.raises(TrialError, match="does not offer it"):
        Loop(task, here.data, Hyperparameters(**here.trial.hparams), start)


def test_bfloat16_trains_about_the_same_model_in_float32_weights(here):
    exact, low = loop(here), loop(here, Training(precision="bf16"))
    losses = [made.epoch(1) for made in (exact, low)]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert not equal(exact.weights(), low.weights())
    assert {t.dtype for t in low.weights().values()} == {torch.float32}


class Limited:
    """The task, on a device that holds so many samples at a time."""

    def __init__(self, task, samples: int) -> None:
        self._task, self._samples, self.asked = task, samples, []

    def model(self):
        model = self._task.model()
        model.register_forward_pre_hook(self._refuse)
        return model

    def inputs(self, samples):
        return self._task.inputs(samples)

    def _refuse(self, module, inputs):
        self.asked.append(len(inputs[0]))
        if len(inputs[0]) > self._samples:
            raise torch.OutOfMemoryError("out of memory")


def test_where_memory_ends_the_micro_batch_is_halved_until_it_fits(here):
    limited = Limited(here.task, 6)
    halved = after(loop(here, task=limited))
    assert limited.asked[:4] == [20, 10, 5, 5]  # batches of 20; what failed is done again in fives
    assert set(limited.asked[3:]) == {5}
    assert equal(halved, after(loop(here, Training(micro_batch=5))))


def test_a_sample_that_does_not_fit_alone_is_an_error(here):
    with pytest.raises(TrialError, match="out of memory on cpu with one sample at a time"):
        after(loop(here, task=Limited(here.task, 0)))


class Normed(torch.nn.Module):
    """A task whose model has a BatchNorm layer, after its pooling or before it."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        norm = torch.nn.BatchNorm1d(1) if pooled else torch.nn.BatchNorm2d(1)
        pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.body = torch.nn.Sequential(*((*pool, norm) if pooled else (norm, *pool)))
        self.head = torch.nn.Linear(1, 10)
        leave_out_batch_counts(self)
        self.seen: list[int] = []

    def forward(self, inputs):
        self.seen.append(len(inputs))
        return self.head(self.body(inputs))

    def model(self):
        return self

    def inputs(self, samples):
        return samples.float()[:, :1]


def normed(here, pooled=True, training=None, size=0, **hparams) -> tuple[Loop, Normed]:
    task = Normed(pooled)
    start = Start(weights=task.state_dict(), seed=0, device="cpu", training=training or Training())
    batch = (len(here.data.samples(here.data.split("train"))[1]) - 1) // size if size else 0
    chosen = Hyperparameters(**(here.trial.hparams | hparams | {"batch_size": batch or 20}))
    return Loop(task, here.data, chosen, start), task


def test_one_sample_alone_in_the_last_batch_is_left_out_where_it_has_no_statistics(here, heard):
    n = len(here.data.samples(here.data.split("train"))[1])
    made, task = normed(here, size=1)  # one batch of all samples but one
    made.epoch(1)
    assert task.seen == [n - 1]
    assert made.step == 1
    assert f"1 of {n} training samples are left out of each epoch" in heard()
    whole, task = normed(here, pooled=False, size=1)  # many values per channel in each sample
    whole.epoch(1)
    assert task.seen == [n - 1, 1]


def test_micro_batches_of_one_sample_have_no_statistics_and_are_refused(here):
    with pytest.raises(TrialError, match=r"batch_size = 20, micro_batch = 19, workers = 1: a Ba"):
        normed(here, training=Training(micro_batch=19))
    with pytest.raises(TrialError, match=r"batch_size = 20, micro_batch = 1, workers = 1: a Batc"):
        normed(here, training=Training(micro_batch=1))
    made, task = normed(here, pooled=False, training=Training(micro_batch=19))
    made.epoch(1)
    assert task.seen[:2] == [19, 1]


def test_mixup_by_hand(here):
    made = loop(here, mixup=0.4)
    made.step = 3
    inputs, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    share = np.random.default_rng((here.trial.seed, 3)).beta(0.4, 0.4)
    mixed = share * inputs + (1 - share) * inputs[[5, 4, 3, 2, 1, 0]]
    logits = made.model(mixed)
    smoothing = made.hparams.label_smoothing
    expected = share * F.cross_entropy(logits, labels, label_smoothing=smoothing)
    backwards = labels[[5, 4, 3, 2, 1, 0]]
    expected += (1 - share) * F.cross_entropy(logits, backwards, label_smoothing=smoothing)
    assert made.accumulate(inputs, Targets(labels), 6).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_the_moving_average_is_what_is_evaluated_and_stored(here):
    plain, averaged = loop(here), loop(here, ema=0.5)
    for made in (plain, averaged):
        made.epoch(1)
    assert averaged.model is not averaged.in_training
    assert equal(
        dict(averaged.in_training.state_dict()), plain.weights()
    )  # training is as without it
    assert not equal(averaged.weights(), plain.weights())


def test_a_merged_model_is_the_mean_of_the_ends_of_its_last_epochs(here):
    """With merge = 1 the ends themselves are seen: the training is the same."""
    single, merged = loop(here, merge=1, epochs=4), loop(here, merge=3, epochs=4)
    ends, means = [], []
    for number in range(1, 5):
        single.epoch(number)
        merged.epoch(number)
        ends.append(single.weights())
        means.append(merged.weights())
    assert equal(ends[0], means[0])
    parameters = {name for name, _ in single.in_training.named_parameters()}
    for seen, mean in ((ends[:2], means[1]), (ends[1:], means[3])):
        for name in parameters:
            expected = sum(end[name].double() for end in seen) / len(seen)
            assert torch.allclose(mean[name].double(), expected, atol=1e-7), name
    # The rate stays at its peak: a decayed one would have ended elsewhere.
    decayed = loop(here, epochs=4)
    for number in range(1, 5):
        decayed.epoch(number)
    assert not equal(decayed.weights(), ends[3])


def test_frozen_blocks_keep_their_weights(here):
    weights = after(loop(here, last_blocks=1))
    init = here.checkpoints.load(here.trial.init)
    moved = {n for n in init if not torch.equal(init[n], weights[n])}
    assert "head.weight" in moved
    assert any("resblocks.3." in n for n in moved)
    assert not any("resblocks.2." in n or "conv1" in n for n in moved)


EVERYTHING = {
    "mixup": 0.3,
    "randaugment": 9.0,
    "crop": 0.6,
    "flip": 0.5,
    "layer_decay": 0.8,
    "epochs": 3,
}


@pytest.mark.parametrize(("precision", "average"), [("fp32", {"ema": 0.9}), ("bf16", {"merge": 2})])
def test_a_training_that_is_taken_up_ends_in_the_same_bytes(here, precision, average):
    training, everything = Training(precision=precision), EVERYTHING | average
    undisturbed = after(loop(here, training, **everything), epochs=3)
    left = loop(here, training, **everything)
    left.epoch(1)
    state = left.state()
    left.epoch(2)  # what happens after the state was taken does not change it
    taken_up = loop(here, training, **everything)
    torch.rand(5)  # nor do draws of somebody else
    taken_up.restore(state)
    taken_up.epoch(2)
    taken_up.epoch(3)
    assert equal(taken_up.weights(), undisturbed)


class Member(Alone):
    """One of three workers whose sums are taken by the test."""

    size = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        pass


@pytest.mark.parametrize(("n", "mixup"), [(1, 0.0), (2, 0.0), (7, 0.0), (7, 0.4), (2, 0.4)])
def test_the_workers_gradients_add_up_even_where_some_have_no_sample(here, n, mixup):
    images, labels = here.data.samples(here.data.split("train"))
    total = []
    for group in (Alone(), *(Member(rank) for rank in range(3))):
        start = Start(
            weights=here.checkpoints.load(here.trial.init),
            seed=here.trial.seed,
            device="cpu",
            group=group,
        )
        made = Loop(
            here.task, here.data, Hyperparameters(**(here.trial.hparams | {"mixup": mixup})), start
        )
        mine = made.places_of(n).numpy()
        inputs = here.task.inputs(torch.from_numpy(np.array(images[mine])))
        loss = made.gradients(inputs, Targets(torch.from_numpy(np.array(labels[mine]))), n)
        found = {name: p.grad for name, p in made.in_training.named_parameters()}
        total.append({**found, "loss": loss})
    alone, *members = total
    added = {name: sum(m[name] for m in members) for name in alone}
    assert close(alone, added, rtol=1e-4, atol=1e-6)
