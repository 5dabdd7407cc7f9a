"""One contract for both evaluators: in this process, and on Ray's actors."""

import pytest

from soupray.candidates import mean_of, weight_soup
from soupray.ports import Evaluator
from soupray.wiring import world


@pytest.fixture(scope="module")
def split_and_checkpoints(run):
    spec, _, store = run.world()
    from soupray.soup import find_pool

    pool, basis = find_pool(store, spec, partial=False)
    return basis.split("held_out"), pool.checkpoints, pool.anchor.sha256


@pytest.fixture(scope="module")
def on_ray(run):
    from soupray.distributed import cluster
    from soupray.distributed.actors import RayEvaluator

    spec, place, _ = run.world()
    with cluster.attach("local", spec):
        yield RayEvaluator(spec, place)


@pytest.fixture(scope="module", params=["local", "ray"])
def evaluator(request, run) -> Evaluator:
    if request.param == "ray":
        return request.getfixturevalue("on_ray")
    spec, place, _ = run.world()
    return world(spec, place).evaluator()


@pytest.fixture(scope="module")
def plain(run, split_and_checkpoints):
    """Scores of some candidates by the plainest way: a fresh local evaluator for each."""
    split, checkpoints, anchor = split_and_checkpoints
    spec, place, _ = run.world()
    candidates = [mean_of(checkpoints[:k]) for k in (1, 2, 3, 4)]
    candidates.append(weight_soup([(anchor, 1), (checkpoints[0], 3)], 4))
    return candidates, [world(spec, place).evaluator().scores([c], split)[0] for c in candidates]


def test_scores_are_those_of_the_plain_way_in_order(evaluator, plain, split_and_checkpoints):
    candidates, expected = plain
    assert evaluator.scores(candidates, split_and_checkpoints[0]) == expected
    backwards = evaluator.scores(candidates[::-1], split_and_checkpoints[0])
    assert backwards == expected[::-1]
    assert evaluator.scores([], split_and_checkpoints[0]) == []


def test_the_score_of_an_ingredient_is_the_one_in_its_manifest(
    evaluator, run, split_and_checkpoints
):
    from soupray.soup import find_pool

    spec, _, store = run.world()
    split, checkpoints, _ = split_and_checkpoints
    pool, _ = find_pool(store, spec, partial=False)
    scored = evaluator.scores([mean_of([c]) for c in checkpoints], split)
    assert [s.correct for s in scored] == [i.held_out.correct for i in pool.ingredients]
    assert [s.right for s in scored] == [i.held_out.right for i in pool.ingredients]


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_first_reaching_is_the_plain_loop(evaluator, plain, split_and_checkpoints, accept):
    candidates, expected = plain
    for bound in sorted({s.correct + d for s in expected for d in (-1, 0, 1)}):
        hits = [s.correct > bound if accept == "gt" else s.correct >= bound for s in expected]
        reached = evaluator.first_reaching(candidates, split_and_checkpoints[0], bound, accept)
        assert reached.hit == any(hits)
        upto = hits.index(True) + 1 if any(hits) else len(hits)
        assert list(reached.results) == expected[:upto]


def test_predictions_agree_with_scores(evaluator, plain, split_and_checkpoints):
    candidates, expected = plain
    predictions = evaluator.predictions(candidates[1], split_and_checkpoints[0])
    assert predictions.logits.shape == (expected[1].n, 10)
    right = predictions.logits.argmax(axis=1) == predictions.labels
    assert int(right.sum()) == expected[1].correct


def test_a_saved_soup_scores_as_its_candidate(evaluator, plain, split_and_checkpoints):
    candidates, expected = plain
    ref = evaluator.save(candidates[2])
    (scored,) = evaluator.scores([mean_of([ref.sha256])], split_and_checkpoints[0])
    assert scored == expected[2]


def test_an_actor_that_dies_is_replaced_and_the_scores_stay_the_same(
    on_ray, plain, split_and_checkpoints
):
    import ray

    candidates, expected = plain
    on_ray.scores(candidates, split_and_checkpoints[0])
    ray.kill(on_ray._workers[0], no_restart=False)
    assert on_ray.scores(candidates, split_and_checkpoints[0]) == expected


def test_an_error_in_an_actor_is_raised_as_itself_and_the_next_scores_are_right(
    on_ray, plain, split_and_checkpoints
):
    from soupray.errors import NotFound

    with pytest.raises(NotFound, match="weights/0000"):
        on_ray.scores([mean_of(["0" * 64])], split_and_checkpoints[0])
    candidates, expected = plain
    assert on_ray.scores(candidates, split_and_checkpoints[0]) == expected
