"""Inputs: made by a grammar, or changed at random, by hypothesis."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

CLASSES = ("food", "weather")

ODD_TEXTS = st.sampled_from(
    ["", " ", "\n", "a\nb", "\0", "a\0b", "~nosuchuser", "~", "**", "/", "..", "/dev/zero", "/dev",
     "x" * 300, "\ud800", "\x1b[31m", "{0..9999999999}", "{9..0}.tar", "0010", "1:30", "1e9",
     "2026-11-29", "off", "null", ".nan", "-0", "é", "\u2028", "[bold]", "s3://[::1", "s3://b/p?x",
     "file:///x#1", "http://a:99999", "%s", "{}", "{{}}", "\ufeff", "package:x/y", "zero_shot"]
)  # fmt: skip
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**90, 0.0, -0.0, 1e-9, 1e-320, 1e308,
     float("inf"), float("-inf"), float("nan"), 0.5, 1.5, True, False, None]
)  # fmt: skip
ODD = st.recursive(
    ODD_TEXTS | ODD_NUMBERS | st.text(max_size=8) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ODD_TEXTS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to each value in a tree of plain data."""
    found = [at] if at else []
    if not isinstance(tree, dict | list):
        return found
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found += places(value, (*at, key))
    return found


@st.composite
def changed_tree(draw: Any, trees: list[Any]) -> Any:
    """Plain data in which some values are other ones, are gone, or have other keys."""
    tree = json.loads(json.dumps(draw(st.sampled_from(trees))))
    for _ in range(draw(st.integers(1, 3))):
        every = places(tree)
        if not every:
            return tree
        *way, last = draw(st.sampled_from(every))
        parent = tree
        for key in way:
            parent = parent[key]
        match draw(st.integers(0, 5)):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[draw(ODD_TEXTS)] = parent.pop(last)
            case 2 if isinstance(parent[last], int | float):
                parent[last] = draw(ODD_NUMBERS)
            case 3:
                *_, other = draw(st.sampled_from(every))
                parent[last] = other
            case _:
                parent[last] = draw(ODD)
    return tree


@st.composite
def changed_bytes(draw: Any, files: list[bytes]) -> bytes:
    """A file that is cut, in which bytes are other ones, or in which parts are there twice."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 512]))
        match draw(st.integers(0, 6)):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case 4:
                data[at : at + size] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f"])) * size
            case 5 if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                data[at:at] = draw(st.sampled_from([b"\n", b'"', b"\0", b"\xed\xa0\x80", b"\xff"]))
    return bytes(data)


PIECES = st.sampled_from(
    ["&a", "*a", "<<: *a", "!!set", "- ", ": ", "? ", "[", "{", "}", "|", ">", "'", '"', "#", "---",
     "%YAML", "\t", "@", "0o7", "!!float x", "!!map [a]", "=", "`", "\u0085", "1_0"]
)  # fmt: skip


@st.composite
def changed_text(draw: Any, texts: list[str]) -> str:
    """Lines that are gone, are there twice, or have odd pieces in them."""
    lines = draw(st.sampled_from(texts)).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        piece = draw(PIECES | ODD_TEXTS)
        match draw(st.integers(0, 4)):
            case 0:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 1 if len(lines) > 1:
                del lines[at]
            case 2:
                name, colon, _ = lines[at].partition(":")
                lines[at] = f"{name}{colon} {piece}"
            case _:
                place = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:place] + piece + lines[at][place:]
    return "\n".join(lines)


CELLS = st.sampled_from(
    ["food", "weather", "bread", "a,b", 'say "x"', '"', '""', '"open', 'shut"', "a\tb", "a\nb", "",
     " ", "\r", "\0", "\ufeff", "\u2028", "é", "x" * 60, "1", "label", "text"]
)  # fmt: skip


@st.composite
def tables(draw: Any) -> tuple[str, bytes]:
    """(ending, content) of a table: well formed, nearly so, or not."""
    ending = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".ndjson", ".txt"]))
    delimiter = "\t" if ending == ".tsv" else ","
    sizes = st.sampled_from([(2, 2), (2, 2), (1, 3)])
    least, most = draw(sizes)
    some = draw(st.lists(st.lists(CELLS, min_size=least, max_size=most), max_size=3))
    good = [[draw(st.sampled_from(CLASSES)), draw(CELLS)] for _ in range(draw(st.integers(0, 4)))]
    rows = [["label", "text"], *good, *(some if draw(st.booleans()) else []), *good[:1]]
    if ending in (".csv", ".tsv", ".txt"):
        quote = draw(st.sampled_from(["", '"']))
        text = "\n".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    else:
        objects = [dict(zip(("label", "text", "n"), row, strict=False)) for row in rows]
        lines = [json.dumps(one) for one in objects]
        lines += draw(st.lists(st.sampled_from(['{"text": "\\ud800"}', "[" * 5000, "9" * 5000, "{}",
                                                '{"a": 1, "a": 2}', "NaN", '"', "null", "[]"]),
                               max_size=2))  # fmt: skip
        text = "\n".join(lines)
    data = text.encode("utf-8", "replace")
    return ending, draw(changed_bytes([data])) if draw(st.booleans()) and data else data


@st.composite
def tar_files(draw: Any) -> bytes:
    """A tar file of members with odd names, types and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=draw(st.sampled_from([1, 2]))) as tar:
        for number in range(draw(st.integers(0, 4))):
            key = draw(st.sampled_from([f"{number:03d}", "a", "a/b", ".", "é", "a b", "x" * 120]))
            odd = st.lists(st.sampled_from(["jpg", "cls", "png", "json", "JPG", ""]), max_size=4)
            for ending in draw(st.sampled_from([["jpg", "cls"], ["cls", "png", "json"]]) | odd):
                info = tarfile.TarInfo(f"{key}.{ending}")
                content = draw(st.sampled_from([b"0", b"0", b"1", b"1", b"x", b"", b"9" * 30]))
                info.size = len(content)
                info.type = draw(st.sampled_from([b"0"] * 20 + [b"1", b"2", b"5", b"6", b"S"]))
                tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    return draw(changed_bytes([data])) if draw(st.booleans()) else data


def image_files() -> list[bytes]:
    """Small images in every format, mode and depth that Pillow writes."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    colour, grey = Image.fromarray(noise[:, :, :3].copy()), Image.fromarray(noise[:, :, 0].copy())
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    floats = Image.fromarray((noise[:, :, 0] / 255).astype(np.float32))
    modes = [colour, grey, deep, floats, Image.fromarray(noise), colour.convert("P")]
    modes += [grey.convert("1"), grey.convert("LA"), colour.convert("CMYK"), deep.convert("I")]
    exif = Image.Exif()
    exif[274] = 6
    found = []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF"):
        for image in modes:
            for how in ({}, {"exif": exif}, {"save_all": True, "append_images": [image, image]}):
                out = io.BytesIO()
                try:
                    image.save(out, kind, **how)
                except (OSError, ValueError, KeyError):  # no such mode in this format
                    continue
                found.append(out.getvalue())
    return list(dict.fromkeys(found))


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that its decoder goes on."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 8 <= len(data):
        size = min(struct.unpack(">I", data[at : at + 4])[0], len(data) - at - 8)
        body = data[at + 4 : at + 8 + size]
        out += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)
