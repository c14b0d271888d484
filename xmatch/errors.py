"""The one error that a user of the tools is meant to read."""

from __future__ import annotations


class InputError(Exception):
    """Bad data or configuration that the caller can mend.

    The message is a single paragraph: what was expected, what came, where (path, line or row), and how to mend it.
    Jobs print it without a traceback and exit with 2; every other exception is a defect of ours.
    """
