"""Affinity, Diversity and path frequencies, by hand and against plain loops."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import inside
from msgspec import structs
from scipy.stats import spearmanr
from shared import Given, board, demo, ingredient, scores, sha, small
from tiny_text import texts, tiny_text, write_world

from soupray.core.candidates import mean_of
from soupray.core.errors import EvaluationError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Basis, CheckpointRef, Predictions, Split
from soupray.core.requests import Augmented, Paths, Seen
from soupray.core.trials import Pool
from soupray.data.augment import augmented, draw
from soupray.diagnostics.augmentations import (
    AUGMENTATIONS,
    augmentation_of,
    measure_augmentations,
)
from soupray.diagnostics.frequencies import (
    AT_ONCE,
    FREQUENCIES,
    STEPS,
    drawn_paths,
    measure_frequencies,
)
from soupray.diagnostics.measure import CannotMeasure, Inputs
from soupray.evaluation.local import LocalWorkers
from soupray.maths.associations import association
from soupray.maths.spectra import high_share, mean_interval, power_of
from soupray.tasks.transformers import TextTask

# ---- arithmetic


def test_the_power_of_a_wave_is_at_its_frequency():
    t = np.arange(32) / 32
    series = np.stack([2 + np.sin(2 * np.pi * 3 * t), np.sin(2 * np.pi * 9 * t), np.ones(32)])
    power = power_of(series)
    assert power.shape == (3, 16)
    assert power[0].argmax() + 1 == 3
    assert power[1].argmax() + 1 == 9
    assert power[0].max() == pytest.approx((32 / 2) ** 2)  # (A N / 2)^2
    assert high_share(power, 4) == pytest.approx([0, 1, 0], abs=1e-12)


def test_a_mean_has_the_interval_of_its_bootstrap():
    assert mean_interval(np.full(9, 0.5), 100, 0) == (0.5, 0.5, 0.5)
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = mean_interval(values, 4000, 1)
    assert mean == values.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)


def test_an_association_is_spearmans_with_a_permutation_test():
    rng = np.random.default_rng(3)
    x = rng.normal(size=12).round(1)  # with ties
    y = (x + rng.normal(size=12)).round(1)
    found = association(x, y)
    assert found is not None
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.p == pytest.approx(spearmanr(x, y).pvalue, abs=0.02)
    exact = association([1, 2, 3, 4], [1, 2, 3, 4])
    assert exact is not None
    assert exact.p == pytest.approx(2 / 24, abs=0.01)  # two of the 24 orders are as far from 0
    assert association([1, 2, 3], [1, 2, 3]) is None
    assert association([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_paths_are_drawn_once_each_within_and_between():
    labels = np.repeat([0, 1, 2], 10)
    within, between = drawn_paths(labels, 40, 0)
    assert len(set(within)) == len(within) == 40
    assert len(set(between)) == len(between) == 40
    assert all(labels[i] == labels[j] and i < j for i, j in within)
    assert all(labels[i] != labels[j] for i, j in between)
    assert drawn_paths(labels, 40, 0) == (within, between)
    assert drawn_paths(np.zeros(4, int), 9, 0)[1] == ()
    assert len(drawn_paths(np.zeros(4, int), 9, 0)[0]) == 6  # all there are


# ---- what workers answer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small(tmp_path_factory.mktemp("small"))


def test_augmented_samples_are_those_of_the_training(world):
    workers = LocalWorkers(world.task, world.data, world.checkpoints, world.spec.setting)
    held_out = world.data.split("held_out")
    model, rows = mean_of([world.basis.init.sha256]), tuple(range(0, 70))
    values = (("flip", 0.5), ("rotation", 30.0))
    (seen,) = workers.measure(
        [Augmented(model=model, augmentation=values, rows=rows, seed=5)], held_out
    )
    images, labels = world.data.samples(held_out)
    network = world.task.model()
    network.load_state_dict(world.checkpoints.load(world.basis.init.sha256))
    network.eval()
    wanted = Hyperparameters(lr=1, epochs=1, flip=0.5, rotation=30)
    generator = torch.Generator().manual_seed(5)
    logits = []
    for part in (slice(0, 50), slice(50, 70)):  # the batch size of the evaluation is 50
        some = torch.from_numpy(np.array(images[part]))
        changed = augmented(some, draw(len(some), wanted, generator), wanted)
        with torch.no_grad():
            logits.append(network(world.task.inputs(changed)))
    wide, true = torch.cat(logits).double(), torch.from_numpy(np.array(labels[:70]))
    assert seen.n == 70
    assert seen.accuracy == pytest.approx(float((wide.argmax(1) == true).double().mean()))
    assert seen.loss == pytest.approx(float(F.cross_entropy(wide, true)), rel=1e-5)


def test_without_augmentation_the_scores_are_those_of_the_evaluation(world):
    workers = LocalWorkers(world.task, world.data, world.checkpoints, world.spec.setting)
    held_out = world.data.split("held_out")
    model = mean_of([world.basis.init.sha256])
    (seen,) = workers.measure([Augmented(model=model, augmentation=(), rows=(), seed=5)], held_out)
    plain = workers.predictions(model, held_out)
    assert seen.accuracy == (plain.logits.argmax(1) == plain.labels).mean()


def test_paths_of_images_are_plain_loops_and_the_ensemble_is_the_mean_of_logits(world):
    workers = LocalWorkers(world.task, world.data, world.checkpoints, world.spec.setting)
    test = world.data.split("test")
    first = world.checkpoints.load(world.basis.init.sha256)
    torch.manual_seed(0)
    moved = {k: v + 0.1 * v.std() * torch.randn_like(v) if v.ndim > 1 else v
             for k, v in first.items()}  # fmt: skip
    second = world.checkpoints.save(moved, {"init": "moved"})
    models = tuple(mean_of([one]) for one in (world.basis.init.sha256, second.sha256))
    ends = tuple((k, k + 20) for k in range(9))  # more than are in memory at a time
    (found,) = workers.measure([Paths(models=models, ends=ends, steps=5)], test)
    images, _ = world.data.samples(test)
    network, logits = world.task.model(), []
    for weights in (first, moved):
        network.load_state_dict(weights)
        network.eval()
        for i, j in ends:
            a, b = (torch.from_numpy(np.array(images[k])).float() for k in (i, j))
            line = torch.stack([a + t * (b - a) for t in (0, 0.25, 0.5, 0.75, 1)])
            with torch.no_grad():
                logits.append(network(world.task.inputs(line)).double())
    each = torch.stack(logits).view(2, len(ends), 5, -1)
    assert len(found) == 3
    for rows, some in zip(found, (*each, each.mean(dim=0)), strict=True):
        p = some.softmax(dim=2)
        np.testing.assert_allclose(rows, (p - p[:, :1]).norm(dim=2), atol=1e-5)
    assert np.abs(np.array(found[0]) - found[2]).max() > 1e-3  # the ensemble is another model


def test_a_path_of_texts_goes_between_their_embeddings(tmp_path):
    spec = tiny_text(write_world(tmp_path / "world")).task
    task = TextTask(spec)
    network = task.model().eval()
    tokens = task._tokens([texts("food", 1)[0], f"{texts('weather', 1)[0]} about the"])
    share = torch.tensor([0.0, 0.5, 1.0])
    with torch.no_grad():
        found = network.between(tokens, share)
        table = network.body.get_input_embeddings()
        ends, pad = table(tokens), task.tokenizer.pad_token_id
        mask = ((tokens[0] != pad) | (tokens[1] != pad)).long()[None]
        middle = network.body(inputs_embeds=(ends[:1] + ends[1:]) / 2, attention_mask=mask)
        weight = mask[..., None].float()
        pooled = (middle.last_hidden_state * weight).sum(1) / weight.sum(1)
        if spec.normalise:
            pooled = F.normalize(pooled, dim=-1)
        assert torch.allclose(found[1], network.head(pooled)[0], atol=1e-5)
        # Two texts of the same length: the ends of the path are the texts themselves.
        same = task._tokens([texts("food", 1)[0], texts("weather", 1)[0]])
        assert ((same[0] != pad) == (same[1] != pad)).all()
        assert torch.allclose(network.between(same, share)[::2], network(same), atol=1e-5)
        assert not table._forward_hooks
        # Positions after the longer text change nothing: here as many again.
        wide = F.pad(tokens, (0, tokens.shape[1]), value=pad)
        assert torch.allclose(network.between(wide, share), found, atol=1e-6)


# ---- the measures on made-up answers

HELD_OUT = Split(name="held_out", role="held_out", digest=sha("held_out"), size=10, classes=10)
TRAIN = Split(name="train", role="train", digest=sha("train"), size=20, classes=10)
TEST = Split(name="test", role="test", digest=sha("test"), size=6, classes=10)
REF = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
BASIS = Basis(key="b", splits=(TRAIN, HELD_OUT, TEST), init=REF, anchor=REF)


def trial(name: str, right: int, **hparams: float):
    made = ingredient(name, scores(right, 10))
    known = {"rotation": 0, "shift": 0, "label_smoothing": 0.1} | hparams
    return structs.replace(made, trial=structs.replace(made.trial, hparams=known))


POOL = (trial("turned", 9, rotation=10.0), trial("clean", 8), trial("moved", 7, shift=0.1))
MODELS = {one.trial.key: mean_of([one.checkpoint.sha256]) for one in POOL}


def seen(accuracy: float, loss: float) -> Seen:
    return Seen(n=10, accuracy=accuracy, loss=loss)


def inputs(pool, asked, spec=None) -> Inputs:
    return Inputs(
        spec=spec or demo(),
        pool=Pool(init=REF, anchor=REF, ingredients=pool),
        basis=BASIS,
        board=board("best_single", best_single=MODELS["turned"]),
        answers=Given(
            {(m, "test"): Predictions(split=TEST, logits=np.zeros((6, 10), np.float32),
                                      labels=np.array([0, 0, 0, 1, 1, 1]))
             for m in MODELS.values()},
            asked,
        ),
    )  # fmt: skip


def test_affinity_and_diversity_by_hand():
    """The reference is the clean trial, right on .8: .6 when turned by up to 15 degrees."""
    clean = MODELS["clean"]

    def of(model, *values, rows=()):
        return Augmented(model=model, augmentation=values, rows=rows, seed=0)

    asked = {
        of(clean): seen(0.8, 0.5),
        of(clean, ("rotation", 10.0)): seen(0.7, 9),
        of(clean, ("shift", 0.1)): seen(0.4, 9),
        of(clean, ("rotation", 15.0)): seen(0.6, 9),
        of(MODELS["turned"], ("rotation", 10.0)): seen(0.9, 0.6),
        of(MODELS["moved"], ("shift", 0.1)): seen(0.9, 0.25),
    }
    made = measure_augmentations(inputs(POOL, asked))
    assert (made.reference, made.trained, made.accuracy) == ("trial clean", True, 0.8)
    by_trial = {m.trial: m for m in made.trials}
    assert by_trial["turned"].affinity == pytest.approx(-0.1)
    assert by_trial["turned"].ratio == pytest.approx(0.875)
    assert by_trial["turned"].diversity == pytest.approx(1.2)
    assert by_trial["moved"].diversity == pytest.approx(0.5)
    assert (by_trial["clean"].affinity, by_trial["clean"].diversity) == (0, 1)
    turning = next(a for a in made.alone if a.name == "rotation")
    assert (turning.value, turning.with_it, turning.without_it) == (15, 1, 2)
    assert turning.affinity == pytest.approx(-0.2)
    assert turning.accuracy == (0.9, pytest.approx(0.75))
    assert turning.share is None  # no greedy soup is on this leaderboard
    section = AUGMENTATIONS.section(made)
    assert "trial clean: 80.0 % on 10 clean held-out samples" in section.sentences[0]
    assert section.figures


def test_without_a_clean_trial_theta_0_stands_for_it():
    init = mean_of([REF.sha256])
    values = [(), (("rotation", 10.0),), (("rotation", 15.0),), (("shift", 0.1),)]
    asked = {
        Augmented(model=init, augmentation=v, rows=(), seed=0): seen(0.5 - k / 10, 1)
        for k, v in enumerate(values)
    }
    made = measure_augmentations(inputs(POOL[:1], asked))
    assert (made.reference, made.trained) == ("theta_0", False)
    assert made.trials[0].diversity is None
    section = AUGMENTATIONS.section(made)
    assert "Diversity, which compares losses of training, is not measured" in section.sentences[1]
    assert section.figures == ()


def test_what_does_not_apply_is_said():
    turned, moved = (
        "rotation: {uniform: [0, 15], off: 0.3}",
        "shift: {uniform: [0, 0.1], off: 0.3}",
    )
    spec = demo((turned, "warmup: 0.2"), (moved, "ema: 0.5"))
    assert AUGMENTATIONS.left_out(inputs(POOL, {}, spec)) == (
        "search.space has no augmentation of single images"
    )
    assert augmentation_of({"randaugment": 3.0, "randaugment_ops": 2, "crop": 1.0}) == (
        ("randaugment", 3.0), ("randaugment_ops", 2.0),
    )  # fmt: skip


class Waves:
    """Each model has a frequency of its own; the ensemble of several has 8 cycles."""

    def __init__(self, cycles: dict) -> None:
        self.cycles = cycles

    def predictions(self, candidate, split) -> Predictions:
        labels = np.array([0, 0, 0, 1, 1, 1])
        return Predictions(split=split, logits=np.zeros((6, 10), np.float32), labels=labels)

    def measure(self, requests, split):
        assert split == TEST
        assert all(len(one.ends) <= AT_ONCE for one in requests)
        t = np.arange(STEPS) / STEPS

        def along(cycles: int, one: Paths) -> list:
            return [tuple(np.sin(2 * np.pi * cycles * t).tolist())] * len(one.ends)

        return [
            [along(self.cycles[m], one) for m in one.models]
            + [along(8, one)] * (len(one.models) > 1)
            for one in requests
        ]


def test_a_smoother_soup_is_found_by_hand():
    """Ingredients: 8, 8 and 2 cycles, so that 2/3 of their power is high. Their soup: 2."""
    soup, anchor = mean_of([one.checkpoint.sha256 for one in POOL]), mean_of([REF.sha256])
    cycles = dict(zip(MODELS.values(), (8, 8, 2), strict=True)) | {soup: 2, anchor: 1}
    made = measure_frequencies(answered_by(inputs(POOL, {}), Waves(cycles)))
    assert (made.within, made.between) == (6, 9)  # all that six samples have
    by_name = {m.name: m for m in made.models}
    assert by_name["trial clean"].within == pytest.approx((1, 1, 1))
    assert by_name["trial moved"].between == pytest.approx((0, 0, 0), abs=1e-12)
    assert by_name["zero_shot"].spectra[0][0] == pytest.approx(1)
    found = {(d.name, d.where): d.difference for d in made.differences}
    assert found["soup of these", "within classes"] == pytest.approx(-2 / 3)
    assert found["ensemble of these", "between classes"] == pytest.approx(1 / 3)
    said = FREQUENCIES.section(made).sentences
    assert "The soup of the 3 best trials is smoother than its ingredients within" in said[0]
    assert "The ensemble of the 3 best trials is rougher than" in said[2]


def test_texts_cost_a_part_and_an_ensemble_nothing(tmp_path):
    """15 paths; three trials, their soup and the anchor run. 32 points of images, 16 of texts."""
    texts_too = tiny_text(write_world(tmp_path / "world"))
    costs = [
        sum(n for _, _, n in FREQUENCIES.needs(inputs(POOL, {}, spec)).requests)
        for spec in (None, texts_too)
    ]
    assert costs == [15 * 32 * 5, 15 * 16 * 5]


def answered_by(old: Inputs, answers) -> Inputs:
    import dataclasses

    return dataclasses.replace(old, answers=answers)


def test_one_class_alone_has_no_path_between_classes():
    class Alike(Waves):
        def predictions(self, candidate, split) -> Predictions:
            made = super().predictions(candidate, split)
            return structs.replace(made, labels=np.zeros(6, int))

    with pytest.raises(CannotMeasure, match="no two samples between classes"):
        measure_frequencies(answered_by(inputs(POOL, {}), Alike({})))


def test_a_model_without_embeddings_says_so(world):
    workers = LocalWorkers(world.task, world.data, world.checkpoints, world.spec.setting)
    two = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(EvaluationError, match="no embeddings of tokens"):
        workers.live.between_texts(mean_of([world.basis.init.sha256]), two, torch.zeros(1))


def test_both_run_at_the_command_line(fresh, without_ray):
    out = fresh.folder / "diagnosis"
    asked = ("diagnose", fresh.spec, *fresh.where, "--only", "augmentations", "--output", out)
    said = json.loads(inside(*asked, "--json").stdout)["measures"]["augmentations"]
    assert [a["name"] for a in said["alone"]] == ["rotation", "shift"]
    assert len(said["trials"]) == 4
    assert set(said["trials"][0]["coefficients"]) == {"greedy", "learned"}
    planned = json.loads(inside(*asked, "--only", "frequencies", "--dry-run", "--json").stdout)
    assert [(p["name"], p["stored"], p["passes"] > 0) for p in planned] == [
        ("augmentations", True, False),
        ("frequencies", False, True),
    ]
