"""The ImageNet specs on a small tree: ten classes in ImageNet's layout, a full-size random CLIP.

    python scripts/small_imagenet.py sweeps/clip_vitb32_imagenet.yaml FOLDER
    python scripts/small_imagenet.py sweeps/clip_vitl14_imagenet.yaml FOLDER --steps 2 --batch 4

Makes FOLDER/imagenet/{train,val}/SYNSET/*.jpg, a folder as ImageNet-Sketch has it, open_clip
weights as initialised (nothing is downloaded), and the spec with its data, classes, templates and
trials replaced. Then sweeps it and makes soups. What comes out is noise; that it comes out is the
point.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from soupray.spec.yaml import parse_yaml

SYNSETS = {  # ten of ImageNet's, and what open_clip calls them
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "rooster",
    "n01514859": "hen",
    "n01518878": "ostrich",
}
HELD_OUT, TEST, SHIFT = 10, 10, 10


def make_images(folder: Path, each: int, seed: int) -> None:
    """`each` JPEG files of noise in a tint of its own for each class, of several sizes."""
    generator = np.random.default_rng(seed)
    for label, synset in enumerate(SYNSETS):
        (folder / synset).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            width, height = generator.integers(230, 400, 2)
            noise = generator.integers(0, 160, (int(height), int(width), 3)).astype(np.uint8)
            noise[..., label % 3] += np.uint8(9 * label)
            Image.fromarray(noise).save(folder / synset / f"{synset}_{i}.JPEG", quality=80)


def main() -> None:
    """Make everything, then run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4, help="of the optimizer, a trial")
    parser.add_argument("--batch", type=int, default=16)
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    train = -(-chosen.steps * chosen.batch // len(SYNSETS)) + HELD_OUT // len(SYNSETS)
    make_images(folder / "imagenet" / "train", train, 0)
    make_images(folder / "imagenet" / "val", TEST // len(SYNSETS), 1)
    make_images(folder / "sketch", SHIFT // len(SYNSETS), 2)
    plain: Any = parse_yaml(chosen.spec.read_text(), str(chosen.spec))
    torch.manual_seed(0)
    model = open_clip.create_model(plain["task"]["model"], load_weights=False)
    torch.save(model.state_dict(), folder / "clip.pt")
    plain["task"] |= {
        "pretrained": str(folder / "clip.pt"),
        "classes": list(SYNSETS.values()),
        "templates": ["a photo of a {}.", "a drawing of a {}."],
    }
    plain["data"] |= {
        "train": str(folder / "imagenet" / "train"),
        "test": str(folder / "imagenet" / "val"),
        "held_out": HELD_OUT,
        "shifts": [{"kind": "folder", "name": "sketch", "root": str(folder / "sketch")}],
    }
    plain["search"]["trials"] = 2
    plain["search"]["space"] |= {"epochs": 1, "batch_size": chosen.batch}
    plain |= {"name": "small", "threads": 2, "evaluation_batch": 10, "storage": "embedded"}
    plain |= {"tracking": "embedded", "resources": {"cpu": 2, "gpu": 0}}
    spec = folder / "small.yaml"
    spec.write_text(json.dumps(plain, indent=2))  # JSON is YAML
    home = ["--home", str(folder / "home")]
    soupray = [sys.executable, "-m", "soupray"]
    subprocess.run([*soupray, "sweep", str(spec), *home], check=True)
    output = ["--output", str(folder / "results")]
    subprocess.run([*soupray, "soup", str(spec), *home, *output], check=True)
    subprocess.run([*soupray, "down", *home], check=True)


if __name__ == "__main__":
    main()
