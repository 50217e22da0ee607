"""Options that several commands share, and the model that they describe."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from ..llm import Llama4
from .reporting import warn

MODEL_HELP = "Model directory or Hugging Face id; the demo model if left out."

_sampling = partial(typer.Option, rich_help_panel="Sampling")
_model = partial(typer.Option, rich_help_panel="Model")

MaxTokens = Annotated[
    int | None, _sampling("--max-tokens", "-n", min=1, help="Most new tokens. [default: 4096]")
]
Temperature = Annotated[
    float | None,
    _sampling("--temperature", "-t", min=0, help="0 always takes the most probable token."),
]
TopP = Annotated[
    float | None, _sampling(max=1, help="Sample from the best tokens of this total probability.")
]
TopK = Annotated[int | None, _sampling(min=0, help="Sample from this many of the best tokens.")]
MinP = Annotated[
    float | None, _sampling(min=0, max=1, help="Drop tokens below this share of the best one's.")
]
RepetitionPenalty = Annotated[
    float | None, _sampling(help="Above 1: repeat less of what was there before.")
]
Stop = Annotated[
    list[str] | None, _sampling("--stop", metavar="TEXT", help="End before TEXT. May be repeated.")
]
IgnoreEos = Annotated[
    bool, _sampling("--ignore-eos", help="Go on after the model's own end of the text.")
]
Seed = Annotated[int, _sampling("--seed", "-s", min=0, help="Same seed, same text.")]

Weights = Annotated[
    str | None,
    _model("--weights", "-w", metavar="FORMAT", help="Convert while reading: int4, int8, bf16..."),
]
Device = Annotated[str, _model(help="What computes: auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, _model(min=1, help="Threads. [default: all cores]")]
MaxContext = Annotated[int | None, _model(min=1, help="Most tokens of prompt and output together.")]
KvCache = Annotated[
    str | None, _model(metavar="FORMAT", help="Keys and values: bf16, int8, int4 or f32.")
]
KvMemory = Annotated[
    str | None, _model(metavar="BYTES", help="Most memory for keys and values, such as 8GB.")
]
KvDir = Annotated[
    str | None, _model(metavar="DIR", help="Keep keys and values in DIR, for later runs, too.")
]
Revision = Annotated[
    str | None, _model(metavar="NAME", help="Branch, tag or commit of a model on the hub.")
]
LocalFilesOnly = Annotated[bool, _model("--local-files-only", help="Never use the network.")]

Image = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="FILE", help="A picture to show first. May be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_model(model: str | None, **options: Any) -> Llama4:
    """Opens a model; a progress bar shows on a terminal, remarks go to standard error."""
    llm = Llama4(model, progress=sys.stderr.isatty(), **options)
    for remark in llm.warnings:
        warn(remark)
    return llm
