"""What a request gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Output", "Timings", "TokenLogprob", "TopLogprob", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one request.

    Attributes:
        prompt_tokens: Tokens of the prompt, BOS and chat format included.
        completion_tokens: Tokens that the model made, the stop token included.
        cached_tokens: Prompt tokens that were not computed again, because another request began
            with the same ones.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went, in seconds of wall time.

    Attributes:
        queue_seconds: Waiting for its turn.
        prefill_seconds: Reading the prompt, up to and including the first new token.
        decode_seconds: From the first new token to the last.
    """

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def total_seconds(self) -> float:
        """The sum of the three."""
        return self.queue_seconds + self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True)
class TopLogprob:
    """One of the most probable tokens at some position.

    Attributes:
        token_id: Its id.
        logprob: Natural log of its probability under the model's own distribution (temperature 1,
            nothing filtered).
        text: Its text; U+FFFD where the token is a part of a character. Empty without a tokenizer.
    """

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class TokenLogprob(TopLogprob):
    """A token of the output with its log probability.

    Attributes:
        bytes: The bytes that the token stands for. Empty without a tokenizer.
        top: The most probable tokens at this position, best first; as many as ``logprobs`` asked
            for. The chosen token need not be among them.
    """

    bytes: bytes
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True)
class Output:
    """The result of one prompt. ``str(output)`` is its text.

    Attributes:
        text: The new text, without stop token and stop string, special tokens left out. Always
            ``""`` for a checkpoint that has no tokenizer.
        token_ids: The new tokens, without the stop token. After a stop string these are all
            tokens up to the one that completed it.
        logprobs: One entry per token of `token_ids`, or None when not asked for.
        finish_reason: ``"stop"`` (stop token or stop string), ``"length"`` (`max_tokens` or the
            context is full) or ``"cancelled"``. None while a stream still runs.
        stop_reason: The token id or the string that stopped it, else None.
        usage: Token counts.
        timings: Seconds spent.
        expert_usage: How many of this request's tokens each expert computed, ``uint64
            [layers, experts]``. Dense layers are all zero; ``[layers, 0]`` for a model without
            experts.
        prompt_token_ids: The prompt as the model saw it.
        message: The text as a message to be appended to a conversation, ``{"role": "assistant",
            "content": ...}``; with ``"tool_calls"`` when the model called tools.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: str | None
    stop_reason: int | str | None
    usage: Usage
    timings: Timings
    expert_usage: npt.NDArray[np.uint64] = field(repr=False, compare=False)
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    message: dict[str, Any]

    def __str__(self) -> str:
        return self.text

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls in `message`, in the OpenAI form; empty when there are none."""
        return list(self.message.get("tool_calls", ()))

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0 where nothing was timed."""
        computed = self.usage.prompt_tokens - self.usage.cached_tokens
        return _rate(computed, self.timings.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first new token; 0 when there was only one."""
        return _rate(self.usage.completion_tokens - 1, self.timings.decode_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that ``json.dumps`` takes; bytes become lists of integers.

        Example:
            >>> import json, llama4rs
            >>> output = llama4rs.generate("Once upon a time", max_tokens=4)
            >>> json.loads(json.dumps(output.to_dict()))["finish_reason"]
            'length'
        """
        values = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        logprobs = None
        if self.logprobs is not None:
            logprobs = [{**asdict(entry), "bytes": list(entry.bytes)} for entry in self.logprobs]
        usage: Mapping[str, int] = {**asdict(self.usage), "total_tokens": self.usage.total_tokens}
        timings = {
            **asdict(self.timings),
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }
        return {
            **values,
            "token_ids": list(self.token_ids),
            "prompt_token_ids": list(self.prompt_token_ids),
            "logprobs": logprobs,
            "usage": usage,
            "timings": timings,
            "expert_usage": self.expert_usage.tolist(),
        }


_PLAIN_FIELDS = ("text", "finish_reason", "stop_reason", "message")


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
