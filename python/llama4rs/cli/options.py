"""Options that several commands share, and the model that they describe."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from ..llm import Llama4

__all__ = [
    "MODEL_HELP",
    "Device",
    "Json",
    "KvCache",
    "LocalFilesOnly",
    "LogLevel",
    "MaxContext",
    "MaxTokens",
    "MinP",
    "RepetitionPenalty",
    "Revision",
    "Seed",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "Weights",
    "open_model",
]

MODEL_HELP = "Model directory or Hugging Face id; the demo model if left out."

_SAMPLING = "Sampling"
_MODEL = "Model"

MaxTokens = Annotated[
    Optional[int], typer.Option("--max-tokens", "-n", help="Most new tokens.", min=1, rich_help_panel=_SAMPLING)
]
