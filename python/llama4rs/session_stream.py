"""A stream whose text becomes part of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from .methods import Documented, taking_arguments_of
from .outputs import Output
from .streaming import TextStream

__all__ = ["SessionStream", "drained"]

Arguments = ParamSpec("Arguments")
Owner = TypeVar("Owner")


class SessionStream(TextStream):
    """A `TextStream` whose text becomes part of its session when it ends or is closed."""

    def __init__(
        self,
        generation: Any,
        finish: Callable[[Output], Output],
        settle: Callable[[Output | None], None],
    ) -> None:
        super().__init__(generation, finish)
        self._settle = [settle]  # until it was called

    def __next__(self) -> str:
        try:
            return super().__next__()
        except StopIteration:
            self._end(self.output)
            raise
        except BaseException:
            self._end(None)
            raise

    def drop(self) -> None:
        """Ends the request soon; the session stays as it was, and is free at once."""
        self._end(None)
        super().drop()

    def close(self) -> None:
        """Ends the request now; the session grows by what there is so far."""
        super().close()
        self._end(self.output)

    def _end(self, output: Output | None) -> None:
        try:
            settle = self._settle.pop()  # one of two threads has it
        except IndexError:
            return
        settle(output)


def drained(
    method: Callable[Concatenate[Owner, Arguments], SessionStream],
) -> Callable[[Documented], Callable[Concatenate[Owner, Arguments], Output]]:
    """Makes a method that takes the arguments of `method`, and reads its stream to the end; if
    that fails, the session stays as it was."""
    name = method.__name__

    def read(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        stream: SessionStream = getattr(self, name)(*args, **kwargs)
        try:
            for _ in stream:
                pass
        except BaseException:
            stream.drop()
            stream.close()
            raise
        return stream.output

    return lambda documented: taking_arguments_of(method, documented, read)
