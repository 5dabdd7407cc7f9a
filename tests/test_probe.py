"""Linear probes: against scikit-learn, against a frozen body, and as theta_0 of LP-FT."""

import msgspec
import numpy as np
import pytest
import torch
from idx_files import tiny, write_data_set
from scipy.special import softmax
from shared import demo
from sklearn.linear_model import LogisticRegression
from tiny_text import tiny_text, write_world

from soupray.core.candidates import FisherSoup, VRFEnsemble, ensemble_of, mean_of
from soupray.core.errors import ConfigError, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.trials import Ingredient, Trial, pool_of
from soupray.data.cache import Data
from soupray.evaluation.live_model import predict
from soupray.evaluation.selection import HeldOutSelection
from soupray.inference.predictor import ModelSource, Predictor
from soupray.operations.estimate import dry_run
from soupray.recipes import run_recipes
from soupray.reporting.ranking import forward_passes
from soupray.reporting.recipe_file import RecipeFile, weights_of
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import Place
from soupray.soup.session import Session
from soupray.spec.task import Probe
from soupray.training.loop import Loop
from soupray.training.probe import fit_head, probed
from soupray.training.start import Start
from soupray.training.trial import fine_tune
from soupray.training.worker import WorkerContext, make_basis, worker_context

PROBE = ("init: zero_shot ", "init: {probe: {l2: 1e-3}} ")
HEAD = ("  sampler: random ", "  sampler: random\n  train: head ")
STILL = (
    ("rotation: {uniform: [0, 15], off: 0.3}", "rotation: 0"),
    ("shift: {uniform: [0, 0.1], off: 0.3}", "shift: 0"),
)


def problem(seed: int, n: int = 60, d: int = 5, classes: int = 3):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n, d)).astype(np.float32)
    noise = generator.gumbel(size=(n, classes))
    labels = (features @ generator.normal(size=(d, classes)) + noise).argmax(1)
    return features, labels


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_fit_is_that_of_scikit_learn(l2, bias):
    features, labels = problem(0)
    w, b = fit_head(features, labels, 3, l2, bias)
    oracle = LogisticRegression(C=1 / (l2 * len(labels)), fit_intercept=bias, tol=1e-9)
    oracle.fit(features.astype(np.float64), labels)
    assert np.allclose(w, oracle.coef_, atol=2e-4)
    # Adding a number to all biases changes nothing: compare them centred.
    centred = oracle.intercept_ - oracle.intercept_.mean() if bias else np.zeros(3)
    assert np.allclose(b - b.mean(), centred, atol=2e-4)
    assert b.any() == bias


def test_a_heavy_penalty_leaves_the_class_frequencies():
    features, labels = problem(1)
    w, b = fit_head(features, labels, 3, 1e6, bias=True)
    assert np.abs(w).max() < 1e-5
    assert np.allclose(np.exp(b) / np.exp(b).sum(), np.bincount(labels) / len(labels), atol=1e-5)


def test_a_fit_that_does_not_end_is_told(monkeypatch):
    monkeypatch.setattr("soupray.training.probe.ITERATIONS", 2)
    with pytest.raises(TrialError, match=r"init\.probe: the fit did not converge .* l2 = 0\.001"):
        fit_head(*problem(0), 3, 1e-3, bias=True)


def fine_tuned(here: WorkerContext, trial: Trial) -> Ingredient:
    training = fine_tune(trial, here.task, here.data, here.checkpoints)
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


class Made:
    """Basis and world of an edited demo, in a store of its own."""

    def __init__(self, folder, cache, *edits: tuple[str, str]) -> None:
        store = folder / "store"
        store.mkdir(parents=True)
        place = Place(storage=f"file://{store}", credentials=None, cache=str(cache))
        self.spec = demo(*edits)
        self.basis = make_basis(self.spec, place, basis_key(self.spec))
        self.here = worker_context(self.spec, place)

    def weights(self, which: str) -> dict[str, torch.Tensor]:
        return self.here.checkpoints.load(getattr(self.basis, which).sha256)

    def ingredient(self, number: int) -> Ingredient:
        return fine_tuned(self.here, trials_of(self.spec, self.basis)[number])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def probe(tmp_path_factory, cache) -> Made:
    """theta_0 is a probe, the anchor the zero-shot model; trials train the head."""
    return Made(tmp_path_factory.mktemp("probe"), cache, PROBE, HEAD, *STILL)


@pytest.fixture(scope="module")
def pair(probe) -> list[Ingredient]:
    return [probe.ingredient(i) for i in range(2)]


def held_out(made: Made, sha256: str):
    split = made.basis.split("held_out")
    return made.here.workers().predictions(mean_of([sha256]), split)


