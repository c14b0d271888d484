"""Object stores by pyarrow, whose refusals are one paragraph each: what was refused, and how to mend it.

Credentials come from the environment, a profile or the machine's role, never from a URI, so that no path that is
logged holds any.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from xmatch.errors import InputError

S3_ATTEMPTS = 10
AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status \d+\))? during (\w+) operation: ?(.*)", re.DOTALL)
UNPARSED = re.compile(r"Unable to parse ExceptionName: (\w+) Message: ?(.*)", re.DOTALL)
WITHOUT_REASON = {"ACCESS_DENIED", "UNKNOWN"}
"""Codes that are read from the status of an answer without a body, as that to a HEAD request is."""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
REFUSALS = {
    "accessdenied": "the credentials in use have no right to do that. Give their account the right to list, read, "
    "write and delete there (without the right to list, what is missing is refused too), or use others",
    "nosuchbucket": "there is no such bucket. Mend its name, AWS_REGION or AWS_ENDPOINT_URL, or create it",
    "invalidaccesskeyid": "the store does not know the access key. Mend AWS_ACCESS_KEY_ID or AWS_ENDPOINT_URL",
    "signaturedoesnotmatch": "the secret does not belong to the access key. Mend AWS_SECRET_ACCESS_KEY or the profile",
    "invalidtoken": "the session token is not valid. Get a new AWS_SESSION_TOKEN, or unset it for keys without one",
    "expiredtoken": "the session token has expired. Get a new AWS_SESSION_TOKEN and run the same command again",
    "requesttimetooskewed": "this machine's clock is wrong. Set it",
    "nocredentials": "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "networkconnection": "the store does not answer. Check AWS_ENDPOINT_URL and the network, and run it again",
    "permanentredirect": "the bucket is in another region. Set AWS_REGION to it",
    "slowdown": "the store has too much to do. Run the same command again later, with fewer workers",
}
"""By a code of S3 without its underscores, in small letters: what is wrong, and how it is mended."""


class StoreError(InputError):
    """An object store refused or did not answer; what was asked for may be in order, so nothing is left out for it."""


def refusal(path: str, code: str, operation: str, said: str) -> StoreError:
    """The error of a request that an object store refused.

    Args:
        path: URI of what was asked for.
        code: of the store's error, such as AccessDenied or ACCESS_DENIED; "": not known.
        operation: that was refused, such as PutObject; "": not known.
        said: the store's own words, for a code that is not known here.
    """
    known = REFUSALS.get(code.replace("_", "").lower())
    label = " of ".join(filter(None, (code, operation)))
    if known:
        return StoreError(f"cannot use {path!r} ({label}): {known}.")
    for value in filter(None, map(os.environ.get, SECRETS)):
        said = said.replace(value, "…")
    told = " ".join(said.split())
    return StoreError(
        f"cannot use {path!r}: {told}. Check the bucket's name, your rights and credentials, the network."
    )


def open_store(path: str) -> tuple[Any, str]:
    """The file system of a URI and the path inside it; an object store's is a Store.

    Raises:
        InputError: the URI holds credentials, or its scheme is unknown.
    """
    scheme, _, rest = path.partition("://")
    if "@" in rest.partition("/")[0]:
        raise InputError(
            f"a URI of {scheme}:// holds credentials before '@', which would be logged with it. Put them into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and give the URI without them."
        )
    if scheme == "s3" and "?" not in path:
        bucket, _, key = rest.partition("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        return _s3_store(bucket, endpoint), f"{bucket}/{key}".rstrip("/")
    filesystem, inside = _from_uri(path)
    return (filesystem if isinstance(filesystem, pafs.LocalFileSystem) else Store(filesystem, scheme)), inside


def _from_uri(path: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, inside = pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        shown = path.partition("?")[0]
        raise InputError(f"cannot use {shown!r}: {error}. Give a local path, file:// or s3://bucket/key.") from error
    return filesystem, inside


@functools.cache
def _s3_store(bucket: str, endpoint: str) -> Store:
    """The store of a bucket, its region asked for once; what fails for a while is tried again, ten times in all."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    scheme, _, host = endpoint.rpartition("://")
    filesystem = pafs.S3FileSystem(
        region=region or _from_uri(f"s3://{bucket}")[0].region,
        endpoint_override=host or None,
        scheme=scheme or None,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
    )
    return Store(filesystem, "s3")


class Store:
    """The verbs of a pyarrow file system that we use; what the store refuses is a StoreError.

    What is not there raises FileNotFoundError or is told as pyarrow tells it, but a bucket that is not there is an
    error: else a misspelt one would look empty.

    Attributes:
        inner: the file system itself.
    """

    def __init__(self, inner: pafs.FileSystem, scheme: str) -> None:
        self.inner, self.scheme = inner, scheme
        self._buckets: set[str] = set()

    def get_file_info(self, wanted: Any) -> Any:
        """As pyarrow's, of a path or a FileSelector."""
        inside = wanted if isinstance(wanted, str) else wanted.base_dir
        with self.refusals(inside):
            found = self.inner.get_file_info(wanted)
        if not found if isinstance(found, list) else found.type == pafs.FileType.NotFound:
            self._require_bucket(inside)
        return found

    def open_input_stream(self, inside: str, **options: Any) -> pa.NativeFile:
        """As pyarrow's."""
        with self.refusals(inside):
            return self.inner.open_input_stream(inside, **options)

    def open_input_file(self, inside: str) -> pa.NativeFile:
        """As pyarrow's."""
        with self.refusals(inside):
            return self.inner.open_input_file(inside)

    def open_output_stream(self, inside: str) -> pa.NativeFile:
        """As pyarrow's."""
        with self.refusals(inside):
            return self.inner.open_output_stream(inside)

    def delete_file(self, inside: str) -> None:
        """As pyarrow's."""
        with self.refusals(inside):
            self.inner.delete_file(inside)

    @contextmanager
    def refusals(self, inside: str) -> Iterator[None]:
        """Whatever the store refuses within the block is a StoreError that names the URI."""
        try:
            yield
        except FileNotFoundError:
            self._require_bucket(inside)
            raise
        except OSError as error:
            code, operation, said = _parsed(error)
            if operation.startswith("Head") and code in WITHOUT_REASON:
                code, operation, said = self._reason(inside) or (code, operation, said)
            raise refusal(f"{self.scheme}://{inside}", code, operation, said) from error

    def _reason(self, inside: str) -> tuple[str, str, str] | None:
        """Why nothing there can be looked at, by a listing, whose refusal says it; None: a listing is allowed."""
        try:
            self.inner.get_file_info(pafs.FileSelector(inside, allow_not_found=True))
        except OSError as error:
            return _parsed(error)
        return None

    def _require_bucket(self, inside: str) -> None:
        bucket = inside.partition("/")[0]
        if bucket in self._buckets:
            return
        try:
            found = self.inner.get_file_info(bucket)
        except OSError:  # not every account may ask for a bucket
            return
        if found.type == pafs.FileType.NotFound:
            raise refusal(f"{self.scheme}://{inside}", "NoSuchBucket", "", "")
        self._buckets.add(bucket)


def _parsed(error: OSError) -> tuple[str, str, str]:
    """Code, operation and words of what a store said."""
    found = AWS_ERROR.search(str(error))
    if found is None:
        return "", "", str(error)
    code, operation, said = found.groups()
    unparsed = UNPARSED.search(said)
    return (unparsed[1], operation, unparsed[2]) if unparsed else (code, operation, said)
