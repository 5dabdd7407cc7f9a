"""Whatever is printed for people fits 80 columns, and no number is cut off."""

import json
import time

import msgspec
import pytest
from click.testing import CliRunner
from shared import STORES, Old, sha, unpacked

from soupray.cli import cli, console, details, removals, tables
from soupray.core.findings import Report
from soupray.core.trials import EpochRecord
from soupray.diagnostics.diversity import Diagnosis
from soupray.diagnostics.pairs import PAIRS
from soupray.operations.details import Flag, TrialDetail
from soupray.operations.garbage import Garbage
from soupray.operations.listing import SweepRow, TrialRow
from soupray.operations.status import Status
from soupray.recipes import RECIPES
from soupray.reporting.champion import Champion
from soupray.reporting.history import SoupRun
from soupray.store.lease import RunningTrial

NAMES = ("lr", "epochs", "batch_size", "weight_decay", "label_smoothing", "randaugment_ops")
WIDE: dict = dict.fromkeys(NAMES, 0.000123456)
KEY = "feb83ad824c92ff7"


def printed(show, *given, **named) -> list[str]:
    with console.out.capture() as captured:
        show(*given, **named)
    lines = captured.get().splitlines()
    assert lines
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    return lines


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Old:
    return unpacked(tmp_path_factory.mktemp("width"))


