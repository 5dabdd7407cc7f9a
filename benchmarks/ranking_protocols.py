"""Does held-out data that chose the models rank them well enough? The demo, by seeds.

    python benchmarks/ranking_protocols.py HOME SPEC [--seeds 5] [--select N]

Each seed is swept and souped (`--all`) twice: with all held-out data both choosing and ranking, and
with the same samples in two parts, `select` (half, unless told) to choose on and the rest to rank
on. By seed: what the entry that is ranked first gets on ID test and under shift, how much more the
best entry gets on ID test, how far the ranking agrees with that of ID test, and by how much
the score ranked on exceeds that of ID test, for entries that choose something and for those that do
not.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

CHOOSE_NOTHING = ("zero_shot", "init", "uniform", "fisher", "model_stock", "ensemble")
"""Entries that are the same whatever the held-out data says."""

Board = list[dict[str, Any]]


def leaderboard(spec: Path, seed: int, held_out: str, home: Path, folder: Path) -> Board:
    """Sweep and soup under one seed and one protocol: the entries, best first."""
    text = spec.read_text()
    name = re.search(r"(?m)^name: (\S+)", text)[1]
    whole = re.search(r"(?m)^  held_out: (\d+)", text)[0]
    text = text.replace(whole, f"  held_out: {held_out}")
    split = "select" in held_out
    new = name if seed == 0 and not split else f"{name}-{'split' if split else 'seed'}{seed}"
    text = re.sub(r"(?m)^name: \S+", f"name: {new}", text)
    text = re.sub(r"(?m)^seed: \d+", f"seed: {seed}", text)
    (folder / f"{new}.yaml").write_text(text)
    soupray, output = [sys.executable, "-m", "soupray"], folder / new
    spec_and_home = [folder / f"{new}.yaml", "--home", home]
    subprocess.run([*soupray, "sweep", *spec_and_home], check=True)
    subprocess.run([*soupray, "soup", *spec_and_home, "--all", "--output", output], check=True)
    return json.loads((output / "leaderboard.json").read_text())


def row(seed: int, protocol: str, board: Board) -> list[float]:
    """Print what one leaderboard is worth; its numbers, in points."""
    first = board[0]
    ranked = [(e["rank"] or e["held_out"])["accuracy"] for e in board]
    test = [e["test"]["accuracy"] for e in board]
    shifts = [e["shift_mean"] for e in board]
    excess: dict[bool, list[float]] = {True: [], False: []}
    for e, r, t in zip(board, ranked, test, strict=True):
        excess[e["recipe"] not in CHOOSE_NOTHING].append(100 * (r - t))
    trained = [i for i, e in enumerate(board) if e["recipe"] not in ("zero_shot", "init")]
    agrees = spearmanr([ranked[i] for i in trained], [test[i] for i in trained]).statistic
    numbers = [
        100 * test[0],
        100 * (max(test) - test[0]),
        100 * shifts[0],
        float(agrees),
        statistics.mean(excess[True]),
        statistics.mean(excess[False]),
    ]
    cells = " | ".join(f"{x:.2f}" for x in numbers)
    print(f"| {seed} | {protocol} | {first['name']} | {cells} |", flush=True)
    return numbers


def main() -> None:
    """Parse, run, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--select", type=int)
    arguments = parser.parse_args()
    n = int(re.search(r"(?m)^  held_out: (\d+)", arguments.spec.read_text())[1])
    select = arguments.select or n // 2
    protocols = {"one": str(n), "two": f"{{select: {select}, rank: {n - select}}}"}
    boards: dict[tuple[int, str], Board] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for protocol, held_out in protocols.items():
                board = leaderboard(
                    arguments.spec, seed, held_out, arguments.home.resolve(), Path(folder)
                )
                boards[seed, protocol] = board
    columns = ["seed", "sets", "first", "its test", "best, more", "its shifts", "Spearman"]
    columns += ["excess: chosen", "not"]
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    found: dict[str, list[list[float]]] = {}
    for (seed, protocol), board in boards.items():
        found.setdefault(protocol, []).append(row(seed, protocol, board))
    for protocol, rows in found.items():
        medians = " | ".join(f"{statistics.median(c):.2f}" for c in zip(*rows, strict=True))
        print(f"| median | {protocol} | | {medians} |")


if __name__ == "__main__":
    main()
