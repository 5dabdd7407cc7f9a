"""Image files written byte by byte, in forms that Pillow does not write."""

import struct
import zlib

import numpy as np

ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""How EXIF says to turn what is stored, for each orientation."""


def png(values: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of `values` [H, W] or [H, W, C]; `chunks` go before the pixels."""
    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    elif bits == 8:
        lines = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        each = ((rows[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(len(rows), -1)
        lines = [np.packbits(row.astype(np.uint8)).tobytes() for row in each]
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [(b"IHDR", size), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def tiff(values: np.ndarray, order: str = "<", white_is_zero: bool = False, **tags: int) -> bytes:
    """A TIFF of one strip of `values` [H, W], of their own type, in the byte order < or >."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    found = {
        256: values.shape[1],
        257: values.shape[0],
        258: values.dtype.itemsize * 8,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 8,
        277: 1,
        278: values.shape[0],
        279: len(data),
        339: kind,
    } | {int(name): value for name, value in tags.items()}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack(f"{order}HHII", t, 4, 1, v) for t, v in sorted(found.items()))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(f"{order}I", 8 + len(data))
    return mark + start + data + struct.pack(f"{order}H", len(found)) + entries + b"\0\0\0\0"


def pnm(values: np.ndarray, most: int) -> bytes:
    """A PGM [H, W] or PPM [H, W, 3] whose largest value is `most`."""
    kind = "P5" if values.ndim == 2 else "P6"
    head = f"{kind}\n{values.shape[1]} {values.shape[0]}\n{most}\n".encode()
    return head + values.astype(">u2" if most > 255 else np.uint8).tobytes()
