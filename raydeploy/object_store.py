"""What pyarrow's file systems lack: to create an object only where none is, and to abort uploads that were left."""

from __future__ import annotations

import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from xmatch.data import files
from xmatch.data.stores import StoreError, open_store, refusal
from xmatch.errors import InputError

ATTEMPTS = 10
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}
GOOGLE = (
    " Google's storage is read by gs://, but results need S3 or a disk that all nodes share. Its S3 interface "
    "(AWS_ENDPOINT_URL_S3=https://storage.googleapis.com, an HMAC key as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "s3://bucket/key) documents If-None-Match for reading alone: a run tries it at its start, and stops where a second "
    "writer is let in."
)


def put_if_absent(path: str, data: bytes) -> bool:
    """Create a file with this content, atomically, unless there is one.

    Args:
        path: local, or s3://bucket/key.
        data: all of it.

    Returns:
        Whether it was created here; false where it was there before, or someone else was first.

    Raises:
        InputError: the place cannot be written.
    """
    if path.startswith("file://"):
        path = files.filesystem_of(path)[1]
    if files.is_uri(path):
        return _put_object(path, data)
    temporary = files.temporary_name(path)
    files.write_bytes(temporary, data)  # flushed to disk before it gets its name
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: who comes second replaces, with equal bytes
        if os.path.exists(path):
            return False
        files.write_bytes(path, data)
    finally:
        os.unlink(temporary)
    files.flush_to_disk(os.path.dirname(path))
    return True


def _put_object(path: str, data: bytes) -> bool:
    bucket, key = split_uri(path)
    try:
        client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in TAKEN:
            return False
        raise refused(path, error) from error
    except BotoCoreError as error:
        raise refused(path, error) from error
    return True


def require_conditional(path: str, data: bytes) -> None:
    """Check that a store refuses to create what is there; some speak S3 and do not know the condition.

    Args:
        path: of a file with this content.
        data: all of it, so that nothing is lost where the store writes it again.

    Raises:
        InputError: it lets a second writer in.
    """
    if put_if_absent(path, data):
        raise InputError(
            f"the store of {path!r} creates what is there already, so that two workers could mix their results. Take a "
            "store that honours If-None-Match: * when an object is put, as S3 does, or a disk that all nodes share."
        )


def abort_uploads(folder: str) -> int:
    """Abort unfinished multipart uploads below an s3:// folder, which cost money unseen; how many there were.

    Whoever still uploads there fails, so this is for the start of a run, before its workers are there.

    Raises:
        InputError: the bucket cannot be read.
    """
    if not files.is_uri(folder) or folder.startswith("file://"):
        return 0
    bucket, prefix = split_uri(folder)
    store, count = client(), 0
    try:
        for page in store.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=prefix.rstrip("/") + "/"
        ):
            for upload in page.get("Uploads", []):
                store.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                count += 1
    except (ClientError, BotoCoreError) as error:
        raise refused(folder, error) from error
    return count


def remove_object(path: str) -> None:
    """Remove an object by the store's own client: pyarrow leaves one where a folder would be.

    Raises:
        InputError: that is not allowed.
    """
    bucket, key = split_uri(path)
    try:
        client().delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise refused(path, error) from error


def split_uri(path: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI.

    Raises:
        InputError: it is no such URI, or holds credentials.
    """
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if path.startswith("s3://") and bucket and "@" not in bucket:
        return bucket, key
    open_store(path)  # says what is wrong with a URI that nothing can be read from either
    hint = GOOGLE if path.startswith(("gs://", "gcs://")) else ""
    raise InputError(f"expected s3://bucket/key, got {path!r}: results need a store that creates conditionally.{hint}")


def client() -> Any:
    """A client with the environment's credentials and endpoint; it tries again what fails for a while."""
    return boto3.client("s3", config=Config(retries={"max_attempts": ATTEMPTS, "mode": "standard"}))


def refused(path: str, error: ClientError | BotoCoreError) -> StoreError:
    """What a store refused through its client, as a reader of data would hear of it."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return refusal(path, code, error.operation_name, str(error))
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return refusal(path, "NoCredentials", "", "")
    if isinstance(error, ConnectionError | HTTPClientError):
        return refusal(path, "NetworkConnection", "", "")
    return refusal(path, "", "", str(error))
