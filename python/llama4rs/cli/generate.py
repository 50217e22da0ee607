"""``llama4rs generate``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..chat_template import IMAGE_TOKEN
from ..errors import RequestError
from .options import (
    MODEL_HELP,
    Device,
    IgnoreEos,
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
from .reporting import reported
from .terminal import print_json, print_statistics, write_piece

__all__ = ["generate"]


@reported
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to go on with; '-' or nothing reads standard input."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=MODEL_HELP)] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message, not raw text.")
    ] = False,
    image: Image = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    seed: Seed = 0,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="With --json: log probabilities, and those of this many more."),
    ] = None,
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
    """Continue a text, or answer one message.

    A raw prompt may hold special tokens such as <|eot|>; the text appears while it is written.
    With --image the prompt is a user's message, too, unless it marks with <|image|> where each
    picture stands.

    Examples:

        llama4rs generate "Once upon a time"

        llama4rs generate --chat "Tell me a story." --temperature 0 --json

        llama4rs generate --image cat.png "What is this?" -m scout-int4

        cat notes.txt | llama4rs generate -m scout-int4 -n 200 --stop "###"
    """
    text = _read_prompt(prompt)
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
    is_message = chat or (image and IMAGE_TOKEN not in text)
    answer = llm.chat_stream if is_message else llm.stream
    stream = answer(
        text,
        images=image or None,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
        ignore_eos=ignore_eos,
        seed=seed,
        logprobs=logprobs,
    )
    for piece in stream:
        if not json:
            write_piece(piece)
    if json:
        print_json(stream.output.to_dict())
        return
    write_piece("\n")
    print_statistics(stream.output)


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise RequestError(
            'no prompt\nhint: llama4rs generate "Once upon a time", or pipe a text into it'
        )
    return sys.stdin.read()
