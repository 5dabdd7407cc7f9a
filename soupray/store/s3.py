"""How a bucket is reached: endpoint, region, addressing and credentials, as boto3 finds them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from soupray.core.errors import ConfigError, NotFound, StoreUnavailable

NO_BUCKET = "The bucket of {} does not exist. Create it, or correct `storage` in the spec."


class Credentials(NamedTuple):
    """A key pair that is not in the environment, such as that of the embedded store."""

    endpoint: str
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        """Return a text without the secret key."""
        return f"Credentials({self.endpoint}, {self.access_key}, ***)"


def embedded_options(credentials: Credentials) -> dict[str, Any]:
    """Options for the embedded store. Nothing of the user's AWS environment applies to it."""
    host = urlsplit(credentials.endpoint).hostname or ""
    for name in ("NO_PROXY", "no_proxy"):  # the only way to tell obstore
        listed = [h for h in os.environ.get(name, "").split(",") if h]
        if host not in listed:
            os.environ[name] = ",".join([*listed, host])
    key: Any = {
        "access_key_id": credentials.access_key,
        "secret_access_key": credentials.secret_key,
        "token": None,
        "expires_at": None,
    }
    return {
        "endpoint": credentials.endpoint,
        "aws_endpoint_url_s3": credentials.endpoint,
        "region": "us-east-1",
        "credential_provider": lambda: key,
        # What is not given here, obstore reads from AWS_* variables.
        "skip_signature": False,
        "virtual_hosted_style_request": False,
        "s3_express": False,
        "request_payer": False,
        "unsigned_payload": False,
        "conditional_put": "etag",
    }


class S3Access(NamedTuple):
    """How boto3 reaches the bucket of a URL: both clients use it.

    `endpoint`: URL without the bucket. `virtual`: the bucket is a part of the host name.
    `credentials`: boto3's name of the way in which it found credentials. `session` and `client` are
    boto3's.
    """

    endpoint: str
    region: str
    virtual: bool
    credentials: str
    session: Any
    client: Any


def resolve(url: str) -> S3Access:
    """Find endpoint, region, addressing and credentials for the bucket of `url`, as boto3 does.

    boto3 reads the environment, the profiles in ~/.aws (with `endpoint_url` and `s3` settings) and
    the roles of instances and containers.

    Raises:
        ConfigError: no credentials were found, or a profile, file or address is not valid.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    settings = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    try:
        session = boto3.Session()
        found = session.get_credentials()
        client = session.client("s3", config=settings)
    except BotoCoreError as error:  # a missing profile or an invalid file
        raise ConfigError(f"storage {url}: {error}. Check AWS_PROFILE and ~/.aws.") from error
    except ValueError as error:
        raise ConfigError(
            f"storage {url}: {error}. Write http://HOST:PORT or https://... in AWS_ENDPOINT_URL, "
            "AWS_ENDPOINT_URL_S3 or endpoint_url of the AWS profile."
        ) from error
    if found is None:
        raise ConfigError(
            f"storage {url}: no AWS credentials in the environment, a profile or an instance role. "
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a store "
            "that is not AWS)."
        )
    region = client.meta.region_name
    style = (client.meta.config.s3 or {}).get("addressing_style")
    return S3Access(
        endpoint=client.meta.endpoint_url,
        region="us-east-1" if region in (None, "aws-global") else region,
        virtual=style == "virtual",
        credentials=found.method or "given",
        session=session,
        client=client,
    )


def found_options(url: str) -> dict[str, Any]:
    """Options for a store of the user: what boto3 found."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    access = resolve(url)
    endpoint = access.endpoint
    if access.virtual:
        parts = urlsplit(endpoint)
        endpoint = parts._replace(netloc=f"{urlsplit(url).netloc}.{parts.netloc}").geturl()
    return {
        "endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
        "region": access.region,
        "virtual_hosted_style_request": access.virtual,
        "credential_provider": Boto3CredentialProvider(access.session),
    }


def check_access(url: str) -> None:
    """Send one request by boto3, whose errors separate a wrong key from a missing bucket.

    Args:
        url: address of the store, on S3.

    Raises:
        ConfigError: no credentials were found.
        NotFound: the bucket does not exist.
        StoreUnavailable: the store cannot be reached, or it refuses the credentials.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        resolve(url).client.list_objects_v2(Bucket=urlsplit(url).netloc, MaxKeys=1)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchBucket", "404"):
            raise NotFound(NO_BUCKET.format(url)) from error
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise StoreUnavailable(
                f"storage {url}: the store answers {code}. Run again in a minute: what is stored "
                "is kept."
            ) from error
        raise StoreUnavailable(
            f"storage {url}: the store refuses these credentials ({code}). Check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy."
        ) from error
    except BotoCoreError as error:
        raise StoreUnavailable(
            f"storage {url}: {error}. Check AWS_ENDPOINT_URL, the network and the credentials."
        ) from error