def accuracy(predictions) -> float:
    return float((predictions.logits.argmax(1) == predictions.labels).mean())


def test_the_probe_is_the_pre_trained_body_with_a_better_head(probe):
    init, anchor = probe.weights("init"), probe.weights("anchor")
    assert probe.basis.anchor_name == "zero_shot"
    assert [n for n in init if not torch.equal(init[n], anchor[n])] == ["head.weight"]
    accuracies = [
        accuracy(held_out(probe, s.sha256)) for s in (probe.basis.init, probe.basis.anchor)
    ]
    assert accuracies[0] > accuracies[1] + 0.1  # 500 samples: five standard errors


def test_the_head_is_scikit_learns_on_the_features_of_the_train_split(probe):
    here = probe.here
    model = here.task.model()
    model.load_state_dict(probe.weights("anchor"))
    images, labels = here.data.samples(here.data.split("train"))
    _, features = predict(model, here.task, images, here.spec.setting)
    oracle = LogisticRegression(
        C=1 / (1e-3 * len(labels)), fit_intercept=False, max_iter=9999, tol=1e-9
    )
    oracle.fit(features.astype(np.float64), labels)
    head = probe.weights("init")["head.weight"].numpy()
    assert np.allclose(head, oracle.coef_, atol=2e-3)  # entries of up to seven


def test_it_reads_the_train_split_and_no_other(probe):
    asked = []

    class Watched(Data):
        def samples(self, split):
            asked.append(split.name)
            return super().samples(split)

    here = probe.here
    again = probed(
        here.task,
        Watched(here.data.folder),
        probe.weights("anchor"),
        Probe(l2=1e-3),
        here.spec.setting,
    )
    assert set(asked) == {"train"}
    assert torch.equal(again["head.weight"], probe.weights("init")["head.weight"])


def test_a_trial_of_the_head_is_a_training_through_the_frozen_body(probe, pair):
    trial, here = trials_of(probe.spec, probe.basis)[0], probe.here
    assert trial.method == "lp"
    start = Start(weights=probe.weights("init"), seed=trial.seed, device="cpu")
    loop = Loop(here.task, here.data, Hyperparameters(**trial.hparams), start)
    for name, parameter in loop.model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    loop.model.visual.requires_grad_(False)
    heads = []
    for number in (1, 2):
        loop.epoch(number)
        heads.append(loop.weights()["head.weight"])
    stored = here.checkpoints.load(pair[0].checkpoint.sha256)
    assert torch.allclose(stored["head.weight"], heads[pair[0].best_epoch - 1], atol=1e-4)
    init = probe.weights("init")
    assert stored.keys() == init.keys()
    assert [n for n in init if not torch.equal(init[n], stored[n])] == ["head.weight"]


def test_a_soup_of_probes_is_their_ensemble(probe, pair):
    # The features are the same, and the logits linear in the head.
    shas = [i.checkpoint.sha256 for i in pair]
    split = probe.basis.split("held_out")
    soup = probe.here.workers().predictions(mean_of(shas), split).logits
    logits = [held_out(probe, sha).logits for sha in shas]
    assert np.allclose(soup, np.mean(logits, axis=0), atol=1e-4)
    assert not np.allclose(logits[0], logits[1], atol=1e-2)


def test_probe_and_zero_shot_model_share_their_features(probe, pair):
    # What VRF with a linear probe needs: one backbone for both of its models.
    here, found = probe.here, []
    for sha in (pair[0].checkpoint.sha256, probe.basis.anchor.sha256):
        model = here.task.model()
        model.load_state_dict(here.checkpoints.load(sha))
        images, _ = here.data.samples(here.data.split("held_out"))
        found.append(predict(model, here.task, images[:50], here.spec.setting)[1])
    assert np.array_equal(*found)


def test_trials_of_all_weights_and_of_the_head_have_other_keys(probe):
    whole = msgspec.structs.replace(probe.basis)
    text = demo(PROBE, *STILL)
    keys = [{t.key for t in trials_of(spec, whole)} for spec in (probe.spec, text)]
    assert not keys[0] & keys[1]


def test_lp_ft_starts_from_the_probe_and_moves_the_body(tmp_path, cache):
    made = Made(tmp_path, cache, PROBE, ("trials: 2", "trials: 1"), ("epochs: 2", "epochs: 1"))
    ingredient = made.ingredient(0)
    assert ingredient.trial.method == "ft"
    assert ingredient.init == made.basis.init.sha256 != made.basis.anchor.sha256
    stored, init = made.here.checkpoints.load(ingredient.checkpoint.sha256), made.weights("init")
    moved = [n for n in init if not torch.equal(init[n], stored[n])]
    assert len(moved) > len(init) / 2


