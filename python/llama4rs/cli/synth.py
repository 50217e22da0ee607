"""``llama4rs synth``: a random model to measure with."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from ..summary import byte_count, groups_text, tensor_groups
from ..synth import synth as synth_model
from .options import Json, Threads
from .reporting import reported
from .terminal import print_json

__all__ = ["synth"]


@reported
def synth(
    destination: Annotated[str, typer.Argument(help="Directory to make.")],
    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            metavar="SHAPE",
            help="tiny, edge, scout, scout-layers=N or maverick-layers=N.",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option("--weights", "-w", metavar="FORMAT", help="int4, int8, bf16 or f32."),
    ] = "int4",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace DESTINATION.")] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write a model of random weights in packed form, to measure with.

    Its speed is that of a trained model, its text is noise, and it has no tokenizer.

    Examples:

        llama4rs synth edge-int4 --shape edge

        llama4rs synth scout-4 --shape scout-layers=4 --weights int4/g32
    """
    started = time.perf_counter()
    report = synth_model(
        destination,
        shape=shape,
        weights=weights,
        seed=seed,
        threads=threads,
        force=force,
        progress=sys.stderr.isatty(),
    )
    seconds = time.perf_counter() - started
    if json:
        print_json(report)
        return
    print(groups_text(tensor_groups(report["tensors"])))
    rate = byte_count(int(report["bytes"] / seconds))
    print(f"\n{destination}: {byte_count(report['bytes'])} in {seconds:.1f} s ({rate}/s)")
