"""Makes the images of sweeps/lite0_clipart.yaml from Open Clip Art: what does the drawing show?

    python scripts/clipart_folder.py /usr/share/openclipart/png .home/clipart/images

TARGET/CLASS/*.png for six of its categories. Drawings come with a transparent ground and in all
sizes; here they are on white, and no side is longer than 256 pixels. Left out are a few of more
than ten million pixels. They are in the public domain.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

CLASSES = ("animals", "buildings", "food", "people", "plants", "transportation")
SIDE, PIXELS = 256, 10_000_000

Image.MAX_IMAGE_PIXELS = None  # sizes are looked at here, before anything is decoded


def on_white(path: Path) -> Image.Image | None:
    """The drawing without transparency, at most SIDE pixels a side; None if it is too large."""
    drawing = Image.open(path)
    if drawing.width * drawing.height > PIXELS:
        return None
    drawing = drawing.convert("RGBA")
    ground = Image.new("RGBA", drawing.size, "white")
    image = Image.alpha_composite(ground, drawing).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def main() -> None:
    """Convert every drawing of the six categories."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    for name in CLASSES:
        folder = source / name
        drawings = sorted(folder.rglob("*.png"))
        if not drawings:
            sys.exit(f"{folder}: no drawings. SOURCE is the folder of Debian's openclipart-png.")
        (target / name).mkdir(parents=True, exist_ok=True)
        made = 0
        for path in drawings:
            if image := on_white(path):
                image.save(target / name / "-".join(path.relative_to(folder).parts))
                made += 1
        print(f"{name}: {made} of {len(drawings)} drawings")


if __name__ == "__main__":
    main()
