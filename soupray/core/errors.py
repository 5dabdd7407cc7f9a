"""The exceptions that soupray raises.

    SouprayError
    ├── ConfigError              a spec, an option or an environment that cannot work
    ├── StoreError               the object store refused or failed
    │   ├── NotFound             the object or the bucket does not exist
    │   ├── AlreadyExists        a create-only write found an object at its path
    │   └── StoreUnavailable     unreachable, credentials rejected, or out of space
    ├── CheckpointError          a checkpoint that cannot be used
    │   ├── ChecksumMismatch     the content differs from its digest
    │   └── IncompatibleWeights  other keys, shapes, dtypes or init than required
    ├── TrackingError            MLflow is unreachable or refuses; a sweep or a soup goes on
    ├── TrialError               a trial that ended without an ingredient
    │   └── Diverged             NaN or collapse: recorded, never trained again
    ├── EvaluationError          a model or a pool that cannot be evaluated
    │   └── WeightsGone          weights that were let go (`keep` in a spec) would be needed
    ├── InputError               images or texts that a loaded model cannot read
    │   └── Refused              a request that a server of a model does not take
    └── RayLost                  the node of Ray on this machine ended under a job

A message says what happened, the offending value, what is allowed and what to do next. No message
and no record shows a password: `mask` hides the passwords of URLs.
"""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)([^/?#@:\[]*):(?!\d+[/?#])(?:[^/?#]*@|.*@)")
"""The password stands between the user's name and the @ before the host. Digits before a slash are
a port, not a password: an @ after them belongs to the path. A slash in a password is a mistake of
the user, and the pattern hides that password too."""


def mask(text: str) -> str:
    """`text` with *** in place of the password in each URL."""
    return _PASSWORD.sub(r"\1:***@", text)


def has_password(text: str) -> bool:
    """Whether `text` contains a URL with a password."""
    return _PASSWORD.search(text) is not None


LONGEST = 300
"""Characters of another library's message that a message of soupray repeats."""


def one_line(said: object) -> str:
    """What an exception of a library says, or a name from outside: short, in one line.

    Args:
        said: the exception or the text. What a terminal could not print is escaped.
    """
    words = " ".join(str(said).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."


TRIAL_FAILED = "soupray: trial {} failed"
"""The line that a worker prints before the traceback of a trial; `soupray logs` looks for it."""


class SouprayError(Exception):
    """Base class of all errors that soupray raises on purpose."""


class ConfigError(SouprayError):
    """A spec, an option or an environment that cannot work (exit status 2)."""


class StoreError(SouprayError):
    """The object store refused or failed."""


class NotFound(StoreError):
    """The object, or the bucket, does not exist."""


class AlreadyExists(StoreError):
    """A create-only write found an object at its path."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, rejects the credentials, or has no space left."""


class CheckpointError(SouprayError):
    """A checkpoint that cannot be used."""


class ChecksumMismatch(CheckpointError):
    """The content differs from the digest that names it in the store."""


class IncompatibleWeights(CheckpointError):
    """Weights with other keys, shapes, dtypes or init than required."""


class TrackingError(SouprayError):
    """MLflow is unreachable or refuses. The store has all results: see `soupray publish`."""


class TrialError(SouprayError):
    """A trial that ended without an ingredient."""


class Diverged(TrialError):
    """The training loss became NaN or the model collapsed to one class."""


class EvaluationError(SouprayError):
    """A model or a pool that cannot be evaluated."""


class WeightsGone(EvaluationError):
    """Weights that were let go (`keep` in a spec) would be needed."""


class InputError(SouprayError):
    """Images or texts that a loaded model cannot read. The message names each."""


class Refused(InputError):
    """A request that a server of a model does not take. `status` is that of HTTP, 400 to 499."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RayLost(SouprayError):
    """The node of Ray on this machine ended under a job. Ray does not bring it back."""
