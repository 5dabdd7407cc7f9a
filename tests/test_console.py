"""What a person sees: formats, progress in numbers, and tables that fit 80 columns."""

from types import SimpleNamespace

import msgspec
import pytest
from board import BASIS, BY_NAME, ENTRIES, NO_SHIFTS, SPEC
from shared import DIGITS, demo

from soupray.cli import board, console, options
from soupray.cli.board import RANKED, Look, show_leaderboard
from soupray.cli.console import size
from soupray.cli.tables import show_plan
from soupray.core import progress as counting
from soupray.core.progress import Progress
from soupray.data.cache import PlannedClass
from soupray.operations.estimate import DryRun, Inputs
from soupray.reporting import live
from soupray.reporting.live import Bars, duration, line
from soupray.reporting.ranking import Entry, Versus
from soupray.spec.sweep_spec import load


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (41, "41 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_a_duration_reads_like_speech(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_300_000, "3.3 MB"),
        (1_200_000_000, "1.2 GB"),
        (2_500_000_000_000_000, "2500.0 TB"),
    ],
)
def test_a_size_has_the_unit_that_fits(count, said):
    assert size(count) == said


@pytest.fixture
def clock(monkeypatch):
    """The console's clock, set by hand."""
    now = SimpleNamespace(seconds=1000.0)
    for module in (live, counting):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_progress_tells_share_and_time_left_at_the_pace_of_this_run(clock):
    progress = Progress("training", total=16)
    assert line(progress) == "training:   0 %"
    clock.seconds += 20
    progress.advance(5)
    # 20 s for 5: 44 s for the 11 that are left
    assert line(progress) == "training:  31 %, 44 s left"
    progress.note = " (3 running)"
    assert line(progress) == "training:  31 % (3 running), 44 s left"
    clock.seconds += 40
    progress.advance(11)
    assert line(progress) == "training: 100 % (3 running), took 1 min 00 s"


def test_more_work_than_was_planned_is_not_more_than_all(clock):
    progress = Progress("choosing", total=2)
    progress.advance(5)
    assert line(progress) == "choosing: 100 %, took 0 s"


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(clock, capsys):
    with Progress("training", 100, Bars()) as progress:
        for _ in range(50):
            clock.seconds += 1
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # after 11, 22, 33 and 44 seconds, and at the end
    assert lines[0] == "training:  11 %, 1 min 29 s left"
    assert lines[-1] == "training:  50 %, 50 s left"


def shown(entries: list[Entry], basis=BASIS, spec=SPEC, look=RANKED) -> list[str]:
    with console.out.capture() as captured:
        show_leaderboard(entries, basis, spec, look=look)
    lines = captured.get().splitlines()
    assert look.all_columns or max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    return lines


def test_another_metric_and_precision_are_named_under_the_table():
    other = SPEC.model_copy(update={"metric": "macro_f1", "precision": "bf16"})
    text = " ".join(shown(ENTRIES, spec=other))
    assert "Chosen and ordered by macro_f1." in text
    assert "All in bfloat16, without a second pass" in text
    assert "macro_f1" not in " ".join(shown(ENTRIES))


ALL = Look(all_columns=True)


def test_a_leaderboard_shows_every_model_once_in_order():
    lines = shown(ENTRIES, look=ALL)
    rows = [line for line in lines[1 : 1 + len(ENTRIES)] if line.split()[0].isdecimal()]
    models = [
        e for k, e in enumerate(ENTRIES) if e.candidate not in {o.candidate for o in ENTRIES[:k]}
    ]
    assert [row.split()[1] for row in rows] == [e.name.split()[0] for e in models]
    # sqrt(.91 * .09 / 100) = .0286; 7 of 10 is .3475 to .9333; 3 only here, 1 only there of 10:
    # (4/12 - 2/12) and its error sqrt((6/12 - (2/12)^2) / 12) = .198; greedy is theirs under shift
    assert " ".join(rows[0].split()) == (
        "1 greedy 2 91.0 ± 2.9 70.0 +20.0 ± 19.8 34.8-93.3 .625 55.0 +0.0 ± 0.0 .500 .250 1 0.0"
    )
    assert rows[1].split()[:8] == ["2", "best_single", "*", "1", "90.0", "±", "3.0", "50.0"]
    assert ".625" not in rows[1]
    twin = next(e for e in ENTRIES if e.name == "wise_ft(best_single, best)")
    assert twin.candidate == BY_NAME["best_single"].candidate
    assert any(line.strip() == f"= {twin.name}" for line in lines)
    text = " ".join(lines)
    assert "Ranked on the held-out data that also chose the models (n = 100):" in text
    assert "Test (n = 10) and shifts were evaluated once" in text
    assert "shifts: mean over inverted, noise." in text


def test_only_the_columns_that_are_shown_are_explained():
    narrow, wide = shown(ENTRIES), shown(ENTRIES, look=ALL)
    head = narrow[0].split()
    assert "NLL" not in head
    assert not [word for word in ("NLL", "McNemar", "95 %") if word in " ".join(narrow)]
    assert all(word in " ".join(wide) for word in ("NLL", "McNemar", "95 %"))
    assert {"entry", "test", "shifts", "fwd"} <= set(head)


