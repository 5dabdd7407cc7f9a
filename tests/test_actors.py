"""Actors whose nodes go: what is tried again, and how often. Ray is a fake here, in no time."""

from types import SimpleNamespace

import pytest
import ray
from conftest import mini_text

from soupray.core.errors import EvaluationError
from soupray.distributed import actors, cluster
from soupray.spec.sweep_spec import parse


class Actor:
    """On a node; every method answers its last argument."""

    def __init__(self, node: str) -> None:
        self.node = node

    def __getattr__(self, method: str):
        return SimpleNamespace(remote=lambda *call: Call(self, method, call))


class Call:
    """What Ray calls an object reference."""

    def __init__(self, actor: Actor, method: str, call: tuple) -> None:
        self.actor, self.method, self.call = actor, method, call


class FakeRay:
    """New actors start on the `nodes` in turn; what is asked of those on `gone` ones fails first.

    Else the last that was asked is answered first.
    """

    exceptions = ray.exceptions

    def __init__(self, *nodes: str) -> None:
        self.nodes, self.gone, self.lost = list(nodes), set(), []
        self.asked: list[Call] = []

    def remote(self, kind: type) -> SimpleNamespace:
        start = SimpleNamespace(remote=lambda: Actor(self.nodes.pop(0)))
        return SimpleNamespace(options=lambda **how: start)

    def wait(
        self, calls: list[Call], num_returns: int, timeout: float
    ) -> tuple[list[Call], list[Call]]:
        first = next((c for c in calls if c.actor.node in self.gone), calls[-1])
        return [first], [c for c in calls if c is not first]

    def get(self, call: Call) -> object:
        self.asked.append(call)
        if call.actor.node in self.gone:
            raise ray.exceptions.ActorDiedError
        if call.method != "ready" and self.lost:
            raise self.lost.pop()
        return call.call[-1] if call.call else None

    def kill(self, actor: Actor) -> None:
        pass

    cancel = kill

    def works(self) -> int:
        """How many calls were asked for that were work."""
        return sum(call.method != "ready" for call in self.asked)


def workers(monkeypatch, fake: FakeRay, at_most: int = 5) -> actors.RayWorkers:
    monkeypatch.setattr(actors, "ray", fake)
    monkeypatch.setattr(cluster, "ray", fake)
    text = mini_text(**{"{cpu: 1, gpu: 0}": f"{{cpu: 1, gpu: 0, at_most: {at_most}}}"})
    spec = parse(text, "x.yaml")
    return actors.RayWorkers(spec, None, actors.Actors([spec], lambda: None))


def test_a_node_that_is_lost_with_all_its_idle_actors_costs_a_work_one_try(monkeypatch):
    fake = FakeRay("safe", *["spot"] * 4)
    here = workers(monkeypatch, fake)
    assert here.spread("save", [(i,) for i in range(9)]) == list(range(9))
    assert [a.node for a in here.actors.up] == [*["spot"] * 4, "safe"]
    fake.gone, fake.asked = {"spot"}, []
    assert here.spread("save", [(7,)]) == [7]
    assert fake.works() == 2
    assert {a.node for a in here.actors.up} == {"safe"}


@pytest.mark.parametrize("wanted", [[4], [1, 2, 3, 4]], ids=["at once", "one after another"])
def test_a_node_that_is_lost_while_four_actors_start_on_it_counts_once(monkeypatch, wanted):
    fake = FakeRay(*["spot"] * 4, *["safe"] * 5)
    here = workers(monkeypatch, fake)
    for count in wanted:
        here.actors.want(count)
    fake.gone = {"spot"}
    assert here.spread("save", [(i,) for i in range(5)]) == list(range(5))


def test_where_no_actor_ever_comes_up_there_is_an_end(monkeypatch):
    fake = FakeRay(*["broken"] * 9)
    here = workers(monkeypatch, fake, at_most=2)
    fake.gone = {"broken"}
    with pytest.raises(EvaluationError, match="a worker died"):
        here.spread("save", [(i,) for i in range(2)])
    assert len(fake.asked) == 7  # two actors each time, and at the fourth loss it is enough


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again_three_times_in_all(monkeypatch):
    fake = FakeRay(*["safe"] * 9)
    here = workers(monkeypatch, fake, at_most=1)
    fake.lost = [ray.exceptions.ObjectLostError("00", None, "")] * 2
    assert here.spread("save", [(7,)]) == [7]
    assert fake.works() == 3
    fake.lost = [ray.exceptions.OwnerDiedError("00", None, "")] * 3
    with pytest.raises(EvaluationError, match="a worker died"):
        here.spread("save", [(7,)])
