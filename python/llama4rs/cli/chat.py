"""``llama4rs chat``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..errors import Llama4Error
from ..llm import Llama4
from .options import (
    MODEL_HELP,
    Device,
    Image,
    Json,
    KvCache,
    KvDir,
    KvMemory,
    LocalFilesOnly,
    MaxContext,
    MaxTokens,
    MinP,
    RepetitionPenalty,
    Revision,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    Weights,
    open_model,
)
from .reporting import fail, reported
from .terminal import print_json, print_statistics, write_piece

__all__ = ["chat"]

_COMMANDS = (
    "/image FILE shows a picture with the next message, /reset forgets the conversation, "
    "/exit (or Ctrl-D) leaves, Ctrl-C stops an answer."
)


@reported
def chat(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    image: Image = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = 0,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
    max_context: MaxContext = None,
    kv_cache: KvCache = None,
    kv_memory: KvMemory = None,
    kv_dir: KvDir = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> None:
    """Talk to a model.

    Each line is a message. /image FILE shows a picture with the next one, /reset forgets the
    conversation, /exit leaves, Ctrl-C stops an answer.
    From a pipe, each line of standard input is a message, and only the answers are printed.

    Examples:

        llama4rs chat

        llama4rs chat scout-int4 --system "You answer in one sentence."

        llama4rs chat scout-int4 --image cat.png

        echo "Tell me a story." | llama4rs chat --json
    """
    llm = open_model(
        model,
        weights=weights,
        device=device,
        threads=threads,
        max_context=max_context,
        kv_cache=kv_cache,
        kv_memory=kv_memory,
        kv_dir=kv_dir,
        revision=revision,
        local_files_only=local_files_only,
    )
    conversation = _Conversation(
        llm,
        system,
        {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "stop": stop or None,
            "seed": seed,
        },
        json=json,
    )
    for file in image or ():
        conversation.show(file)
    if sys.stdin.isatty():
        _talk(conversation)
        return
    for line in sys.stdin:
        conversation.take(line.strip())
        if conversation.over:
            break


class _Conversation:
    """The messages so far, and what each line of input does to them."""

    def __init__(
        self, llm: Llama4, system: str | None, options: Mapping[str, Any], *, json: bool
    ) -> None:
        self._llm = llm
        self._options = options
        self._json = json
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, Any]] = [*self._beginning]
        self._images: list[Any] = []
        self.over = False

    def take(self, line: str) -> None:
        """Answers a message, or does what a command says."""
        if line in ("/exit", "/quit"):
            self.over = True
        elif line == "/reset":
            self._messages = [*self._beginning]
            self._images = []
        elif line.startswith("/image "):
            self._try_to_show(line.removeprefix("/image ").strip())
        elif line == "/help":
            print(_COMMANDS, file=sys.stderr)
        elif line.startswith("/") and " " not in line and "/" not in line[1:]:
            print(f"unknown command {line}. {_COMMANDS}", file=sys.stderr)
        elif line:
            self._answer(line)

    def show(self, file: str) -> None:
        """Puts a picture before the next message."""
        from ..images import load_image

        picture = load_image(file)
        plan = self._llm.plan_image(*picture.size)
        self._images.append(picture)
        if sys.stdin.isatty():
            print(
                f"{file}: {plan.width} x {plan.height} pixels, {plan.num_tiles} tiles, "
                f"{plan.num_tokens} tokens",
                file=sys.stderr,
            )

    def _try_to_show(self, file: str) -> None:
        try:
            self.show(file)
        except Llama4Error as error:
            fail(error)

    def _answer(self, line: str) -> None:
        pictures = [{"type": "image", "image": image} for image in self._images]
        content = [*pictures, {"type": "text", "text": line}]
        messages = [*self._messages, {"role": "user", "content": content}]
        self._images = []
        stream = self._llm.chat_stream(messages, **self._options)
        for piece in stream:
            if not self._json:
                write_piece(piece)
        output = stream.output
        if self._json:
            print_json(output.to_dict(), indent=None)
        else:
            write_piece("\n")
            print_statistics(output)
        # Only a complete exchange is remembered.
        self._messages = [*messages, output.message]


def _talk(conversation: _Conversation) -> None:
    """Reads lines from a person until the conversation is over."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history in `input`)
    print(_COMMANDS, file=sys.stderr)
    while not conversation.over:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        try:
            conversation.take(line)
        except KeyboardInterrupt:
            print("\n(stopped; the exchange is forgotten)", file=sys.stderr)
        except Llama4Error as error:
            fail(error)
            print("/reset starts again with an empty context.", file=sys.stderr)
