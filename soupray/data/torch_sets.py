"""Map-style datasets of torch that a function of the user returns.

A dataset is read as it is: soupray resizes, normalises and augments. Samples of a form that is not
known are refused by the name of the function and the number of the sample.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from soupray.core.arrays import Uint8
from soupray.core.errors import ConfigError
from soupray.core.plugins import load, raised
from soupray.core.records import Objective
from soupray.data.opening import Picture, Unreadable, as_raw, size_of
from soupray.data.splits import Listing, Raw, listing
from soupray.data.targets import labels_of, mask_of, numbers_of, same
from soupray.spec.data import TorchDataSpec
from soupray.spec.plugged_in import DATA

EXACT = 1e-3
"""The largest distance of 255 times a float from a whole number. It covers the rounding of float16
and that of torchvision's ToTensor."""

READ_TWICE = 8
"""The number of samples, about, whose targets are read twice."""


def list_torch(spec: TorchDataSpec, split: str) -> tuple[Listing, list[str] | None]:
    """A split of a dataset whose samples have one class each. The id of a sample is its number.

    Args:
        spec: the function and its arguments.
        split: what the function is called with.

    Returns:
        The samples, and the names of the classes by label: the dataset's `classes`, or the
        different texts among its targets, sorted. None: its targets are numbers without names.

    Raises:
        ConfigError: there is no such function, or it raises, or it returns no map-style dataset, or
            a target is no class.
    """
    source = _opened(spec, split)
    targets = source.classes()
    if isinstance(targets[0], str):
        names = sorted(set(targets))
        number = {name: k for k, name in enumerate(names)}
        return listing(source.ids, [number[t] for t in targets], source.image), names
    if source.names is not None and max(targets) >= len(source.names):
        row = targets.index(max(targets))
        raise ConfigError(
            f"{source.where}: the target of sample {row} is {targets[row]}, but `classes` of the "
            f"dataset has {len(source.names)} names."
        )
    return listing(source.ids, targets, source.image), source.names


def list_targets(
    spec: TorchDataSpec, split: str, classes: Sequence[str], objective: Objective
) -> Listing:
    """A split of a dataset whose samples have several labels, numbers, or masks.

    Args:
        spec: the function and its arguments.
        split: what the function is called with.
        classes: names of the task's classes, or of its outputs.
        objective: what the targets are.

    Returns:
        The samples, with labels uint8 [N, C], float32 [N, D], or masks uint8 [N, P].

    Raises:
        ConfigError: as of `list_torch`, or a target is of another form.
    """
    source = _opened(spec, split)
    if objective.kind == "multi_label":
        labels: Any = labels_of(source.targets(), classes, source.names, source.where)
    elif objective.kind == "segmentation":
        assert objective.side, "set when the spec was read"
        labels = source.masks(objective.side)
    else:
        labels = numbers_of(source.targets(), classes, source.where)
    return listing(source.ids, [0] * source.size, source.image)._replace(labels=labels)


def _opened(spec: TorchDataSpec, split: str) -> _Source:
    found = load(DATA, spec.dataset)
    where = f"data.dataset = {spec.dataset!r} ({found.origin}): split {split!r}"
    try:
        dataset = found.value(split, **copy.deepcopy(spec.args))
    except Exception as error:
        raise ConfigError(f"{where}: {raised(error)}.") from error
    source = _Source(dataset, _length(dataset, where), where)
    if not source.size:
        raise ConfigError(f"{where}: the dataset is empty.")
    source.refuse_random()
    return source


def _length(dataset: Any, where: str) -> int:
    if not hasattr(type(dataset), "__getitem__") or not hasattr(type(dataset), "__len__"):
        missing = "__getitem__" if not hasattr(type(dataset), "__getitem__") else "__len__"
        raise ConfigError(
            f"{where} is {type(dataset).__name__}, which has no {missing}. Return a map-style "
            "dataset (torch.utils.data.Dataset with __len__ and __getitem__); a list of pairs is "
            "one too."
        )
    try:
        return len(dataset)
    except Exception as error:
        raise ConfigError(f"{where}: its __len__ raised {raised(error)}.") from error


