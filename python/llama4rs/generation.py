"""One running request: the core's events in, text and the final `Output` out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import RequestError, option_errors
from .outputs import Output, Timings, TokenLogprob, TopLogprob, Usage
from .progress import Progress
from .stop_strings import StopStrings

if TYPE_CHECKING:
    from ._llama4rs import Engine, Event, Request
    from .encoding import EncodedPrompt
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

__all__ = ["Generation", "run_all"]


class Generation:
    """A submitted prompt and all that has come out of it so far.

    Each call of `advance` waits for one event. One thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        prompt: EncodedPrompt,
        params: SamplingParams,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        skip_special: bool,
    ) -> None:
        if params.stop and tokenizer is None:
            raise RequestError(
                "stop strings need a tokenizer, and this model has none; use stop_token_ids"
            )
        with option_errors():
            self._request: Request = engine.submit(
                prompt.token_ids,
                max_tokens=max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                stop_token_ids=list(stop_token_ids),
                seed=params.chosen_seed(),
                logprobs=params.logprobs,
                image_features=prompt.image_features,
            )
        # A tuple only when it is asked for: there may be millions. A session's array will grow.
        self._prompt = prompt.token_ids[:]
        self._tokenizer = tokenizer
        self.has_tokenizer = tokenizer is not None
        self._decoder = tokenizer.stream_decoder(skip_special=skip_special) if tokenizer else None
        self._stops = StopStrings(params.stop)
        self._stop_token_id: int | None = None
        self._cancelled = False
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        """The new tokens so far, without the stop token."""
        self.done = False
        """Whether the last event has come."""
        self.prefilled = 0
        """Prompt tokens processed so far."""

    def advance(self) -> str | None:
        """Waits for the next event; returns the text that became certain with a new token (often
        ``""``), or None when a part of the prompt was processed or everything is over."""
        if self.done:
            return None
        event = self._request.next()
        if event is None:
            self.done = True
            return self._emit(self._rest())
        self.prefilled = event.prefilled
        ended = event.finish_reason is not None
        if event.token_id is None and not ended:
            return None
        self.done = ended
        text = ""
        if ended and event.finish_reason == "stop":
            self._stop_token_id = event.token_id
        elif event.token_id is not None:
            text = self._take(event.token_id, event)
        if self._stops.found is not None and not self.done:
            self._request.cancel("stop")
            self.done = True
        if self.done:
            text += self._rest()
        return self._emit(text)

    def interrupt(self) -> None:
        """Makes `advance` end soon, from any thread."""
        self._request.cancel()

    def cancel(self) -> None:
        """Ends the request now; what came out so far stays."""
        self._request.cancel()
        if not self.done:
            self.done = True
            self._cancelled = True
            self._emit(self._rest())

    def output(self) -> Output:
        """Everything so far; the final result once `done`."""
        reason = self._request.finish_reason
        if self._stops.found is not None:
            reason = "stop"
        elif self._cancelled:
            reason = "cancelled"  # the core says so only after the step that it is in
        stop_reason = self._stop_token_id if self._stops.found is None else self._stops.found
        usage, timings = self._request.usage, self._request.timings
        text = "".join(self._pieces)
        return Output(
            text=text,
            token_ids=tuple(self.token_ids),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            finish_reason=reason,
            stop_reason=stop_reason,
            usage=Usage(**usage),
            timings=Timings(**{f"{name}_seconds": value for name, value in timings.items()}),
            expert_usage=self._request.expert_usage(),
            prompt_token_ids=self._prompt_ids,
            message={"role": "assistant", "content": text},
        )

    @cached_property
    def _prompt_ids(self) -> tuple[int, ...]:
        return tuple(self._prompt)

    def _emit(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text

    def _take(self, token_id: int, event: Event) -> str:
        self.token_ids.append(token_id)
        if self._logprobs is not None and event.logprob is not None:
            self._logprobs.append(self._logprob(token_id, event.logprob, event.top_logprobs or []))
        return self._stops.push(self._decoder.push(token_id)) if self._decoder else ""

    def _rest(self) -> str:
        """Text still held back when the output ends."""
        tail = self._stops.push(self._decoder.flush()) if self._decoder else ""
        return tail + self._stops.flush()

    def _logprob(
        self, token_id: int, logprob: float, best: Sequence[tuple[int, float]]
    ) -> TokenLogprob:
        def spelled(token_id: int) -> bytes:
            return self._tokenizer.id_to_bytes(token_id) if self._tokenizer else b""

        top = (TopLogprob(i, value, spelled(i).decode("utf-8", "replace")) for i, value in best)
        data = spelled(token_id)
        text = data.decode("utf-8", "replace")
        return TokenLogprob(token_id, logprob, text, bytes=data, top=tuple(top))


def run_all(generations: Sequence[Generation], report: Progress | None) -> None:
    """Runs all requests side by side to their ends."""
    running = list(generations)
    while running:
        for generation in running:
            generation.advance()
        running = [generation for generation in running if not generation.done]
        if report is not None:
            report("prompts", len(generations) - len(running), len(generations))
