"""A tiny BERT in the library's own layout, and texts that it can learn to tell apart."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import transformers

from soupray.spec.sweep_spec import SweepSpec, parse

CLASSES = {"food": ["bread", "soup", "apple", "salt"], "weather": ["rain", "wind", "snow", "sun"]}
WORDS = ["the", "a", "of", "and", "about", *CLASSES, *(w for ws in CLASSES.values() for w in ws)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

SPEC = """
name: tiny_text
seed: 0
evaluation_batch: 8
task:
  kind: transformers
  model: {folder}/model
  classes: [food, weather]
  templates: ["about {{}}"]
  max_tokens: 8
data:
  kind: text
  train: {folder}/train.csv
  test: {folder}/test.tsv
  held_out: 12
  shifts: {{short: {folder}/short.jsonl}}
search:
  trials: 2
  space: {{lr: 5e-3, epochs: 2, batch_size: 8}}
storage: file://{folder}/store
tracking: "off"
recipes: {{uniform: {{}}}}
"""


def write_model(folder: Path, seed: int = 0, **config: int) -> Path:
    """A BERT of two layers, 16 wide, that knows WORDS."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    model = transformers.BertModel(transformers.BertConfig(**(sizes | config)))
    model.save_pretrained(folder)
    return folder


def texts(of: str, count: int) -> list[str]:
    """Different pairs of the class's words, joined."""
    words = CLASSES[of]
    pairs = [f"{link} {a} and {b}" for link in ("the", "a", "of") for a in words for b in words]
    return pairs[:count]


def write_texts(folder: Path) -> None:
    """train.csv (30 of each class), test.tsv (15 others), short.jsonl (4 words)."""
    for name, rows, delimiter in (("train.csv", slice(30), ","), ("test.tsv", slice(30, 45), "\t")):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["label", "text"])
            writer.writerows([of, t] for of in CLASSES for t in texts(of, 48)[rows])
    lines = [f'{{"text": "{w}", "label": "{of}"}}' for of, words in CLASSES.items() for w in words]
    (folder / "short.jsonl").write_text("\n".join(lines) + "\n")


def write_world(folder: Path) -> Path:
    """Model and texts in `folder`; returns it."""
    write_model(folder / "model")
    write_texts(folder)
    (folder / "store").mkdir()
    return folder


def tiny_text(folder: Path, *edits: tuple[str, str]) -> SweepSpec:
    """The spec of the world in `folder`, with edits of its text."""
    text = SPEC.format(folder=folder)
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return parse(text, "tiny.yaml")
