"""Iterators over the text of a running request."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .generation import Generation
    from .outputs import Output

__all__ = ["AsyncTextStream", "TextStream"]


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

    def close(self) -> None:
        """Ends the request now, with ``finish_reason`` ``"cancelled"``, and frees its memory. Does
        nothing when it has finished."""
        if self._generation.done:
            return
        self._generation.interrupt()
        with self._lock:
            if not self._generation.done:
                self._generation.cancel()

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


class AsyncTextStream(AsyncIterator[str]):
    """A `TextStream` for ``async for``; the computing happens in a thread, so the event loop stays
    free. Cancelling the task that waits for a piece cancels the request.

    Example:
        >>> import asyncio, llama4rs
        >>> async def story() -> str:
        ...     async with llama4rs.astream("Once upon a time", max_tokens=8) as stream:
        ...         return "".join([piece async for piece in stream])
        >>> text = asyncio.run(story())
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    async def __anext__(self) -> str:
        import asyncio  # a fifth of the time that `import llama4rs` would take

        loop = asyncio.get_running_loop()
        try:
            # An exception of type StopIteration cannot cross a future: end with None.
            piece = await loop.run_in_executor(None, next, self._stream, None)
        except asyncio.CancelledError:
            loop.run_in_executor(None, self._stream.close)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def output(self) -> Output:
        """As `TextStream.output`."""
        return self._stream.output

    async def aclose(self) -> None:
        """As `TextStream.close`."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self._stream.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
