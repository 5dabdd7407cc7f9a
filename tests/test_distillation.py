"""Trials that learn from a model of an earlier leaderboard, and what is left of its gain."""

import json
import math
import shutil

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from board import BASIS, OUTCOMES, POOL, REPORTED
from conftest import ONE_SLOT, inside, leaderboard, mini_text
from shared import demo, sha, unpacked

from soupray.core.errors import ConfigError, NotFound
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import BlobRef, Objective, Predictions, Split, Teacher
from soupray.reporting.ranking import leaderboard as ranked
from soupray.reporting.taught import of_teacher, taught
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import find_place
from soupray.spec.sweep_spec import load, parse
from soupray.sweep.teacher import find_teacher, note_other_teacher
from soupray.training.distillation import DistillationLoss, Targets, divergence
from soupray.training.losses import TrainingLoss
from soupray.training.teacher import Known, for_samples
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

TAUGHT = ("batch_size: 20", "batch_size: 20\n    distillation: 0.5")
TEACHER = ("init: zero_shot  ", "teacher: one:ensemble\ninit: zero_shot  ")

# ---- the loss


def test_divergence_of_one_class_by_hand():
    """T = 2: the teacher says (3/4, 1/4), the model (1/2, 1/2)."""
    outputs, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = divergence(outputs, teacher, 2.0, msgspec.UNSET)
    assert float(found) == pytest.approx(4 * kl)
    assert float(divergence(teacher, teacher, 2.0, msgspec.UNSET)) == pytest.approx(0, abs=1e-7)


def test_divergence_of_labels_and_of_numbers_by_hand():
    """Two labels: the teacher is sure by 3/4 of one, and knows nothing of the other."""
    outputs, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    labels = Objective(kind="multi_label")
    assert float(divergence(outputs, teacher, 1.0, labels)) == pytest.approx(kl / 2)
    numbers = Objective(kind="regression", tolerance=0.1)
    assert float(divergence(outputs, teacher, 7.0, numbers)) == pytest.approx(math.log(3) ** 2 / 2)


def test_the_gradient_is_that_of_a_hot_softmax():
    """d/dz T^2 KL = T (softmax(z / T) - softmax(t / T)) / N: arXiv:1503.02531, equation 2."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 4, generator=generator).requires_grad_()
    teacher = torch.randn(5, 4, generator=generator)
    divergence(outputs, teacher, 3.0, msgspec.UNSET).backward()
    wanted = 3 * ((outputs / 3).softmax(1) - (teacher / 3).softmax(1)) / 5
    assert torch.allclose(outputs.grad, wanted.detach(), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_and_teacher_share_the_loss(share):
    labels, teacher = torch.tensor([0, 1, 2]), torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    hparams = Hyperparameters(lr=1, epochs=1, distillation=share, distillation_temperature=2.0)
    plain = TrainingLoss(hparams, msgspec.UNSET, labels)
    made = DistillationLoss(plain, hparams, msgspec.UNSET)
    outputs, rows = torch.tensor([[0.0, 1, 0], [2, 0, 0]]), torch.tensor([2, 0])
    targets = Targets(labels, teacher).take(rows)
    ours = F.cross_entropy(outputs, torch.tensor([2, 0]))
    theirs = divergence(outputs, teacher[[2, 0]], 2.0, msgspec.UNSET)
    assert torch.allclose(made(outputs, targets), (1 - share) * ours + share * theirs)
    assert torch.allclose(made(outputs, Targets(labels).take(rows)), ours)


# ---- samples and classes, by name


def known(classes: str, ids: str, labels: list, objective=msgspec.UNSET) -> Known:
    split = Split(
        name="train", role="train", digest=sha(ids), size=len(ids), classes=len(classes),
        objective=objective,
    )  # fmt: skip
    return Known(tuple(classes), split, list(ids), np.array(labels))


def said(theirs: Known) -> Predictions:
    """Sample i has the logit 10 i + c of the class c, in the teacher's order."""
    rows, columns = len(theirs.ids), len(theirs.classes)
    logits = 10 * np.arange(rows)[:, None] + np.arange(columns)[None]
    return Predictions(split=theirs.split, logits=logits.astype(np.float32), labels=theirs.labels)


def test_samples_are_matched_by_id_and_classes_by_name():
    theirs, mine = known("xyz", "abcd", [0, 1, 2, 0]), known("zxy", "da", [1, 1])
    found = for_samples(said(theirs), theirs, mine, "s:e")
    assert found.tolist() == [[32, 30, 31], [2, 0, 1]]
    many = Objective(kind="multi_label")
    theirs = known("xyz", "ab", [[1, 0, 0], [0, 1, 1]], many)
    mine = known("zyx", "b", [[1, 1, 0]], many)
    assert for_samples(said(theirs), theirs, mine, "s:e").tolist() == [[12, 11, 10]]


