"""Passwords in URLs, which no message and no record may show."""

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
