"""Requests of the core, without a tokenizer."""

from __future__ import annotations

from llama4rs._llama4rs import Request


def drain(request: Request) -> list[int]:
    """Token ids of a request, driving the engine until it ends."""
    tokens = []
    while (event := request.next()) is not None:
        if event.token_id is not None:
            tokens.append(event.token_id)
    return tokens