def test_what_can_be_sorted_by_is_what_the_option_names():
    assert set(options.SORTS) == set(board.SORTS)


def test_a_leaderboard_is_sorted_by_what_is_asked_and_keeps_the_places():
    by_shifts = shown(ENTRIES, look=Look(all_columns=True, sort="shifts"))
    places = [int(line.split()[0]) for line in by_shifts if line[:2].strip().isdecimal()]
    means = [ENTRIES[place - 1].shift_mean for place in places]
    assert means == sorted(means, reverse=True)
    assert places != sorted(places)


def test_shifts_of_some_classes_are_named_with_what_they_compare_with():
    *rest, noise = BASIS.splits
    some = msgspec.structs.replace(noise, label_map=((1,),), classes=1)
    basis = msgspec.structs.replace(BASIS, splits=(*rest, some))
    beside = [msgspec.structs.replace(e, test_on_classes={"noise": e.test}) for e in ENTRIES]
    said = "Of some classes only, beside ID test on them in leaderboard.csv: noise. Scores"
    assert said in " ".join(shown(beside, basis))
    # ID test has no sample of its class: the file has no such number.
    assert "Of some classes" not in " ".join(shown(ENTRIES, basis))


def test_what_has_nothing_to_say_is_no_column():
    bare = [
        msgspec.structs.replace(
            e, shifts={}, shift_mean=0.0, shift_gain=msgspec.UNSET, test_gain=msgspec.UNSET
        )
        for e in ENTRIES
    ]
    head = shown(bare, NO_SHIFTS, look=ALL)[0]
    assert "shifts" not in head
    assert "Δ" not in head


def widest(**fields) -> Entry:
    """An entry with the longest name of the table and numbers as wide as they get."""
    greedy = BY_NAME["greedy"]
    all_right = msgspec.structs.replace(
        greedy.held_out, accuracy=0.999, low=0.999, high=0.999, standard_error=0.123
    )
    wide = {
        "name": "wise_ft(learned_by_layer, within)",
        "ingredients": ["x"] * 72,
        "held_out": all_right,
        "test": all_right,
        "shift_mean": 0.999,
        "test_versus_best_single": Versus(only_this=99, only_best_single=0, p=1e-9),
        "size_bytes": 10_364_000_000,
    }
    return msgspec.structs.replace(greedy, **(wide | fields))


def test_the_widest_leaderboard_fits_80_columns_with_nothing_cut_off():
    entries = [widest(candidate=f"{k:064x}") for k in range(12)]
    lines = shown(entries)
    for text in ("wise_ft(learned_by_layer, within)", "99.9"):
        assert text in lines[12]
    lines = shown(entries, look=ALL)
    for text in ("72", "99.9 ± 12.3", "99.9-99.9", "<.001"):
        assert text in lines[12]
    assert lines[12].endswith(" 10364")


def test_a_plan_shows_what_varies_and_what_it_costs():
    spec = load(DIGITS)
    cost = DryRun(
        trials=16,
        epochs=150,
        training_samples=30_000,
        held_out_samples=83_000,
        soup_held_out_samples=30_000,
        soup_train_samples=1_500,
        reported_samples=1_000_000,
        stored_bytes=57_000_000,
        soup_stored_bytes=3_000_000,
        classes=[PlannedClass(name="zero", source="digit 0", train=20, held_out=50, test=108)],
        inputs=Inputs(
            size=(32, 32),
            decoded=64,
            mean=[0.5, 0, 1],
            std=[1, 0.2, 0.3],
            interpolation="bilinear",
            resize="squash",
            crop=0.875,
        ),
        notes=(),
    )
    with console.out.capture() as captured:
        show_plan(spec, cost, as_json=False)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:3] == ["trial", "lr", "epochs"]
    assert "batch_size" not in lines[0]
    assert [line.split()[0] for line in lines[1:17]] == [str(i) for i in range(16)]
    assert lines[17].split() == ["class", "in", "the", "data", "train", "held-out", "test"]
    assert lines[18].split() == ["zero", "digit", "0", "20", "50", "108"]
    assert lines[19:22] == [
        "inputs: 32 x 32 pixels, mean 0.5 0 1, std 1 0.2 0.3",
        "images: both sides to 64, centre 0.875 of it, bilinear",
        "images: resized once more, to 32 x 32 (data.size differs)",
    ]
    assert "16 trials, 150 epochs; 57.0 MB to be stored" in lines
    assert "1,500 samples, forward, at most" in lines[-2]
    assert "1,000,000 samples, forward" in lines[-1]


def test_a_plan_in_which_nothing_varies_is_shown(capsys):
    spec = demo(("trials: 2", "trials: 1"))
    with console.out.capture() as captured:
        show_plan(
            spec,
            DryRun(
                **dict.fromkeys(DryRun.__struct_fields__, 1)
                | {"classes": [], "inputs": None, "weights": ()}
            ),
            as_json=False,
        )
    assert "1 trials, 1 epochs" in captured.get()
