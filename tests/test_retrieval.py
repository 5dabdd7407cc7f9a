"""Retrieval: places and losses by hand, pairs of texts, a plain loop's decisions, embeddings."""

import csv
import math

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import write_model

import soupray
from soupray.core.candidates import ensemble_of, mean_of
from soupray.core.errors import CheckpointError, ConfigError, EvaluationError, TrialError
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.records import Objective, Predictions, Split, digest, encode
from soupray.core.texts import are_pairs, pack, pack_pairs, unpack_pairs
from soupray.core.trials import Ingredient
from soupray.data.cache import open_data, planned
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.evidence import check_scores
from soupray.inference.meaning import Meaning, Wanted
from soupray.inference.service import Service
from soupray.maths.losses import loss_sum
from soupray.maths.metrics import as_read, margins, right_mask, score, value
from soupray.maths.retrieval import (
    gallery_losses,
    places,
    retrieval_loss,
    side_by_side,
    similarities,
    towers,
)
from soupray.maths.worth import leave_one_out
from soupray.recipes import BY_NAME, check_objective
from soupray.recipes.greedy import GREEDY
from soupray.recipes.recipe import Earlier
from soupray.reporting.model_folder import answers_of
from soupray.reporting.recipe_file import RecipeFile
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec
from soupray.tasks import task_of
from soupray.testing.linear import toy
from soupray.training.losses import TrainingLoss, info_nce
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

FIRST = Objective(kind="retrieval", first=1, scale=1.0)


def said(outputs, targets, objective: Objective = FIRST) -> Predictions:
    outputs = np.asarray(outputs, np.float32)
    split = Split(name="held_out", role="held_out", digest=digest("x"), size=len(outputs),
                  classes=1, objective=objective)  # fmt: skip
    return Predictions(split=split, logits=outputs, labels=np.asarray(targets, np.int64))


def table(similar) -> np.ndarray:
    """Outputs whose similarities are those of a table: documents are the axes."""
    similar = np.asarray(similar, np.float32)
    return np.concatenate([similar, np.eye(len(similar), dtype=np.float32)], axis=1)


ALONE = [[i, i] for i in range(4)]
TABLE = table(
    [
        [9, 1, 2, 3],  # its document is first
        [5, 4, 1, 0],  # second
        [3, 2, 2, 2],  # its 2 is tied with two others, behind a 3: fourth
        [1, 3, 4, 2],  # third
    ]
)


# ---- places and scores


def test_recall_of_a_table_by_hand():
    assert places(TABLE, np.array(ALONE)).tolist() == [1, 2, 4, 3]
    found = score(said(TABLE, ALONE))
    assert (found.n, found.correct, found.by_class, found.ece) == (4, 1, (), 0.0)
    assert found.right_mask().tolist() == [True, False, False, False]
    assert found.others == {
        "recall_at_1": 0.25, "recall_at_5": 1.0, "recall_at_10": 1.0,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 3) / 4),
    }  # fmt: skip
    rows = [(9, (9, 1, 2, 3)), (4, (5, 4, 1, 0)), (2, (3, 2, 2, 2)), (2, (1, 3, 4, 2))]
    losses = [math.log(sum(map(math.exp, row))) - own for own, row in rows]
    assert found.nll == pytest.approx(sum(losses) / 4)
    assert value(found, "nll") == -found.nll
    assert value(found, "mrr") == as_read(found.others["mrr"], "mrr")
    five = score(said(TABLE, ALONE, Objective(kind="retrieval", first=3, scale=2.0)))
    assert five.right_mask().tolist() == [True, True, False, True]
    losses = [math.log(sum(math.exp(2 * s) for s in row)) - 2 * own for own, row in rows]
    assert five.nll == pytest.approx(sum(losses) / 4)


