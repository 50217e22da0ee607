"""Progress bars, shown only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from .errors import shown

__all__ = ["Progress", "progress_bar"]

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called as ``progress(what, done, total)``; may raise to interrupt the work."""


@contextmanager
def progress_bar(progress: Progress | bool) -> Iterator[Progress | None]:
    """What to report to: the given function, a bar on the terminal for True, None for False.

    The bar goes to standard error and disappears when the work is over.

    Raises:
        TypeError: It is none of these.
    """
    if not isinstance(progress, bool):
        if not callable(progress):
            raise TypeError(f"progress is True, False or a function, got {shown(progress)}")
        yield progress
        return
    if not progress:
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    bar = rich_progress.Progress(
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None)

    def update(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)

    with bar:
        yield update
