"""A tiny data set in MNIST's real layout: ten classes of 28 x 28 images."""

import gzip
from pathlib import Path

import numpy as np

from soupray.spec.sweep_spec import SweepSpec, parse

FASHION = Path(__file__).parent.parent / "sweeps" / "fashion_mnist.yaml"
TRAIN_PER_CLASS, TEST_PER_CLASS = 8, 2


def idx_bytes(array: np.ndarray) -> bytes:
    """0, 0, 8 (unsigned bytes), dimensions; each of them in 4 bytes, largest first; the data."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_data_set(folder: Path, suffix: str = "", seed: int = 0) -> None:
    """Each class has a brightness of its own, so that it can be learnt: 23 times the label."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for part, per_class in (("train", TRAIN_PER_CLASS), ("t10k", TEST_PER_CLASS)):
        labels = generator.permutation(np.repeat(np.arange(10), per_class))
        images = generator.integers(0, 20, (len(labels), 28, 28)) + 23 * labels[:, None, None]
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)


EDITS = (
    ("/usr/share/datasets/fashion-mnist ", "{folder} "),
    ("train: 10000 ", "train: 30 "),
    ("held_out: 2600 ", "held_out: 20 "),
    ("channels: [32, 64, 128, 256]", "channels: [8, 8, 8, 8]"),
)


def tiny(folder: Path, *edits: tuple[str, str]) -> SweepSpec:
    """The Fashion-MNIST spec on the tiny data set in `folder`, with a tiny model."""
    text = FASHION.read_text()
    for old, new in (*EDITS, *edits):
        assert old in text, old
        text = text.replace(old, new.replace("{folder}", str(folder)))
    return parse(text, "tiny.yaml")