def test_equal_documents_are_one_document_and_equal_queries_do_not_compete():
    # Documents 0 and 2 are one text: a hit on either is a hit, and it takes one place.
    targets = np.array([[0, 0], [1, 1], [2, 0], [3, 3]])
    rows = np.array([[9, 1, 9, 3], [5, 4, 5, 0], [3, 2, 3, 2], [1, 3, 1, 2]], np.float32)
    outputs = np.concatenate([rows, np.eye(4, dtype=np.float32)], axis=1)
    outputs[2, 4:] = outputs[0, 4:]
    assert places(outputs, targets).tolist() == [1, 2, 1, 2]
    # Query 0 stands there twice, with documents 0 and 1: both are right, and neither is wrong.
    targets = np.array([[0, 0], [0, 1], [2, 2], [3, 3]])
    rows = [[5, 9, 2, 3], [5, 9, 2, 3], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert places(table(rows), targets).tolist() == [1, 1, 1, 1]
    assert retrieval_loss(table(rows), targets, 1.0) == pytest.approx(
        sum(
            math.log(sum(map(math.exp, row))) - row[0]
            for row in ([5, 2, 3], [9, 2, 3], [1, 0, 0, 0], [1, 0, 0, 0])
        )
        / 4
    )


def test_a_collapsed_model_finds_nothing():
    assert places(np.ones((5, 6), np.float32), np.array([[i, i] for i in range(5)])).tolist() == (
        [5] * 5
    )
    # A tie that only the order of a sum in float64 would break: 0.1 + 0.2 + 0.3 - 0.6.
    parts = np.array([0.1, 0.2, 0.3, -0.6], np.float32)
    outputs = np.stack([np.r_[parts, np.ones(4)], np.r_[parts, np.ones(4)]]).astype(np.float32)
    outputs[1, :4] = parts[::-1]
    assert places(outputs, np.array([[0, 0], [1, 1]])).tolist() == [2, 2]


def by_loop(outputs, targets) -> list[int]:
    """The place of each document: the definition, one pair at a time, in whole numbers."""
    queries, documents = towers(outputs)
    found = []
    for i, (query, document) in enumerate(targets.tolist()):
        first = targets[:, 1].tolist().index(document)
        own = int(queries[i] @ documents[first])
        ahead = 0
        for other in set(targets[:, 1].tolist()) - {document}:
            if [query, other] in targets.tolist():
                continue
            at = targets[:, 1].tolist().index(other)
            ahead += int(queries[i] @ documents[at]) >= own
        found.append(1 + ahead)
    return found


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_places_are_those_of_a_plain_loop(n, width, seed):
    draw = np.random.default_rng(seed)
    outputs = draw.integers(-2, 3, (n, 2 * width)).astype(np.float32)
    targets = draw.integers(0, n, (n, 2))
    assert places(outputs, targets).tolist() == by_loop(outputs, targets)


def test_large_galleries_are_read_in_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    outputs = draw.normal(size=(30, 8)).astype(np.float32)
    targets = draw.integers(0, 25, (30, 2))
    whole = places(outputs, targets), retrieval_loss(outputs, targets, 3.0)
    assert gallery_losses(similarities(outputs, targets), targets, 3.0).mean() == pytest.approx(
        whole[1]
    )
    monkeypatch.setattr("soupray.maths.retrieval.BLOCK", 70)
    assert places(outputs, targets).tolist() == whole[0].tolist()
    assert retrieval_loss(outputs, targets, 3.0) == pytest.approx(whole[1], rel=1e-12)


def test_embeddings_of_two_widths_and_parts_of_a_split_are_refused():
    with pytest.raises(ValueError, match="5 outputs are not two embeddings of one width"):
        score(said(np.ones((4, 5)), ALONE))
    part = msgspec.structs.replace(said(TABLE, ALONE), logits=TABLE[:2], labels=np.array(ALONE[:2]))
    with pytest.raises(ValueError, match=r"2 of 4 samples of held_out: .* whole splits"):
        right_mask(part)
    with pytest.raises(ValueError, match="a query alone has no margin"):
        margins(said(TABLE, ALONE))
    with pytest.raises(ValueError, match="no sum over samples"):
        loss_sum(torch.ones(2, 4), torch.zeros(2, 2), FIRST)


# ---- ensembles


def test_side_by_side_has_the_mean_of_the_similarities():
    draw = np.random.default_rng(1)
    one, two = (draw.normal(size=(6, 2 * d)).astype(np.float32) for d in (3, 5))
    targets = np.array([[i, i] for i in range(6)])
    joined = side_by_side([(one, 0.25), (two, 0.75)])
    assert joined.shape == (6, 16)
    mean = 0.25 * similarities(one, targets) + 0.75 * similarities(two, targets)
    assert np.allclose(similarities(joined, targets), mean, atol=1e-6)
    assert np.array_equal(side_by_side([(one, 1.0)]), one)
    # Of texts alone: the query's part and the document's part of the same.
    queries, documents = (
        side_by_side([(towers(one)[k], 0.25), (towers(two)[k], 0.75)], pairs=False) for k in (0, 1)
    )
    assert np.array_equal(np.concatenate([queries, documents], axis=1), joined)


def test_what_a_model_is_worth_is_about_similarities():
    draw = np.random.default_rng(2)
    models = [draw.normal(size=(5, 6)).astype(np.float32) for _ in range(3)]
    targets = np.array([[i, i % 4] for i in range(5)])
    found = leave_one_out(
        3,
        lambda k: similarities(models[k], targets),
        lambda s: gallery_losses(s, targets, 2.0).mean(),
    )
    whole = retrieval_loss(side_by_side([(m, 1 / 3) for m in models]), targets, 2.0)
    for k in range(3):
        others = [(m, 1 / 2) for j, m in enumerate(models) if j != k]
        less = retrieval_loss(side_by_side(others), targets, 2.0)
        assert found[k] == pytest.approx(less - whole, abs=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "recall_at_1", "recall_at_5", "mrr", "nll"])
