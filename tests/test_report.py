"""The report: its numbers by hand and against the leaderboard, its page without a network."""

import json
import math
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
import vl_convert
from conftest import inside, leaderboard

from soupray.core.records import Predictions, Split
from soupray.maths.geometry import cross_entropy
from soupray.maths.metrics import expected_calibration_error, score
from soupray.maths.mistakes import Answered, Bin, confusion, reliability
from soupray.maths.worth import leave_one_out
from soupray.reporting.charts import MOST_CLASSES, charts
from soupray.reporting.details import Details, TrialFacts
from soupray.reporting.report import cost_of, render, stored_board
from soupray.search.importance import LEAST, importances


def predictions(logits, labels, label_map=None) -> Predictions:
    logits, labels = np.array(logits, np.float32), np.array(labels, np.int64)
    split = Split(
        name="test", role="test", digest="0" * 64, size=len(labels), classes=3, label_map=label_map
    )
    return Predictions(split=split, logits=logits, labels=labels)


def test_a_confusion_matrix_by_hand():
    four = predictions([[2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]], [0, 0, 0, 2])
    assert confusion(four) == (
        Answered(label=0, answer=0, n=1),
        Answered(label=0, answer=1, n=2),
        Answered(label=2, answer=2, n=1),
    )
    # The split's second class is the model's third and fourth.
    mapped = predictions([[0, 1, 0, 5], [3, 9, 0, 0]], [1, 1], label_map=((0,), (2, 3)))
    assert confusion(mapped) == (
        Answered(label=1, answer=0, n=1),
        Answered(label=1, answer=1, n=1),
    )


def test_reliability_by_hand_and_its_gap_is_the_ece():
    half, most = [0, 0, -99], [math.log(9), 0, -99]  # .5 and .9 for the first class
    four = predictions([half, most, most, half], [1, 0, 1, 0])
    low, high = reliability(four, bins=2)
    assert (low.n, low.accuracy, high.n, high.accuracy) == (2, 0.5, 2, 0.5)
    assert (low.confidence, high.confidence) == pytest.approx((0.5, 0.9))
    cooled = reliability(four, temperature=0.5, bins=2)[1]
    assert cooled.confidence == pytest.approx(81 / 82)  # 9 squared to 1
    rng = np.random.default_rng(0)
    many = predictions(rng.normal(size=(331, 3)), rng.integers(0, 3, 331))
    found = reliability(many)
    gap = sum(b.n * abs(b.confidence - b.accuracy) for b in found) / sum(b.n for b in found)
    assert gap == pytest.approx(score(many).ece)
    one = Bin(n=1, confidence=1.0, accuracy=1.0)
    assert reliability(predictions([[999, 0, 0]], [0])) == (one,)
    assert expected_calibration_error(np.array([1.0]), np.array([True])) == 0


def facts(seconds: float, workers: int = 1, imported: bool = False) -> TrialFacts:
    return TrialFacts(
        key="0" * 16, hparams={}, imported=imported, held_out=(0.5, 0.1), test=0.5,
        shift_mean=None, leave_one_out=0.0, seconds=seconds, workers=workers,
    )  # fmt: skip


def test_the_cost_by_hand():
    spent = cost_of([facts(3600), facts(1800, workers=4), facts(9e9, imported=True)], 2, 0.5)
    assert (spent.trials, spent.hours) == (2, 1.5)
    assert (spent.cpu_hours, spent.gpu_hours) == (1 * 2 + 0.5 * 4 * 2, 1 * 0.5 + 0.5 * 4 * 0.5)


