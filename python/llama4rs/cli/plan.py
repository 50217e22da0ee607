"""``llama4rs plan``: what a model needs on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import RequestError
from ..plan import plan as plan_model
from .options import Json, KvMemory, Threads
from .reporting import reported
from .terminal import print_json

__all__ = ["plan"]


@reported
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Model directory, config.json, or the id of a model that was downloaded; "
            "the demo model if left out."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A published model by name: scout or maverick."),
    ] = None,
    context: Annotated[
        str, typer.Option(metavar="TOKENS", help="Prompt and output of a sequence: 8192, 128K, 1M.")
    ] = "8K",
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences that run at the same time.")
    ] = 1,
    images: Annotated[int, typer.Option(min=0, metavar="N", help="Images of each sequence.")] = 0,
    image_size: Annotated[
        str, typer.Option(metavar="WxH", help="Pixels of each image.")
    ] = "1024x1024",
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", metavar="FORMAT", help="int4, int8, bf16, int4/g32..."),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv", "--kv-cache", metavar="FORMAT", help="Keys and values: bf16, int8, int4, f32."
        ),
    ] = None,
    kv_memory: KvMemory = None,
    threads: Threads = None,
    probe: Annotated[
        bool,
        typer.Option(help="Time this machine's kernels, half a second or so, to predict speed."),
    ] = True,
    json: Json = False,
) -> None:
    """Say what a model needs before it is opened: memory, disk, time.

    Reads headers only, and for a preset nothing at all. 1K is 1024 tokens, 1M is 1024K.

    Examples:

        llama4rs plan scout-int4 --context 128K --batch 4

        llama4rs plan --preset maverick --context 1M --images 2 --json
    """
    if model is not None and preset is not None:
        raise RequestError("give a model or a --preset, not both")
    if preset is not None:
        from ..presets import preset_config

        preset_config(preset)  # an unknown name is an error here
    result = plan_model(
        preset or model,
        context=context,
        batch=batch,
        images=images,
        image_size=_pixels(image_size),
        weights=weights,
        kv_cache=kv,
        kv_memory=kv_memory,
        threads=threads,
        probe=probe,
    )
    if json:
        print_json(result.to_dict())
    else:
        print(result)


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise RequestError(f"--image-size takes WIDTHxHEIGHT such as 1024x768, got {text!r}")
    return int(width), int(height)
