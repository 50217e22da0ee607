"""Iterators over the text of a running request."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._llama4rs import Request
    from .generation import Generation
    from .outputs import Output

__all__ = ["AsyncTextStream", "Interruption", "TextStream", "in_thread"]

Result = TypeVar("Result")


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
    """A `TextStream` for ``async for``. Encoding the prompt and computing happen in threads, so the
    event loop stays free; errors in the prompt come with the first piece. Cancelling the task that
    waits for a piece cancels the request.

    Example:
        >>> import asyncio, llama4rs
        >>> async def story() -> str:
        ...     async with llama4rs.astream("Once upon a time", max_tokens=8) as stream:
        ...         return "".join([piece async for piece in stream])
        >>> text = asyncio.run(story())
    """

    def __init__(self, open_stream: Callable[[], TextStream]) -> None:
        self._open = open_stream
        self._stream: TextStream | None = None
        self._lock = threading.Lock()  # one thread opens, the others wait for it

    async def __anext__(self) -> str:
        # An exception of type StopIteration cannot cross a future: end with None.
        piece = await self._in_thread(lambda: next(self._opened(), None))
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def output(self) -> Output:
        """As `TextStream.output`. Before the first piece was asked for, this opens the stream."""
        return self._opened().output

    async def result(self) -> Output:
        """Reads to the end; returns the result."""
        async for _ in self:
            pass
        return self.output

    async def aclose(self) -> None:
        """As `TextStream.close`."""
        await self._in_thread(self._close)

    async def __aenter__(self) -> Self:
        await self._in_thread(self._opened)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _opened(self) -> TextStream:
        with self._lock:
            if self._stream is None:
                self._stream = self._open()
            return self._stream

    def _close(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.close()

    def _drop(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.drop()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        import asyncio  # a fifth of the time that `import llama4rs` would take

        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, work)
        except asyncio.CancelledError:
            if self._stream is not None:
                self._stream.drop()
            else:  # being opened
                loop.run_in_executor(None, self._drop)
            raise


class Interruption:
    """Cancels a request from another thread, also one that has not begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request: Request | None = None
        self._is_set = False

    def begin(self, request: Request) -> None:
        """Says which request that is."""
        with self._lock:
            self._request = request
            if self._is_set:
                request.cancel()

    def set(self) -> None:
        """Cancels it, now or when it begins."""
        with self._lock:
            self._is_set = True
            if self._request is not None:
                self._request.cancel()

    @property
    def is_set(self) -> bool:
        """Whether it was cancelled."""
        with self._lock:
            return self._is_set


async def in_thread(work: Callable[[], Result], interrupt: Callable[[], None]) -> Result:
    """What `work` returns, computed in a thread.

    Cancelling the task calls `interrupt`, and waits until the work has come to its end.
    """
    import asyncio

    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        interrupt()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([future])
        raise
