"""The addresses of store and tracker in a spec."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from soupray.core.errors import has_password

STORAGE_PATTERN = r"embedded|s3://.+|file:///.+"
TRACKING_PATTERN = r"embedded|off|https?://.+|sqlite:///.+"

_BUCKET = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
"""S3's own names are of 3 to 63 lower-case characters; those of other stores may have more."""


def check_url(url: str, is_storage: bool) -> None:
    """Raise ValueError for an address with a secret, or with what the libraries would drop.

    Args:
        url: of the store or the tracker.
        is_storage: it is that of the store.
    """
    if has_password(url):
        raise ValueError(
            "a spec is stored and shown, so no password may be in it. Put it into the "
            "environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if is_storage and (dropped := set(url) & set("?#")):
        raise ValueError(
            f"what follows {min(dropped)} in a URL is no part of a prefix, so that two sweeps "
            "would share one; write letters, digits, - and _"
        )
    if not url.isprintable() or (url.startswith("s3:") and " " in url):
        raise ValueError("a space, or a character that cannot be printed, is in the URL")
    try:
        parts = urlsplit(url)
        named = parts.hostname is not None or parts.scheme not in ("s3", "http", "https")
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"no URL: {error}; write a name or an address, and a port") from error
    if not named:
        raise ValueError("the URL names no bucket and no host")
    if parts.scheme == "s3" and not re.fullmatch(_BUCKET, parts.netloc):
        raise ValueError(
            f"a bucket cannot be called {parts.netloc!r}; its name has letters, digits, ., - and _"
        )
