"""The numpy arrays that functions exchange: one name for each dtype and shape.

A shape is in brackets. N counts samples, L bytes, D the components of a feature vector. C counts
channels in a shape of images, and classes in a shape of logits or probabilities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""uint8 [N, C, H, W]: images with values from 0 to 255. uint8 [N, L]: texts, see `core.texts`."""

Labels = npt.NDArray[np.int64]
"""int64 [N]: the class of each sample, from 0."""

Logits = npt.NDArray[np.float32]
"""float32 [N, C]: what a model's head returns."""

Probabilities = npt.NDArray[np.float32]
"""float32 [N, C]: each row sums to one."""

Features = npt.NDArray[np.float32]
"""float32 [N, D]: what a model's body returns, the input of its head."""

Mask = npt.NDArray[np.bool_]
"""bool [N]: a yes or no for each sample."""

Units = npt.NDArray[np.uint16]
"""uint16 [N]: the value of each sample, in units of 1 / `records.UNITS`."""

Indices = npt.NDArray[np.int64]
"""int64 [K]: positions of samples, from 0."""

Uint8 = npt.NDArray[np.uint8]
"""uint8. The function that uses it says the shape."""

Uint64 = npt.NDArray[np.uint64]
"""uint64. The function that uses it says the shape."""

Float32 = npt.NDArray[np.float32]
"""float32. The function that uses it says the shape."""

Float64 = npt.NDArray[np.float64]
"""float64. The function that uses it says the shape."""