def test_greedy_on_pairs_is_greedy_by_a_plain_loop(tmp_path, metric):
    world = toy(tmp_path, 5, objective=FIRST)
    held_out = world.basis.split("held_out")
    (outcome,) = GREEDY.run(world.selection(metric=metric), Earlier(), {"accept": "ge"})

    def worth(parts) -> float:
        return value(score(world.workers.predictions(mean_of(parts), held_out)), metric)

    ranked = sorted(world.pool.checkpoints, key=lambda sha: -worth([sha]))
    kept = ranked[:1]
    for sha in ranked[1:]:
        if worth([*kept, sha]) >= worth(kept):
            kept.append(sha)
    assert sorted(outcome.candidate.checkpoints) == sorted(kept)


def test_an_ensemble_is_scored_by_the_mean_of_similarities(tmp_path):
    world = toy(tmp_path, 3, objective=FIRST)
    held_out = world.basis.split("held_out")
    members = [mean_of([sha]) for sha in world.pool.checkpoints]
    parts = [(members[0], 2, 1.0), (members[1], 1, 1.0), (members[2], 1, 1.0)]
    (found,) = world.evaluator.scores([ensemble_of(parts, 4, "logits")], held_out)
    each = [world.evaluator.predictions(m, held_out) for m in members]
    labels = each[0].labels
    mean = sum(
        share * similarities(p.logits, labels)
        for share, p in zip((0.5, 0.25, 0.25), each, strict=True)
    )
    own = np.diag(mean)[:, None]
    assert found.right_mask().tolist() == ((mean >= own).sum(axis=1) == 1).tolist()
    assert found.nll == pytest.approx(gallery_losses(mean, labels, 1.0).mean(), abs=1e-5)
    with pytest.raises(EvaluationError, match="mixes class probabilities"):
        world.evaluator.scores([ensemble_of(parts, 4, "probabilities")], held_out)


def test_scores_that_contradict_their_embeddings_are_found(tmp_path):
    world = toy(tmp_path, 2, objective=FIRST)
    held_out = world.basis.split("held_out")
    check_scores(world.pool.ingredients, held_out, world.checkpoints)
    first = world.pool.ingredients[0]
    others = {**first.held_out.others, "mrr": first.held_out.others["mrr"] + 0.01}
    wrong = msgspec.structs.replace(first.held_out, others=others)
    with pytest.raises(CheckpointError, match="contradicts its stored logits"):
        check_scores([msgspec.structs.replace(first, held_out=wrong)], held_out, world.checkpoints)


