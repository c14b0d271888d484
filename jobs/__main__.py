"""List the jobs, a line each, read from their files without importing them."""

from __future__ import annotations

import ast
from pathlib import Path


def job_lines() -> list[tuple[str, str]]:
    """(name, first line of its docstring) of every job."""
    found = []
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found.append((path.stem, doc.split("\n")[0]))
    return found


def main() -> None:
    """Print the list."""
    lines = job_lines()
    width = max(len(name) for name, _ in lines)
    for name, doc in lines:
        print(f"python jobs/{name}.py{' ' * (width - len(name))}  {doc}")
    print("\nEach explains its settings with --help, and says what it would do with --plan.")


if __name__ == "__main__":
    main()
