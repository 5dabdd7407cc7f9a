"""The verbs of whoever runs the store and the cluster: gc, cluster validate."""

from __future__ import annotations

from pathlib import Path

import click

from soupray.options import home_option, json_option, load_named, spec_argument

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command()
@spec_argument
@home_option
@json_option
@click.option("--dry-run", "dry", is_flag=True, help="List what would go; delete nothing.")
@click.option(
    "--older-than",
    "hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="Hours. What was written later stays: a trial or soup that runs may be about to name it.",
)
def gc(spec: Path | None, home: Path, as_json: bool, dry: bool, hours: float) -> None:
    r"""Delete what nothing in SPEC's store needs; never an ingredient.

    Resume states of trials that are over or that no spec plans, and weights and logits that no
    record of any sweep in that store names.

    \b
    soupray gc sweeps/digits.yaml --dry-run
    """
    from soupray.garbage import find_garbage, remove
    from soupray.settling import settle
    from soupray.tables import print_json, show_garbage

    _, loaded = load_named(spec, home)
    store = settle(loaded, home).place.open_store()
    found = find_garbage(store, loaded, hours * 3600)
    gone = found if dry else remove(store, found, hours * 3600)
    if as_json:
        print_json(gone)
    else:
        show_garbage(gone, store.url, dry)
