"""Texts that share beginnings, and what a model says after them: for tests of stored pages."""

from __future__ import annotations

from typing import Any

from llama4rs._llama4rs import Engine
from oracle.configs import TEXT

PAGE = 64
CHUNK = 256
CONFIG = TEXT["scout_like"] | {"attention_chunk_size": CHUNK}
VOCAB: int = CONFIG["vocab_size"]

Answer = list[tuple[int, float, tuple[tuple[int, float], ...]]]


def tokens(branches: str, length: int) -> list[int]:
    """`length` tokens; letter `i` of `branches` decides about 90 of them from `90 i` on, the last
    letter about all that follow."""
    letters = [ord(branches[min(i // 90, len(branches) - 1)]) for i in range(length)]
    return [(i * i * 7 + i * 3 + letter * 31) % VOCAB for i, letter in enumerate(letters)]


def ask(engine: Engine, ids: list[int], max_tokens: int = 2) -> tuple[Answer, int]:
    """The next tokens with the log probabilities of the whole vocabulary, and how many tokens of
    the prompt were known."""
    request = engine.submit(ids, max_tokens=max_tokens, logprobs=VOCAB)
    answer: Answer = []
    while (event := request.next()) is not None:
        if event.token_id is not None:
            assert event.logprob is not None and event.top_logprobs is not None
            answer.append((event.token_id, event.logprob, tuple(event.top_logprobs)))
    return answer, request.usage["cached_tokens"]


class Reference:
    """An engine that stores nothing, and what it said."""

    def __init__(self, path: str, **options: Any) -> None:
        self._engine = Engine(path, threads=1, prefix_cache_bytes=0, **options)
        self._answers: dict[tuple[tuple[int, ...], int], Answer] = {}

    def ask(self, ids: list[int], max_tokens: int = 2) -> Answer:
        key = tuple(ids), max_tokens
        if key not in self._answers:
            self._answers[key] = ask(self._engine, ids, max_tokens)[0]
        return self._answers[key]
