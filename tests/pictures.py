"""Small image data sets in the layouts that people have, and specs that read them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from soupray.spec.sweep_spec import SweepSpec, parse

SPEC = """
name: pictures
task:
  kind: timm
  model: resnet10t
  {classes}
  size: 16
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
data:
{data}
init: {{trained: {{lr: 1e-3, epochs: 1}}}}
anchor: init
search: {{trials: 2, space: {{lr: 1e-3, epochs: 1}}}}
storage: embedded
tracking: "off"
recipes: {{}}
"""


def spec_of(data: str, classes: str | None = "classes: [ant, bee, cat]") -> SweepSpec:
    """A spec with these lines under `data`."""
    lines = "".join(f"  {line.strip()}\n" for line in data.strip().splitlines())
    return parse(SPEC.format(data=lines, classes=classes or ""), "pictures.yaml")


def pixels(seed: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """[H, W, 3] uint8, smooth enough to survive JPEG and no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def encoded(array: np.ndarray, kind: str = "JPEG", **how: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **how)
    return out.getvalue()


def write_image(path: Path, seed: int, **how: object) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encoded(pixels(seed), "PNG" if path.suffix == ".png" else "JPEG", **how)
    path.write_bytes(data)
    return data


def write_folders(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """`counts[name]` images in each folder."""
    for name, count in counts.items():
        for i in range(count):
            seed += 1
            write_image(root / name / f"{i}.jpg", seed)


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
