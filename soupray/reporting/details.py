"""The numbers behind the pictures of a report, kept with each leaderboard."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from soupray.core.candidates import Outcome
from soupray.core.records import Record, Rejected
from soupray.core.trials import Pool
from soupray.maths.mistakes import Answered, Bin
from soupray.reporting.plots import Robustness, Trace, greedy_trace
from soupray.reporting.runs import alphas_of

DETAILS = "details.json"
"""File beside the leaderboard."""


class Answers(Record, frozen=True, kw_only=True):
    """What an entry answers on ID test.

    Attributes:
        name: of the entry.
        confusion: the cells of its confusion matrix that are not empty; none but for one class.
        reliability: its confidence against its accuracy; none but for one class.
        temperature: fitted on held-out data.
        calibrated: the same with this temperature.
    """

    name: str
    confusion: tuple[Answered, ...]
    reliability: tuple[Bin, ...]
    temperature: float
    calibrated: tuple[Bin, ...]


class TrialFacts(Record, frozen=True, kw_only=True):
    """What a report says of a trial.

    Attributes:
        key: of the trial.
        hparams: its hyperparameters, or the file that was imported.
        imported: the model was trained elsewhere.
        held_out: accuracy on held-out data, and its standard error.
        test: accuracy on ID test.
        shift_mean: mean accuracy over the shifts; None without shifts.
        leave_one_out: held-out NLL of the ensemble of all trials without it, minus that with it:
            positive if it helps.
        seconds: from its start to its end.
        workers: number of processes that trained it.
    """

    key: str
    hparams: dict[str, float | int | str]
    imported: bool
    held_out: tuple[float, float]
    test: float
    shift_mean: float | None
    leave_one_out: float
    seconds: float
    workers: int


class Details(Record, frozen=True, kw_only=True):
    """All that a report shows beside the leaderboard.

    Attributes:
        robustness: the figure of ID test against the shifts; None without shifts.
        greedy: the trace of the greedy soup; None without one.
        lines: for each WiSE-FT line, (alpha, held-out accuracy) along it.
        answers: of the champion, and of the best single model if it is another one.
        trials: the ingredients, the best on held-out data first.
        made_with: versions of the libraries and the machine of the first trial.
    """

    robustness: Robustness | None
    greedy: Trace | None
    lines: dict[str, tuple[tuple[float, float], ...]]
    answers: Annotated[tuple[Answers, ...], Meta(min_length=1)]
    trials: tuple[TrialFacts, ...]
    made_with: dict[str, str]


def details_of(
    outcomes: list[Outcome],
    pool: Pool,
    figure: Robustness | None,
    answers: tuple[Answers, ...],
    trials: tuple[TrialFacts, ...],
) -> Details:
    """Return the details of a leaderboard.

    Args:
        outcomes: what the recipes chose.
        pool: the ingredients.
        figure: the numbers of the robustness figure; None without shifts.
        answers: of the champion and the best single model.
        trials: facts about the ingredients, in the order of the pool.
    """
    greedy = next((o for o in outcomes if o.recipe == "greedy"), None)
    return Details(
        robustness=figure,
        greedy=None if greedy is None else greedy_trace(greedy),
        lines={
            str(o.options["theta_1"]): _along(o)
            for o in outcomes
            if o.recipe == "wise_ft" and o.options["point"] == "best"
        },
        answers=answers,
        trials=trials,
        made_with=pool.ingredients[0].made_with,
    )


def _along(outcome: Outcome) -> tuple[tuple[float, float], ...]:
    """The held-out accuracy at each alpha of a line that was evaluated completely."""
    pairs = zip(alphas_of(outcome), outcome.trace, strict=True)
    return tuple((a, s.result.accuracy) for a, s in pairs if not isinstance(s.result, Rejected))