@pytest.mark.parametrize("name", ["vrf", "ose", "dawin", "fisher", "soce", "learned",
                                  "learned_by_layer", "learned_signed"])  # fmt: skip
def test_recipes_that_need_classes_or_sums_of_losses_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name} is for .*are of retrieval"):
        check_objective(name, "retrieval")
    assert "retrieval" in BY_NAME["greedy"].objectives


# ---- the loss


def test_info_nce_is_the_formula():
    torch.manual_seed(0)
    outputs = torch.randn(5, 6, dtype=torch.float64)
    targets = torch.tensor([[0, 0], [1, 1], [2, 1], [0, 3], [4, 4]])
    q, d = outputs[:, :3], outputs[:, 3:]

    def one_way(a, b) -> float:
        total = 0.0
        for i in range(5):
            wrong = [
                j for j in range(5)
                if j != i and not (targets[i] == targets[j]).any()
            ]  # fmt: skip
            exps = [math.exp(7 * float(a[i] @ b[j])) for j in [i, *wrong]]
            total -= math.log(exps[0] / sum(exps))
        return total / 5

    expected = (one_way(q, d) + one_way(d, q)) / 2
    assert float(info_nce(outputs, targets, 7.0)) == pytest.approx(expected)
    hparams = Hyperparameters(lr=1, epochs=1)
    seven = Objective(kind="retrieval", first=1, scale=7.0)
    assert float(TrainingLoss(hparams, seven, targets)(outputs, targets)) == pytest.approx(expected)
    given = msgspec.structs.replace(hparams, temperature=1 / 7)
    made = TrainingLoss(given, FIRST, targets)(outputs, targets)
    assert float(made) == pytest.approx(expected)


def test_a_pair_alone_has_nothing_to_learn_from():
    outputs = torch.randn(1, 4, requires_grad=True)
    loss = info_nce(outputs, torch.tensor([[0, 0]]), 20.0)
    loss.backward()
    assert loss.item() == 0
    assert not outputs.grad.any()


# ---- pairs of texts

PAIRS = [(f"the {a} and {b}", f"{a} {b}") for a in ("bread", "soup", "apple", "rain", "wind")
         for b in ("salt", "snow", "sun", "food")]  # fmt: skip


def write(folder, name: str, pairs) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "document"])
        writer.writerows(pairs)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_model(folder / "model")
    write(folder, "train.csv", PAIRS[:14])
    write(folder, "test.csv", PAIRS[14:])
    (folder / "store").mkdir()
    return folder


def spec(folder, **keys) -> SweepSpec:
    plain = {
        "name": "pairs",
        "metric": "recall_at_1",
        "evaluation_batch": 4,
        "task": {"kind": "transformers", "model": str(folder / "model"), "max_tokens": 8},
        "data": {"kind": "text", "train": str(folder / "train.csv"),
                 "test": str(folder / "test.csv"), "held_out": 5, "text_column": "query",
                 "label_column": "document"},
        "objective": "retrieval",
        "search": {"trials": 2, "space": {"lr": 5e-3, "epochs": 2, "batch_size": 4}},
        "storage": f"file://{folder}/store",
        "tracking": "off",
        "recipes": {"uniform": {}, "ensemble": {}},
    }  # fmt: skip
    merged = {
        name: {**plain[name], **value} if name in ("task", "data", "search") else value
        for name, value in keys.items()
    }
    return SweepSpec(**{**plain, **merged})


def test_pairs_come_back_as_they_were():
    given = [("plain", "a b"), ("zwölf", "日本語"), ("", "")]
    rows = pack_pairs(given)
    assert rows.dtype == np.uint8
    assert unpack_pairs(rows) == ([q for q, _ in given], [d for _, d in given])
    assert are_pairs(rows)
    assert not are_pairs(pack(["zwölf Boxkämpfer", "日本語"]))
    assert unpack_pairs(np.zeros((1, 5), np.uint8)) == ([""], [""])