def test_what_alone_moves_the_score_has_all_the_importance():
    rng = np.random.default_rng(0)
    points = [
        {"lr": float(10 ** rng.uniform(-5, -2)), "wd": float(rng.uniform()), "epochs": 3}
        for _ in range(40)
    ]
    found = importances(points, [math.log10(p["lr"]) for p in points])
    assert list(found) == ["lr", "wd"]  # what all trials share is left out
    assert found["lr"] > 0.95
    assert sum(found.values()) == pytest.approx(1)
    texts = importances([p | {"wd": "ab"[k % 2]} for k, p in enumerate(points)],
                        [float(k % 2) for k in range(40)])  # fmt: skip
    assert texts["wd"] > 0.9
    assert importances(points[: LEAST - 1], [0.1 * k for k in range(LEAST - 1)]) == {}
    assert importances(points, [0.5] * 40) == {}
    assert importances([], []) == {}


def test_what_a_model_is_worth_by_hand():
    """Two samples of two classes; the ensemble of all three has logits (1, 0) on both."""
    labels = np.array([0, 1])
    logits = [np.array([[3, 0], [3, 0]]), np.array([[0, 0], [0, 0]]), np.zeros((2, 2))]
    found = leave_one_out(
        3, lambda k: logits[k].astype(np.float32), lambda f: cross_entropy(f, labels)
    )

    def nll(first: float) -> float:  # logits (first, 0): one sample is right, the other is not
        return math.log(1 + math.exp(first)) - first / 2

    assert found == pytest.approx([nll(0) - nll(1), nll(1.5) - nll(1), nll(1.5) - nll(1)])
    assert found[0] < 0 < found[1]  # the first one is too sure
    assert leave_one_out(1, lambda k: logits[k], lambda f: cross_entropy(f, labels)) == [0.0]


@pytest.fixture(scope="module")
def board(run):
    spec, _, _ = run.world()
    return stored_board(spec, run.home)


def test_the_numbers_are_those_of_the_leaderboard(run, board):
    entries = {e.name: e for e in board.entries}
    details = board.details
    assert [a.name for a in details.answers] == [board.run.champion.name, "best_single"]
    for answers in details.answers:
        entry = entries[answers.name]
        cells = answers.confusion
        assert sum(c.n for c in cells) == entry.test.n
        assert sum(c.n for c in cells if c.label == c.answer) == entry.test.correct
        for bins, ece in (
            (answers.reliability, entry.test.ece),
            (answers.calibrated, entry.calibrated.test_ece),
        ):
            gap = sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / entry.test.n
            assert gap == pytest.approx(ece, abs=1e-6)
    held_out = dict(details.lines["best_single"])
    assert held_out[0] == entries["zero_shot"].held_out.accuracy
    assert held_out[1] == entries["best_single"].held_out.accuracy
    assert held_out[0.5] == entries["wise_ft(best_single, half)"].held_out.accuracy
    best = details.trials[0]
    assert best.held_out[0] == max(t.held_out[0] for t in details.trials)
    assert best.test == entries["best_single"].test.accuracy
    assert best.shift_mean == pytest.approx(entries["best_single"].shift_mean)
    assert best.hparams["batch_size"] == 50
    tracked = {r.data.tags["soupray.key"]: r.data.metrics for r in run.tracked()}
    for trial in details.trials:
        shown = tracked[f"mini/trial/{trial.key}"]["leave_one_out/held_out_nll"]
        assert shown == trial.leave_one_out


