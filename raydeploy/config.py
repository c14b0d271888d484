"""From command line and YAML to one typed, frozen configuration, and back."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jsonargparse
import yaml

from xmatch.errors import InputError

C = TypeVar("C")


@dataclass(frozen=True)
class Loaded(Generic[C]):
    """A job's configuration and what to do with it."""

    config: C
    plan_only: bool
    print_only: bool


def load_config(config_class: type[C], argv: Sequence[str] | None, *, name: str, description: str) -> Loaded[C]:
    """The configuration of a job: defaults, then YAML, then overrides.

    Args:
        config_class: a frozen dataclass; its field docstrings are the help.
        argv: arguments; None takes the process's own.
        name: of the job, for the usage line.
        description: what `--help` says first.

    Raises:
        InputError: an argument or key is unknown (names the nearest real one), missing, or of the wrong type.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(config_class, name, description)
    try:
        values = parser.parse_args(arguments)
        for flag in ("config",):
            values.pop(flag, None)
        plan_only, print_only = values.pop("plan"), values.pop("print-config")
        built = parser.instantiate(values)
        config = config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    except jsonargparse.ArgumentError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise InputError(str(cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise InputError(explain(str(error), known_keys(parser), name)) from error
    return Loaded(config, plan_only, print_only)


def build_parser(config_class: type[Any], name: str, description: str) -> jsonargparse.ArgumentParser:
    """The parser of a job's configuration."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"python jobs/{name}.py",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; later arguments override it.")
    parser.add_argument("--plan", action="store_true", help="Say what the run would do, and stop.")
    parser.add_argument("--print-config", dest="print-config", action="store_true", help="Print the settings as YAML.")
    parser.add_class_arguments(config_class)
    return parser


def known_keys(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Every dotted key the parser accepts."""
    return sorted({action.dest for action in parser._actions if action.dest not in ("help", "plan", "print-config")})


def explain(message: str, keys: Sequence[str], name: str) -> str:
    """A parser's message as a paragraph that names the nearest real key."""
    message = " ".join(message.split())
    unknown = re.findall(r"--([\w.\-]+)", message) if "unrecognized" in message else []
    unknown += re.findall(r"Option '([\w.\-]+)' is not accepted", message)
    grouped = re.search(r"Group '([\w.]+)' does not accept option '([\w.\-]+)'", message)
    unknown += [f"{grouped[1]}.{grouped[2]}"] if grouped else []
    if not unknown:
        return f"{message}. See python jobs/{name}.py --help." if not message.endswith(".") else message
    near = difflib.get_close_matches(unknown[0], keys, n=1, cutoff=0.0)
    return f"unknown setting {unknown[0]!r}; did you mean {near[0]!r}? See python jobs/{name}.py --help."


def to_plain(config: Any) -> Any:
    """A configuration as plain values: dicts, lists, numbers, strings."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def config_hash(values: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
