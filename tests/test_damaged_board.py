"""A leaderboard whose records do not fit each other is an error that names the record."""

import json

import msgspec
import pytest
from board import BY_NAME, ENTRIES, GREEDY, SPEC

from soupray.core.errors import CheckpointError
from soupray.core.records import decode, encode
from soupray.reporting.champion import Champion
from soupray.reporting.details import Details
from soupray.reporting.history import LEADERBOARD, RUN, SoupRun, find_board
from soupray.reporting.plots import Point, Trace, greedy_trace
from soupray.store import layout
from soupray.store.objects import open_store


def run(key: str, **changes) -> SoupRun:
    champion = Champion(name="greedy", first="greedy", equals=("greedy",), samples=100)
    made = SoupRun(
        key=key * 32, made=1.0, recipes={}, ingredients=2, entries=len(ENTRIES), champion=champion
    )
    return msgspec.structs.replace(made, **changes)


def stored(entries, made: SoupRun, newest=None):
    """A store with the leaderboard of a run; the newest results have other entries, if told."""
    store = open_store("memory://")
    store.put(layout.leaderboard_file(SPEC.name, made.key, LEADERBOARD), encode(entries))
    store.put(layout.results_file(SPEC.name, LEADERBOARD), encode(newest or entries))
    store.put(layout.results_file(SPEC.name, RUN), encode(made))
    return store


def test_a_soup_that_was_killed_while_it_wrote_leaves_the_leaderboard_before_it():
    """Its leaderboard is in place, but its run is not: the champion there is of the run before."""
    store = stored(ENTRIES, run("a"), newest=ENTRIES[:1])
    assert find_board(store, SPEC) == (ENTRIES, run("a"))


def test_without_a_run_the_newest_results_are_the_leaderboard():
    store = stored(ENTRIES, run("a"))
    store.delete(layout.results_file(SPEC.name, RUN))
    assert find_board(store, SPEC) == (ENTRIES, None)
    assert find_board(open_store("memory://"), SPEC) is None


@pytest.mark.parametrize("lost", ["best_single", "greedy"])
def test_a_leaderboard_without_an_entry_that_is_needed_is_refused(lost):
    store = stored([e for e in ENTRIES if e.name != lost], run("a"))
    with pytest.raises(CheckpointError, match=f"leaderboard.json in memory://.*lacks.*'{lost}'"):
        find_board(store, SPEC)


def test_a_time_that_no_calendar_has_is_refused():
    store = stored(ENTRIES, run("a", made=1e300))
    with pytest.raises(CheckpointError, match=r"run\.json.*made"):
        find_board(store, SPEC)


def test_numbers_of_a_figure_that_do_not_fit_are_refused():
    trace = json.loads(encode(greedy_trace(GREEDY)))
    assert decode(json.dumps(trace).encode(), Trace) == greedy_trace(GREEDY)
    trace["tried"].pop()
    with pytest.raises(msgspec.ValidationError, match="different lengths"):
        decode(json.dumps(trace).encode(), Trace)
    point = {"name": "x", "kind": "greedy", "id_accuracy": 0.5, "shift_mean": 0.5,
             "id_interval": [0, 1], "shift_interval": [0, 1]}  # fmt: skip
    assert decode(json.dumps(point).encode(), Point).kind == BY_NAME["greedy"].recipe
    plugged = decode(json.dumps(point | {"kind": "trimmed"}).encode(), Point)  # of a plug-in
    assert plugged.kind == "trimmed"
    empty = {"robustness": None, "greedy": None, "lines": {}, "answers": [], "trials": []}
    with pytest.raises(msgspec.ValidationError, match="answers"):
        decode(json.dumps(empty | {"made_with": {}}).encode(), Details)
