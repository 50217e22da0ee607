"""Run Meta's Llama 4 models.

>>> import llama4rs
>>> output = llama4rs.generate("Once upon a time", max_tokens=50)  # the tiny model in the package
>>> llm = llama4rs.Llama4()  # or Llama4("meta-llama/Llama-4-Scout-17B-16E-Instruct")
>>> answer = llm.chat("Tell me a story.", max_tokens=50)

`Llama4` opens a model, `Output` is what it gives back, `SamplingParams` says how. `pack` makes a
directory that opens at once, `verify` checks it, `warm` reads it into the page cache, `plan` says
what a model needs. Every error is a `Llama4Error`. On the command line the same things are
``llama4rs generate``, ``chat``, ``pack``, ``plan``, ``info``, ``verify``, ``warm`` and ``demo``.
"""

from __future__ import annotations

from .asynchronous import AsyncTextStream
from .chat_template import ChatTemplate
from .config import Config
from .default_model import astream, chat, default_model, generate, stream
from .errors import (
    ChatTemplateError,
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    ImageError,
    Llama4Error,
    OutOfMemoryError,
    PackError,
    RequestError,
    SessionError,
    TokenizerError,
)
from .llm import Llama4
from .outputs import Output, Timings, TokenLogprob, TopLogprob, Usage
from .packing import inspect, pack, verify
from .plan import Plan, plan
from .sampling import SamplingParams
from .session import Session, SessionInfo
from .streaming import TextStream
from .tokenizer import Tokenizer
from .tool_calls import ToolCall, parse_tool_calls
from .warming import warm

__all__ = [
    "AsyncTextStream",
    "ChatTemplate",
    "ChatTemplateError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Config",
    "DeviceError",
    "ImageError",
    "Llama4",
    "Llama4Error",
    "OutOfMemoryError",
    "Output",
    "PackError",
    "Plan",
    "RequestError",
    "SamplingParams",
    "Session",
    "SessionError",
    "SessionInfo",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "TopLogprob",
    "Usage",
    "__version__",
    "astream",
    "chat",
    "default_model",
    "generate",
    "inspect",
    "pack",
    "parse_tool_calls",
    "plan",
    "stream",
    "verify",
    "warm",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from ._llama4rs import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
