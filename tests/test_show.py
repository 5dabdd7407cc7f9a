"""`soupray show`: one trial or one entry, from the store of `tests/stores` alone."""

import json
import subprocess
import sys
import time

import pytest
from msgspec import structs
from shared import Old, demo, trial, unpacked

from soupray.cli.details import show_trial
from soupray.core.errors import NotFound
from soupray.core.findings import Finding, IngredientRow, Report
from soupray.core.records import encode
from soupray.core.trials import EpochRecord
from soupray.operations.details import TrialDetail, _named
from soupray.search.state import find_state
from soupray.spec.sweep_spec import load
from soupray.store import layout
from soupray.store.lease import Beat, Lease, RunningTrial, write_heartbeat


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    return unpacked(tmp_path_factory.mktemp("show"))


def shown(old: Old, what: object, name: str = "one") -> dict:
    return json.loads(old.run("show", name, what, "--json").stdout)


def state(old: Old, name: str = "one"):
    return find_state(old.store, load(old.spec(name)))


def test_a_trial_is_found_by_key_beginning_and_index_and_is_what_its_manifest_says(old):
    made = state(old).complete[1]
    found = shown(old, made.trial.index)
    assert found == shown(old, made.trial.key) == shown(old, made.trial.key[:4])
    assert found["key"] == made.trial.key
    assert found["hparams"] == made.trial.hparams
    assert found["weights"] == made.checkpoint.sha256
    assert found["size_bytes"] == old.store.size(layout.weights(made.checkpoint.sha256))
    assert found["held_out"]["correct"] == made.held_out.correct
    assert [e["train_loss"] for e in found["history"]] == [e.train_loss for e in made.history]
    said = old.run("show", "one", made.trial.index).stdout
    assert max(len(line) for line in said.splitlines() if "file://" not in line) <= 80
    assert f"sha256\n{' ' * 12}{made.checkpoint.sha256}\n" in said


def test_a_trial_has_the_coefficients_that_the_leaderboard_gives_it(old):
    rows = json.loads(old.run("rank", "one", "--json").stdout)["entries"]
    made = state(old).complete[0]
    found = shown(old, made.trial.key)["coefficients"]
    uniform = next(e for e in rows if e["name"] == "uniform")
    assert found["uniform"] == pytest.approx(1 / len(uniform["ingredients"]))
    assert found.keys() == {e["name"] for e in rows if made.trial.key in e["ingredients"]}


def test_the_best_single_model_says_how_it_is_used(old):
    best = max(state(old).complete, key=lambda made: made.held_out.correct)
    assert shown(old, best.trial.key)["use"] == ["soupray predict 'one:best_single' INPUT..."]


