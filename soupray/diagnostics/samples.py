"""The samples of a split, to show them to people: ids, images, texts."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soupray.core.arrays import Images
from soupray.core.errors import ConfigError, EvaluationError
from soupray.core.records import Split
from soupray.core.texts import unpack
from soupray.data.cache import Data, find_data, open_data
from soupray.data.thumbnails import thumbnail
from soupray.diagnostics.measure import LONGEST, CannotMeasure, Picture
from soupray.spec.sweep_spec import SweepSpec

log = logging.getLogger(__name__)


class DecodedSamples:
    """The samples of the data cache of this machine, which is made if it is not there."""

    def __init__(self, spec: SweepSpec, cache: Path) -> None:
        """Do nothing yet: most measures need no sample.

        Args:
            spec: of the sweep.
            cache: folder of the data caches of this machine.
        """
        self._spec, self._cache = spec, cache

    @functools.cached_property
    def _data(self) -> Data:
        known = find_data(self._spec, self._cache)
        if known is not None:
            return known
        log.info("decoding the data on this machine, to show samples ...")
        try:
            return open_data(self._spec, self._cache)
        except ConfigError as error:
            raise CannotMeasure(f"the data are not on this machine: {error}") from error

    def ids(self, split: Split) -> list[str]:
        """The ids of the samples, in order. Raises CannotMeasure."""
        self._checked(split)
        return self._data.ids(split)

    def pictures(self, split: Split, rows: Sequence[int]) -> list[Picture]:
        """The samples of `rows`, images as small PNG files. Raises CannotMeasure."""
        samples = self._checked(split)
        chosen = [np.asarray(samples[row]) for row in rows]
        if samples.ndim == 4:
            return [Picture(image=thumbnail(image)) for image in chosen]
        texts = [unpack(text[None])[0] for text in chosen]
        return [Picture(text=t if len(t) <= LONGEST else f"{t[:LONGEST]}…") for t in texts]

    def _checked(self, split: Split) -> Images:
        """The samples of a split, if those of this machine are those of the sweep."""
        try:
            return self._data.samples(split)[0]
        except EvaluationError as error:
            raise CannotMeasure(str(error)) from error