def test_each_pair_is_in_one_split_with_the_numbers_of_its_texts(world, tmp_path):
    write(world, "double.csv", [("the soup", "soup"), ("a soup", "soup "), ("the soup", "salt")])
    made = spec(world, data={"shifts": {"double": str(world / "double.csv")}})
    assert made.targets == Objective(kind="retrieval", first=1, scale=20.0)
    data = open_data(made, tmp_path)
    assert [(s.name, s.role, s.size) for s in data.splits] == [
        ("train", "train", 9), ("held_out", "held_out", 5), ("test", "test", 6),
        ("double", "shift", 3),
    ]  # fmt: skip
    found = []
    for name in ("train", "held_out"):
        rows, numbers = data.samples(data.split(name))
        found += zip(*unpack_pairs(np.asarray(rows)), strict=True)
        assert numbers.shape == (len(rows), 2)
        assert numbers.tolist() == [[PAIRS.index(p)] * 2 for p in found[-len(rows) :]]
    assert sorted(found) == sorted(PAIRS[:14])
    assert data.samples(data.split("double"))[1].tolist() == [[0, 0], [1, 0], [0, 2]]
    sizes, classes, _ = planned(made)
    assert sizes[0] == ("train", "train", 9)
    assert [(c.name, c.train, c.held_out, c.test) for c in classes] == [("document", 9, 5, 6)]


