"""Find the model that the trials of a sweep learn from: an entry of an earlier leaderboard."""

from __future__ import annotations

import logging
from pathlib import Path

from soupray.core.errors import ConfigError, NotFound
from soupray.core.records import Basis
from soupray.reporting.history import stored_leaderboard
from soupray.reporting.ranking import Entry
from soupray.reporting.recipe_file import spec_of
from soupray.reporting.results import stored_recipe
from soupray.services.home import find_sweep
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.training.teacher import TeacherSource

log = logging.getLogger(__name__)


def find_teacher(spec: SweepSpec, home: Path) -> TeacherSource | None:
    """Return the teacher that a spec names, or None if it names none.

    Args:
        spec: the sweep that learns.
        home: folder for the state of this machine; it knows the sweep of the teacher.

    Raises:
        ConfigError: there is no such sweep, or models of several specs are in the teacher.
        NotFound: it has no leaderboard, or no such entry.
    """
    if spec.teacher is None:
        return None
    sweep, _, champion = spec.teacher.partition("@")
    sweep, _, entry = (sweep, "", None) if champion else spec.teacher.partition(":")
    try:
        theirs = find_sweep(sweep, home)
    except ConfigError as error:
        raise ConfigError(
            f"teacher: {spec.teacher}: the home {home} knows no sweep {sweep!r}. Sweep it there "
            "first, and make its soups; or name the --home that has it."
        ) from error
    recipe = stored_recipe(theirs, home, entry)
    if recipe.foreign:
        raise ConfigError(
            f"teacher: {spec.teacher} mixes models of several specs, and a teacher is of one. "
            "Name an entry of one sweep."
        )
    entries, basis, _ = stored_leaderboard(theirs, home)
    said = next((e for e in entries if e.name == recipe.name), None)
    best = next((e for e in entries if e.recipe == "best_single"), None)
    if said is None or best is None:
        raise NotFound(f"teacher: the leaderboard of {sweep} has no entry {recipe.name!r}.")
    return TeacherSource(
        entry=f"{sweep}:{recipe.name}",
        spec=spec_of(recipe),
        place=find_place(theirs, home),
        candidate=recipe.candidate,
        train=basis.split("train").digest,
        passes=said.forward_passes_per_sample,
        scores=_scores(basis, said, best),
    )


def _scores(basis: Basis, said: Entry, best: Entry) -> dict[str, tuple[float, float]]:
    """Return the accuracies of teacher and best single model by the digest of the split."""
    names = {"test": (said.test, best.test)}
    names |= {name: (said.shifts[name], best.shifts[name]) for name in said.shifts}
    digests = {split.name: split.digest for split in basis.reported}
    return {digests[n]: (a.accuracy, b.accuracy) for n, (a, b) in names.items()}


def note_other_teacher(spec: SweepSpec, basis: Basis, home: Path) -> None:
    """Say if the name of the teacher means another model now than when the sweep began."""
    if not basis.teacher:
        return
    try:
        now = find_teacher(spec, home)
    except (ConfigError, NotFound):  # its sweep is gone, or is not in this home
        return
    if now is not None and now.candidate.digest != basis.teacher.candidate:
        log.warning(
            f"teacher: {spec.teacher} is {now.entry} ({now.candidate.digest[:12]}) now; this sweep "
            f"began with {basis.teacher.entry} ({basis.teacher.candidate[:12]}), and stays with "
            "it. For the new one, give the sweep another seed or name its entry."
        )
