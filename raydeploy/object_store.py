"""What pyarrow's file systems lack: to create an object only where none is, and to abort uploads that were left."""

from __future__ import annotations

import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from xmatch.data import files
from xmatch.errors import InputError

ATTEMPTS = 10
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}


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
        raise InputError(_said(path, error)) from error
    except BotoCoreError as error:
        raise InputError(_said(path, error)) from error
    return True


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
        raise InputError(_said(folder, error)) from error
    return count


def split_uri(path: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI.

    Raises:
        InputError: it is no such URI.
    """
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if not path.startswith("s3://") or not bucket:
        raise InputError(f"expected s3://bucket/key, got {path!r}: results need a store that can create conditionally.")
    return bucket, key


def client() -> Any:
    """A client with the environment's credentials and endpoint; it tries again what fails for a while."""
    return boto3.client("s3", config=Config(retries={"max_attempts": ATTEMPTS, "mode": "standard"}))


def _said(path: str, error: Exception) -> str:
    return f"cannot write {path!r}: {error}. Check the bucket's name, your rights and credentials, and the network."
