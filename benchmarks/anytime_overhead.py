"""What the anytime soups of finished sweeps took, as a share of the time of training.

    python benchmarks/anytime_overhead.py HOME SPEC...

Both times are in the records of the sweep's prefixes, measured by the same workers in the same run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from soupray.search.prefixes import find_prefixes
from soupray.search.state import find_basis, pool_plan
from soupray.services.place import find_place
from soupray.spec.sweep_spec import load


def main() -> None:
    """Print a row for each prefix and the share of each sweep."""
    home, *specs = map(Path, sys.argv[1:])
    print("| sweep | trials | soups | s | trained, s | sum, share of all training |")
    print("|---|---:|---|---:|---:|---:|")
    for spec in map(load, specs):
        store = find_place(spec, home).open_store()
        basis = find_basis(store, spec)
        assert basis is not None, f"{spec.name} has no basis in {store.url}"
        plan = pool_plan(store, spec, basis).trials
        found = find_prefixes(store, spec.name, plan, spec.search.trials)
        spent = 0.0
        for one in found:
            spent += one.seconds
            soups = "no" if one.uniform is None else "yes"
            share = f"{100 * spent / found[-1].trained:.2f} %"
            print(
                f"| {spec.name} | {one.size} | {soups} | {one.seconds:.2f} | {one.trained:.0f} "
                f"| {share} |"
            )


if __name__ == "__main__":
    main()