@pytest.mark.parametrize(
    ("mine", "match"),
    [
        (known("xyw", "ab", [0, 1]), r"s:e has the classes x, y, z; this sweep has x, y, w"),
        (known("xyz", "abq", [0, 1, 2]), r"knows 2 of the 3 .* lacks is 'q'.* held_out and seed"),
        (known("xyz", "ba", [1, 1]), r"another label for 1 of the 2 training samples.*'a'"),
        (
            known("xyz", "ab", [[1, 0, 0], [0, 1, 1]], Objective(kind="multi_label")),
            "another objective",
        ),
    ],
)
def test_a_teacher_of_other_samples_labels_or_classes_is_refused(mine, match):
    theirs = known("xyz", "abcd", [0, 1, 2, 0])
    with pytest.raises(ConfigError, match=match):
        for_samples(said(theirs), theirs, mine, "s:e")


def test_a_teacher_that_says_nan_is_refused():
    theirs = known("xy", "ab", [0, 1])
    heard = said(theirs)
    heard.logits[1, 0] = np.nan
    with pytest.raises(ConfigError, match="s:e says NaN"):
        for_samples(heard, theirs, theirs, "s:e")


# ---- the spec


@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ((TEACHER,), r"teacher, one:ensemble, and no trial learns from it; write distillation: 0"),
        ((TAUGHT,), r"distillation needs the key `teacher`"),
        ((TEACHER, TAUGHT, ("one:ensemble", "digits@champion")), "is of this sweep itself"),
        ((TEACHER, TAUGHT, ("one:ensemble", "one")), "write SWEEP:ENTRY or SWEEP@champion"),
        (
            (TEACHER, TAUGHT, ("init: zero_shot  ", "init: {trained: {lr: 1e-3, epochs: 1, "
             "distillation: 0.5}}  ")),
            "theta_0 has none",
        ),
    ],
)  # fmt: skip
def test_a_spec_says_who_teaches_and_how_much(edits, match):
    with pytest.raises(ConfigError, match=match):
        demo(*edits)


def test_a_teacher_makes_other_trials_and_none_changes_no_key():
    plain, learning = demo(), demo(TEACHER, TAUGHT)
    assert learning.digest != plain.digest
    assert basis_key(learning) != basis_key(plain)
    assert basis_key(demo(("init: zero_shot  ", "init: zero_shot "))) == basis_key(plain)


# ---- what is left


def told(**scores: tuple[float, float]) -> Teacher:
    digests = {split.name: split.digest for split in BASIS.reported}
    return Teacher(
        entry="s:ensemble",
        candidate=sha("teacher"),
        logits=BlobRef(sha256=sha("logits"), size_bytes=1),
        passes=3,
        scores={digests[name]: both for name, both in scores.items()},
    )


def test_what_is_left_of_a_gain_by_hand():
    """best_single here: test .5, inverted .5, noise .6. See board.py."""
    entries = ranked(OUTCOMES, POOL, BASIS, REPORTED)
    assert taught(entries, BASIS, "greedy") is None
    assert of_teacher(None) == ""
    teacher = told(test=(0.4, 0.5), inverted=(0.7, 0.4), noise=(0.7, 0.6))
    basis = msgspec.structs.replace(BASIS, teacher=teacher)
    found = taught(entries, basis, "best_single")
    assert found is not None
    assert found.test is not None
    assert found.test.share == {}  # the teacher is worse than the best single model of its sweep
    assert found.test.here == {"best_single": 0.5}
    assert found.shifts is not None
    assert found.shifts.teacher == pytest.approx(0.7)
    assert found.shifts.before == pytest.approx(0.5)
    assert found.shifts.here == {"best_single": pytest.approx(0.55)}
    assert found.shifts.share == {"best_single": pytest.approx(0.25)}
    assert of_teacher(found) == (
        "The trials also learned from s:ensemble (3 forward passes). On ID test: teacher 40.0, "
        "-10.0 to the best single model of its sweep: no gain to keep; best_single here 50.0. "
        "Under shift: teacher 70.0, +20.0 to the best single model of its sweep; best_single here "
        "has 55.0 and keeps 25 % of it."
    )
    greedy = taught(entries, basis, "greedy")
    assert greedy is not None
    assert greedy.test is not None
    assert greedy.test.here.keys() == {"best_single", "greedy"}
    elsewhere = msgspec.structs.replace(BASIS, teacher=told(noise=(0.7, 0.6)))
    found = taught(entries, elsewhere, None)
    assert found is not None
    assert found.test is None
    assert found.shifts is not None
    assert found.shifts.here == {"best_single": pytest.approx(0.6)}
    assert "other ID test data" in of_teacher(found)


