"""One trial: the schedule by hand, augmentation by known draws, and the same bytes every time."""

import math

import msgspec
import numpy as np
import pytest
import torch
from shared import Small, sha, small

from soupray.core.candidates import mean_of
from soupray.core.records import encode
from soupray.core.requests import Gram
from soupray.core.trials import EpochRecord, Ingredient, Manifest, Tombstone, Trial, key_of
from soupray.evaluation.local import LocalWorkers
from soupray.maths.geometry import norms, total_gram
from soupray.maths.metrics import score
from soupray.search.state import find_manifests
from soupray.store import layout
from soupray.store.objects import read_record
from soupray.store.weights_file import tensor_digests
from soupray.training.optim import lr_scale
from soupray.training.trial import fine_tune


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Small:
    return small(tmp_path_factory.mktemp("here"))


def another(trial: Trial, **hparams: float) -> Trial:
    """The trial with other hyperparameters, under a key of its own."""
    other = msgspec.structs.replace(trial, hparams=trial.hparams | hparams)
    return msgspec.structs.replace(other, key=key_of(other))


def run(world: Small, trial: Trial) -> tuple[Manifest, list[EpochRecord]]:
    training = fine_tune(trial, world.task, world.data, world.checkpoints)
    records = []
    while True:
        try:
            records.append(next(training))
        except StopIteration as end:
            return end.value, records


@pytest.fixture(scope="module")
def trained(here) -> Ingredient:
    manifest, records = run(here, here.trial)
    assert tuple(records) == manifest.history
    return manifest


