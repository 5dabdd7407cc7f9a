"""What a store's client raises, as ours; and what is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError

from soupray.core.errors import AlreadyExists, NotFound, StoreUnavailable

T = TypeVar("T")

RETRY_S = 30
"""How long a request is tried again, once it has failed, before the store counts as away."""


@contextmanager
def mapped(url: str, path: str) -> Iterator[None]:
    """Foreign exceptions as ours. The order matters: the specific ones first."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise NotFound(_NO_BUCKET.format(url)) from error
        raise NotFound(f"{path} is not in {url}.") from error
    except AlreadyExistsError as error:
        raise AlreadyExists(f"{path} is already in {url}.") from error
    except (BaseError, OSError) as error:
        text = str(error).strip() or "no reason given"
        if "NoSuchBucket" in text:
            raise NotFound(_NO_BUCKET.format(url)) from error
        said = next(message for sign, message in _TROUBLE.items() if sign in text)
        line = text.splitlines()[0][:300]
        raise StoreUnavailable(said.format(url=url, path=path, line=line)) from error


def insist(ask: Callable[[], T]) -> T:
    """`ask()`, again while the connection breaks.

    obstore itself repeats neither a conditional write, nor the page of a list, nor an answer of
    "not found" that breaks off. Of a write that had arrived, the repetition is told that it came
    second.
    """
    failed: float | None = None
    pause = 0.2
    while True:
        try:
            return ask()
        except StoreUnavailable as error:
            broken, now = "HTTP error" in str(error.__cause__), time.monotonic()
            failed = now if failed is None else failed  # the first attempt may have lasted as long
            if not broken or now - failed + pause > RETRY_S:
                raise
        time.sleep(pause)
        pause *= 2


def ask_twice(read: Callable[[], T], doubted: type[Exception]) -> T:
    """`read()`, once more if that raises `doubted`: what came does not look whole.

    An answer may be cut short on its way although its length header was whole: only its content
    tells. What is cut short twice, or stored so, raises `doubted`.
    """
    with suppress(doubted):
        return read()
    return read()


_NO_BUCKET = "The bucket of {} does not exist. Create it, or correct `storage` in the spec."
_FULL = (
    "{url} is out of space while writing {path}. Free some and run again: what is stored is kept, "
    "and the run goes on from there."
)
_TROUBLE = {  # by a part of obstore's text; the first that fits
    "403 Forbidden": "{url} refuses these credentials at {path} (403 Forbidden). Check "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
    "No space left": _FULL,
    "os error 28": _FULL,
    # All that SeaweedFS says of a full disk.
    "500 Internal Server Error": "{url} answered 500 Internal Server Error at {path} for "
    f"{RETRY_S} s, as a store does whose disk is full. Free some space there (the embedded store's "
    "disk is that of --home), and run again in a minute: what is stored is kept.",
    "": "{url} failed at {path}: {line}. Run `soupray doctor`, then run again: what is stored is "
    "kept.",
}
