"""`Session`: a text that stays, grows, and is never read twice."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from .asynchronous import Interruption, async_output, async_stream, in_thread
from .encoding import EncodedPrompt
from .errors import SessionError, option_errors
from .outputs import Output
from .progress import Progress, progress_bar
from .prompts import conversation
from .session_additions import Addition, added, added_messages, copied
from .session_files import SessionInfo, SessionState, check_name
from .session_stream import SessionStream, drained
from .submission import chosen_params
from .summary import byte_count
from .tool_calls import with_tool_calls

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from .encoding import Tools
    from .images import ImageSource
    from .llm import Llama4
    from .prompts import Message, Prompt
    from .sampling import SamplingOptions, SamplingParams

__all__ = ["Session", "SessionInfo", "SessionStream"]


class Session:
    """A text of one model that grows step by step; made by `Llama4.session`.

    Tokens are the truth: a session is a list of token ids, and features of images by content. Keys
    and values are computed when tokens are added and found again later, in memory or in
    ``kv_dir``; what was lost is computed again, with the same result to the last bit. To go on with
    a session is the same as never having stopped.

    A call that fails or is interrupted by Ctrl-C leaves the session as it was, and what was
    computed stays: the same call goes on where it stopped. One call at a time; use `fork` to go on
    in several ways.

    Example:
        >>> import llama4rs
        >>> book = llama4rs.Llama4().session("book")
        >>> tokens = book.append("Once upon a time there was a little dog. ")
        >>> output = book.generate("The dog ", max_tokens=8, temperature=0)
        >>> book.text.endswith("The dog " + output.text)
        True
    """

    def __init__(self, llm: Llama4, name: str, state: SessionState | None = None) -> None:
        self.name = check_name(name)
        """Under which it is saved."""
        self._llm = llm
        self._state = SessionState() if state is None else state
        self._busy = threading.Lock()
        self._warned = False

    # --------------------------------------------------------------------------------- growing

    def append(
        self,
        piece: Prompt,
        *,
        images: Sequence[ImageSource] | None = None,
        tools: Tools | None = None,
        parse_special: bool = True,
        progress: Progress | bool = False,
    ) -> int:
        """Adds to the end, and computes keys and values now.

        Args:
            piece: A text, token ids, or a list of messages. A text is encoded on its own: it gets
                BOS only at the beginning of the session, and its first token never merges with
                the token before it.
            images: As in `Llama4.generate`; those of messages are in the messages.
            tools: Functions on offer in a conversation, with its first messages.
            parse_special: Read names of special tokens in a text as those tokens.
            progress: True shows a bar; or a function called as ``progress(what, done, total)``.

        Returns:
            How many tokens were added.

        Raises:
            As `Llama4.generate`. `SessionError` while another call is running.
        """
        return self._append(piece, images, tools, parse_special, progress, Interruption())

    async def aappend(
        self,
        piece: Prompt,
        *,
        images: Sequence[ImageSource] | None = None,
        tools: Tools | None = None,
        parse_special: bool = True,
        progress: Progress | bool = False,
    ) -> int:
        """As `append`, with its arguments, for ``await``. Cancelling the task leaves the session as
        it was; it ends when the computing step that is running has ended, and the session is free
        then. `progress` is called in another thread."""
        interruption = Interruption()
        arguments = (piece, images, tools, parse_special, progress, interruption)
        return await in_thread(lambda: self._append(*arguments), interruption.set)

    def stream(
        self,
        prompt: Prompt = "",
        params: SamplingParams | None = None,
        *,
        images: Sequence[ImageSource] | None = None,
        parse_special: bool = True,
        skip_special: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> SessionStream:
        """As `generate`, with its arguments, handing out the text while it is written.

        The session is busy until the stream ends or is closed, and grows then; when it is closed
        early, by what there was until then.

        Raises:
            As `generate`.
        """
        params = chosen_params(params, self._llm.defaults, options)
        with self._begun():
            addition = added(self._state, self._llm._encoder, prompt, images, None, parse_special)
            return self._stream(addition, params, skip_special)

    @drained(stream)
    def generate(self) -> None:
        """Adds a prompt, and what the model writes after it.

        The session grows by all tokens that the model wrote, but for the token that stopped it.

        Args:
            prompt: As for `append`; by default nothing.
            params, images, parse_special, skip_special, options: As in `Llama4.generate`.

        Raises:
            As `Llama4.generate`; `RequestError` if the session is empty and stays so.
        """

    @async_stream(stream)
    def astream(self) -> None:
        """As `stream`, for ``async for``; see `Llama4.astream`. The session is busy from the first
        piece on. Cancelling the task that waits for a piece leaves the session as it was, and free
        at once.

        Example:
            >>> import asyncio, llama4rs
            >>> async def story() -> str:
            ...     book = llama4rs.Llama4().session("book")
            ...     await book.aappend("Once upon a time there was a little dog.")
            ...     return "".join([piece async for piece in book.astream(" He", max_tokens=6)])
            >>> text = asyncio.run(story())
        """

    @async_output(stream)
    def agenerate(self) -> None:
        """As `generate`, for ``await``. Cancelling the task leaves the session as it was."""

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        images: Sequence[ImageSource] | None = None,
        tools: Tools | None = None,
        **options: Unpack[SamplingOptions],
    ) -> SessionStream:
        """As `chat`, handing out the text while it is written; see `stream`."""
        params = chosen_params(params, self._llm.defaults, options)
        with self._begun():
            shown = conversation(messages, images)
            addition = added_messages(self._state, self._llm._encoder, shown, tools, answer=True)
            return self._stream(addition, params, skip_special=True)

    @drained(chat_stream)
    def chat(self) -> None:
        """Adds a message of the user, or several messages, and the model's answer.

        Only what is new is put into the chat format: the rest is there already.

        Args:
            messages: A string is a user's message.
            images: Pictures that stand before a message given as a string.
            tools: Functions on offer, with the first messages of the session.
            params, options: As in `Llama4.chat`.

        Raises:
            As `Llama4.chat`; `ChatTemplateError` also where the model's template cannot continue
            a conversation, because it writes earlier messages in another way then.
        """

    @async_stream(chat_stream)
    def achat_stream(self) -> None:
        """As `chat_stream`, for ``async for``; see `astream`."""

    @async_output(chat_stream)
    def achat(self) -> None:
        """As `chat`, for ``await``. Cancelling the task leaves the session as it was."""

    # ------------------------------------------------------------------------------- the session

    def fork(self, name: str) -> Session:
        """Another session that begins like this one. It shares all keys and values so far.

        Args:
            name: Of the new session; see `Llama4.session`. It is saved only by `save`.

        Raises:
            RequestError: The name cannot be one.
            SessionError: Another call is running.
        """
        with self._alone():
            return Session(self._llm, name, self._state.copy())

    def save(self) -> None:
        """Writes the session to ``kv_dir``; `Llama4.session` opens it again, in any process.

        Raises:
            RequestError: The model was opened without ``kv_dir``.
            SessionError: Another call is running.
            OSError: It cannot be written.
        """
        with self._alone():
            self._llm._session_files().save(self.name, self._state)

    def delete(self) -> bool:
        """Removes what is saved under this name. The session itself goes on in memory.

        Returns:
            Whether there was something.

        Raises:
            As `save`.
        """
        with self._alone():
            return self._llm._session_files().delete(self.name)

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self._state.token_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, images expanded to their patch tokens."""
        return tuple(self._state.token_ids)

    @property
    def text(self) -> str:
        """The text so far, special tokens left out.

        Raises:
            TokenizerError: The model has no tokenizer.
        """
        return self._llm.tokenizer.decode(self._state.token_ids)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, images left out; empty for plain text."""
        messages: list[dict[str, Any]] = copied(self._state.messages)
        return messages

    def logits(self) -> npt.NDArray[np.float32]:
        """What the model expects after each token so far; everything is computed again. For
        evaluation and tests.

        Returns:
            Logits, ``float32 [tokens, vocab]``; see `Llama4.logits`.

        Raises:
            RequestError: The session is empty.
            OutOfMemoryError: Keys, values and logits need more than ``kv_memory``.
        """
        state = self._state
        with option_errors():
            return self._llm._engine.logits(state.token_ids, image_features=state.image_features)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled or copied: fork it, or save it and open it again in every "
            "process"
        )

    def __repr__(self) -> str:
        return f"Session({self.name!r}, {len(self)} tokens)"

    # --------------------------------------------------------------------------------- internals

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuses a second call while one is running."""
        with self._begun():
            yield
            self._busy.release()

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """As `_alone`; but after success the session stays busy."""
        if not self._busy.acquire(blocking=False):
            raise SessionError(
                f"the session {self.name!r} is busy with another call\nhint: read or close its "
                "stream first, or fork the session"
            )
        try:
            yield
        except BaseException:
            self._busy.release()
            raise

    def _append(
        self,
        piece: Prompt,
        images: Sequence[ImageSource] | None,
        tools: Tools | None,
        parse_special: bool,
        progress: Progress | bool,
        interruption: Interruption,
    ) -> int:
        with self._alone(), progress_bar(progress) as report:
            addition = added(self._state, self._llm._encoder, piece, images, tools, parse_special)
            if addition.tokens:
                self._compute(addition.state, report, interruption)
            if interruption.is_set:
                raise SessionError(f"an addition to the session {self.name!r} was cancelled")
            self._state = addition.state
        self._check_room()
        return addition.tokens

    def _compute(
        self, state: SessionState, report: Progress | None, interruption: Interruption
    ) -> None:
        """Reads all tokens; those whose keys and values are known take no time."""
        engine = self._llm._engine
        with option_errors():
            request = engine.submit(
                state.token_ids, max_tokens=0, image_features=state.image_features
            )
        interruption.begin(request)
        try:
            while (event := request.next()) is not None:
                if report is not None:
                    report("tokens", event.prefilled, len(state.token_ids))
        except BaseException:
            request.cancel()
            raise
        if request.finish_reason == "cancelled":
            raise SessionError(f"an addition to the session {self.name!r} was cancelled")

    def _stream(
        self, addition: Addition, params: SamplingParams, skip_special: bool
    ) -> SessionStream:
        state = addition.state
        prompt = EncodedPrompt(state.token_ids, state.image_features)
        generation = self._llm._submitter.submit(prompt, params, skip_special=skip_special)

        def settle(output: Output | None) -> None:
            if output is not None:
                state.token_ids.extend(output.token_ids)
                if addition.closing is not None:
                    stop = output.stop_reason
                    state.token_ids.extend([stop] if isinstance(stop, int) else addition.closing)
                    state.messages = [*state.messages, copied(output.message)]
                self._state = state
            self._busy.release()

        tools = state.tools if addition.closing is not None else None
        return SessionStream(generation, lambda output: with_tool_calls(output, tools), settle)

    def _check_room(self) -> None:
        """Says once when memory cannot hold what was computed."""
        llm = self._llm
        need = len(self) * llm._engine.summary()["kv_bytes_per_token_beyond_chunk"]
        if self._warned or llm.kv_dir is not None or need <= llm._prefix_cache_bytes:
            return
        self._warned = True
        warnings.warn(
            f"the session {self.name!r} has {byte_count(need)} of keys and values, and "
            f"prefix_cache_bytes keeps {byte_count(llm._prefix_cache_bytes)}: the rest is computed "
            "again with every call; open the model with a larger prefix_cache_bytes or with kv_dir",
            stacklevel=4,
        )
