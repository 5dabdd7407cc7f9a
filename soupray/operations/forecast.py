"""What a sweep will cost of its budget, before it is run (`sweep --dry-run`)."""

from __future__ import annotations

from pathlib import Path

from soupray.core.errors import NotFound
from soupray.operations.estimate import DryRun
from soupray.operations.measuring import Measured
from soupray.search.budget import Account, Book, account, read_book
from soupray.search.state import find_state, with_let_go
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec


def forecast(spec: SweepSpec, home: Path, cost: DryRun, measured: Measured | None) -> Account:
    """Return what was spent of a budget, and what all trials will have cost.

    If trials of this sweep ran, their epochs are the measure; else the step that was measured here.
    With neither there is no forecast.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        cost: of the sweep, in samples.
        measured: what a step takes on this machine; None if it was not measured.

    Raises:
        CheckpointError: a record cannot be read.
        StoreError: the store cannot be reached.
    """
    try:
        store = find_place(spec, home).open_store()
        state = find_state(store, spec)
    except NotFound:  # nothing is there yet
        state = None
    if state is not None:
        book = read_book(store, spec, with_let_go(state, spec))
        if book.epochs or measured is None:
            return account(book, spec)
    if measured is None:
        return account(Book({}, 0.0, 0, {}), spec)
    seconds = measured.sweep_seconds * measured.at_a_time
    left = {"": float(cost.epochs)}
    return account(Book({}, seconds, cost.epochs, left, measured.at_a_time), spec)
