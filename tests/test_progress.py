"""What a sweep counts and shows while trials come, go, diverge, fail and are repeated."""

import msgspec
import pytest
from rich.console import Console
from shared import ingredient, scores, trial

from soupray.core.errors import CheckpointError, StoreUnavailable, TrialError
from soupray.core.trials import EpochRecord, Manifest, Tombstone, Trial
from soupray.reporting.live import WIDTH, as_table, line
from soupray.sweep.progress import SweepProgress
from soupray.sweep.run import SweepReport, check_report

TRIALS = [
    msgspec.structs.replace(trial(key, lr=1e-3, epochs=2), index=i) for i, key in enumerate("abc")
]
TOLD = {
    "a": msgspec.structs.replace(ingredient("a", scores(9, 10)), trial=TRIALS[0]),
    "b": Tombstone(trial=TRIALS[1], reason="loss is nan", history=(), started=0, finished=1),
}


def read(key: str) -> Manifest:
    return TOLD[key]


def epoch(number: int, correct: int = 5) -> EpochRecord:
    return EpochRecord(
        epoch=number, train_loss=1.0, held_out_correct=correct, held_out_n=10, seconds=1
    )


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def progress(told) -> SweepProgress:
    return SweepProgress(TRIALS, read, told.append)


def test_what_finished_is_counted_and_passed_on_in_order(progress, told, heard):
    for key in "ab":
        progress.started(key)
        progress.epoch(key, epoch(1))
    progress.epoch("a", epoch(2))
    progress.finished("a", complete=True)
    assert (progress.complete, progress.diverged, told) == (1, 0, ["a"])
    progress.finished("b", complete=False)
    assert (progress.complete, progress.diverged, told) == (1, 1, ["a", "b"])
    assert "trial b diverged: loss is nan. Recorded; the sweep goes on." in heard()
    assert progress.errors == {}


def test_progress_is_epochs_done_of_epochs_planned(progress):
    def share() -> str:
        return line(progress.progress).split(" (")[0]

    assert share() == "training:   0 %"
    progress.started("a")
    progress.epoch("a", epoch(1))
    assert share() == "training:  16 %"  # 1 of 6
    progress.epoch("a", epoch(2))
    progress.finished("a", complete=True)
    assert share() == "training:  33 %"
    progress.finished("b", complete=False)  # it stopped early: its epochs need no doing
    assert share() == "training:  66 %"


def test_a_repeated_trial_does_its_epochs_again_but_they_count_once(progress, heard):
    for _ in range(2):
        progress.started("a")
        progress.epoch("a", epoch(1))
        progress.epoch("a", epoch(2))
        progress.repeated("a", "its worker died")
    assert progress.beat().running == ()
    assert "note: trial a is trained again: its worker died" in heard()
    progress.epoch("b", epoch(1))
    progress.finished("a", complete=True)
    assert line(progress.progress).startswith("training:  50 %")  # 2 and 1 of 6


def test_the_trials_that_run_are_told_with_all_their_epochs(progress):
    progress.started("a")
    progress.started("b")
    assert progress.live() == []  # no epoch yet
    for number in (1, 2):
        progress.epoch("a", epoch(number))
    progress.epoch("a", epoch(1))  # its worker died: the same numbers again
    (one,) = progress.live()
    assert (one.trial, one.history) == (TRIALS[0], (epoch(1), epoch(2)))
    progress.finished("a", complete=True)
    assert progress.live() == []


def test_a_trial_runs_since_its_training_began(progress, monkeypatch):
    """Its worker took from 100 to 160 to start: `status` counts its cost from there on."""
    now = [100.0]
    monkeypatch.setattr("soupray.sweep.progress.time.time", lambda: now[0])
    progress.started("a")
    assert [one.since for one in progress.beat().running] == [100.0]
    for now[0], number in ((170.0, 1), (180.0, 2)):
        progress.epoch("a", msgspec.structs.replace(epoch(number), seconds=10.0))
        assert [one.since for one in progress.beat().running] == [160.0]


