"""Makes soupray/assets/digits: a small CLIP that reads digits, pre-trained on matplotlib's fonts.

    python scripts/pretrain_digits.py

No handwriting is seen here: the UCI digits only give the accuracy recorded at the end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import random
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from safetensors.torch import save

from soupray.data.digits import load_digits
from soupray.tasks.vocabulary import CutTokenizer, cut_vocabulary

ASSETS = Path(__file__).parent.parent / "soupray" / "assets" / "digits"
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NUMERALS = [str(digit) for digit in range(10)]
TEMPLATES = [
    "a photo of the number {}.",
    "a handwritten {}.",
    "an image of the digit {}, white on black.",
    "a drawing of the number {} in black ink on white paper.",
    "a small, blurry picture of the digit {}.",
    "a low resolution scan of the printed symbol {}.",
    "the handwritten number {}.",
    "a black and white sketch of the figure {}.",
    "this is the character {}, written by hand.",
    "{}",
]
CONTEXT = 16
SIDE = 32  # of the model's images
CANVAS = 64  # of the drawn glyphs: twice SIDE, so that warping them costs no sharpness
GLYPH = 48  # the longer side of a glyph on its canvas
NOT_DIGITS = {"LastResortHE-Regular.ttf", "cmex10.ttf", "cmsy10.ttf"}  # other shapes at "0".."9"
STROKES = (1, 3, 5, 7)  # widths of the brush that thickens a glyph; 1 leaves it as it is
MOST_INK = 0.62  # share of its box that a glyph may cover: beyond it, the holes of 8 close

SEED = 0
EPOCHS = 20
IMAGES = 30_000  # per epoch, drawn anew each time
BATCH = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1


def prompts(template: str, words: list[str]) -> list[str]:
    """One text per word."""
    return [template.format(word) for word in words]


def config(vocab_size: int) -> dict[str, Any]:
    """open_clip's local-dir configuration."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": SIDE,
                "patch_size": 8,
                "width": 128,
                "layers": 4,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocab_size,
                "width": 128,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"size": [SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3},
    }


def fonts() -> list[Path]:
    """Those of matplotlib that draw all ten digits."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = {ord(numeral) for numeral in NUMERALS}
    return [
        path
        for path in sorted(folder.glob("*.ttf"))
        if path.name not in NOT_DIGITS and drawn <= FT2Font(str(path)).get_charmap().keys()
    ]


def glyph(font: Path, numeral: str) -> torch.Tensor:
    """White on black, fit to GLYPH and centred: [CANVAS, CANVAS] float32 in 0..1."""
    face = FT2Font(str(font))
    face.set_size(2 * GLYPH, 72)
    face.set_text(numeral)
    face.draw_glyphs_to_bitmap()
    drawn = torch.from_numpy(np.array(face.get_image(), dtype=np.float32)) / 255
    rows, columns = drawn.nonzero().unbind(dim=1)
    box = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = (max(1, round(side * GLYPH / max(box.shape))) for side in box.shape)
    fitted = F.interpolate(box[None, None], (height, width), mode="bilinear", antialias=True)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    canvas = torch.zeros(CANVAS, CANVAS)
    canvas[top : top + height, left : left + width] = fitted[0, 0]
    return canvas


def ink(canvas: torch.Tensor) -> float:
    """Share of the glyph's bounding box that is white."""
    rows, columns = (canvas > 0.5).nonzero().unbind(dim=1)
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    return float(canvas.sum() / area)


