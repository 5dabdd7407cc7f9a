"""Which stored trials would help the champion's ensemble, on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import UNSET, structs

from soupray.core.arrays import Float64, Mask
from soupray.core.candidates import Candidate
from soupray.core.records import Predictions, Record
from soupray.diagnostics.figures import Axis, dots, figure, level, spans
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.disagreement import losses_of, paired_mean
from soupray.maths.geometry import error_inconsistency
from soupray.maths.metrics import right_mask
from soupray.maths.outputs import fit_temperature
from soupray.recipes.recipe import MULTI_LABEL, ONE_CLASS, REGRESSION
from soupray.reporting.notes import percent, points
from soupray.reporting.sections import Table


class Addition(Record, frozen=True, kw_only=True):
    """The champion with one more trial, on held-out data.

    Attributes:
        trial: its key.
        inside: the champion has this trial in it already.
        accuracy: of the trial.
        inconsistency: share of samples that exactly one of trial and champion gets right.
        loss: mean loss with the trial minus that without, see `calibrated_losses`: below 0, it
            helps.
        loss_low: of the 95 % interval of this difference, paired by sample (normal).
        loss_high: of the same.
        gain: accuracy with the trial minus that without.
        low: of its 95 % interval, paired by sample (normal).
        high: of the same.
    """

    trial: str
    inside: bool
    accuracy: float
    inconsistency: float
    loss: float
    loss_low: float
    loss_high: float
    gain: float
    low: float
    high: float


class Additions(Record, frozen=True, kw_only=True):
    """Every trial as one more member of the champion's ensemble.

    Attributes:
        champion: the entry.
        members: models that its inference runs.
        n: held-out samples.
        accuracy: of the champion there.
        trials: the one that lowers the loss most first.
    """

    champion: str
    members: int
    n: int
    accuracy: float
    trials: tuple[Addition, ...]


def measure_additions(inputs: Inputs) -> Additions:
    """Return what each trial would add to the champion."""
    board, held_out, answers = inputs.frozen, inputs.held_out, inputs.answers
    champion = board.models[board.champion]
    own = answers.predictions(champion, held_out)
    add = adding(own, len(champion.members))
    found = [
        add(key, answers.predictions(model, held_out), within(model, champion))
        for key, model in inputs.trials.items()
    ]
    return Additions(
        champion=board.champion,
        members=len(champion.members),
        n=held_out.size,
        accuracy=float(right_mask(own).mean()),
        trials=best_first(found),
    )


def within(trial: Candidate, champion: Candidate) -> bool:
    """Return whether the champion has a trial in it already."""
    return set(trial.checkpoints) <= set(champion.checkpoints)


def best_first(found: Sequence[Addition]) -> tuple[Addition, ...]:
    """Return the additions, the one that lowers the loss most first."""
    return tuple(sorted(found, key=lambda a: (a.loss, a.trial)))


def adding(own: Predictions, members: int) -> Callable[[str, Predictions, bool], Addition]:
    """Return a function from (key, predictions, inside) of a trial to what it adds to a champion.

    The ensemble of the champion, of m models, and a trial is the mean of logits with weights m and
    1, over m + 1; of outputs, for numbers.

    Args:
        own: predictions of the champion, on held-out data.
        members: models that its inference runs.
    """
    before, right = calibrated_losses(own), right_mask(own)

    def add(key: str, one: Predictions, inside: bool) -> Addition:
        mean = (members * own.logits.astype(np.float64) + one.logits) / (members + 1)
        joint = structs.replace(own, logits=mean.astype(np.float32))
        loss, loss_low, loss_high = paired_mean(calibrated_losses(joint) - before)
        gain, low, high = paired_mean(right_mask(joint).astype(float) - right)
        alone: Mask = right_mask(one)
        return Addition(
            trial=key,
            inside=inside,
            accuracy=float(alone.mean()),
            inconsistency=error_inconsistency(alone, right),
            loss=loss,
            loss_low=loss_low,
            loss_high=loss_high,
            gain=gain,
            low=low,
            high=high,
        )

    return add


def calibrated_losses(of: Predictions) -> Float64:
    """Return the loss of each sample, [N]; of one class, with the temperature that minimises it.

    Without a temperature, the loss of a mixture says more about how sure its parts are than about
    what they know.

    Args:
        of: a model or an ensemble.
    """
    logits = of.logits.astype(np.float64)
    if of.split.objective is UNSET:
        logits /= fit_temperature(of.logits, of.labels)
    return losses_of(logits, of.labels, of.split.objective)


# ---- How it is read


def _show(made: Additions) -> Shown:
    rows = [
        {
            "trial": a.trial[:8],
            "accuracy": a.accuracy,
            "loss": a.loss,
            "low": a.loss_low,
            "high": a.loss_high,
            "in": "in the champion" if a.inside else "not in it",
        }
        for a in made.trials
    ]
    x = Axis("accuracy", "held-out accuracy of the trial", percent=True)
    y = Axis("loss", "loss with the trial minus without; below 0 it helps")
    chart = (
        level(0)
        + spans(rows, x, y, "low", "high")
        + dots(rows, x, y, Axis("in", "the trial is", words=True))
    )
    title = f"Each trial as one more member beside {made.champion} (held-out, n = {made.n})"
    return Shown(_sentences(made), (_table(made),), (figure("additions", title, chart),))


def _table(made: Additions) -> Table:
    numbers = ("held-out", "inc.", "Δ loss", "95 %", "Δ acc.", "95 % acc.")
    rows = [
        (
            a.trial[:8] + ("*" if a.inside else ""),
            percent(a.accuracy),
            percent(a.inconsistency),
            f"{a.loss:+.4f}",
            f"[{a.loss_low:+.4f}, {a.loss_high:+.4f}]",
            points(a.gain),
            f"[{points(a.low)}, {points(a.high)}]",
        )
        for a in made.trials
    ]
    return Table(
        columns=("trial", *numbers),
        numbers=numbers,
        rows=tuple(rows),
        least=("inc.",),
        meaning=(
            f"Held-out data (n = {made.n}), which also chose the champion. held-out: accuracy of "
            "the trial in %. inc.: samples that exactly one of trial and champion gets right. Δ: "
            f"mean of the logits of {made.champion} ({made.members} of {made.members + 1} parts) "
            "and the trial, minus the champion alone; loss in nats, each with its best "
            "temperature; accuracy in points; intervals paired by sample. *: the champion has this "
            "trial in it."
        ),
    )


def _sentences(made: Additions) -> tuple[str, ...]:
    sure = [a for a in made.trials if a.loss_high < 0]
    said = (
        f"{len(sure)} of {len(made.trials)} trials lower the loss of {made.champion} by more than "
        "the interval as one more member of an ensemble"
    )
    if not sure:
        return (f"{said}.", _caution(made))
    best = sure[0]
    low = min(sure, key=lambda a: a.accuracy)
    return (
        f"{said}; the most {best.trial[:8]}, by {-best.loss:.4f} nats "
        f"([{-best.loss_high:.4f}, {-best.loss_low:.4f}]), {points(best.gain)} points of "
        "accuracy.",
        f"The least accurate one that helps is {low.trial[:8]}: {percent(low.accuracy)} % alone, "
        f"beside {percent(made.accuracy)} % of the champion.",
        _caution(made),
    )


def _caution(made: Additions) -> str:
    return (
        f"These are {len(made.trials)} looks at the data that chose the champion: to use one, say "
        "so in the spec (`ensemble`, `greedy_ensemble`) and let soup report it on test."
    )


def _needs(inputs: Inputs) -> Needed:
    models = (inputs.frozen.models[inputs.frozen.champion], *inputs.trials.values())
    return Needed(models=((models, inputs.held_out),))


ADDITIONS = Measure(
    name="additions",
    title="Which trials would help the champion's ensemble",
    summary="what each stored trial would add to the champion as one more member, held-out",
    paper="Gontijo-Lopes et al. 2021, arXiv:2110.12899",
    about=(
        "Even a model of low accuracy can improve a better one in an ensemble, if it errs "
        "elsewhere. Each trial is put beside the champion, on held-out data only: test data choose "
        "nothing."
    ),
    record=Additions,
    compute=measure_additions,
    show=_show,
    needs=_needs,
    objectives=(ONE_CLASS, MULTI_LABEL, REGRESSION),
)