def test_the_schedule_by_hand():
    # 10 steps, the first two warm up; then half a cosine over 8 steps
    scales = [lr_scale(step, total=10, warmup=0.2) for step in range(11)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert scales == pytest.approx([0.5, 1.0, *cosine])
    assert (scales[2], scales[6], scales[10]) == pytest.approx((1, 0.5, 0))


def test_a_rate_that_does_not_decay_stays_at_its_peak():
    assert [lr_scale(step, 10, 0.2, decays=False) for step in (0, 1, 2, 9)] == [0.5, 1, 1, 1]


def test_a_trial_ends_when_its_patience_does_and_keeps_its_best_epoch(here):
    """At a rate at which nothing moves, no epoch is better than the first one."""
    trial = another(here.trial, lr=1e-12, epochs=8, patience=2)
    manifest, records = run(here, trial)
    assert isinstance(manifest, Ingredient)
    assert (manifest.best_epoch, len(records)) == (1, 3)
    assert len({record.held_out_correct for record in records}) == 1


def test_the_warm_up_is_500_steps_at_most_and_may_be_none():
    assert lr_scale(249, total=100_000, warmup=0.1) == 0.5
    assert lr_scale(499, total=100_000, warmup=0.1) == 1.0
    assert lr_scale(500, total=100_000, warmup=0.1) == 1.0
    assert lr_scale(0, total=10, warmup=0.0) == 1.0
    assert lr_scale(0, total=1, warmup=1.0) == 1.0


def test_the_same_trial_in_a_fresh_world_has_the_same_bytes(here, trained, tmp_path):
    there = small(tmp_path)
    assert there.trial == here.trial
    again, _ = run(there, there.trial)
    assert again.checkpoint == trained.checkpoint
    assert again.logits == trained.logits
    assert again.tensors == trained.tensors
    assert again.held_out == trained.held_out
    assert [e.train_loss for e in again.history] == [e.train_loss for e in trained.history]


def test_training_learns_and_the_manifest_is_in_the_store(here, trained):
    zero_shot = mean_of([here.basis.init.sha256])
    workers = LocalWorkers(here.task, here.data, here.checkpoints, here.spec.setting)
    before = score(workers.predictions(zero_shot, here.data.split("held_out")))
    assert trained.held_out.correct > before.correct + 25
    path = layout.manifest(here.trial.key)
    assert read_record(here.checkpoints.store, path, Manifest) == trained
    assert trained.init == here.basis.init.sha256
    assert [e.epoch for e in trained.history] == [1, 2]


def test_its_distance_from_theta_0_is_the_one_that_a_check_measures(here, trained):
    workers = LocalWorkers(here.task, here.data, here.checkpoints, here.spec.setting)
    asked = Gram(checkpoints=(trained.checkpoint.sha256,), origin=here.basis.init.sha256)
    (gram,) = workers.measure([asked], here.basis.split("held_out"))
    assert trained.distance == pytest.approx(norms(total_gram(gram))[0], rel=1e-12)
    assert trained.distance > 0


def test_the_best_epoch_is_the_one_with_the_highest_count(trained):
    counts = [e.held_out_correct for e in trained.history]
    assert trained.best_epoch == counts.index(max(counts)) + 1
    assert trained.held_out.correct == max(counts)


def test_a_tie_goes_to_the_earlier_epoch(here):
    # So small a rate changes no count: both epochs tie.
    manifest, _ = run(here, another(here.trial, lr=1e-12, weight_decay=0.0))
    first, second = manifest.history
    assert first.held_out_correct == second.held_out_correct
    assert manifest.best_epoch == 1


def test_the_best_epoch_is_the_best_by_the_trials_metric(here):
    # Smoothed labels: the third epoch is the one most often right, and the first the surest.
    trial = another(here.trial, lr=5e-4, warmup=1.0, epochs=3, label_smoothing=0.6)
    manifest, records = run(here, msgspec.structs.replace(trial, metric="nll"))
    counts, values = [e.held_out_correct for e in records], [e.value for e in records]
    assert (counts.index(max(counts)), values.index(max(values))) == (2, 0)
    assert manifest.best_epoch == 1
    assert -manifest.held_out.nll == values[0]  # the score of the weights that are stored


def test_epochs_are_ranked_by_the_metric_where_there_is_one():
    shared = {"epoch": 1, "train_loss": 1.0, "held_out_n": 4, "seconds": 1.0}
    plain = EpochRecord(held_out_correct=3, **shared)
    assert plain.rank == 0.75
    assert EpochRecord(held_out_correct=3, value=-1.5, **shared).rank == -1.5
    assert b"value" not in encode(plain)


def test_the_weights_of_an_earlier_best_epoch_are_those_that_are_stored(here):
    # The rate grows to far too high in the second epoch: the warm-up is all there is.
    manifest, _ = run(here, another(here.trial, lr=0.006, warmup=1.0))
    counts = [e.held_out_correct for e in manifest.history]
    assert counts[0] > counts[1]
    assert manifest.best_epoch == 1
    assert manifest.held_out.correct == counts[0]


def test_the_stored_score_is_that_of_the_stored_weights(here, trained):
    workers = LocalWorkers(here.task, here.data, here.checkpoints, here.spec.setting)
    candidate, split = mean_of([trained.checkpoint.sha256]), here.data.split("held_out")
    predictions = workers.predictions(candidate, split)
    assert score(predictions) == trained.held_out
    stored = here.checkpoints.load(trained.logits.sha256)
    assert (stored["labels"].numpy() == predictions.labels).all()
    logits = stored["logits"].numpy()
    assert (logits == predictions.logits).all()
    assert logits.shape == (500, 10)
    weights = here.checkpoints.load(trained.checkpoint.sha256)
    assert tensor_digests(weights) == trained.tensors


def test_an_absurd_rate_leaves_a_tombstone_that_is_found_again(here):
    absurd = another(here.trial, lr=1e6, clip_norm=1e12)
    tombstone, _ = run(here, absurd)
    assert isinstance(tombstone, Tombstone)
    assert tombstone.reason.startswith("training loss is nan in epoch 1, step")
    assert read_record(here.checkpoints.store, layout.manifest(absurd.key), Manifest) == tombstone
    never = another(here.trial, lr=0.5)
    assert find_manifests(here.checkpoints.store, [absurd, never]) == [tombstone, None]
    again, _ = run(here, absurd)
    assert again == tombstone  # the first one's, times included


class Constant(torch.nn.Module):
    """The same logits whatever the input; as a task, it brings itself."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(features), -1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs))

    def model(self) -> torch.nn.Module:
        return Constant()

    def inputs(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.to(torch.float32)


def test_a_model_that_answers_one_class_to_everything_is_a_tombstone(here):
    init = here.checkpoints.save({"bias": torch.eye(10)[3]}, {})
    trial = another(here.trial, lr=1e-12, epochs=1)
    trial = msgspec.structs.replace(trial, key=sha("constant")[:16], init=init.sha256)
    manifest, _ = run(here._replace(task=Constant()), trial)
    assert isinstance(manifest, Tombstone)
    assert manifest.reason == "the model collapsed: it predicts class 3 for every sample"
    assert [e.held_out_correct for e in manifest.history] == [50]  # the class's share of 500


def test_of_two_that_store_the_same_trial_the_first_is_adopted_by_both(here):
    trial = another(here.trial, epochs=1)
    slow = fine_tune(trial, here.task, here.data, here.checkpoints)
    next(slow)
    first, _ = run(here, trial)
    with pytest.raises(StopIteration) as end:
        next(slow)
    assert end.value.value == first


def test_no_test_or_shift_score_is_in_anything_that_a_trial_leaves(trained):
    splits = np.array([trained.held_out.split, *trained.trial.data])
    assert len(set(splits)) == 2  # held-out twice, and train
    assert not [f for f in EpochRecord.__struct_fields__ if "test" in f or "shift" in f]
