"""One rule for passwords in URLs: what is refused in a spec is what no message shows."""

import pytest

from soupray.core.errors import has_password, mask

HAVE = {
    "https://me:secret@mlflow.example/x?y=1": "https://me:***@mlflow.example/x?y=1",
    "https://me:secret@mlflow.example/x@y": "https://me:***@mlflow.example/x@y",
    "https://:secret@[::1]:5000": "https://:***@[::1]:5000",
    "http://me:s@cret@host": "http://me:***@host",
    "http://me:secret/x@host": "http://me:***@host",
    "http://me:5000@host": "http://me:***@host",
    "s3://key:secret@bucket/prefix": "s3://key:***@bucket/prefix",
    "'http://me:secret@host'": "'http://me:***@host'",
}
HAVE_NONE = (
    "https://me@mlflow.example",
    "http://mlflow:5000/a@b",
    "http://[::1]:5000/a@b",
    "http://mlflow/a:b@c",
    "sqlite:////home/me:x/mlflow@home.db",
    "s3://bucket/a:b@c",
    "embedded",
)


@pytest.mark.parametrize("url", HAVE)
def test_a_password_is_found_and_masked(url):
    assert has_password(url)
    assert mask(url) == HAVE[url]


@pytest.mark.parametrize("url", HAVE_NONE)
def test_what_is_no_password_is_left_alone(url):
    assert not has_password(url)
    assert mask(url) == url
