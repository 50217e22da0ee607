"""The ``llama4rs`` command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line in ``sys.argv`` and exits.

    Exit codes: 0 done, 1 an error of input or model, 2 wrong usage, 130 interrupted.
    """
    try:
        from .app import app
    except ImportError as error:
        if error.name not in ("rich", "typer"):
            raise
        print(
            f"error: the command line needs {error.name}\nhint: pip install rich typer",
            file=sys.stderr,
        )
        sys.exit(1)
    app(prog_name="llama4rs")
