"""theta_0 that is trained: once, the same bytes every time, on the train split only."""

import msgspec
import pytest
import torch
from idx_files import FASHION, tiny, write_data_set
from shared import DIGITS, ingredient, scores, sha

from soupray.core.errors import Diverged
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Basis
from soupray.core.trials import Ingredient, pool_of
from soupray.data.cache import Data
from soupray.operations.estimate import DryRun, dry_run
from soupray.reporting.ranking import names_of
from soupray.search.plan import plan, trials_of
from soupray.search.state import basis_key, find_basis
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec, load, parse
from soupray.store.checkpoints import Checkpoints
from soupray.training.loop import Loop, trained
from soupray.training.start import Start
from soupray.training.trial import fine_tune
from soupray.training.worker import WorkerContext, make_basis, worker_context

INIT = ("lr: 3e-3, epochs: 4, batch_size: 64", "lr: 3e-3, epochs: 2, batch_size: 8")


class Made:
    """A basis in a store of its own."""

    def __init__(self, spec: SweepSpec, folder) -> None:
        store = folder / "store"
        store.mkdir()
        place = Place(storage=f"file://{store}", credentials=None, cache=str(folder / "cache"))
        self.spec = spec
        self.basis: Basis = make_basis(spec, place, basis_key(spec))
        self.world: WorkerContext = worker_context(spec, place)
        self.checkpoints: Checkpoints = self.world.checkpoints

    def load(self, which: str) -> dict[str, torch.Tensor]:
        return self.checkpoints.load(getattr(self.basis, which).sha256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("idx")
    write_data_set(path)
    return path


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory) -> Made:
    return Made(tiny(folder, INIT), tmp_path_factory.mktemp("made"))


def start_of(made: Made) -> Start:
    """What the training starts from: the task's weights, drawn with the sweep's seed."""
    torch.manual_seed(made.spec.seed)
    return Start(weights=made.world.task.init(), seed=made.spec.seed, device="cpu")


def hparams_of(made: Made, **other) -> Hyperparameters:
    return Hyperparameters(**(made.spec.init.trained.numbers() | other))


def test_the_same_spec_gives_the_same_bytes(made, folder, tmp_path):
    torch.rand(3)  # what was drawn before in this process does not matter
    again = Made(tiny(folder, INIT), tmp_path)
    assert again.basis == made.basis
    assert find_basis(again.checkpoints.store, again.spec) == made.basis


def test_another_seed_and_other_hyperparameters_give_another_init(made, folder, tmp_path):
    for i, edit in enumerate([("seed: 0\n", "seed: 1\n"), ("lr: 3e-3,", "lr: 2e-3,")]):
        (tmp_path / str(i)).mkdir()
        other = Made(tiny(folder, INIT, edit), tmp_path / str(i))
        assert other.basis.key != made.basis.key
        assert other.basis.init != made.basis.init


def test_the_init_is_two_epochs_from_the_drawn_weights(made):
    start = start_of(made)
    loop = Loop(made.world.task, made.world.data, hparams_of(made), start)
    loop.epoch(1)
    loop.epoch(2)
    stored = made.load("init")
    assert stored.keys() == loop.weights().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in loop.weights().items())
    assert not torch.equal(stored["head.weight"], start.weights["head.weight"])


def test_it_reads_the_train_split_and_no_other(made):
    asked = []

    class Watched(Data):
        def samples(self, split):
            asked.append(split.name)
            return super().samples(split)

    watched = Watched(made.world.data.folder)
    trained(made.world.task, watched, hparams_of(made), start_of(made))
    assert asked == ["train"]


def test_the_anchor_is_the_init_and_is_called_so(made):
    basis = made.basis
    assert (basis.anchor, basis.anchor_name) == (basis.init, "init")
    pool = pool_of(basis, [ingredient("a", scores(9))])
    assert names_of(pool) == {basis.init.sha256: "init", sha("a"): "a"}


def test_a_basis_of_the_first_version_has_a_zero_shot_anchor(made):
    known = msgspec.json.decode(msgspec.json.encode(made.basis))
    del known["anchor_name"]
    assert msgspec.convert(known, Basis).anchor_name == "zero_shot"


def test_trials_branch_from_the_trained_init(made):
    trial = trials_of(made.spec, made.basis)[0]
    hparams = {**trial.hparams, "lr": 1e-2, "epochs": 20, "batch_size": 15}
    trial = msgspec.structs.replace(trial, hparams=hparams)
    assert trial.init == made.basis.init.sha256
    here = made.world
    training = fine_tune(trial, here.task, here.data, here.checkpoints)
    for _ in range(20):
        next(training)
    with pytest.raises(StopIteration) as end:
        next(training)
    manifest = end.value.value
    assert isinstance(manifest, Ingredient)
    assert manifest.held_out.correct >= 6  # of 20 in ten classes: chance is 2
    assert manifest.init == made.basis.init.sha256
    assert manifest.tensors.keys() == made.load("init").keys()


def test_a_training_that_diverges_names_the_field(folder, tmp_path):
    # Decay alone multiplies the weights by 1 - 10 x 10 = -99 in each step at the full rate.
    spec = tiny(folder, ("lr: 3e-3, epochs: 4", "weight_decay: 10.0, lr: 10.0, epochs: 9"))
    with pytest.raises(Diverged, match=r"init\.trained: training loss is .*Lower its lr"):
        Made(spec, tmp_path)