@pytest.mark.parametrize(
    ("pairs", "keys", "says"),
    [
        (PAIRS, {"text_column": "question"}, "no text in column 'question'. Its columns are: "),
        (PAIRS, {"label_column": "answer"}, "no text in column 'answer'. Its columns are: query,"),
        ([*PAIRS, (" ", "soup")], {}, r"file.csv:22: the text is empty. Remove that line"),
        ([*PAIRS, ("a soup", " ")], {}, r"file.csv:22: the document, in column 'document', is emp"),
        ([], {}, "there is no pair in it"),
        (PAIRS[:1], {}, r"need 5 pairs and leave none to train on: .* has 1. Lower them"),
        (PAIRS[:6], {}, "the train split has 1 different document, so that no document is wrong"),
        ([(q, "soup") for q, _ in PAIRS], {}, "the held_out split has 1 different document, so"),
        ([(q + " the" * 99, d) for q, d in PAIRS], {"max_bytes": 100}, "20 of 20 texts are longer"),
        ([(q, d + " the" * 99) for q, d in PAIRS], {"max_bytes": 100}, "20 of 20 texts are longer"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_learnt_from_are_named(world, tmp_path, pairs, keys, says):
    write(tmp_path, "file.csv", pairs)
    write(tmp_path, "other.csv", [("of food", "food"), ("of wind", "wind")])
    files = {"train": str(tmp_path / "file.csv"), "test": str(tmp_path / "other.csv")}
    with pytest.raises(ConfigError, match=says):
        open_data(spec(world, data={**files, **keys}), tmp_path / "cache")


def test_pairs_that_cannot_be_read_are_left_out_on_request(world, tmp_path):
    write(tmp_path, "odd.csv", [("of food", "food"), ("a soup", " "), ("of wind", "wind")])
    keys = {"shifts": {"odd": str(tmp_path / "odd.csv")}, "on_error": "skip"}
    data = open_data(spec(world, data=keys), tmp_path / "cache")
    assert data.split("odd").size == 2
    (note,) = (n for n in data.notes if n.startswith("1 of 3 rows of "))
    assert "odd.csv:3: the document, in column 'document', is empty" in note


def test_a_k_that_every_model_reaches_is_refused(world, tmp_path):
    for made in (spec(world, metric="recall_at_5"), spec(world, metric="recall_at_10")):
        said = f"each query's is among the first {made.targets.first}, whatever the model is"
        for read in (planned, lambda one: open_data(one, tmp_path)):
            with pytest.raises(ConfigError, match=said):
                read(made)
    write(tmp_path, "one.csv", [("of food", "food"), ("of the food", "food")])
    with pytest.raises(ConfigError, match="the one split has 1 different document, so that each"):
        planned(spec(world, data={"shifts": {"one": str(tmp_path / "one.csv")}}))


def test_a_query_of_another_split_is_refused_and_a_document_is_not(world, tmp_path):
    write(tmp_path, "test.csv", [("a new soup", PAIRS[0][1]), (PAIRS[1][0], "a new document")])
    data = {"test": str(tmp_path / "test.csv")}
    with pytest.raises(ConfigError, match=r"1 of . texts of the (train|held_out) split are in an"):
        open_data(spec(world, data=data), tmp_path / "cache")
    dropped = open_data(spec(world, data={**data, "overlap": "drop"}), tmp_path / "cache")
    assert sum(s.size for s in dropped.splits) == 14 + 2 - 1
    # The same pair twice: where the draw parts them, one of them is left out.
    write(tmp_path, "twice.csv", [*PAIRS[:14], *PAIRS[:14]])
    twice = {"train": str(tmp_path / "twice.csv"), "overlap": "drop"}
    found = open_data(spec(world, data=twice), tmp_path / "cache")
    queries = [
        set(unpack_pairs(np.asarray(found.samples(found.split(name))[0]))[0])
        for name in ("train", "held_out")
    ]
    assert not queries[0] & queries[1]


# ---- specs


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"metric": "accuracy"}, "retrieval has no metric accuracy; write metric: recall_a"),
        ({"metric": "recall_at_7"}, "there is no metric 'recall_at_7'"),
        ({"objective": "one_class"}, "recall_at_1"),
        ({"task": {"classes": ["a", "b"]}}, "has documents and no classes; leave task.classes out"),
        ({"task": {"templates": ["a {}"]}}, "task.templates are of a head for classes; retrieval"),
        ({"task": {"pooling": "own", "normalise": False}}, "task.pooling: own is the library's"),
        ({"data": {"label_column": "query"}}, "each query would be its own document; name two"),
        ({"precision": "cascade"}, "precision: cascade counts one class; with retrieval"),
        ({"init": {"probe": {}}}, "a probe is a logistic regression for one class"),
        ({"search": {"train": "head"}}, "train: head is a linear layer for classes; retrieval"),
        ({"teacher": "other:greedy"}, "the embeddings of one model are not those of another"),
        ({"training": {"workers": 2}}, "workers divides a batch, and in retrieval the other pairs"),
        ({"training": {"micro_batch": 2}}, "micro_batch divides a batch"),
        ({"class_weights": {"document": 2}}, "a retrieval has no classes to weigh"),
        *(
            ({"search": {"space": {"lr": 1e-3, "epochs": 1, name: 0.5}}}, f"{name} is for ")
            for name in ("label_smoothing", "focal", "class_weight", "balanced", "huber", "dice",
                         "flip")
        ),
    ],
)  # fmt: skip
def test_what_retrieval_does_not_have_is_refused(world, keys, says):
    with pytest.raises(ConfigError, match=says):
        spec(world, **keys)


def test_a_temperature_is_for_retrieval(world):
    space = {"lr": 1e-3, "epochs": 1, "temperature": {"log_uniform": [0.02, 0.1]}}
    assert spec(world, search={"space": space}).search.space.temperature.ends() == (0.02, 0.1)
    other = {"objective": "one_class", "metric": "accuracy", "search": {"space": space}}
    with pytest.raises(ConfigError, match="temperature is for retrieval"):
        spec(world, task={"classes": ["a", "b"], "templates": ["{}"]}, **other)
    with pytest.raises(ConfigError, match="temperature changes the losses of soupray, not your"):
        spec(world, loss="soupray.training.losses:info_nce", search={"space": space})


def test_models_of_images_have_no_documents(world):
    task = {"kind": "timm", "model": "resnet18", "classes": ["a"], "size": 32, "mean": [0.5] * 3,
            "std": [0.2] * 3}  # fmt: skip
    data = {"kind": "digits", "train_per_class": 20, "held_out": 50}
    with pytest.raises(ConfigError, match="a timm model reads images; retrieval needs"):
        SweepSpec(name="x", metric="recall_at_1", task=task, data=data, objective="retrieval",
                  init={"trained": {"lr": 0.1, "epochs": 1}}, anchor="init",
                  search={"trials": 1, "space": {"lr": 1e-3, "epochs": 1}})  # fmt: skip


