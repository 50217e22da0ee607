"""``llama4rs demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Seed, Threads, open_model
from .reporting import reported

__all__ = ["demo"]


@reported
def demo(
    seed: Seed = 0,
    passkey_tokens: Annotated[
        int, typer.Option(min=60, help="Length of the text that a number is hidden in.")
    ] = 1500,
    threads: Threads = None,
) -> None:
    """Show what the engine does, with the tiny model that comes with it.

    Takes some seconds and needs no network.

    Example:

        llama4rs demo --seed 7
    """
    from rich.console import Console

    from ..demo import run

    run(open_model(None, threads=threads), Console(), seed=seed, passkey_tokens=passkey_tokens)
