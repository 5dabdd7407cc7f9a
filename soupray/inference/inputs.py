"""Brings what a user has, images or texts, to the form in which models were evaluated."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soupray.core.arrays import Images, Uint8
from soupray.core.errors import InputError, SouprayError, one_line
from soupray.core.texts import cut, pack
from soupray.data.decoding import Look, decoded
from soupray.data.folders import MOST_BYTES
from soupray.data.opening import Picture, Unreadable
from soupray.data.reading import threads
from soupray.spec.files import read_regular

log = logging.getLogger(__name__)

SHOWN = 5
"""Number of inputs that a message lists."""


class Read(NamedTuple):
    """Samples that could be read, and what became of the others.

    Attributes:
        samples: uint8 [M, C, H, W] or texts [M, L], as in the data cache.
        rows: positions of the M samples among the inputs.
        problems: why an input cannot be read, by its position.
        notes: what was done to an input, in words, by its position.
    """

    samples: Images
    rows: list[int]
    problems: dict[int, str]
    notes: dict[int, list[str]]


class Counted:
    """Counts what was done to inputs, in words; several threads may use it."""

    def __init__(self) -> None:
        self._lock, self.done = threading.Lock(), Counter[str]()
        self._taken = Counter[str]()

    def add(self, how: str, loses: bool = False) -> None:
        """Count `how` once more. The first time that it `loses` something, a warning says so."""
        with self._lock:
            self.done[how] += 1
            first = self.done[how] == 1
        if loses and first:
            log.warning(f"an image was {how}, as in evaluation; this is said once.")

    def taken(self) -> dict[str, int]:
        """Return what was counted since the last call of `taken`."""
        with self._lock:
            new = self.done - self._taken
            self._taken = self.done.copy()
        return dict(new)


class ImageReader:
    """Reads images as the data cache does: opened, resized and cut in the same way.

    An input is a path, the URL of an object (`fetch` reads it), the bytes of a file, an image of
    Pillow, or an array uint8 [H, W], [H, W, C] or [C, H, W] with C = 1 or 3. Many images of one
    size may also be one array [N, C, H, W] or [N, H, W, C]. Such an array of the right size is
    taken as it is: it is what `Model.preprocess` returns.
    """

    kind = "images"
    what = "images: paths, URLs, Pillow images, or uint8 arrays [N, 1 or 3, H, W]"

    def __init__(self, look: Look | None, fetch: Callable[[str], bytes]) -> None:
        """Set the form.

        Args:
            look: the form of the result; None if it is not known: then only arrays are read.
            fetch: returns the bytes of the object with this URL, or raises StoreError.
        """
        self.look, self._fetch, self.counted = look, fetch, Counted()

    def facts(self) -> dict[str, str | int]:
        """Return what is read and how, for the metadata of a server."""
        if self.look is None:
            return {}
        names = ("size", "channels", "interpolation", "resize")
        return {name: getattr(self.look, name) for name in names} | {"max_pixels": self.look.most}

    def split(self, inputs: Any) -> Sequence[Any]:
        """Return the inputs one by one, or as an array [N, C, H, W] if they are one.

        Raises:
            InputError: these are no images.
        """
        if isinstance(inputs, str | Path | bytes | Picture):
            return [inputs]
        if isinstance(inputs, list | tuple) and not _is_numbers(inputs):
            return inputs
        array = _array(inputs)
        if array.dtype != np.uint8:
            raise InputError(
                f"images are uint8 with values from 0 to 255, not {array.dtype} "
                f"{list(array.shape)}. Do not normalise them: the model does it."
            )
        if array.ndim != 4:
            raise InputError(
                f"an array of images is [N, 1 or 3, H, W], not {list(array.shape)}. Put one image "
                "into a list."
            )
        if array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.shape[1] not in (1, 3):
            raise InputError(f"images have 1 or 3 channels, not {array.shape[1]}.")
        one_by_one: Sequence[Any] = array
        return one_by_one

    def read(self, inputs: Sequence[Any]) -> Read:
        """Read some of the inputs that `split` returned. Broken ones are named in the result."""
        if isinstance(inputs, np.ndarray):
            if self.look is None or inputs.shape[1:] == self.look.shape:
                return Read(inputs, list(range(len(inputs))), {}, {})
            inputs = list(inputs)
        if self.look is None:
            raise InputError(
                "this sweep was made by a version of soupray that did not note the size of its "
                "images: give the model uint8 arrays [N, C, H, W] of that size."
            )
        if len(inputs) == 1:  # no threads to start: a server reads images one by one
            found = [self._one(inputs[0])]
        else:
            with threads() as pool:
                found = list(pool.map(self._one, inputs))
        read = {row: one for row, one in enumerate(found) if not isinstance(one, str)}
        samples = np.empty((len(read), *self.look.shape), np.uint8)
        for place, (pixels, _) in enumerate(read.values()):
            samples[place] = pixels
        problems = {row: one for row, one in enumerate(found) if isinstance(one, str)}
        notes = {row: done for row, (_, done) in read.items() if done}
        return Read(samples, list(read), problems, notes)

    def _one(self, given: Any) -> tuple[Uint8, list[str]] | str:
        """Return the pixels of an image and what was done to it, or why it cannot be read."""
        assert self.look is not None
        done = list[str]()
        try:
            raw = self._raw(given)
            if isinstance(raw, np.ndarray):
                channels = 1 if raw.ndim == 2 else raw.shape[2]
                if channels != self.look.channels:
                    done.append(f"converted to {self.look.channels} channels")
            image = decoded(raw, self.look)
        except (Unreadable, SouprayError) as error:
            return str(error)
        except OSError as error:
            return error.strerror or type(error).__name__
        done += image.done
        for how in done:
            self.counted.add(how)
        if image.source[0] != image.source[1]:
            size = self.look.size
            how = "squashed" if self.look.resize == "squash" else "cut to its middle"
            done.append(f"{how} ({size} x {size} pixels)")
            self.counted.add(done[-1], loses=True)
        return image.pixels, done

    def _raw(self, given: Any) -> bytes | Uint8 | Picture:
        if isinstance(given, bytes | Picture):
            return given
        if isinstance(given, str | Path):
            is_url = isinstance(given, str) and "://" in given
            return self._fetch(str(given)) if is_url else read_regular(Path(given), MOST_BYTES)
        array = _array(given)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise Unreadable(
                f"{type(given).__name__} of {array.dtype} {list(array.shape)}: an image is a path, "
                "an image of Pillow, or uint8 [H, W, C]"
            )
        if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
            array = array.transpose(1, 2, 0)
        if array.ndim == 3 and array.shape[2] not in (1, 3):
            raise Unreadable(f"{array.shape[2]} channels; an array has 1 or 3")
        if 0 in array.shape:
            raise Unreadable(f"an array {list(array.shape)} has no pixels")
        return np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array)


def _array(given: Any) -> Any:
    """Return anything like an array as one of numpy. Raises InputError if it is none."""
    try:
        return np.asarray(given.cpu() if hasattr(given, "cpu") else given)
    except (ValueError, TypeError) as error:
        raise InputError(f"no array of images: {one_line(error)}.") from error


def _is_numbers(inputs: Sequence[Any]) -> bool:
    """Whether these are nested lists of numbers, which are one array."""
    first = inputs
    while isinstance(first, list | tuple) and len(first):
        first = first[0]
    return isinstance(first, int | float) and not isinstance(first, bool)


class TextReader:
    """Reads texts: a list of str. White space at both ends is removed, as in the data."""

    kind = "texts"
    what = "a list of texts"

    def __init__(
        self, most: tuple[int, int], cuts: bool, lengths: Callable[[list[str]], list[int]]
    ) -> None:
        """Set the limits.

        Args:
            most: the largest number of bytes in UTF-8, and of tokens.
            cuts: cut longer texts; else they cannot be read.
            lengths: returns the number of tokens of each text.
        """
        self._most, self._cuts, self._lengths = most, cuts, lengths
        self.counted = Counted()

    def facts(self) -> dict[str, str | int]:
        """Return what is read and how, for the metadata of a server."""
        bytes_, tokens = self._most
        longer = "cut" if self._cuts else "refused"
        return {"max_bytes": bytes_, "max_tokens": tokens, "longer": longer}

    def split(self, inputs: Any) -> Sequence[Any]:
        """Return the texts one by one. Raises InputError if these are no texts."""
        if isinstance(inputs, str):
            return [inputs]
        if not isinstance(inputs, list | tuple | np.ndarray):
            raise InputError(f"a batch is a list of texts, not {one_line(inputs)[:60]!r}.")
        return list(inputs)

    def read(self, inputs: Sequence[Any]) -> Read:
        """Read some of the inputs that `split` returned. Broken ones are named in the result."""
        problems = {row: why for row, given in enumerate(inputs) if (why := self._wrong(given))}
        notes = dict[int, list[str]]()
        rows = [row for row in range(len(inputs)) if row not in problems]
        texts = [inputs[row].strip() for row in rows]
        bytes_, tokens = self._most
        for row, text, count in zip(
            rows, texts, self._lengths(texts) if texts else [], strict=True
        ):
            size = len(text.encode())
            if size <= bytes_ and count <= tokens:
                continue
            if self._cuts:
                notes[row] = [f"cut to {tokens} tokens and {bytes_} bytes"]
                self.counted.add(notes[row][0])
            else:
                problems[row] = (
                    f"{count} tokens in {size} bytes; the limits of the spec are {tokens} and "
                    f"{bytes_}"
                )
        kept = [(row, text) for row, text in zip(rows, texts, strict=True) if row not in problems]
        samples = pack([cut(text, bytes_) for _, text in kept])
        return Read(samples, [row for row, _ in kept], problems, notes)

    def _wrong(self, given: Any) -> str | None:
        if not isinstance(given, str):
            return f"{type(given).__name__}, not a text"
        try:
            given.encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair is no character"
        return None if given.strip() else "an empty text"


Reader = ImageReader | TextReader


def all_read(read: Read, inputs: Sequence[Any], first: int) -> Images:
    """Return the samples.

    Args:
        read: what came of the inputs.
        inputs: the inputs.
        first: position of the first input among those of the user.

    Raises:
        InputError: an input could not be read.
    """
    if not read.problems:
        return read.samples
    named = [
        f"input {first + row}{shown_input(inputs[row])}: {why}"
        for row, why in sorted(read.problems.items())
    ]
    more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    raise InputError(
        f"{len(named)} of {len(inputs)} inputs cannot be read: {'; '.join(named[:SHOWN])}{more}. "
        "Leave them out: `soupray predict` names them and goes on."
    )


def shown_input(given: Any) -> str:
    """Return an input in parentheses as a message shows it; empty if it has no name."""
    named = isinstance(given, str | Path) and str(given).strip()
    return f" ({one_line(given)})" if named else ""
