"""Which frequencies of label noise do trials fit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from soupray.core.candidates import mean_of
from soupray.core.hyperparameters import TABLE
from soupray.core.records import Record
from soupray.core.requests import Losses, NoisyLabels
from soupray.core.trials import Ingredient
from soupray.diagnostics.figures import Axis, dots, figure, level
from soupray.diagnostics.measure import Inputs, Measure, Needed, Shown
from soupray.maths.associations import association
from soupray.reporting.notes import p_value, percent
from soupray.reporting.sections import Figure, Table

NAMES = ("noise", "noise_frequency", "noise_phase", "noise_direction")

OFF = {row.name: row.default for row in TABLE}

Values = tuple[tuple[str, float], ...]


class Fitted(Record, frozen=True, kw_only=True):
    """A trial whose labels have noise, on held-out data.

    Attributes:
        trial: its key.
        noise: mean share of a label that goes to all classes alike.
        frequency: of the wave.
        radial: the wave goes from the centre, not along a direction.
        accuracy: held-out accuracy.
        clean: loss to the labels, in nats.
        noisy: loss to labels with the noise of its training.
        fitting: clean - noisy: the more, the more noise is fitted.
        reference: the same of the best trial without noise; None if there is none.
    """

    trial: str
    noise: float
    frequency: float
    radial: bool
    accuracy: float
    clean: float
    noisy: float
    fitting: float
    reference: float | None


class NoiseFitting(Record, frozen=True, kw_only=True):
    """The trials with noise, by frequency.

    Attributes:
        n: held-out samples.
        reference: the best trial without noise; None if there is none.
        trials: the lowest frequency first.
        rho, p: Spearman's correlation of frequency and fitting (minus the reference's, if there is
            one) with its permutation test; None with too few trials.
    """

    n: int
    reference: str | None
    trials: tuple[Fitted, ...]
    rho: float | None
    p: float | None


def noise_of(hparams: Mapping[str, float | int | str]) -> Values:
    """Return the hyperparameters of the noise; none if there is no noise."""
    if not hparams.get("noise"):
        return ()
    known = {name: hparams[name] if name in hparams else OFF[name] for name in NAMES}
    return tuple(sorted((name, float(value or 0)) for name, value in known.items()))


def _reference(inputs: Inputs) -> Ingredient | None:
    return next((i for i in inputs.pool.ingredients if not noise_of(i.trial.hparams)), None)


def _asked(inputs: Inputs) -> dict[str, tuple[NoisyLabels, NoisyLabels | None]]:
    """Return, by trial, what is asked of it and of the reference."""
    reference, found = _reference(inputs), {}
    for one in inputs.pool.ingredients:
        if values := noise_of(one.trial.hparams):
            own, other = (
                None if of is None else NoisyLabels(model=mean_of([of.checkpoint.sha256]),
                                                    noise=values)
                for of in (one, reference)
            )  # fmt: skip
            assert own is not None
            found[one.trial.key] = (own, other)
    return found


def measure_noise_fitting(inputs: Inputs) -> NoiseFitting:
    """Return how much of its label noise each trial fits."""
    asked, reference = _asked(inputs), _reference(inputs)
    flat = list(dict.fromkeys(one for pair in asked.values() for one in pair if one is not None))
    answers = dict(zip(flat, inputs.answers.measure(flat, inputs.held_out), strict=True))
    rows = []
    for one in inputs.pool.ingredients:
        if one.trial.key in asked:
            own, other = asked[one.trial.key]
            rows.append(_fitted(one, answers[own], None if other is None else answers[other]))
    rows.sort(key=lambda row: (row.frequency, not row.radial, row.trial))
    values = [row.fitting - (row.reference or 0.0) for row in rows]
    found = association([row.frequency for row in rows], values, inputs.spec.seed)
    return NoiseFitting(
        n=inputs.held_out.size,
        reference=None if reference is None else reference.trial.key,
        trials=tuple(rows),
        rho=None if found is None else found.rho,
        p=None if found is None else found.p,
    )


def _fitted(one: Ingredient, own: Losses, other: Losses | None) -> Fitted:
    hparams = dict(noise_of(one.trial.hparams))
    return Fitted(
        trial=one.trial.key,
        noise=hparams["noise"],
        frequency=hparams["noise_frequency"],
        radial=not hparams["noise_direction"],
        accuracy=one.held_out.accuracy,
        clean=own.clean,
        noisy=own.noisy,
        fitting=own.clean - own.noisy,
        reference=None if other is None else other.clean - other.noisy,
    )


# ---- How it is read


def _show(made: NoiseFitting) -> Shown:
    return Shown(tuple(_sentences(made)), (_table(made),), (_figure(made),))


def _sentences(made: NoiseFitting) -> Iterator[str]:
    if made.rho is None or made.p is None:
        yield "There are too few trials, or frequencies, for a correlation with the frequency."
    else:
        yield _correlated(made, made.rho, made.p)
    if made.reference is None:
        yield "No trial trains without noise: there is nothing to compare the fitting to."


def _correlated(made: NoiseFitting, rho: float, p: float) -> str:
    way = "more" if rho > 0 else "less"
    word = f"Noise of higher frequency is fitted {way}"
    if p >= 0.05:
        word = "Whether noise of higher frequency is fitted less cannot be told"
    return (
        f"{word}: Spearman {rho:+.2f} of frequency and fitting"
        f"{' beyond the reference' if made.reference else ''} (p = {p_value(p)}, "
        f"{len(made.trials)} trials)."
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _table(made: NoiseFitting) -> Table:
    numbers = ("frequency", "noise", "held-out", "clean", "noisy", "fitting", "reference")
    return Table(
        columns=("trial", "wave", *numbers),
        numbers=numbers,
        rows=tuple(
            (
                row.trial[:8],
                "radial" if row.radial else "along",
                f"{row.frequency:g}",
                f"{row.noise:g}",
                percent(row.accuracy),
                f"{row.clean:.4f}",
                f"{row.noisy:.4f}",
                _signed(row.fitting),
                _signed(row.reference),
            )
            for row in made.trials
        ),
        least=("wave", "noise", "noisy"),
        meaning=(
            f"Held-out data (n = {made.n}), losses in nats. clean: to the labels; noisy: to labels "
            "with the noise of the training. fitting: clean - noisy; reference: the same of "
            f"{'the best trial without noise' if made.reference else 'no trial'}. Weights of the "
            "best epoch; the paper takes the minimum over training."
        ),
    )


def _figure(made: NoiseFitting) -> Figure:
    rows = [
        {
            "trial": row.trial[:8],
            "frequency": float(np.log10(row.frequency)),
            "fitting": row.fitting - (row.reference or 0.0),
            "wave": "radial" if row.radial else "along a direction",
            "cycles by unit": row.frequency,
        }
        for row in made.trials
    ]
    x = Axis("frequency", "log10 of the frequency (cycles by unit of input)")
    y = Axis("fitting", "clean - noisy loss, minus the reference's (nats)")
    chart = level(0.0) + dots(rows, x, y, Axis("wave", "wave", words=True), size=90)
    return figure("noise_fitting", f"Noise fitting of {len(rows)} trials (n = {made.n})", chart)


def _needs(inputs: Inputs) -> Needed:
    flat = dict.fromkeys(one for pair in _asked(inputs).values() for one in pair if one)
    size = inputs.held_out.size
    return Needed(requests=tuple((one, inputs.held_out, size) for one in flat))


def _cannot(inputs: Inputs) -> str | None:
    if not _asked(inputs):
        return "no trial has label noise (`noise` in search.space)"
    return None


NOISE_FITTING = Measure(
    name="noise_fitting",
    title="Noise fitting by frequency",
    summary="which frequencies of label noise (`noise` in search.space) trials fit",
    paper="Fridovich-Keil et al. 2021, arXiv:2110.02424",
    about=(
        "Labels of training data lose a share that is a wave over the inputs. A model that fits "
        "the wave has a lower loss to noisy labels than one that does not. In the paper, waves of "
        "low frequency are fitted first, and most."
    ),
    record=NoiseFitting,
    compute=measure_noise_fitting,
    show=_show,
    needs=_needs,
    cannot=_cannot,
    after_soup=False,
)
