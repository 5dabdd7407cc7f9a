"""One contract for both kinds of workers: in this process, and on Ray's actors."""

import threading

import pytest

from soupray.core.candidates import mean_of, weight_soup
from soupray.core.errors import NotFound
from soupray.core.ports import Evaluator
from soupray.core.records import Rejected
from soupray.core.requests import Deviation, Gram, Temperature
from soupray.evaluation.cache import EvaluationCache
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.search.state import find_basis
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.training.worker import worker_context


@pytest.fixture(scope="module")
def split_and_checkpoints(run):
    spec, _, store = run.world()
    from soupray.soup.session import find_pool

    pool, state = find_pool(store, spec, partial=False)
    return state.basis.split("held_out"), pool.checkpoints, pool.anchor.sha256


def forgetful(checkpoints: Checkpoints, folder) -> Checkpoints:
    """Weights and arrays of a store, without any record about them: all is evaluated again."""
    copy = open_store("memory://")
    for path in [*checkpoints.store.list("weights"), *checkpoints.store.list("blobs")]:
        copy.put(path, checkpoints.store.get(path))
    return Checkpoints(copy, folder)


@pytest.fixture(scope="module")
def on_ray(run, tmp_path_factory):
    """(workers, a function that makes an evaluator which knows nothing yet)."""
    from soupray.distributed import cluster
    from soupray.distributed.actors import Actors, RayWorkers

    spec, place, store = run.world()
    # A setting of its own gives keys of its own: what the main job stored is not found.
    spec = spec.model_copy(update={"evaluation_batch": 50})
    checkpoints = Checkpoints(store, tmp_path_factory.mktemp("ray"))
    train = find_basis(store, spec).split("train")
    with cluster.attach("local", spec):
        workers = RayWorkers(spec, place, Actors([spec], lambda: None))
        yield (
            workers,
            lambda: StoredEvaluator(
                Site(workers, EvaluationCache(checkpoints, spec.setting, train), spec.setting)
            ),
        )


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def evaluator(request, run, tmp_path_factory) -> Evaluator:
    if request.param == "ray":
        return request.getfixturevalue("on_ray")[1]()
    return plain_evaluator(run, tmp_path_factory.mktemp("local"))


def plain_evaluator(run, folder) -> StoredEvaluator:
    spec, place, _ = run.world()
    setting = spec.model_copy(update={"evaluation_batch": 50}).setting
    here = worker_context(spec, place)
    workers = LocalWorkers(here.task, here.data, forgetful(here.checkpoints, folder), setting)
    return StoredEvaluator(Site(workers, workers.cache, setting))


@pytest.fixture(scope="module")
def plain(run, split_and_checkpoints, tmp_path_factory):
    """Scores of some candidates by the plainest way: a fresh local evaluator for each."""
    split, checkpoints, anchor = split_and_checkpoints
    candidates = [mean_of(checkpoints[:k]) for k in (1, 2, 3, 4)]
    candidates.append(weight_soup([(anchor, 1), (checkpoints[0], 3)], 4))
    found = []
    for candidate in candidates:
        fresh = plain_evaluator(run, tmp_path_factory.mktemp("plain"))
        found += fresh.scores([candidate], split)
    return candidates, found


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_first_reaching_is_the_plain_loop(evaluator, plain, split_and_checkpoints, accept):
    candidates, expected = plain
    for bound in sorted({s.correct + d for s in expected for d in (-1, 0, 1)}):
        hits = [s.correct > bound if accept == "gt" else s.correct >= bound for s in expected]
        reached = evaluator.first_reaching(candidates, split_and_checkpoints[0], bound, accept)
        assert reached.hit == any(hits)
        upto = hits.index(True) + 1 if any(hits) else len(hits)
        assert len(reached.results) == upto
        for result, scores, hit in zip(reached.results, expected, hits, strict=False):
            if isinstance(result, Rejected):
                assert not hit
                assert result.correct <= scores.correct
            else:
                assert (result.n, result.right) == (scores.n, scores.right)


def test_scores_are_those_of_the_plain_way_in_order(evaluator, plain, split_and_checkpoints):
    candidates, expected = plain
    assert evaluator.scores(candidates, split_and_checkpoints[0]) == expected
    backwards = evaluator.scores(candidates[::-1], split_and_checkpoints[0])
    assert backwards == expected[::-1]
    assert evaluator.scores([], split_and_checkpoints[0]) == []


def test_predictions_agree_with_scores(evaluator, plain, split_and_checkpoints):
    candidates, expected = plain
    predictions = evaluator.predictions(candidates[1], split_and_checkpoints[0])
    assert predictions.logits.shape == (expected[1].n, 10)
    right = predictions.logits.argmax(axis=1) == predictions.labels
    assert int(right.sum()) == expected[1].correct


def test_measures_are_the_same_wherever_they_are_made(
    evaluator, run, split_and_checkpoints, tmp_path
):
    split, checkpoints, anchor = split_and_checkpoints
    here = plain_evaluator(run, tmp_path)
    requests = [
        Gram(checkpoints=tuple(checkpoints), origin=anchor),
        Deviation(candidate=mean_of(checkpoints), samples=20),
        Temperature(candidate=mean_of(checkpoints)),
    ]
    assert evaluator.measure(requests, split) == here.measure(requests, split)


@pytest.mark.slow
def test_a_saved_soup_scores_as_its_candidate(on_ray, plain, split_and_checkpoints):
    candidates, expected = plain
    evaluator = on_ray[1]()
    ref = evaluator.save(candidates[2])
    (scored,) = evaluator.scores([mean_of([ref.sha256])], split_and_checkpoints[0])
    assert scored == expected[2]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["restarted", "lost"])
def test_an_actor_killed_in_the_middle_of_a_batch_changes_nothing(
    lost, on_ray, run, split_and_checkpoints, tmp_path
):
    import ray

    split, checkpoints, anchor = split_and_checkpoints
    workers, new_evaluator = on_ray
    candidates = [
        weight_soup([(anchor, k), *((sha, 1) for sha in checkpoints)], k + len(checkpoints))
        for k in range(1, 13)
    ]
    bound = split.size - 1 - lost  # what was decided for one bound is not asked for another
    first = workers.actors.up[0]
    kill = threading.Timer(0.1, lambda: ray.kill(first, no_restart=lost))
    kill.start()
    reached = new_evaluator().first_reaching(candidates, split, bound, "ge")
    kill.join()
    assert (first in workers.actors.up) is not lost
    assert reached == plain_evaluator(run, tmp_path).first_reaching(candidates, split, bound, "ge")


@pytest.mark.slow
def test_an_error_in_an_actor_is_raised_as_itself_and_the_next_scores_are_right(
    on_ray, plain, split_and_checkpoints
):
    evaluator = on_ray[1]()
    with pytest.raises(NotFound, match="weights/0000"):
        evaluator.scores([mean_of(["0" * 64])], split_and_checkpoints[0])
    candidates, expected = plain
    assert evaluator.scores(candidates, split_and_checkpoints[0]) == expected