def test_a_failed_trial_is_told_with_its_reason_and_no_longer_runs(progress, told, heard):
    progress.started("c")
    assert "(0 of 3 trials, 1 running)" in line(progress.progress)
    progress.failed("c", "OSError: the disk is on fire")
    assert progress.errors == {"c": "OSError: the disk is on fire"}
    assert (progress.complete, progress.diverged, told) == (0, 0, [])
    said = heard()
    assert "trial c failed: OSError: the disk is on fire. Nothing of it is stored" in said
    progress.started("a")
    assert "(0 of 3 trials, 1 running)" in line(progress.progress)


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        ("ValueError: Expected more than 1 value per channel when training", False),
        ("RuntimeError: shapes cannot be multiplied", False),
        ("TrialError: out of memory on cuda with one sample at a time", False),
        ("IncompatibleWeights: x: there is no tensor", False),
        ("StoreUnavailable: s3://b failed at trials/x", True),
        ("ConnectionResetError: [Errno 104] reset by peer", True),
        ("OSError: no space left", True),
        ("AcceleratorError: CUDA error: uncorrectable ECC error", True),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly", True),
        ("its worker died", True),
        ("namespace: 0123", True),
    ],
)
def test_a_failure_that_would_come_again_is_not_told_to_run_again(progress, heard, reason, again):
    progress.failed("c", reason)
    assert ("run again to repeat it" in heard()) == again
    assert ("it would fail again" in heard()) != again
    report = SweepReport(
        sweep="s", trials=3, trained=1, found=0, diverged=0, stopped=0, failed={"c": reason},
        unfinished=1, seconds=1, storage="memory://",
    )  # fmt: skip
    with pytest.raises(TrialError) as error:
        check_report(report)
    assert f"1 of 3 trials failed, the first: c: {reason}" in str(error.value)
    assert ("Run the same command again" in str(error.value)) == again
    assert ("change the spec" in str(error.value)) != again
    mixed = msgspec.structs.replace(report, failed={"b": "its worker died", "c": reason})
    with pytest.raises(TrialError) as error:
        check_report(mixed)
    assert ("1 of them raised the error themselves" in str(error.value)) != again
    assert "run the same command again" in str(error.value).lower()


def test_the_table_shows_running_and_finished_trials_with_their_scores(progress):
    progress.started("a")
    progress.started("c")
    progress.epoch("a", epoch(1, correct=4))
    progress.epoch("c", epoch(1, correct=5))
    progress.finished("a", complete=True)
    progress.finished("b", complete=False)
    lines = [row.split() for row in text(as_table(progress.progress.rows))]
    assert lines[0] == ["trial", "lr", "epoch", "held-out", "state"]
    assert lines[1:] == [
        ["00", "a", "1.0e-03", "1/2", "0.900", "done"],  # of the manifest, not of the last epoch
        ["01", "b", "1.0e-03", "0/2", "diverged"],
        ["02", "c", "1.0e-03", "1/2", "0.500", "running"],
    ]


def test_the_table_shows_the_metric_beside_the_accuracy_nll_with_its_own_sign():
    nll = [msgspec.structs.replace(t, metric="nll") for t in TRIALS]
    progress = SweepProgress(nll, read, lambda key: None)
    progress.started("a")
    progress.started("c")
    progress.epoch("c", msgspec.structs.replace(epoch(1), value=-0.75))
    progress.finished("a", complete=True)
    lines = [row.split() for row in text(as_table(progress.progress.rows))]
    assert lines[0] == ["trial", "lr", "epoch", "held-out", "nll", "state"]
    assert lines[1:] == [
        ["00", "a", "1.0e-03", "0/2", "0.900", "0.500", "done"],
        ["02", "c", "1.0e-03", "1/2", "0.500", "0.750", "running"],
    ]


def test_of_many_finished_trials_the_last_eight_are_shown():
    trials: list[Trial] = [
        msgspec.structs.replace(trial(f"k{i:02d}", lr=1e-3, epochs=1), index=i) for i in range(20)
    ]
    progress = SweepProgress(trials, lambda key: ingredient(key, scores(9, 10)), lambda key: None)
    for one in trials:
        progress.finished(one.key, complete=True)
    assert [row.split()[0] for row in text(as_table(progress.progress.rows))[1:]] == [
        str(i) for i in range(12, 20)
    ]


@pytest.mark.parametrize("error", [StoreUnavailable("503"), CheckpointError("cut short")])
def test_a_store_that_is_away_when_a_trial_is_over_ends_nothing(told, heard, error):
    def away(key: str) -> Manifest:
        raise error

    progress = SweepProgress(TRIALS, away, told.append)
    progress.started("a")
    progress.finished("a", complete=True)
    progress.finished("b", complete=False)
    assert (progress.complete, progress.diverged, told) == (1, 1, ["a", "b"])
    said = heard()
    assert f"note: trial a is stored, but cannot be read now: {error}" in said
    assert "trial b diverged. Recorded" in said
    assert progress.beat().running == ()


def text(table) -> list[str]:
    """The lines of a table, as a terminal shows them, without its rules."""
    terminal = Console(width=WIDTH, highlight=False)
    with terminal.capture() as capture:
        terminal.print(table)
    return [line for line in capture.get().splitlines() if any(c.isalnum() for c in line)]