def glyphs() -> list[torch.Tensor]:
    """Per digit, every font in every stroke width: ten tensors [G, CANVAS, CANVAS]."""
    bank = []
    for numeral in NUMERALS:
        drawn = [glyph(font, numeral) for font in fonts()]
        thick = [
            F.max_pool2d(canvas[None], brush, stride=1, padding=brush // 2)[0]
            for canvas in drawn
            for brush in STROKES
        ]
        bank.append(torch.stack([canvas for canvas in thick if ink(canvas) <= MOST_INK]))
    return bank


def uniform(count: int, low: float, high: float) -> torch.Tensor:
    """One number per image: [count, 1, 1, 1]."""
    return torch.empty(count, 1, 1, 1).uniform_(low, high)


def warp(canvases: torch.Tensor) -> torch.Tensor:
    """A writer's slant, size and wobble: [N, 1, CANVAS, CANVAS] -> [N, 1, SIDE, SIDE]."""
    count = len(canvases)
    angle = uniform(count, -0.25, 0.25).flatten()
    shear = uniform(count, -0.25, 0.25).flatten()
    height = uniform(count, 0.75, 1.05).flatten()  # of the glyph, as a share of the image
    width = height * uniform(count, 0.85, 1.35).flatten()
    shift = uniform(2 * count, -0.12, 0.12).view(count, 2)
    cos, sin = angle.cos(), angle.sin()
    # Rows of the map from image to canvas coordinates: turn and slant, then size.
    across = torch.stack([cos + shear * sin, shear * cos - sin, shift[:, 0]], dim=1)
    down = torch.stack([sin, cos, shift[:, 1]], dim=1)
    size = torch.stack([width, height], dim=1)[:, :, None]
    affine = torch.stack([across, down], dim=1) / size * (GLYPH / CANVAS)
    grid = F.affine_grid(affine, [count, 1, SIDE, SIDE], align_corners=False)
    knots = torch.randn(count, 2, 4, 4) * uniform(count, 0.0, 0.12)
    wobble = F.interpolate(knots, (SIDE, SIDE), mode="bicubic", align_corners=True)
    return F.grid_sample(canvases, grid + wobble.permute(0, 2, 3, 1), align_corners=False)


def coarsen(images: torch.Tensor) -> torch.Tensor:
    """Most images through 8 x 8 or 16 x 16 pixels and back, as UCI's were: [N, 1, SIDE, SIDE]."""
    coarse = images.clone()
    for factor, share in ((4, 0.65), (2, 0.2)):
        chosen = torch.rand(len(images)) < share
        small = F.avg_pool2d(images[chosen], factor)
        coarse[chosen] = F.interpolate(small, SIDE, mode="bilinear", align_corners=False)
    return coarse


def photograph(images: torch.Tensor) -> torch.Tensor:
    """Contrast, polarity and noise, normalised: [N, 1, SIDE, SIDE] -> [N, 3, SIDE, SIDE]."""
    count = len(images)
    dark, light = uniform(count, 0.0, 0.25), uniform(count, 0.6, 1.0)
    seen = dark + (light - dark) * images
    seen = torch.where(uniform(count, 0, 1) < 0.35, 1 - seen, seen)
    seen = seen + torch.randn_like(seen) * uniform(count, -0.12, 0.12).clamp(min=0)  # half: none
    return (seen.clamp(0, 1).expand(-1, 3, -1, -1) - 0.5) / 0.5


def draw_batch(bank: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [BATCH, 3, SIDE, SIDE] float32, normalised, and labels [BATCH] int64."""
    labels = torch.randint(len(bank), (BATCH,))
    chosen = [bank[label][random.randrange(len(bank[label]))] for label in labels.tolist()]
    return photograph(coarsen(warp(torch.stack(chosen)[:, None]))), labels


def logits(clip: Any, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Images [N, 3, SIDE, SIDE] against tokens [C, CONTEXT]: [N, C]."""
    image_features = clip.encode_image(images, normalize=True)
    text_features = clip.encode_text(texts, normalize=True)
    compared: torch.Tensor = clip.logit_scale.exp() * image_features @ text_features.T
    return compared


def train(clip: Any, bank: list[torch.Tensor], tokenize: CutTokenizer, epochs: int) -> None:
    """Pre-trains in place; a line per epoch.

    Only images choose among texts: a batch has each class many times, so the other half of CLIP's
    loss would have no single right answer.
    """
    texts = [tokenize(prompts(t, words)) for t in TEMPLATES for words in (CLASSES, NUMERALS)]
    steps = math.ceil(IMAGES / BATCH)
    optimizer = torch.optim.AdamW(clip.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs * steps, pct_start=0.05, cycle_momentum=False
    )
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        right = 0
        for _ in range(steps):
            images, labels = draw_batch(bank)
            scores = logits(clip, images, random.choice(texts))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            optimizer.step()
            schedule.step()
            right += int((scores.argmax(dim=1) == labels).sum())
            with torch.no_grad():
                clip.logit_scale.clamp_(max=math.log(100))  # as CLIP does, arXiv:2103.00020
        left = (time.monotonic() - started) / epoch * (epochs - epoch)
        accuracy = right / (steps * BATCH)
        print(f"epoch {epoch}/{epochs}: rendered {accuracy:.1%}, {left:.0f} s left", flush=True)


def write_model(clip: Any, kept: list[int], folder: Path) -> None:
    """The three files that open_clip and CutTokenizer read."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in clip.state_dict().items()}
    # Not save_file: its files can be read by their owner only.
    (folder / "open_clip_model.safetensors").write_bytes(save(weights))
    write_json(folder / "open_clip_config.json", config(len(kept)))
    vocabulary = {"full_token_ids": kept, "templates": TEMPLATES, "classes": CLASSES}
    write_json(folder / "vocabulary.json", vocabulary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n")


@torch.inference_mode()
def zero_shot_accuracy(folder: Path) -> float:
    """Share of all UCI digits that the written model reads, from the mean of its templates."""
    clip = open_clip.create_model(f"local-dir:{folder}").eval()
    kept = json.loads((folder / "vocabulary.json").read_text())["full_token_ids"]
    tokenize = CutTokenizer(kept, CONTEXT)
    texts = [clip.encode_text(tokenize(prompts(t, CLASSES)), normalize=True) for t in TEMPLATES]
    samples = load_digits()
    images = torch.from_numpy(samples.images).float().expand(-1, 3, -1, -1) / 255
    features = clip.encode_image((images - 0.5) / 0.5)
    predicted = (features @ torch.stack(texts).mean(dim=0).T).argmax(dim=1)
    return float((predicted == torch.from_numpy(samples.labels)).float().mean())


def write_card(folder: Path, accuracy: float, seconds: float, epochs: int) -> None:
    """What was made, when and with what."""
    packages = ["matplotlib", "open_clip_torch", "scikit-learn", "torch"]
    card = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "zero_shot_accuracy_uci_digits": round(accuracy, 4),
        "training_seconds": round(seconds),
        "epochs": epochs,
        "images_per_epoch": IMAGES,
        "seed": SEED,
        "fonts": [font.stem for font in fonts()],
        "versions": {package: version(package) for package in packages},
    }
    write_json(folder / "card.json", card)


def main() -> None:
    """Draws, trains, writes, and reads the UCI digits once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    random.seed(SEED)
    kept = cut_vocabulary([p for t in TEMPLATES for p in prompts(t, CLASSES + NUMERALS)], CONTEXT)
    model = config(len(kept))["model_cfg"]
    clip = open_clip.model.CLIP(**model)
    bank = glyphs()
    started = time.monotonic()
    train(clip, bank, CutTokenizer(kept, CONTEXT), options.epochs)
    seconds = time.monotonic() - started
    write_model(clip, kept, options.out)
    accuracy = zero_shot_accuracy(options.out)
    write_card(options.out, accuracy, seconds, options.epochs)
    size = (options.out / "open_clip_model.safetensors").stat().st_size
    print(f"zero-shot on {len(load_digits().labels)} UCI digits: {accuracy:.2%}; {size:,} bytes")


if __name__ == "__main__":
    main()
