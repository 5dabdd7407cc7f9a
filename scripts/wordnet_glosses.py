"""Makes the files of sweeps/wordnet_glosses.yaml from WordNet's database: which term is it?

    python scripts/wordnet_glosses.py /usr/share/wordnet .home/wordnet/glosses

A query is the definition of a sense, its document the first term of that sense. `train.csv` and
`test.csv` are of nouns, `verbs.csv` of verbs, and no term is in two of them. `typos.csv` has the
definitions of `test.csv` with two letters exchanged in each longer word. WordNet 3.0 is free for
any use (https://wordnet.princeton.edu/license-and-commercial-use).
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path

TRAIN, TEST, VERBS = 600, 250, 250
WORDS = range(4, 10)
"""Lengths of definitions, in words: most fit into the 16 tokens of the spec."""

Pair = tuple[str, str]


def pairs(path: Path) -> list[Pair]:
    """Definition and first term of each sense in data.noun or data.verb (format: wndb(5WN))."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        definition = gloss.split('; "')[0].strip().rstrip(";")
        term = fields.split()[4].replace("_", " ")
        says_it = term.lower() in definition.lower()
        if term.islower() and not says_it and len(definition.split()) in WORDS:
            found.append((definition, term))
    return found


def drawn(found: list[Pair], count: int, order: random.Random, taken: set[str]) -> list[Pair]:
    """Some pairs whose definitions and terms are nowhere else."""
    order.shuffle(found)
    some = list[Pair]()
    for definition, term in found:
        if len(some) < count and not {definition, term} & taken:
            some.append((definition, term))
            taken |= {definition, term}
    return some


def with_typos(text: str, order: random.Random) -> str:
    """The text with two neighbouring letters exchanged inside each word of five letters or more."""

    def exchanged(word: re.Match[str]) -> str:
        letters = list(word.group())
        at = order.randrange(1, len(letters) - 2)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
        return "".join(letters)

    return re.sub(r"[a-z]{5,}", exchanged, text)


def main() -> None:
    """Read the database, write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    nouns, verbs = (pairs(arguments.wordnet / f"data.{part}") for part in ("noun", "verb"))
    order, taken = random.Random(0), set[str]()
    test = drawn(nouns, TEST, order, taken)
    files = {
        "test": test,
        "train": drawn(nouns, TRAIN, order, taken),
        "verbs": drawn(verbs, VERBS, order, taken),
        "typos": [(with_typos(definition, order), term) for definition, term in test],
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        path = arguments.output / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["definition", "term"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
