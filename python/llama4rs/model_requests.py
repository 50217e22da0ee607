"""`ModelRequests`: what can be asked of an opened model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from .asynchronous import async_output, async_stream
from .errors import RequestError, numbered, option_errors
from .generation import Generation, run_all
from .image_arguments import image_lists
from .progress import progress_bar
from .prompts import Batch, Message, Prompt, conversation, is_batch, plain_prompt
from .streaming import TextStream
from .submission import chosen_params
from .tool_calls import with_tool_calls

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from ._llama4rs import Engine
    from .encoding import EncodedPrompt, PromptEncoder, Tools
    from .images import ImageSource
    from .options import BatchOptions, GenerateOptions
    from .outputs import Output
    from .sampling import SamplingOptions, SamplingParams
    from .submission import Submitter

__all__ = ["ModelRequests"]


class ModelRequests:
    """The requests of `llama4rs.Llama4`."""

    defaults: SamplingParams
    _engine: Engine
    _encoder: PromptEncoder
    _submitter: Submitter

    @overload
    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompt: Batch,
        params: SamplingParams | None = None,
        **options: Unpack[BatchOptions],
    ) -> list[Output]: ...

    def generate(
        self,
        prompt: Prompt | Batch,
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        images: Sequence[Any] | None = None,
        parse_special: bool = True,
        skip_special: bool = True,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Output | list[Output]:
        """Completes a prompt, or a list of prompts.

        Args:
            prompt: A string is a raw prompt: it starts with one BOS token, which is added unless
                the text has it. A list of integers is a prompt of token ids, taken as it is. A
                list of messages is a conversation, put into the chat format. A list of such
                prompts is a batch; its requests run side by side, each with the same options and
                the same seed as if it were alone.
            params: All options as one object; None for `defaults`.
            tools: Functions on offer in a conversation, as JSON descriptions.
            images: Pictures for a raw prompt, in order: paths, data URLs, bytes of image files, PIL
                images or arrays. ``<|image|>`` in the text marks the place of each; without one
                they come first, right after BOS. Token ids need the mark's id for each picture, or
                all its tokens. For a batch a list of such lists. Those of a conversation are in
                its messages, ``{"role": "user", "content": [{"type": "image", "image": "cat.png"},
                {"type": "text", "text": "What is this?"}]}``.
            parse_special: Read names of special tokens in a raw prompt, such as ``<|eot|>``, as
                those tokens. Messages never are, whatever they hold.
            skip_special: Leave special tokens out of the text.
            progress: Show a progress bar on standard error.
            options: Changes to `params`: every field of `SamplingParams` by its name, and familiar
                names of other libraries such as ``max_new_tokens`` or ``do_sample``. None leaves
                an option as it is.

        Returns:
            An `Output`; for a batch, a list of them in the order of the prompts.

        Raises:
            RequestError: An option is out of range, or a prompt is empty or too long.
            OutOfMemoryError: Prompt and `max_tokens` need more than `kv_memory`.
            TokenizerError: A text for a model that has no tokenizer.
            ChatTemplateError: A malformed conversation.
            ImageError: Not an image, or not as many as the prompt has places.
            TypeError: An unknown option; the message suggests the right one.
            KeyboardInterrupt: Ctrl-C stops within one computing step and cancels the requests.

        Example:
            >>> import llama4rs
            >>> llm = llama4rs.Llama4()
            >>> one, two = llm.generate(["Once upon a time", "One day"], max_tokens=6)
            >>> one.text == llm.generate("Once upon a time", max_tokens=6).text
            True
            >>> from llama4rs.demo import draw_picture
            >>> seen = llm.generate("I see ", images=[draw_picture(84).image], max_tokens=6)
        """
        prompt = plain_prompt(prompt)
        params = chosen_params(params, self.defaults, options)
        batch = is_batch(prompt)
        prompts: list[Any] = list(prompt) if batch else [prompt]
        shown = image_lists(images, len(prompts)) if batch else [images]
        encoded: list[EncodedPrompt] = []
        for item, pictures in zip(prompts, shown, strict=True):
            with numbered("prompt", len(encoded), len(prompts)):
                plain = plain_prompt(item) if batch else item
                encoded.append(
                    self._encoder.encode(
                        plain, tools=tools, images=pictures, parse_special=parse_special
                    )
                )
        generations: list[Generation] = []
        try:
            for item in encoded:
                with numbered("prompt", len(generations), len(prompts)):
                    generations.append(
                        self._submitter.submit(item, params, skip_special=skip_special)
                    )
            with progress_bar(progress) as report:
                run_all(generations, report)
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        outputs = [with_tool_calls(generation.output(), tools) for generation in generations]
        return outputs if batch else outputs[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        parse_special: bool = True,
        skip_special: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> TextStream:
        """Completes one prompt and hands out the text while it is written.

        Takes the arguments of `generate`. The request is queued at once and computed while the
        stream is read.

        Returns:
            An iterator over pieces of text, whose `TextStream.output` is the result.

        Raises:
            As `generate`.

        Example:
            >>> import llama4rs
            >>> stream = llama4rs.Llama4().stream("Once upon a time", max_tokens=6)
            >>> text = "".join(piece for piece in stream)
            >>> stream.output.usage.completion_tokens
            6
        """
        prompt = plain_prompt(prompt)
        if prompt and is_batch(prompt):
            raise RequestError("a stream takes one prompt; open one stream for each")
        encoded = self._encoder.encode(
            prompt, tools=tools, images=images, parse_special=parse_special
        )
        generation = self._submitter.submit(
            encoded, chosen_params(params, self.defaults, options), skip_special=skip_special
        )
        return TextStream(generation, lambda output: with_tool_calls(output, tools))

    @async_stream(stream)
    def astream(self) -> None:
        """As `stream`, for ``async for``. The prompt is encoded and queued, and its errors come,
        with the first piece. Cancelling the task cancels the request.

        Example:
            >>> import asyncio, llama4rs
            >>> async def story() -> str:
            ...     pieces = llama4rs.Llama4().astream("Once upon a time", max_tokens=6)
            ...     return "".join([piece async for piece in pieces])
            >>> text = asyncio.run(story())
        """

    @async_output(stream)
    def agenerate(self) -> None:
        """As `generate`, for ``await`` and one prompt; tasks that run side by side share the
        computing steps. Cancelling the task cancels the request.

        Example:
            >>> import asyncio, llama4rs
            >>> async def both() -> list[llama4rs.Output]:
            ...     llm = llama4rs.Llama4()
            ...     prompts = ("Once upon a time", "One day")
            ...     return await asyncio.gather(*(llm.agenerate(p, max_tokens=6) for p in prompts))
            >>> one, two = asyncio.run(both())
        """

    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Output:
        """The answer to a conversation, or to one message of a user given as a string.

        Args:
            messages: ``[{"role": "user", "content": "Hello"}, ...]``; roles are system, user,
                assistant and tool. A string is a user's message.
            params: As in `generate`.
            tools: Functions on offer, as JSON descriptions. Calls in the answer are then found in
                ``output.message["tool_calls"]``.
            images: Pictures that stand before a message given as a string.
            options: As in `generate`.

        Returns:
            An `Output` whose `message` is the answer, to be appended to the conversation.

        Raises:
            As `generate`.

        Example:
            >>> import llama4rs
            >>> llm = llama4rs.Llama4()
            >>> messages = [{"role": "user", "content": "Tell me a story."}]
            >>> messages.append(llm.chat(messages, max_tokens=8).message)
            >>> messages[-1]["role"]
            'assistant'
        """
        return self.generate(conversation(messages, images), params, tools=tools, **options)

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        images: Sequence[ImageSource] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> TextStream:
        """As `chat`, handing out the text while it is written; see `stream`.

        Example:
            >>> import llama4rs
            >>> stream = llama4rs.Llama4().chat_stream("Tell me a story.", max_tokens=8)
            >>> text = "".join(stream)
            >>> stream.output.message["content"] == text
            True
        """
        return self.stream(conversation(messages, images), params, tools=tools, **options)

    @async_stream(chat_stream)
    def achat_stream(self) -> None:
        """As `chat_stream`, for ``async for``; see `astream`."""

    @async_output(chat_stream)
    def achat(self) -> None:
        """As `chat`, for ``await``; see `agenerate`."""

    def logits(
        self, prompt: Prompt, *, images: Sequence[ImageSource] | None = None
    ) -> npt.NDArray[np.float32]:
        """What the model expects after each token, for evaluation and tests.

        Args:
            prompt: A fresh sequence, of any kind that `generate` takes. Token ids are taken as they
                are (no BOS is added), 1 to `max_context` of them.
            images: Pictures as in `generate`. Token ids may hold one ``<|image|>`` for each, or be
                expanded to the tokens of the pictures already.

        Returns:
            Logits, ``float32 [tokens, vocab]``. Row ``i`` is about the token after token ``i`` of
            the expanded prompt.

        Raises:
            RequestError: No ids, too many, or one outside of the vocabulary.
            OutOfMemoryError: Keys, values and logits need more than `kv_memory`.
            ImageError: Not an image, or not as many as there are places.

        Example:
            >>> import llama4rs
            >>> llm = llama4rs.Llama4()
            >>> ids = llm.tokenizer.encode("Once upon a time", bos=True)
            >>> llm.logits(ids).shape == (len(ids), llm.config.vocab_size)
            True
        """
        prompt = plain_prompt(prompt)
        if prompt and is_batch(prompt):
            raise RequestError("logits takes one prompt")
        encoded = self._encoder.encode(prompt, images=images)
        with option_errors():
            return self._engine.logits(encoded.token_ids, image_features=encoded.image_features)
