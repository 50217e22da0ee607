"""From an encoded prompt and options to a running request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import RequestError, shown
from .generation import Generation
from .sampling import DEFAULT_MAX_TOKENS, SamplingParams

if TYPE_CHECKING:
    from ._llama4rs import Engine
    from .config import Config
    from .encoding import EncodedPrompt
    from .sampling import SamplingOptions
    from .tokenizer import Tokenizer

__all__ = ["Submitter", "chosen_params"]


class Submitter:
    """Submits the requests of one model. Safe to use from many threads."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None, config: Config) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        configured = config.get("eos_token_id")
        self._eos_ids = {configured} if isinstance(configured, int) else {*(configured or ())}
        self._eos_ids.update(tokenizer.eos_ids if tokenizer else ())

    def submit(
        self, prompt: EncodedPrompt, params: SamplingParams, *, skip_special: bool
    ) -> Generation:
        """Queues a prompt.

        Raises:
            RequestError: The prompt is empty or too long, or an option is out of range.
            OutOfMemoryError: Prompt and output can never fit.
        """
        num_tokens = len(prompt.token_ids)
        room = self._engine.max_context - num_tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {num_tokens} tokens and the context holds "
                f"{self._engine.max_context}, output included\nhint: shorten it, or open the model "
                "with a larger max_context"
            )
        own = set() if params.ignore_eos else self._eos_ids
        return Generation(
            self._engine,
            self._tokenizer,
            prompt,
            params,
            max_tokens=min(params.max_tokens or DEFAULT_MAX_TOKENS, room),
            stop_token_ids=sorted(own.union(params.stop_token_ids)),
            skip_special=skip_special,
        )


def chosen_params(
    params: SamplingParams | None, defaults: SamplingParams, options: SamplingOptions
) -> SamplingParams:
    """The options of a request: `params`, or `defaults`, with single options changed.

    Raises:
        TypeError: `params` is something else, or an option is unknown.
        RequestError: A value is out of range.
    """
    if params is None:
        params = defaults
    elif not isinstance(params, SamplingParams):
        raise TypeError(
            f"the second argument is a SamplingParams, got {shown(params)}; give single options by "
            "name, such as max_tokens=50"
        )
    return params.with_options(**options)
