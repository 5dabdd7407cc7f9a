"""The exceptions that soupray raises.

    SouprayError
    ├── ConfigError              a spec, an option or an environment that cannot work
    ├── StoreError               the object store said no
    │   ├── NotFound             the object or the bucket is not there
    │   ├── AlreadyExists        a create-only write came second
    │   └── StoreUnavailable     unreachable, refused, or out of space
    ├── CheckpointError          bytes that are not the model they claim to be
    │   ├── ChecksumMismatch     the content differs from its digest
    │   └── IncompatibleWeights  other keys, shapes, dtypes or init than required
    ├── TrackingError            MLflow is away or refuses; never fatal to a sweep or a soup
    ├── TrialError               a trial that ended without an ingredient
    │   └── Diverged             NaN or collapse: recorded, never trained again
    └── EvaluationError          a model or a pool that cannot be evaluated

A message says what happened, the offending value, what is allowed and what to do next. No message
and no record shows a password: `mask` hides the passwords of URLs.
"""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)([^/?#@:\[]*):(?!\d+[/?#])(?:[^/?#]*@|.*@)")
"""After a user, up to the @ before the host. Digits up to a slash are a port instead: an @ behind
them is of the path. A slash in a password is a mistake that must not show the password."""


def mask(text: str) -> str:
    """`text` with *** for the password of a URL in it."""
    return _PASSWORD.sub(r"\1:***@", text)


def has_password(text: str) -> bool:
    """Whether there is a URL with a password in `text`."""
    return _PASSWORD.search(text) is not None


class SouprayError(Exception):
    """Base of all errors that soupray raises on purpose."""


class ConfigError(SouprayError):
    """A spec, an option or an environment that cannot work (exit status 2)."""


class StoreError(SouprayError):
    """The object store refused or failed."""


class NotFound(StoreError):
    """The object, or the bucket, does not exist."""


class AlreadyExists(StoreError):
    """A create-only write found the object already there."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, rejects the credentials, or has no space left."""


class CheckpointError(SouprayError):
    """A checkpoint that cannot be used."""


class ChecksumMismatch(CheckpointError):
    """Content differs from the digest under which it was stored."""


class IncompatibleWeights(CheckpointError):
    """Weights with other keys, shapes, dtypes or init than required."""


class TrackingError(SouprayError):
    """MLflow is away or refuses. The store has everything: `soupray publish` completes it later."""


class TrialError(SouprayError):
    """A trial that ended without an ingredient."""


class Diverged(TrialError):
    """The training loss became NaN or the model collapsed to one class."""


class EvaluationError(SouprayError):
    """A model or a pool that cannot be evaluated."""