def test_a_dry_run_counts_the_features_once():
    costs = dry_run(demo(PROBE, HEAD, *STILL))
    assert costs.training_samples == 2 * 200  # for theta_0, and for all trials
    assert costs.held_out_samples == 3 * 500  # once, and every trial as it is stored


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (HEAD, "rotation needs the body: train: head sees it once; leave it out"),
        ((PROBE[0], "init: {probe: {l2: 0}} "), "init.probe.l2: 0 is not allowed"),
        ((PROBE[0], "init: {probe: {c: 1}} "), "init.probe.c: unknown key. Allowed: l2, stat"),
        ((PROBE[0], "init: linear "), "write zero_shot, {trained: {lr: ..., epochs: ...}}, {p"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(edit, said):
    with pytest.raises(ConfigError) as error:
        demo(edit)
    assert said in str(error.value)


def test_models_without_prompts_get_their_head_by_probe(tmp_path):
    write_data_set(tmp_path / "idx")
    trained = "  trained: {lr: 3e-3, epochs: 4, batch_size: 64}"
    write_world(tmp_path / "text")
    new = ("search:", "init: {probe: {l2: 0.01}}\nanchor: init\nsearch:")
    specs = [
        tiny(tmp_path / "idx", (trained, "  probe: {l2: 0.01}")),
        tiny_text(tmp_path / "text", ('templates: ["about {}"]', ""), new),
    ]
    for spec, chance in zip(specs, (2, 6), strict=True):
        place = Place(
            storage=f"file://{tmp_path}/text/store", credentials=None, cache=str(tmp_path)
        )
        basis = make_basis(spec, place, basis_key(spec))
        predictions = (
            worker_context(spec, place)
            .workers()
            .predictions(mean_of([basis.init.sha256]), basis.split("held_out"))
        )
        assert (predictions.logits.argmax(1) == predictions.labels).sum() > 1.5 * chance
        assert basis.anchor == basis.init


def test_a_soup_of_probes_keeps_the_batch_statistics_that_they_share(tmp_path):
    write_data_set(tmp_path)
    edits = [
        ("  trained: {lr: 3e-3, epochs: 4, batch_size: 64}", "  probe: {l2: 0.01}"),
        ("sampler: random", "sampler: random\n  train: head"),
        ("rotation: {uniform: [0, 15], off: 0.3}", "rotation: 0"),
        ("shift: {uniform: [0, 0.1], off: 0.3}", "shift: 0"),
    ]
    spec = tiny(tmp_path, *edits)
    place = Place(storage=f"file://{tmp_path}", credentials=None, cache=str(tmp_path / "cache"))
    basis = make_basis(spec, place, basis_key(spec))
    here = worker_context(spec, place)
    shas = [fine_tuned(here, t).checkpoint.sha256 for t in trials_of(spec, basis)[:2]]
    workers, split = here.workers(), basis.split("held_out")
    soup, *each = [
        workers.predictions(mean_of(of), split).logits for of in (shas, shas[:1], shas[1:])
    ]
    assert np.allclose(soup, np.mean(each, axis=0), atol=1e-5)
    assert not np.allclose(*each, atol=1e-3)
    saved = here.checkpoints.load(workers.save(mean_of(shas)).sha256)
    start = here.checkpoints.load(basis.init.sha256)
    assert {n for n in start if not torch.equal(start[n], saved[n])} <= {"head.weight", "head.bias"}


def test_vrf_of_a_probe_and_the_zero_shot_model_is_below_neither(probe, pair):
    basis, here = probe.basis, probe.here
    splits = [basis.split("held_out"), basis.split("train")]
    pool = pool_of(basis, pair)
    selection = HeldOutSelection(here.evaluator(), pool, splits)
    _, outcome = run_recipes(selection, {"best_single": {}, "vrf": {}})
    assert outcome.name == "vrf(best_single)"
    best = max(i.held_out.correct for i in pair)
    zero_shot = held_out(probe, basis.anchor.sha256)
    assert outcome.held_out.correct >= max(best, int(500 * accuracy(zero_shot)))
    assert outcome.options["failures"] > 0


def test_heads_on_one_frozen_body_take_one_pass_and_answer_as_two(probe, pair):
    basis, evaluator, images = probe.basis, probe.here.evaluator(), probe.here.data
    one, anchor = mean_of([pair[0].checkpoint.sha256]), mean_of([basis.anchor.sha256])
    features = probe.here.checkpoints.save(
        {"features": torch.nn.functional.normalize(torch.randn(20, 128))}, {}
    )
    vrf = VRFEnsemble(
        fine_tuned=one,
        reference=anchor,
        temperatures=(1.2, 0.8),
        failures=features,
        k=2,
        a=1.5,
        b=0.6,
    )
    soup = mean_of([i.checkpoint.sha256 for i in pair])
    mean = ensemble_of([(soup, 1, 1.0), (anchor, 1, 1.0), (one, 2, 1.0)], 4, "logits")
    held_out = basis.split("held_out")
    samples = np.array(images.samples(held_out)[0])
    session = Session(None, None, pool_of(basis, pair), basis, (), evaluator, {})
    bodies = session.bodies([vrf, mean])
    assert len(bodies) == 3
    moved = [msgspec.structs.replace(i.trial, method="ft") for i in pair]
    others = [msgspec.structs.replace(i, trial=t) for i, t in zip(pair, moved, strict=True)]
    assert session._replace(pool=pool_of(basis, others)).bodies([vrf, mean]) == {}
    for candidate in (vrf, mean):
        model, passes = counting(candidate, probe)
        expected = softmax(evaluator.predictions(candidate, held_out).logits, axis=1)
        assert np.allclose(softmax(model.logits(samples), axis=1), expected, atol=1e-5)
        assert len(passes) == forward_passes(candidate, bodies) == 1
        assert forward_passes(candidate, {}) == len(candidate.members)


def counting(candidate, made: Made) -> tuple[Predictor, list[int]]:
    """The model of a recipe whose members have one body, and a list that grows with its passes."""
    recipe, stored, passes = recipe_of(candidate, made), made.here.checkpoints, []
    source = ModelSource(
        made.here.task,
        lambda member: weights_of(member, recipe, stored),
        stored.load_blob,
        made.here.spec.setting,
    )
    model = Predictor(recipe, {"": source}, batch_size=500)  # all at once
    (body,) = {member.body for member in model.models.values()}
    body.visual.register_forward_hook(lambda *call: passes.append(1))
    return model, passes


def recipe_of(candidate, made: Made) -> RecipeFile:
    return RecipeFile(
        name="x",
        recipe="vrf",
        options={},
        candidate=candidate,
        ingredients={},
        statistics={},
        sha256=None,
        spec=made.spec.model_dump(mode="json"),
    )


def test_bodies_that_differ_take_a_pass_each():
    shas = ("a", "b", "c")
    a, b, c = (mean_of([sha]) for sha in shas)
    known = {"a": "body", "b": "body", "c": "other"}
    three = ensemble_of([(a, 1, 1.0), (b, 1, 1.0), (c, 1, 1.0)], 3, "logits")
    assert forward_passes(three, known) == 2
    assert forward_passes(three, {"a": "body"}) == 3
    # A soup over two bodies has one of its own; so has a Fisher soup, whose quotient is rounded.
    mixed = ensemble_of([(mean_of(["a", "c"]), 1, 1.0), (a, 1, 1.0)], 2, "logits")
    fisher = ensemble_of([(FisherSoup(parts=(("a", "f", 1),)), 1, 1.0), (a, 1, 1.0)], 2, "logits")
    assert forward_passes(mixed, known) == forward_passes(fisher, known) == 2
    assert forward_passes(mean_of(["a", "c"]), known) == 1
    # A model at two temperatures is one model.
    assert forward_passes(ensemble_of([(a, 1, 1.0), (a, 1, 2.0)], 2, "probabilities"), {}) == 1


@pytest.mark.parametrize("statistics", ["train", "pretrained"])
def test_a_probe_is_fitted_to_what_a_training_will_see(tmp_path, statistics):
    write_data_set(tmp_path)
    trained = "  trained: {lr: 3e-3, epochs: 4, batch_size: 64}"
    spec = tiny(tmp_path, (trained, f"  probe: {{l2: 0.01, statistics: {statistics}}}"))
    place = Place(storage=f"file://{tmp_path}", credentials=None, cache=str(tmp_path / "cache"))
    basis, here = make_basis(spec, place, basis_key(spec)), worker_context(spec, place)
    torch.manual_seed(spec.seed)
    before, after = here.task.init(), here.checkpoints.load(basis.init.sha256)
    moved = {n.rpartition(".")[2] for n in before if not torch.equal(before[n], after[n])}
    both = {"running_mean", "running_var"} if statistics == "train" else set()
    assert moved == {"weight", "bias"} | both  # of the head
    if statistics == "train":
        model = here.task.model()
        model.load_state_dict(after)
        images, _ = here.data.samples(basis.split("train"))
        inputs = here.task.inputs(torch.from_numpy(np.array(images)))
        with torch.inference_mode():
            one_batch = model.train()(inputs)
            model.load_state_dict(after)
            evaluated = model.eval()(inputs)
        # The variance of a batch is divided by n, the estimate by n - 1.
        assert (one_batch - evaluated).abs().mean() < 0.05 * evaluated.abs().mean()
        assert (one_batch.argmax(1).numpy() == evaluated.argmax(1).numpy()).all()