@pytest.mark.parametrize("anchor", ["zero_shot", "init"])
def test_open_clip_trained_first_descends_from_its_zero_shot_model(anchor, tmp_path):
    text = DIGITS.read_text().replace("init: zero_shot", "init: {trained: {lr: 1e-4, epochs: 1}}")
    spec = parse(text.replace("anchor: zero_shot", f"anchor: {anchor}"), "x.yaml")
    (tmp_path / "trained").mkdir()
    (tmp_path / "plain").mkdir()
    here, plain = Made(spec, tmp_path / "trained"), Made(load(DIGITS), tmp_path / "plain")
    assert plain.basis.init == plain.basis.anchor
    assert here.basis.init != plain.basis.init
    assert here.basis.anchor == (plain.basis.init if anchor == "zero_shot" else here.basis.init)
    assert here.basis.anchor_name == anchor


def test_what_shapes_the_basis_of_the_demo_changes_with_code_version_only():
    # A change here makes every stored basis of every user unfindable.
    assert basis_key(load(DIGITS)) == "0f463c180ed1ba0c3cc536124a392673"


def test_the_device_is_part_of_the_key_only_if_the_init_is_trained():
    def key(text: str, gpu: int) -> str:
        return basis_key(parse(text.replace("gpu: 0", f"gpu: {gpu}"), "x.yaml"))

    assert key(DIGITS.read_text(), 0) == key(DIGITS.read_text(), 1)
    assert key(FASHION.read_text(), 0) != key(FASHION.read_text(), 1)


def test_a_dry_run_counts_the_training_of_the_init(folder):
    spec = tiny(folder, INIT)
    of_trials = sum(int(t.hparams["epochs"]) for t in plan(spec))
    assert dry_run(spec).training_samples == (of_trials + 2) * 30


def recipes_of(folder, **recipes: dict) -> DryRun:
    spec = tiny(folder, INIT).model_copy(update={"recipes": recipes})
    return dry_run(spec)


def test_a_dry_run_counts_what_the_options_of_the_recipes_ask_for(folder):
    none = recipes_of(folder)
    held_out = none.held_out_samples // (none.epochs + none.trials)
    # The anchor, and with estimated BatchNorm statistics the anchor and each trial: all 30 images.
    singles = 1 + none.trials
    assert none.soup_held_out_samples == (1 + singles) * held_out
    assert none.soup_train_samples == singles * 30
    # Each trial's Fisher information: 7 training samples, and a file as large as the model.
    # BatchNorm statistics of the one soup: all 30 training images.
    fisher = recipes_of(folder, fisher={"samples": 7})
    assert fisher.soup_train_samples - none.soup_train_samples == 7 * none.trials + 30
    model = (none.stored_bytes - none.trials * held_out * 40) // (none.trials + 1)
    assert fisher.soup_stored_bytes - none.soup_stored_bytes > none.trials * model
    # VRF: answers of the anchor and of two models on the 30 training images, then features of two.
    assert recipes_of(folder, vrf={}).soup_train_samples == (5 + singles) * 30
    # Two lines of one inner point each, and the anchor.
    wise_ft = recipes_of(folder, wise_ft={"alphas": [0.0, 0.5, 1.0]})
    assert wise_ft.soup_held_out_samples == (2 + 1 + singles) * held_out
    one_line = recipes_of(folder, wise_ft={"alphas": [0.0, 0.5, 1.0], "theta_1": "uniform"})
    assert one_line.soup_held_out_samples == (1 + 1 + singles) * held_out
    learned = recipes_of(folder, learned={"epochs": 9})
    assert learned.soup_held_out_samples == (9 + 1 + 1 + singles) * held_out


def test_a_dry_run_counts_the_batch_norm_statistics_of_every_soup(folder):
    """Each takes all 30 training images. Those of 16 trials and the anchor come on top."""

    def soups(**recipes: dict) -> float:
        return recipes_of(folder, **recipes).soup_train_samples / 30 - 17

    k = recipes_of(folder).trials
    assert k == 16
    assert soups() == 0
    assert soups(uniform={}) == soups(model_stock={}) == 1
    assert soups(greedy={}) == k - 1
    assert soups(pruned={}) == k + 1
    assert soups(replacement={"passes": 4}) == 4 * k
    # A soup a step, of three steps an epoch (8 + 8 + 4 images), and the last one.
    assert soups(learned={"epochs": 9, "batch_size": 8}) == 9 * 3 + 1
    # Two lines: a point that is scored, four that are drawn.
    assert soups(wise_ft={"alphas": [0.0, 0.5, 1.0]}) == 2 * (1 + 4)
    assert soups(lines={}) == 2 * 10


def test_a_dry_run_counts_no_statistics_where_training_moves_none(folder):
    spec = tiny(folder, INIT).model_copy(update={"recipes": {"uniform": {}}})
    head = spec.search.model_copy(update={"train": "head"})
    assert dry_run(spec.model_copy(update={"search": head})).soup_train_samples == 0
