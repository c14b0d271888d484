"""Tell the state of a run from its folder, local or s3://, without Ray."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from raydeploy.run import show_rows
from raydeploy.status import read_state, state_rows
from xmatch.errors import InputError

EXIT_CODES = {"finished": 0, "running": 0, "failed": 1, "interrupted": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; 0 where all runs are finished or running, 1 where one failed or was interrupted, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="status", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a job, local or s3://")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run instead of a table")
    arguments = parser.parse_args(argv)
    console, code = Console(soft_wrap=True), 0
    for run in arguments.runs:
        try:
            found = read_state(run)
        except InputError as error:
            Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"error: {error}")
            return 2
        if arguments.json:
            sys.stdout.write(json.dumps({"run": run, **found._asdict()}) + "\n")
        else:
            show_rows(console, run, state_rows(found))
        code = max(code, EXIT_CODES[found.state])
    return code


if __name__ == "__main__":
    sys.exit(main())