def test_an_entry_has_its_row_of_the_leaderboard_and_the_trials_it_is_made_of(old):
    rows = json.loads(old.run("rank", "one", "--json").stdout)["entries"]
    place, row = next((k, e) for k, e in enumerate(rows, 1) if e["name"] == "greedy")
    found = shown(old, "greedy")
    assert (found["entry"], found["place"], found["entries"]) == (row, place, len(rows))
    hparams = {t.trial.key: t.trial.hparams for t in state(old).complete}
    assert [(p["name"], p["coefficient"]) for p in found["parts"]] == list(
        zip(row["ingredients"], row["coefficients"], strict=True)
    )
    assert all(p["hparams"] == hparams[p["name"]] for p in found["parts"])
    recipe = json.loads(old.store.get(layout.results_file("one", "greedy.recipe.json")))
    assert found["weights"] == recipe["sha256"]
    said = old.run("show", "one", "ensemble").stdout  # several models, which one file cannot hold
    assert "soupray export 'one:ensemble' --format onnx" in said
    assert max(len(line) for line in said.splitlines() if "file://" not in line) <= 80


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gredy", "Did you mean greedy, vrf(greedy)?"),
        ("99", "no trial and no entry '99'"),
        ("feb", "its first 4 or more characters"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_near(old, what, said):
    done = old.run("show", "one", what, check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_stopped_trial_has_its_last_epoch(old):
    (key, *_) = sorted(state(old, "two").stopped)
    found = shown(old, key, "two")
    assert found["state"] == "stopped"
    assert len(found["history"]) == 1
    assert found["held_out"] is None


def test_what_check_found_is_shown_and_where_it_did_not_look_is_said(old):
    first, second, *_ = state(old).complete
    report = Report(
        averageable=True, init=first.checkpoint, n=100, verdict=(), pairs=(),
        findings=(
            Finding(severity="warning", kind="far", trials=(first.trial.key,), what="It is far",
                    advice="Leave it out"),
        ),
        ingredients=tuple(
            IngredientRow(trial=i.trial.key, hparams={}, held_out=0.8, standard_error=0.1,
                          distance=None, angle_best=None, angle_others=None, with_best=None,
                          finds=())
            for i in (first, second)
        ),
    )  # fmt: skip
    assert shown(old, first.trial.key)["flags"] is None
    old.store.put(layout.check("one"), encode(report))
    assert shown(old, second.trial.key)["flags"] == []
    (flag,) = shown(old, first.trial.key)["flags"]
    assert flag == {"severity": "warning", "what": "It is far", "advice": "Leave it out"}
    assert (
        "check       warning: It is far. Leave it out."
        in old.run("show", "one", first.trial.key).stdout
    )
    assert "found nothing" in old.run("show", "one", second.trial.key).stdout


def test_a_trial_that_runs_has_the_epochs_of_its_saved_state(tmp_path):
    old = unpacked(tmp_path)
    path = old.spec("one")
    path.write_text(path.read_text().replace("trials: 4", "trials: 5"))
    (missing,) = state(old).missing
    assert shown(old, missing.key)["state"] == "missing"
    epoch = EpochRecord(epoch=1, train_loss=2, held_out_correct=1, held_out_n=4, seconds=3)
    saved = {"path": "x", "sha256": "0" * 64, "history": [epoch], "best_epoch": 1}
    old.store.put(layout.resume_state(missing.key), encode(saved))
    running = RunningTrial(key=missing.key, epoch=1, epochs=2, since=time.time())
    with Lease(old.store, layout.lease("one")) as lease:
        beat = Beat(running=(running,), failed={}, seconds_left=None)
        write_heartbeat(old.store, "one", lease.holder, beat)
        found = shown(old, missing.key)
        assert (found["state"], found["history"][0]["train_loss"]) == ("running", 2)
        beat = Beat(running=(), failed={missing.key: "OSError: full"}, seconds_left=None)
        write_heartbeat(old.store, "one", lease.holder, beat)
        found = shown(old, missing.key)
        assert (found["state"], found["reason"]) == ("failed", "OSError: full")


def test_two_trials_of_one_index_are_named_and_none_is_taken():
    spec = demo().model_copy(update={"name": "one"})
    one, two = (structs.replace(trial(key), index=7) for key in ("12345678", "12349999"))
    for named in ("7", "1234"):
        with pytest.raises(NotFound, match=r"may be 2 trials of one: 12345678 .7., 12349999 .7."):
            _named(spec, named, [one, two], [])
    assert _named(spec, "12345", [one, two], []) == one


def test_show_reads_from_any_directory_and_imports_nothing_heavy(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from soupray.cli import cli\n"
        "for what in ('0', 'greedy'): cli(['show', sys.argv[1], what, '--home', sys.argv[2]],"
        " standalone_mode=False)\n"
        "assert not {'torch', 'matplotlib', 'ray', 'mlflow', 'open_clip'} & set(sys.modules)"
    )
    home = tmp_path / "home"
    command = [sys.executable, "-c", code, old.spec("one"), home]
    subprocess.run(command, check=True, capture_output=True)
    assert not home.exists()


def test_a_trial_by_another_metric_shows_it(capsys):
    epoch = EpochRecord(
        epoch=1, train_loss=2, held_out_correct=1, held_out_n=4, seconds=3, value=-0.5
    )
    show_trial(
        TrialDetail(
            sweep="s", key="k", index=0, state="missing", method="ft", hparams={}, seed=0,
            metric="nll", history=(epoch,),
        )
    )  # fmt: skip
    row = next(x for x in capsys.readouterr().out.splitlines() if x.split()[:1] == ["1"])
    assert row.split() == ["1", "2.0000", "25.0", "0.500", "3", "s"]
