"""Requests beside asyncio: their computing steps happen in threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

from .methods import Documented, taking_arguments_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._llama4rs import Request
    from .outputs import Output
    from .streaming import TextStream

__all__ = ["AsyncTextStream", "Interruption", "async_output", "async_stream", "in_thread"]

Arguments = ParamSpec("Arguments")
Owner = TypeVar("Owner")
Result = TypeVar("Result")


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

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled or copied: its request runs once")

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


def async_stream(
    method: Callable[Concatenate[Owner, Arguments], TextStream],
) -> Callable[[Documented], Callable[Concatenate[Owner, Arguments], AsyncTextStream]]:
    """Makes a method that takes the arguments of `method`, whose stream it is for ``async for``."""
    name = method.__name__

    def opened(
        self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> AsyncTextStream:
        return AsyncTextStream(lambda: getattr(self, name)(*args, **kwargs))

    return lambda documented: taking_arguments_of(method, documented, opened)


def async_output(
    method: Callable[Concatenate[Owner, Arguments], TextStream],
) -> Callable[[Documented], Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Output]]]:
    """Makes a method that takes the arguments of `method`, and reads its stream to the end for
    ``await``."""
    name = method.__name__

    async def read(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        return await AsyncTextStream(lambda: getattr(self, name)(*args, **kwargs)).result()

    return lambda documented: taking_arguments_of(method, documented, read)
