"""`TextStream`: the text of a running request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .generation import Generation
    from .outputs import Output

__all__ = ["TextStream"]


class TextStream(Iterator[str]):
    """The new text of a request, piece by piece, as the model writes it.

    Joined, the pieces are ``output.text``. Pieces are never empty, except for a model without a
    tokenizer, which gives ``""`` once per token. Leaving the loop early cancels the request when
    the stream is closed or garbage collected; use it as a context manager to be sure.

    Example:
        >>> import llama4rs
        >>> stream = llama4rs.stream("Once upon a time", max_tokens=8)
        >>> text = "".join(stream)
        >>> text == stream.output.text
        True
    """

    def __init__(self, generation: Generation, finish: Callable[[Output], Output]) -> None:
        self._generation = generation
        self._finish = finish
        self._final: Output | None = None
        # An async stream that was cancelled may still have a thread in `__next__`.
        self._lock = threading.Lock()

    def __next__(self) -> str:
        with self._lock:
            generation = self._generation
            try:
                while not generation.done:
                    text = generation.advance()
                    if text or (text is not None and not generation.has_tokenizer):
                        return text
            except BaseException:
                generation.cancel()
                raise
        raise StopIteration

    @property
    def output(self) -> Output:
        """The result. While the stream still runs: what there is so far, with ``finish_reason``
        None."""
        if self._final is not None:
            return self._final
        output = self._finish(self._generation.output())
        if self._generation.done:
            self._final = output
        return output

    @property
    def prefilled(self) -> int:
        """Prompt tokens processed so far."""
        return self._generation.prefilled

    def drop(self) -> None:
        """Ends the request soon, from any thread and without waiting; what it made is not
        wanted."""
        self._generation.interrupt()

    def close(self) -> None:
        """Ends the request now, with ``finish_reason`` ``"cancelled"``, and frees its memory. Does
        nothing when it has finished."""
        if self._generation.done:
            return
        self._generation.interrupt()
        with self._lock:
            if not self._generation.done:
                self._generation.cancel()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled or copied: its request runs once")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