# ---- the model


def test_a_pair_has_the_embeddings_of_its_two_texts(world):
    task = task_of(spec(world).task)
    model = task.model()
    model.load_state_dict(task.init())
    model.eval()
    pairs = torch.from_numpy(pack_pairs(PAIRS[:3]))
    inputs = task.inputs(pairs)
    assert inputs.shape == (3, 2, 8)
    with torch.inference_mode():
        outputs = model(inputs)
        alone = [model(task.inputs(torch.from_numpy(pack(list(texts)))))
                 for texts in zip(*PAIRS[:3], strict=True)]  # fmt: skip
    assert outputs.shape == (3, 32)
    assert torch.allclose(outputs, torch.cat(alone, dim=1), atol=1e-6)
    assert torch.allclose(outputs[:, :16].norm(dim=1), torch.ones(3))
    assert not [name for name in model.state_dict() if name.startswith("head")]
    padded = task.inputs(torch.cat([pairs, torch.zeros_like(pairs[:1])]))
    assert padded.shape == (4, 2, 8)
    short = task_of(spec(world, task={"max_tokens": 3}).task)
    with pytest.raises(ConfigError, match=r"6 of 6 texts have more than task\.max_tokens = 3"):
        short.refuse_long("train", pairs)


def test_memory_that_ends_divides_no_batch(world, monkeypatch):
    from soupray.training.loop import Loop
    from soupray.training.start import Start

    made = spec(world)
    task, data = task_of(made.task), open_data(made, world / "cache")
    loop = Loop(task, data, Hyperparameters(lr=1e-3, epochs=1, batch_size=4),
                Start(weights=task.init(), seed=0, device="cpu"))  # fmt: skip

    def full(*given):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "accumulate", full)
    with pytest.raises(
        TrialError, match=r"out of memory on cpu with batch_size = 4: parts of a ba"
    ):
        loop.epoch(1)


@pytest.fixture(scope="module")
def made(world):
    """The tiny sweep: its world, its basis and two ingredients."""
    one = spec(world)
    place = Place(storage=one.storage, credentials=None, cache=str(world / "cache"))
    basis = make_basis(one, place, basis_key(one))
    here = worker_context(one, place)
    found = []
    for trial in trials_of(one, basis):
        training = fine_tune(trial, here.task, here.data, here.checkpoints)
        while True:
            try:
                next(training)
            except StopIteration as end:
                found.append(end.value)
                break
    return here, basis, found


def recipe_of(candidate, here, sha256: str | None = None) -> RecipeFile:
    return RecipeFile(name="made", recipe="uniform", options={}, candidate=candidate,
                      ingredients={}, statistics={}, sha256=sha256,
                      spec=here.spec.model_dump(mode="json"))  # fmt: skip


def test_a_trial_on_pairs_is_scored_on_whole_splits(made):
    here, basis, (first, second) = made
    held_out = basis.split("held_out")
    assert isinstance(first, Ingredient)
    assert first.held_out.n == 5
    assert set(first.held_out.others) == {"recall_at_1", "recall_at_5", "recall_at_10", "mrr"}
    assert first.history[0].value == first.history[0].held_out_correct / 5
    check_scores([first, second], held_out, here.checkpoints)
    # By the library of the model: the nearest document of each query, with cosines.
    model = here.task.model()
    model.load_state_dict(here.checkpoints.load(first.checkpoint.sha256))
    rows = np.asarray(here.data.samples(held_out)[0])
    with torch.inference_mode():
        q, d = (model.eval()(here.task.inputs(torch.from_numpy(pack(t))))
                for t in unpack_pairs(rows))  # fmt: skip
    near = F.cosine_similarity(q[:, None], d[None], dim=2).argmax(dim=1)
    assert (near == torch.arange(5)).tolist() == first.held_out.right_mask().tolist()
    soup = mean_of([first.checkpoint.sha256, second.checkpoint.sha256])
    assert here.workers().predictions(soup, held_out).logits.shape == (5, 32)


