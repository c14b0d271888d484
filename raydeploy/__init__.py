"""Ray, and what makes a run resumable: the only package that imports `ray`."""

from raydeploy.environment import prepare_environment

prepare_environment()