# ---- from an old store to trained students


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """The store of two finished sweeps, and a spec that learns from the first one's ensemble."""
    old = unpacked(tmp_path_factory.mktemp("school"))
    home = old.folder / "home"
    (home / "sweeps").mkdir(parents=True)
    shutil.copy(old.spec("one"), home / "sweeps" / "one.yaml")
    text = old.spec("one").read_text().replace("name: one", "name: student")
    text = text.replace("seed: 0", "seed: 0\nteacher: one:ensemble")
    text = text.replace("    rotation:", "    distillation: 0.5\n    rotation:")
    old.spec("student").write_text(text)
    spec = load(old.spec("student"))
    place = find_place(spec, home)
    return old, home, spec, place


def trained(trial, here) -> dict[str, torch.Tensor]:
    """The weights of a trial."""
    training = fine_tune(trial, here.task, here.data, here.checkpoints)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return here.checkpoints.load(end.value.checkpoint.sha256)


def test_a_teacher_says_what_the_evaluation_says_and_its_students_learn_it(school):
    _, home, spec, place = school
    teacher = find_teacher(spec, home)
    assert teacher is not None
    assert teacher.entry == "one:ensemble"
    basis = make_basis(spec, place, basis_key(spec), teacher)
    assert basis.teacher
    entries = json.loads(place.open_store().get("sweeps/one/results/leaderboard.json"))
    accuracy = {e["name"]: e["test"]["accuracy"] for e in entries}
    test = basis.split("test").digest
    best = accuracy["best_single"]
    assert basis.teacher.scores[test] == (accuracy["ensemble"], best)

    here = worker_context(spec, place)
    train = here.data.split("train")
    heard = here.checkpoints.load_blob(basis.teacher.logits.sha256)["logits"].numpy()
    assert (heard == here.evaluator().predictions(teacher.candidate, train).logits).all()

    trial = trials_of(spec, basis)[0]
    assert trial.teacher == basis.teacher.logits.sha256
    student = trained(trial, here)
    alone = {k: v for k, v in trial.hparams.items() if k != "distillation"}
    without = trained(msgspec.structs.replace(trial, key="0" * 16, hparams=alone), here)
    assert any(not torch.equal(student[name], without[name]) for name in student)


def test_another_meaning_of_the_name_is_said_and_the_sweep_keeps_its_teacher(school, heard):
    _, home, spec, place = school
    teacher = find_teacher(spec, home)
    assert teacher is not None
    basis = make_basis(spec, place, basis_key(spec), teacher)
    note_other_teacher(spec, basis, home)
    assert heard() == ""
    assert basis.teacher
    before = msgspec.structs.replace(basis.teacher, candidate=sha("earlier"))
    note_other_teacher(spec, msgspec.structs.replace(basis, teacher=before), home)
    assert "teacher: one:ensemble is one:ensemble" in heard()
    assert "stays with it" in heard()
    note_other_teacher(spec, basis, home / "elsewhere")  # the sweep is not in that home


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("none:ensemble", ConfigError, r"none:ensemble: the home .* knows no sweep 'none'"),
        ("one:nothing", NotFound, r"has no entry 'nothing'. It has: .*ensemble"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(school, name, error, match):
    old, home, _, _ = school
    text = old.spec("student").read_text().replace("one:ensemble", name)
    with pytest.raises(error, match=match):
        find_teacher(parse(text, "x"), home)


def test_a_sweep_learns_from_the_champion_of_another_and_says_what_is_left(fresh, without_ray):
    text = mini_text(
        **ONE_SLOT
        | {
            "name: digits\n": "name: student\nteacher: mini:ensemble\n",
            "batch_size: 20": "batch_size: 50\n    distillation: 0.5",
            "trials: 16": "trials: 1",
            "epochs: {integer: [5, 15]}": "epochs: 1",
        }
    )
    spec = fresh.folder / "student.yaml"
    spec.write_text(text)
    inside("sweep", spec, *fresh.where)
    shown = inside("soup", spec, *fresh.where, "--uniform", "--output", fresh.folder / "out").stdout
    assert "The trials also learned from mini:ensemble (4 forward passes)." in shown
    kept = json.loads(inside("rank", spec, *fresh.where, "--json").stdout)["teacher"]
    theirs = {e["name"]: e["test"]["accuracy"] for e in leaderboard(fresh.output)}
    mine = {e["name"]: e["test"]["accuracy"] for e in leaderboard(fresh.folder / "out")}
    assert kept["test"]["teacher"] == pytest.approx(theirs["ensemble"])
    assert kept["test"]["before"] == pytest.approx(theirs["best_single"])
    assert kept["test"]["here"]["best_single"] == pytest.approx(mine["best_single"])
    assert "mini:ensemble" in (fresh.folder / "out" / "report.html").read_text()
    (trial,) = json.loads(inside("trials", spec, *fresh.where, "--json").stdout)
    assert trial["hparams"]["distillation"] == 0.5