class _Source:
    """The samples of a dataset. They are read one at a time: a dataset need not know of threads."""

    def __init__(self, dataset: Any, size: int, where: str) -> None:
        self._dataset, self.size, self.where = dataset, size, where
        self._lock = threading.RLock()
        named = getattr(dataset, "classes", None)
        self.names = list(map(str, named)) if isinstance(named, list | tuple) else None
        self.ids = list(map(str, range(size)))

    def image(self, row: int) -> Raw:
        """The image of a sample.

        Raises:
            Unreadable: the dataset raises, or gives no image.
        """
        try:
            with self._lock:  # a dataset may use the memory of one sample for the next
                return _copied(_image(self._pair(row)[0]))
        except ConfigError as error:
            raise Unreadable(str(error)) from error

    def refuse_random(self) -> None:
        """Refuse a dataset whose first sample changes from one read to the next.

        Of some other samples the targets are compared: two classes drawn at random are often equal.
        """
        try:
            first, again = (_copied(_image(self._pair(0)[0])) for _ in range(2))
        except Unreadable as error:
            raise ConfigError(f"{self.where}: sample 0: {error}.") from error
        for row in sorted({k * (self.size - 1) // READ_TWICE for k in range(READ_TWICE + 1)}):
            try:
                one, two = (_kept(self._pair(row)[1]) for _ in range(2))
            except ConfigError:  # it is named, or left out, when all samples are read
                continue
            if not same(one, two):
                raise ConfigError(
                    f"{self.where}: the target of sample {row} changes from one read to the next, "
                    f"from {repr(one)[:40]} to {repr(two)[:40]}. Targets follow from the number of "
                    "the sample."
                )
        if not np.array_equal(np.asarray(first), np.asarray(again)):
            raise ConfigError(
                f"{self.where}: sample 0 changes from one read to the next. Leave random "
                "transforms out: soupray augments (search.space)."
            )

    def targets(self) -> list[Any]:
        """The target of each sample, as the dataset gives it."""
        return [_kept(self._pair(row)[1]) for row in range(self.size)]

    def masks(self, side: int) -> Uint8:
        """The mask of each sample, [N, side * side]. Its image has the same size."""
        made = np.empty((self.size, side * side), np.uint8)
        for row in range(self.size):
            where = f"{self.where}: sample {row}"
            image, target = self._pair(row)
            made[row] = mask_of(target, side, where)
            try:
                size = _size(image)
            except Unreadable:  # it is named, or left out, when all images are read
                continue
            if size is None:
                raise ConfigError(
                    f"{where}: its image is turned as EXIF says, and its mask is not. Turn the "
                    "image in the dataset (PIL.ImageOps.exif_transpose)."
                )
            if size != (side, side):
                raise ConfigError(
                    f"{where}: its image is {size[0]} x {size[1]} pixels, but its mask {side} x "
                    f"{side}. Resize both in the dataset."
                )
        return made

    def classes(self) -> list[Any]:
        """The class of each sample: all are numbers from 0, or all are names."""
        known = self._known()
        found = self.targets() if known is None else known
        made = [self._target(row, target) for row, target in enumerate(found)]
        kinds = {type(target) for target in made}
        if len(kinds) > 1:
            row = next(r for r, target in enumerate(made) if type(target) is not type(made[0]))
            raise ConfigError(
                f"{self.where}: the target of sample 0 is {made[0]!r} and that of sample {row} "
                f"is {made[row]!r}. Give names everywhere, or numbers everywhere."
            )
        return made

    def _known(self) -> list[Any] | None:
        """What the dataset has as `targets`, if some samples confirm it; no sample is decoded."""
        given = getattr(self._dataset, "targets", None)
        given = given.tolist() if given is not None and hasattr(given, "tolist") else given
        if not isinstance(given, list | tuple) or len(given) != self.size:
            return None
        for row in {0, self.size // 2, self.size - 1}:
            if self._target(row, self._pair(row)[1]) != self._target(row, given[row]):
                return None  # a target_transform
        return list(given)

    def _pair(self, row: int) -> tuple[Any, Any]:
        try:
            with self._lock:
                sample = self._dataset[row]
        except Exception as error:
            raise ConfigError(f"{self.where}: sample {row}: {raised(error)}.") from error
        if not isinstance(sample, list | tuple) or len(sample) != 2:
            form = type(sample).__name__
            form += f" of {len(sample)} parts" if isinstance(sample, list | tuple) else ""
            raise ConfigError(
                f"{self.where}: sample {row} is {form}, not a pair of an image and its target."
            )
        return sample[0], sample[1]

    def _target(self, row: int, target: Any) -> int | str:
        if hasattr(target, "item") and getattr(target, "ndim", 0) == 0:
            target = target.item()
        if isinstance(target, str) and target.strip():
            return target
        if isinstance(target, int) and not isinstance(target, bool) and target >= 0:
            return target
        raise ConfigError(
            f"{self.where}: the target of sample {row} is {target!r}. Allowed are the name of a "
            "class, or its number from 0."
        )


def _copied(image: Raw) -> Raw:
    """The image, if it is an array in memory of its own."""
    return image.copy() if isinstance(image, np.ndarray) else image


def _kept(target: Any) -> Any:
    """A target that does not change when the dataset uses its memory again."""
    if hasattr(target, "detach"):
        return target.detach().clone()
    return copy.copy(target) if isinstance(target, np.ndarray | list | set) else target


def _size(given: Any) -> tuple[int, int] | None:
    """Width and height of an image, as `size_of`; arrays are never turned. Raises Unreadable."""
    made = given if isinstance(given, Picture) else _image(given)
    return (made.shape[1], made.shape[0]) if isinstance(made, np.ndarray) else size_of(made)


def _image(given: Any) -> Raw:
    """An image as the data cache reads it.

    Raises:
        Unreadable: it is of another form. The message says what is allowed.
    """
    if isinstance(given, Picture):
        return as_raw(given)
    if isinstance(given, bytes):
        return given  # of a file
    if hasattr(given, "detach"):
        array = given.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        form = f"tensor {list(given.shape)} {array.dtype}"
    elif isinstance(given, np.ndarray):
        array, form = given, f"array {list(given.shape)} {given.dtype}"
    else:
        raise Unreadable(f"it is {type(given).__name__}, not an image of Pillow, array or tensor")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise Unreadable(
            f"it is an {form}. Allowed are arrays [H, W] and [H, W, 3], tensors [1, H, W] and "
            "[3, H, W]; give an image of Pillow for transparency"
        )
    return np.ascontiguousarray(_eight_bits(array, form))


def _eight_bits(array: npt.NDArray[Any], form: str) -> Uint8:
    """Pixels of 8 bits that say the same; `form` describes the image in messages.

    Raises:
        Unreadable: there are no such pixels.
    """
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise Unreadable(f"it is an {form}. Allowed are uint8, and floats from 0 to 1")
    wide = array.astype(np.float64) * 255
    whole = np.rint(wide)
    if not np.isfinite(wide).all() or whole.min() < 0 or whole.max() > 255:
        raise Unreadable(
            f"it is an {form} with values outside 0..1. Leave the normalisation out: task.mean and "
            "task.std say it"
        )
    if np.abs(wide - whole).max() > EXACT:
        raise Unreadable(
            f"it is an {form} with values that are no multiples of 1/255: 8 bits would round them. "
            "Give it before it is resized or normalised: soupray does both"
        )
    return whole.astype(np.uint8)
