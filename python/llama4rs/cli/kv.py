"""``llama4rs kv``: directories of keys and values (``kv_dir``), and the sessions in them."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RequestError
from ..planning.budget import parse_bytes
from ..planning.tokens import token_count
from ..progress import progress_bar
from ..session_files import SessionFiles
from ..summary import byte_count, table_text
from .options import Json
from .reporting import reported, warn
from .terminal import print_json

__all__ = ["app"]

app = typer.Typer(help="Look after a directory of keys and values (kv_dir).", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="What a model was opened with as kv_dir.")]

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@app.command("list")
@reported
def list_files(directory: Directory, json: Json = False) -> None:
    """Show what is there: sessions, and files of keys and values, what was used last first.

    Example:

        llama4rs kv list ~/kv
    """
    from .._llama4rs import kv_list

    files = kv_list(directory)
    sessions = SessionFiles(directory / "sessions").list()
    if json:
        print_json({"sessions": [vars(info) for info in sessions], "files": files})
        return
    if sessions:
        rows = [["session", "tokens", "size", "saved", ""]]
        for info in sessions:
            size, when = byte_count(info.bytes), _date(info.saved)
            rows.append([info.name, f"{info.tokens:,}", size, when, info.problem or ""])
        print(table_text(rows, right=(1, 2)) + "\n")
    rows = [["file", "model", "layers", "from token", "tokens", "size", "used", ""]]
    for file in files:
        model = (file["fingerprint"] or "")[:8]
        place = [file["layers"], token_count(file["start"]), token_count(file["tokens"])]
        when, problem = _date(file["used"]), file["problem"] or ""
        rows.append([file["file"], model, *place, byte_count(file["bytes"]), when, problem])
    if files:
        print(table_text(rows, right=(3, 4, 5)))
    total = byte_count(sum(file["bytes"] for file in files))
    print(f"{len(files)} files, {total}, {len(sessions)} sessions")


@app.command("verify")
@reported
def verify(directory: Directory, json: Json = False) -> None:
    """Read everything and compare all checksums. Nothing is changed.

    Example:

        llama4rs kv verify ~/kv
    """
    from .._llama4rs import kv_verify

    with progress_bar(sys.stderr.isatty()) as report:
        found = kv_verify(directory, progress=report)
    sessions = SessionFiles(directory / "sessions").list()
    problems = [(str(file), str(problem)) for file, problem in found["problems"]]
    problems += [(info.name, info.problem) for info in sessions if info.problem]
    if json:
        print_json({**found, "sessions": len(sessions), "problems": problems})
    else:
        for name, problem in problems:
            warn(f"{name}: {problem}")
        state = f"{len(problems)} problems in" if problems else "intact:"
        print(
            f"{state} {found['files']} files, {found['pages']:,} pages, "
            f"{byte_count(found['bytes'])}, {len(sessions)} sessions"
        )
    if problems:
        raise typer.Exit(1)


@app.command("prune")
@reported
def prune(
    directory: Directory,
    budget: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Keep so much of what was used last, such as 20GB."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Remove what was not used for so long: 30d, 12h."),
    ] = None,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Remove files that cannot be used.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove keys and values that were not used for longest. Sessions stay: they are computed
    again when they are used.

    Example:

        llama4rs kv prune ~/kv --budget 20GB --older-than 30d
    """
    from .._llama4rs import kv_prune

    options: dict[str, Any] = {"damaged": damaged}
    if budget is not None:
        options["budget_bytes"] = parse_bytes("--budget", budget, least=0)
    if older_than is not None:
        options["older_than"] = _duration(older_than)
    removed = kv_prune(directory, **options)
    if json:
        print_json(removed)
    else:
        print(f"removed {removed['files']} files, {byte_count(removed['bytes'])}")


def _duration(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", text)
    if match is None:
        raise RequestError(f"--older-than takes a time such as 30d, 12h or 90m, got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
