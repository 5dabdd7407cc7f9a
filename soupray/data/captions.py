"""Images and captions in CSV, TSV or JSON lines: a row has the path of an image and its caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soupray.core.arrays import Labels
from soupray.core.captions import MARK, as_fields, form_of
from soupray.core.texts import pack
from soupray.data.decoding import Look
from soupray.data.folders import MOST_BYTES
from soupray.data.reading import Content, decode_each, new_array, sha256
from soupray.data.splits import Listing, Raw, listing
from soupray.data.text import first_equal, ids_of, pairs_of, short
from soupray.spec.files import read_regular
from soupray.spec.tables import CaptionsSpec


def read_captions(named: str, spec: CaptionsSpec) -> Listing:
    """All pairs of a table, with ids like train/123. No image is read.

    Args:
        named: path of the table.
        spec: the columns of images and captions, and the largest length of a caption.

    Returns:
        The images with their captions, and for labels the numbers of image and caption,
        int64 [N, 2]: the first row of the table with an equal path or caption.

    Raises:
        ConfigError: the table is missing, broken or empty, a column is not there, or a caption is
            empty or too long.
    """
    path, rows, notes = pairs_of(named, spec)
    files = [path.parent / row.text for row in rows]
    captions = short([(row.label.strip(), row.where) for row in rows], path, spec)

    def read(row: int) -> Raw:
        return read_regular(files[row], MOST_BYTES)

    numbers = np.array([first_equal(list(map(str, files))), first_equal(captions)], np.int64).T
    found = listing(ids_of(path, len(rows)), np.zeros(len(rows)), read)
    numbers = np.ascontiguousarray(numbers)
    return found._replace(labels=numbers, captions=tuple(captions), notes=notes)


def image_files(spec: CaptionsSpec) -> list[str]:
    """The paths of all images that the tables of a spec name, each once, in order.

    Raises:
        ConfigError: a table cannot be read.
    """
    found: dict[str, None] = {}
    for named in spec.files:
        path, rows, _ = pairs_of(named, spec)
        found |= {str(path.parent / row.text): None for row in rows}
    return list(found)


def write_captioned(part: Listing, look: Look, path: Path) -> list[Content]:
    """Decode images into an array on disk, each with its caption beside it.

    Args:
        part: the N images, with captions.
        look: their form in the array.
        path: of the array's file, uint8 [N, W], see `core.captions`.

    Returns:
        The digests of each pair; `source` is that of the image.
    """
    captions = pack([part.captions[row] for row in part.rows])
    form = form_of(look.size, captions.shape[1])
    target = new_array(path, (len(part.ids), form.itemsize))
    rows = as_fields(target, form)
    rows["mark"], rows["side"], rows["caption"] = MARK, look.size, captions
    contents = decode_each(part, look, rows["pixels"])
    whole = (np.trim_zeros(row, "b") for row in target)  # the padding differs between tables
    return [
        one if one.problem else one._replace(kept=sha256(row))
        for one, row in zip(contents, whole, strict=True)
    ]


def by_content(numbers: Labels, contents: Sequence[Content]) -> Labels:
    """The numbers of images and captions, where images of equal bytes have equal numbers.

    Args:
        numbers: [N, 2].
        contents: of the N images.
    """
    first = first_equal([one.source for one in contents])
    return np.stack([numbers[first, 0], numbers[:, 1]], axis=1)