def test_embeddings_that_are_not_finite_are_named(made):
    here, basis, (first, _) = made
    broken = dict(here.checkpoints.load(first.checkpoint.sha256))
    name = next(n for n in broken if n.endswith("layer.1.output.dense.bias"))
    broken[name] = torch.full_like(broken[name], torch.nan)
    ref = here.checkpoints.save(broken, {})
    with pytest.raises(EvaluationError, match="gives logits that are not finite: one of its ingre"):
        here.workers().predictions(mean_of([ref.sha256]), basis.split("test"))


def test_a_user_gets_embeddings_of_texts(made, tmp_path):
    here, basis, (first, second) = made
    shas = [first.checkpoint.sha256, second.checkpoint.sha256]
    file, test = tmp_path / "made.recipe.json", basis.split("test")
    queries, documents = unpack_pairs(np.asarray(here.data.samples(test)[0]))
    parts = [(mean_of([sha]), 1, 1.0) for sha in shas]
    for candidate, width in ((mean_of(shas), 16), (ensemble_of(parts, 2, "logits"), 32)):
        file.write_bytes(encode(recipe_of(candidate, here)))
        model = soupray.load(file, home=tmp_path)
        q, d = model.predict(queries), model.predict(documents)
        assert (q.dtype, q.shape, d.shape) == (np.float32, (6, width), (6, width))
        assert np.allclose(np.linalg.norm(q, axis=1), 1, atol=1e-6)
        outputs = StoredEvaluator(Site(here.workers(), here.workers().cache, here.spec.setting))
        known = outputs.predictions(candidate, test)
        assert np.allclose(q @ d.T, similarities(known.logits, known.labels), atol=1e-5)
        assert model.predict([]).shape == (0, width)
        graph = model.network()
        with torch.inference_mode():
            assert np.allclose(graph(graph.inputs(model.preprocess(queries))), q, atol=1e-6)
        with pytest.raises(ConfigError, match="made is of retrieval: use `predict`, it returns em"):
            model.predict_proba(queries)
        with pytest.raises(ConfigError, match="made is of retrieval: it has no probabilities"):
            model.calibrated()
        assert "an embedding of each text; inner products rank documents" in model.summary()
        with pytest.raises(ConfigError, match="the server answers with one class"):
            Service(model)


def test_a_table_has_the_numbers_of_each_embedding(world):
    meaning = Meaning(("document",), FIRST)
    vector = np.array([[0.1, -2e-9, 3]], np.float32)
    (row,) = meaning.rows(["a"], vector, Wanted())
    assert row == {"input": "a", "embedding": "0.1 -2e-09 3.0"}
    assert np.array_equal(np.array(row["embedding"].split(), np.float32), vector[0])
    assert meaning.columns(Wanted()) == {"input": str, **answers_of(spec(world))}
    assert not meaning.counted(vector)
    for wanted, says in ((Wanted(top=2), "this model is of retrieval"),
                         (Wanted(probabilities=True), "embeddings have none")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            meaning.check(wanted)


def test_an_exported_encoder_is_the_body_alone(made, tmp_path, monkeypatch, capsys):
    here, _, (first, _) = made
    weights = here.checkpoints.load(first.checkpoint.sha256)
    here.task.export(weights, tmp_path / "out")
    assert not (tmp_path / "out" / "head.safetensors").exists()
    monkeypatch.chdir(tmp_path / "out")
    found: dict = {}
    exec(here.task.example().replace("Write a text here.", PAIRS[0][0]), found)
    assert capsys.readouterr().out.strip() == "torch.Size([1, 16])"
    model = here.task.model()
    model.load_state_dict(weights)
    with torch.inference_mode():
        ours = model.eval()(here.task.inputs(torch.from_numpy(pack([PAIRS[0][0]]))))
    assert torch.allclose(found["features"], ours, atol=1e-5)
