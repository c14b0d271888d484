"""Environment of Ray's native code, which reads it when `ray` is first imported; `raydeploy` sets it before that."""

from __future__ import annotations

import os
import secrets

SUBMISSION_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the driver of a submitted job."""

QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No usage reports, one voice, quick notice of a lost worker, workers in the folder of the job (for relative paths)."""


def is_submitted() -> bool:
    """Whether this process is the driver of a job submitted to a cluster."""
    return SUBMISSION_MARK in os.environ


def joins_a_cluster() -> bool:
    """Whether this process belongs to a running cluster: submitted to it, pointed at it, or a worker of it."""
    return is_submitted() or "RAY_ADDRESS" in os.environ or "RAY_RAYLET_PID" in os.environ


def prepare_environment() -> None:
    """Set what is not set yet.

    Ray's ports listen beyond loopback, so an embedded Ray gets a token that only this process and its children have.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not joins_a_cluster() and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