class Page(HTMLParser):
    """What a page would load, what it links to, and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded, self.ids, self.links, self.said = [], set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        about = dict(attrs)
        self.loaded += [v for k, v in attrs if k in ("src", "srcset", "data", "action")]
        self.loaded += [tag] if tag in ("link", "iframe", "object", "embed", "base") else []
        self.ids.add(about.get("id"))
        self.links |= {about["href"]} if tag == "a" else set()

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_soup_writes_one_file_that_needs_no_network(run, board):
    text = (run.output / "report.html").read_text()
    page = Page(text)
    assert page.loaded == []
    assert not re.search(r"@import|url\(", text.partition("<script>")[0])
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert len(text) < 3_000_000
    said = " ".join(" ".join(page.said).split())
    verdict = json.loads(inside("rank", run.spec, *run.where, "--json").stdout)["verdict"]
    for line in verdict["lines"]:
        assert line in said
    for entry in leaderboard(run.output):
        assert entry["name"] in said
    assert board.run.key in said
    for split in board.basis.splits:
        assert split.digest in said


def test_the_verb_writes_the_same_page(run, tmp_path):
    written = tmp_path / "new" / "report.html"
    inside("report", run.spec, *run.where, "--output", written)

    def words(text: str) -> str:
        return text.partition("<script>")[0]  # charts number their parts through

    assert words(written.read_text()) == words((run.output / "report.html").read_text())
    key = json.loads((run.output / "run.json").read_text())["key"]
    inside("report", run.spec, key[:8], *run.where, "--output", written)
    refused = inside("report", run.spec, "abcdef12", *run.where, check=False)
    assert refused.returncode == 1
    assert "0 runs of soup on mini begin with 'abcdef12'" in refused.stderr


def drawn(made: Details, board, classes) -> dict[str, str]:
    """Each chart as SVG, drawn without a browser."""
    found = charts(made, board.entries, classes)
    return {name: vl_convert.vegalite_to_svg(c.spec) for name, c in found.items()}


def test_every_chart_can_be_drawn_and_has_its_values(board):
    classes = board.spec.task.classes
    pictures = drawn(board.details, board, classes)
    assert set(pictures) == {
        *("robustness", "splits", "lines", "greedy", "reliability", "classes", "confusion"),
        *("parallel", "coefficients", "worth"),
    }
    assert board.run.champion.name in pictures["robustness"]
    for name in classes:
        assert f">{name}<" in pictures["classes"]
    for trial in board.details.trials:
        assert trial.key[:8] in pictures["coefficients"]
    # A mark for each model: trials, entries; without shifts there is no such figure.
    numbers = board.details.robustness
    marks = pictures["robustness"].count('aria-roledescription="point"')
    along = sum(len(points) for points in numbers.lines.values())
    assert marks == len(numbers.models) + along + 1
    alone = msgspec.structs.replace(board.details, robustness=None)
    assert "robustness" not in charts(alone, board.entries, classes)
    assert "held-out" in drawn(alone, board, classes)["lines"]


def test_many_classes_are_cut_to_those_that_differ_most(board):
    champion, single = board.details.answers
    count = MOST_CLASSES + 12
    names = [f"class {k}" for k in range(count)]
    right = tuple(Answered(label=k, answer=k, n=4) for k in range(count))
    differ = tuple(Answered(label=k, answer=0 if k >= count - 5 else k, n=4) for k in range(count))
    pair = (
        msgspec.structs.replace(champion, confusion=right),
        msgspec.structs.replace(single, confusion=differ),
    )
    pictures = drawn(msgspec.structs.replace(board.details, answers=pair), board, names)
    assert "confusion" not in pictures
    shown = {name for name in names if f">{name}<" in pictures["classes"]}
    assert len(shown) == MOST_CLASSES
    assert shown >= {f"class {k}" for k in range(count - 5, count)}


def test_no_name_can_end_the_script_or_become_markup(board):
    bad = "</script><img src=x>\u2028\n"
    classes = (bad, *board.spec.task.classes[1:])
    task = board.spec.task.model_copy(update={"classes": classes})
    page = render(board._replace(spec=board.spec.model_copy(update={"task": task})))
    assert page.count("</script") == page.count("<script") == 2
    assert Page(page).loaded == []
    assert "&lt;/script&gt;" in page
    # Vega makes an expression of the names, in which a line separator is no part of a text.
    assert json.dumps(r"img src=x>\u2028\n")[1:-1] in page


def test_a_leaderboard_of_an_older_version_says_what_to_do(fresh):
    _, _, store = fresh.world()
    for path in [p for p in store.list("sweeps/mini") if p.endswith("details.json")]:
        store.delete(path)
    refused = inside("report", fresh.spec, *fresh.where, check=False)
    assert refused.returncode == 1
    assert "Run `soupray soup` again: it evaluates nothing again" in refused.stderr