@pytest.mark.parametrize(
    "words",
    [
        *(f"{verb} one" for verb in ("status", "trials", "rank", "logs")),
        *(
            "rank one --calibrated",
            "rank one --list",
            "sweep one --dry-run",
            "delete one --dry-run",
        ),
        "gc one --dry-run --older-than 0",
        *(
            "show one 0",
            "show one greedy",
            "why one 0",
            "trials two",
            "status two",
            "sweep two --dry-run",
        ),
    ],
)
def test_a_verb_on_a_real_store(old, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")  # a narrower terminal changes nothing
    verb, name, *rest = words.split()
    done = old.run(verb, name, *rest, check=False)
    # The address of the store is as long as it is: a broken one could not be copied.
    lines = [line for line in done.stdout.splitlines() if str(old.folder) not in line]
    assert done.stdout
    assert max(map(len, lines), default=0) <= 80
    assert "…" not in done.stdout


@pytest.mark.parametrize("verb", ["", *cli.commands])
def test_the_help_of_every_verb(verb):
    shown = CliRunner().invoke(cli, [*filter(None, [verb]), "--help"], terminal_width=80).output
    assert max(map(len, shown.splitlines())) <= 80


def test_trials_of_many_hyperparameters_name_those_that_do_not_fit():
    rows = [
        TrialRow(
            key=KEY, index=k, state="complete", hparams={n: v * (k + 1) for n, v in WIDE.items()},
            accuracy=0.5, standard_error=0.1, best_epoch=1000, share=0.25,
        )
        for k in range(3)
    ]  # fmt: skip
    lines = printed(tables.show_trials, rows)
    assert lines[0].split() == [
        "#",
        "trial",
        "held-out",
        "epoch",
        "share",
        *NAMES[:2],
        "batch_size",
    ]
    assert lines[1].split()[-3:] == ["0.000123"] * 3
    assert f"--json has {', '.join(NAMES[3:])} too." in " ".join(lines)


def test_imported_trials_show_the_whole_name_of_their_file():
    rows = [
        TrialRow(key=KEY, index=k, state="imported", hparams={"file": f"{k}{'x' * 90}.pt"})
        for k in range(2)
    ]
    lines = printed(tables.show_trials, rows)
    assert "".join(line.split()[-1] for line in lines[1:-1]).count("x") == 180


def test_the_sweeps_of_a_home_with_long_names(tmp_path):
    rows = [
        SweepRow(name="n" * 63, spec="s", complete=100_000, trials=100_000, soups=100,
                 champion="wise_ft(learned_by_layer, within)"),
        SweepRow(name="short", spec="s", problem="the store is away " * 20),
    ]  # fmt: skip
    lines = printed(tables.show_sweeps, rows, tmp_path)
    assert "".join(lines).count("n" * 20) >= 3


def test_the_runs_of_soup_with_all_recipes():
    name = "wise_ft(learned_by_layer, within)"
    taken = Champion(name=name, first=name, equals=(name,), samples=1)
    run = SoupRun(
        key="f" * 32, made=time.time(), recipes={r.name: {} for r in RECIPES}, ingredients=1000,
        entries=100, champion=taken,
    )  # fmt: skip
    lines = printed(tables.show_runs, [run])
    assert lines[1].startswith("ffffffff ")


def test_a_check_with_every_finding():
    report = json.loads((STORES / "check.json").read_text())
    for row in report["ingredients"]:
        row |= {"distance": 1234.5, "angle_best": 179.0, "angle_others": 179.0, "with_best": 0.999}
        row["finds"] = ["not_finite", "below_init", "barrier"]
    lines = printed(tables.show_check, msgspec.convert(report, Report))
    assert lines[0].split()[-1] == "found"
    assert "not finite" in " ".join(lines)


def test_a_diagnosis_with_wide_numbers():
    made = json.loads((STORES / "diagnose.json").read_text())
    for pair in made["pairs"]:
        pair |= {"distance": 12345.6, "angle": 179.0, "measured": -12.3456, "predicted": -12.3456}
    section = PAIRS.section(msgspec.convert(made, Diagnosis))
    lines = printed(tables.show_sections, [section], {"vrf": "the pool has no features " * 9})
    first = made["pairs"][0]["trials"][0][:6]
    row = next(line.split() for line in lines if line.startswith(first))
    assert row[0] == first
    assert "-12.3456" in row


def test_a_status_with_a_driver_far_away():
    running = tuple(
        RunningTrial(key=KEY, epoch=99_999, epochs=100_000, since=time.time() - 9e5)
        for _ in range(2)
    )
    status = Status(
        sweep="s", storage="s3://b", trials=100_000, complete=9_999, diverged=9_999, stopped=9_999,
        running=running, failed={KEY: "OSError: " + "disk full " * 20}, missing=9_999, best=None,
        seconds_left=1e6, driver=f"{'host' * 15}.example.org, pid 4194304",
        lease_expires=time.time() + 50, heartbeat=time.time(),
    )  # fmt: skip
    lines = printed(tables.show_status, status)
    said = " ".join(" ".join(lines).split())
    assert "9999 of 100000 trials done, 9999 diverged, 9999 stopped, 2 running, 1 failed" in said
    assert status.driver in said  # folded between words only
    assert sum("99999/100000" in line for line in lines) == 2
    assert said.count("disk full") == 20


def test_garbage_of_every_kind():
    resume = f"resume/{KEY}/100000.safetensors"
    found = [
        Garbage(path=f"blobs/{sha('x')}.safetensors", size_bytes=10**12, why="no record names it"),
        Garbage(path=resume, size_bytes=10**9, why=f"no spec plans trial {KEY}"),
    ]  # fmt: skip
    assert resume in " ".join(printed(removals.show_garbage, found, "s3://b", True))


def test_a_trial_with_long_reasons_and_flags(capsys):
    epochs = tuple(
        EpochRecord(epoch=e, train_loss=1e4, held_out_correct=1, held_out_n=2, seconds=1e5, value=1)
        for e in (1, 100_000)
    )
    flag = Flag(severity="warning", what="It is far " * 20, advice="Leave it out " * 9)
    found = TrialDetail(
        sweep="n" * 63, key=KEY, index=99_999, state="diverged", method="ft", hparams=WIDE, seed=1,
        metric="balanced_accuracy", history=epochs, reason="loss is nan " * 20, flags=(flag,),
        coefficients={f"wise_ft(learned_by_layer, {k})": 1 / 3 for k in range(30)},
    )  # fmt: skip
    details.show_trial(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80


def test_all_recipes():
    said = " ".join(" ".join(printed(tables.show_recipes, False)).split())
    for recipe in RECIPES:
        assert recipe.name in said
        assert " ".join(recipe.when.split()) in said
        assert recipe.kind == "baseline" or f"--{recipe.name.replace('_', '-')} " in said
