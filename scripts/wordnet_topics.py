"""Makes the files of sweeps/wordnet_topics.yaml from WordNet's database: which topic is it?

    python scripts/wordnet_topics.py /usr/share/wordnet .home/wordnet/topics

A topic is one of WordNet's lexicographer files that nouns and verbs have in common. Nouns are
drawn by topic, without replacement: `train.csv` and `test.csv` have their definitions,
`examples.csv` sentences in which WordNet uses nouns of neither. `verbs.csv` has definitions of
verbs. WordNet 3.0 is free for any use (https://wordnet.princeton.edu/license-and-commercial-use).
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path
from typing import NamedTuple

TOPICS = {  # noun file, verb file (lexnames(5WN))
    "part of the body": ("08", "29"),
    "knowledge or thought": ("09", "31"),
    "speech or writing": ("10", "32"),
    "feeling or emotion": ("12", "37"),
    "food or drink": ("13", "34"),
    "weather or physical phenomenon": ("19", "43"),
    "money or property": ("21", "40"),
}
TRAIN, TEST, VERBS, EXAMPLES = 200, 60, 40, 40  # of each topic, at most


class Synset(NamedTuple):
    """A sense, its definition and the sentences that WordNet gives for it."""

    file: str
    definition: str
    examples: list[str]


def synsets(path: Path) -> list[Synset]:
    """Everything in data.noun or data.verb (format: wndb(5WN))."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        definition = gloss.split('; "')[0].strip().rstrip(";")
        found.append(Synset(fields.split()[1], definition, re.findall(r'"([^"]+)"', gloss)))
    return found


def write(path: Path, rows: dict[str, list[str]]) -> None:
    """A file of the topics' texts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "topic"])
        writer.writerows([text, topic] for topic, texts in rows.items() for text in texts)


def main() -> None:
    """Read the database, write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    nouns, verbs = (synsets(arguments.wordnet / f"data.{part}") for part in ("noun", "verb"))
    order = random.Random(0)
    parts: dict[str, dict[str, list[str]]] = {}
    for topic, (noun, verb) in TOPICS.items():
        mine = list({s.definition: s for s in nouns if s.file == noun}.values())  # each once
        order.shuffle(mine)
        theirs = [s.definition for s in verbs if s.file == verb]
        order.shuffle(theirs)
        rest = [s.examples[0] for s in mine[TRAIN + TEST :] if s.examples]
        texts = {
            "train": [s.definition for s in mine[:TRAIN]],
            "test": [s.definition for s in mine[TRAIN : TRAIN + TEST]],
            "examples": rest[:EXAMPLES],
            "verbs": theirs[:VERBS],
        }
        for part, found in texts.items():
            parts.setdefault(part, {})[topic] = found
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        write(arguments.output / f"{part}.csv", rows)


if __name__ == "__main__":
    main()
