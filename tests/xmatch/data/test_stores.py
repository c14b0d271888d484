"""What stores say, told as one paragraph; the servers themselves are in tests/jobs/test_s3_rights.py."""

from __future__ import annotations

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmatch.data.stores import REFUSALS, Store, StoreError, open_store, refusal
from xmatch.errors import InputError


def aws(code: str, operation: str, said: str = "No.") -> OSError:
    return OSError(f"When doing a thing in bucket 'b': AWS Error {code} during {operation} operation: {said}")


class Refusing:
    """A file system that refuses a look at a file in one way, and a listing in another."""

    def __init__(self, look: OSError, listing: OSError | None = None) -> None:
        self.look, self.listing = look, listing

    def get_file_info(self, wanted: object) -> object:
        if isinstance(wanted, str):
            raise self.look
        if self.listing is not None:
            raise self.listing
        return []

    def open_input_file(self, inside: str) -> None:
        raise self.look


@pytest.mark.parametrize("code", REFUSALS)
def test_every_known_refusal_is_one_paragraph_that_names_the_place(code: str) -> None:
    text = str(refusal("s3://b/k", code.upper(), "GetObject", "said"))
    assert text.startswith("cannot use 's3://b/k' (")
    assert REFUSALS[code] in text
    assert "\n" not in text


@given(code=st.sampled_from(["ACCESS_DENIED", "AccessDenied", "accessdenied", "Access_Denied"]))
def test_a_code_is_known_in_every_spelling(code: str) -> None:
    assert "no right" in str(refusal("s3://b/k", code, "", ""))


def test_an_unknown_refusal_keeps_the_stores_words_but_no_secret(monkeypatch) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAXYZ", "AWS_SECRET_ACCESS_KEY": "se/cret", "AWS_SESSION_TOKEN": "tok+en"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = str(refusal("s3://b/k", "Odd", "PutObject", "the key AKIAXYZ\n with se/cret and tok+en is odd"))
    assert "the key … with … and … is odd" in text
    assert not any(value in text for value in secrets.values())


def test_the_reason_that_a_head_request_does_not_give_is_asked_for() -> None:
    denied, forged = aws("ACCESS_DENIED", "HeadObject"), aws("SIGNATURE_DOES_NOT_MATCH", "ListObjectsV2")
    for listing, why in ((forged, "secret does not belong"), (None, "no right"), (denied, "no right")):
        with pytest.raises(StoreError, match=why):
            Store(Refusing(denied, listing), "s3").get_file_info("b/k")
    unreachable = aws("NETWORK_CONNECTION", "HeadObject")
    with pytest.raises(StoreError, match="does not answer"):
        Store(Refusing(unreachable, forged), "s3").open_input_file("b/k")


def test_a_code_that_the_client_does_not_know_is_read_from_its_words() -> None:
    error = aws("UNKNOWN (HTTP status 400)", "ListObjectsV2", "Unable to parse ExceptionName: ExpiredToken Message: x")
    with pytest.raises(StoreError, match=r"\(ExpiredToken of ListObjectsV2\): the session token has expired"):
        Store(Refusing(error), "s3").get_file_info("b/k")
    with pytest.raises(StoreError, match="UNAUTHENTICATED"):
        Store(Refusing(OSError("google::cloud::Status(UNAUTHENTICATED: no)")), "gs").get_file_info("b/k")


@pytest.mark.parametrize("uri", ["s3://K:hushhush@b/k", "gs://K:SECRET@b/k", "s4://K:SECRET@b/k"])
def test_a_uri_with_credentials_is_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(InputError, match="credentials before '@'") as refused:
        open_store(uri)
    assert "hushhush" not in str(refused.value)


def test_what_is_no_credential_is_let_through(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert open_store("s3://b/who@where.jpg")[1] == "b/who@where.jpg"
    system, inside = open_store(f"file://{tmp_path}")
    assert isinstance(system, pafs.LocalFileSystem)
    assert inside == str(tmp_path)
