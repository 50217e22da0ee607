"""`Llama4`: an opened model and everything that can be asked of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

from .config import Config
from .counts import MOST_THREADS, check_count
from .device import nvrtc_folders
from .encoding import PromptEncoder
from .errors import RequestError, option_errors
from .generation import Generation, run_all
from .hub import resolve_model
from .image_arguments import image_lists
from .image_cache import DEFAULT_CACHE_BYTES, ImageCache
from .opening import free_kv_memory, generation_defaults, open_chat_template, open_tokenizer
from .packing import Policy, policy_pairs
from .planning.budget import PREFIX_CACHE_BYTES, parse_bytes
from .progress import Progress, progress_bar
from .prompts import Batch, Message, Prompt, conversation, is_batch, plain_prompt
from .sampling import SamplingParams
from .streaming import AsyncTextStream, TextStream
from .submission import Submitter, chosen_params
from .summary import summary_text
from .tool_calls import with_tool_calls
from .vision import PromptImages

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from .chat_template import ChatTemplate
    from .encoding import Tools
    from .images import ImagePlan, ImageSource
    from .options import BatchOptions, ChatOptions, GenerateOptions, PromptOptions
    from .outputs import Output
    from .plan import Plan
    from .sampling import SamplingOptions
    from .session import Session
    from .session_files import SessionFiles, SessionInfo
    from .tokenizer import Tokenizer

__all__ = ["Llama4"]


class Llama4:
    """A Llama 4 model, ready to generate.

    Args:
        model: A directory (published checkpoint, or one made by `llama4rs.pack`), an id on the
            Hugging Face hub, or None for cria, the tiny demo model that comes with the package.
        weights: Format of the decoder's matrices: ``"int4"``, ``"int8"``, ``"bf16"`` or ``"f32"``;
            the first two with a group size if wanted, ``"int4/g32"`` (32, 64 or 128 weights share
            a scale; 64 by default). A published checkpoint is converted while it is read
            (`llama4rs.pack` does that once and for all). None is what a packed directory holds,
            and ``"int4"`` for a published checkpoint.
        policy: Other formats for some matrices, ``{"layers.*.self_attn.*": "int8"}``; ``*`` stands
            for any characters, and the first pattern that matches a name decides.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` (an NVIDIA GPU by its number), or ``"auto"``:
            the first GPU if there is one with room for the weights, else the CPU. A GPU needs its
            driver and ``pip install llama4rs[cuda]``; ``llama4rs info --device`` says what is
            there.
        threads: Threads to compute with; None for as many as there are cores.
        max_context: Most tokens of one sequence, prompt and output; None for the model's own limit.
        kv_cache: Format of keys and values: ``"bf16"``, ``"int8"`` (about half of that in long
            texts, hardly a difference), ``"int4"`` (about a quarter, a small one) or ``"f32"``.
            None for ``"bf16"``, unless the weights are ``"f32"``.
        kv_memory: Most memory for keys and values of all requests together, ``"8GB"`` or a number
            of bytes; None for what is available when the model is open, less what computing needs
            and a margin. A request that can never fit is an error when it is made; others wait
            in order until there is room for all that they may need.
        step_tokens: Most tokens that one step computes, for all requests together; None for 512,
            on a GPU 4096. Smaller steps let new requests in sooner.
        seed: Seed of requests that name none. The same seed gives the same text. None takes a new
            one for every request.
        tokenizer: A tokenizer, a tokenizer file or a directory with one, to use in place of the
            model's own.
        chat_template: A chat template or a Jinja file, to use in place of the model's own.
        prefix_cache_bytes: Most bytes of keys and values that are kept for later requests that
            begin with the same tokens, so that a conversation is computed once, ``"4GB"`` or a
            number; 0 for none. None for 1 GiB, and the text that was used last stays as a whole,
            however long it is. They make room when `kv_memory` is needed.
        kv_dir: A directory for saved sessions, and for the keys and values of all texts, so that
            later requests and processes that begin with the same tokens need not compute them;
            made if need be, shared by any number of models and processes. It reveals the texts.
            None keeps everything in memory only.
        kv_budget: Most bytes of files in `kv_dir`, ``"20GB"`` or a number; what was not used for
            longest is removed. None sets no limit.
        kv_read: How stored keys and values come into memory. ``"map"`` (None) leaves them in their
            files, which are mapped: texts may be longer than memory. ``"copy"`` reads them, for
            network file systems and wherever other programs may cut files short.
        arithmetic: How products are computed. ``"fast"`` (None): on the CPU, activations that meet
            int4 and int8 weights are rounded to 8 bits and multiplied by integer instructions,
            those that meet bf16 weights or bf16 keys and values are rounded to bf16; on a GPU,
            activations that meet bf16, int8 and int4 weights or bf16 and int8 keys are rounded
            to bf16 and multiplied by tensor cores. ``"exact"`` keeps them in single precision.
        image_cache_bytes: Most bytes of features of images that are kept, so that a question about
            a picture seen before does not encode it again, ``"1GB"`` or a number; 0 keeps none.
        allow_image_urls: Fetch images that are named by an ``http(s)`` URL. They can point into
            this machine's own network, so leave it off where messages come from strangers.
        revision, token, local_files_only: For ids on the hub, see `llama4rs.hub.resolve_model`.
        progress: True shows a bar while the model is read; or a function that is called as
            ``progress(what, done, total)``.

    A model may be used from several threads at once; all requests share the computing steps. Other
    processes open the model themselves, and share the memory of a packed one. Its memory is given
    back with the last reference to it, and to its sessions and streams.

    A checkpoint without tokenizer files works with token ids: texts are then ``""``, and asking for
    a text prompt is a `TokenizerError`.

    Raises:
        CheckpointNotFoundError: There is no such model.
        CheckpointError: The model is damaged, or is no Llama 4.
        OSError: `kv_dir` cannot be made or read.
        DeviceError: The GPU that was asked for is not there or cannot be used.
        OutOfMemoryError: The weights do not fit into memory.
        RequestError: An option is out of range.

    Example:
        >>> import llama4rs
        >>> llm = llama4rs.Llama4()
        >>> output = llm.generate("Once upon a time", max_tokens=8, temperature=0)
        >>> len(output.token_ids), output.finish_reason
        (8, 'length')
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        weights: str | None = None,
        policy: Policy = (),
        device: str = "auto",
        threads: int | None = None,
        max_context: int | None = None,
        kv_cache: str | None = None,
        kv_memory: int | str | None = None,
        step_tokens: int | None = None,
        seed: int | None = 0,
        tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
        chat_template: ChatTemplate | str | os.PathLike[str] | None = None,
        prefix_cache_bytes: int | str | None = None,
        kv_dir: str | os.PathLike[str] | None = None,
        kv_budget: int | str | None = None,
        kv_read: str | None = None,
        arithmetic: str | None = None,
        image_cache_bytes: int | str = DEFAULT_CACHE_BYTES,
        allow_image_urls: bool = False,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        progress: Progress | bool = False,
    ) -> None:
        check_count("threads", threads, most=MOST_THREADS)
        check_count("max_context", max_context)
        check_count("step_tokens", step_tokens)
        if kv_memory is not None:
            kv_memory = parse_bytes("kv_memory", kv_memory)
        if kv_budget is not None:
            kv_budget = parse_bytes("kv_budget", kv_budget)
        if prefix_cache_bytes is not None:
            prefix_cache_bytes = parse_bytes("prefix_cache_bytes", prefix_cache_bytes, least=0)
        self.path: Path = resolve_model(
            model, revision=revision, token=token, local_files_only=local_files_only
        )
        """The model's directory."""
        self.defaults: SamplingParams = replace(generation_defaults(self.path), seed=seed)
        """Options of requests that do not set them: those of the checkpoint's
        ``generation_config.json``, else temperature 0.6 and top_p 0.9."""
        self._tokenizer = open_tokenizer(self.path, tokenizer)
        template = open_chat_template(chat_template)
        self._image_cache = ImageCache(image_cache_bytes)

        from ._llama4rs import Engine

        with option_errors(), progress_bar(progress) as report:
            self._engine = Engine(
                str(self.path),
                device=device,
                nvrtc_folders=nvrtc_folders(),
                weights=weights,
                policy=policy_pairs(policy),
                threads=threads,
                max_context=max_context,
                kv_cache=kv_cache,
                step_tokens=step_tokens,
                prefix_cache_bytes=prefix_cache_bytes,
                arithmetic=arithmetic,
                kv_dir=kv_dir,
                kv_budget=kv_budget,
                kv_read=kv_read,
                progress=report,
            )
        if kv_memory is None:
            kv_memory = free_kv_memory(self._engine, self.path, self._image_cache.max_bytes)
        if kv_memory is not None:
            self._engine.set_kv_memory(kv_memory)
        self.kv_dir: Path | None = None if kv_dir is None else Path(kv_dir)
        """Where saved sessions are."""
        self._plan_options: dict[str, int | None] = {
            "threads": threads,
            "step_tokens": self._engine.step_tokens,
            "prefix_cache_bytes": prefix_cache_bytes,
        }
        # Unless said, the text that was used last may take all that there is.
        limit = self._engine.kv_memory
        self._prefix_cache_bytes = (
            max(PREFIX_CACHE_BYTES, sys.maxsize if limit is None else limit)
            if prefix_cache_bytes is None
            else prefix_cache_bytes
        )
        self.config: Config = Config(json.loads(self._engine.config_json))
        """The model's configuration."""
        self._images = PromptImages(
            self.path,
            self.config,
            self._engine,
            self._tokenizer,
            cache=self._image_cache,
            allow_urls=allow_image_urls,
        )
        self._submitter = Submitter(self._engine, self._tokenizer, self.config)
        self._encoder = PromptEncoder(self.path, self._tokenizer, template, self._images)

    # ------------------------------------------------------------------------------ generating

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
        prompts: list[Any] = [plain_prompt(item) for item in prompt] if batch else [prompt]
        shown = image_lists(images, len(prompts)) if batch else [images]
        encoded = [
            self._encoder.encode(item, tools=tools, images=pictures, parse_special=parse_special)
            for item, pictures in zip(prompts, shown, strict=True)
        ]
        generations: list[Generation] = []
        try:
            for item in encoded:
                generations.append(self._submitter.submit(item, params, skip_special=skip_special))
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

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> AsyncTextStream:
        """As `stream`, for ``async for``. The prompt is encoded and queued, and its errors come,
        with the first piece. Cancelling the task cancels the request.

        Example:
            >>> import asyncio, llama4rs
            >>> async def story() -> str:
            ...     pieces = llama4rs.Llama4().astream("Once upon a time", max_tokens=6)
            ...     return "".join([piece async for piece in pieces])
            >>> text = asyncio.run(story())
        """
        return AsyncTextStream(lambda: self.stream(prompt, params, **options))

    async def agenerate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[PromptOptions],
    ) -> Output:
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
        return await self.astream(prompt, params, **options).result()

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

    def achat_stream(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        **options: Unpack[ChatOptions],
    ) -> AsyncTextStream:
        """As `chat_stream`, for ``async for``; see `astream`."""
        return AsyncTextStream(lambda: self.chat_stream(messages, params, **options))

    async def achat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        **options: Unpack[ChatOptions],
    ) -> Output:
        """As `chat`, for ``await``; see `agenerate`."""
        return await self.achat_stream(messages, params, **options).result()

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

    def plan_image(self, width: int, height: int) -> ImagePlan:
        """What an image of this size will cost, without looking at one.

        Args:
            width: In pixels.
            height: In pixels.

        Returns:
            A plan with `num_tiles` for the vision encoder and `num_tokens` in the prompt.

        Raises:
            ImageError: The image has no pixels.
            RequestError: The model does not read images.

        Example:
            >>> import llama4rs
            >>> plan = llama4rs.Llama4().plan_image(168, 84)  # cria's tiles are 84 pixels wide
            >>> plan.num_tiles, plan.num_tokens
            (3, 32)
        """
        return self._images.plan(width, height)

    def plan(
        self,
        *,
        context: int | str | None = None,
        batch: int = 1,
        images: int = 0,
        image_size: tuple[int, int] = (1024, 1024),
        probe: bool = True,
    ) -> Plan:
        """What this model needs for such work, in the formats that it was opened with.

        Args:
            context: Tokens of a sequence, ``8192`` or ``"1M"``; None for 8192 or `max_context`,
                whichever is less.
            batch, images, image_size, probe: As for `llama4rs.plan`.

        Returns:
            A plan; `Plan.kv_bytes_per_sequence` says what each further sequence costs.

        Raises:
            RequestError: An option is out of range.

        Example:
            >>> import llama4rs
            >>> plan = llama4rs.Llama4().plan(context=1024, batch=4, probe=False)
            >>> plan.kv_bytes == 4 * plan.kv_bytes_per_sequence
            True
        """
        from .plan import plan_opened

        return plan_opened(
            self._engine,
            self.path,
            context=min(8192, self.max_context) if context is None else context,
            batch=batch,
            images=images,
            image_size=image_size,
            probe=probe,
            **self._plan_options,
        )

    # -------------------------------------------------------------------------------- sessions

    def session(self, name: str) -> Session:
        """A text that grows, and is never read twice: a document with many questions, or a
        conversation.

        Args:
            name: Up to 100 letters, digits, blanks and ``. _ -``. If ``kv_dir`` has a session of
                this name, it is opened; else this is a new one.

        Raises:
            RequestError: The name cannot be one.
            SessionError: The saved session is damaged, or of another model.

        Example:
            >>> import llama4rs
            >>> story = llama4rs.Llama4().session("story")
            >>> first = story.generate("Once upon a time", max_tokens=6, temperature=0)
            >>> more = story.generate(max_tokens=6, temperature=0)  # goes on where it stopped
            >>> story.text == "Once upon a time" + first.text + more.text
            True
        """
        from .session import Session

        saved = None
        if self.kv_dir is not None:
            saved = self._session_files().load(name)
        return Session(self, name, saved)

    def sessions(self) -> list[SessionInfo]:
        """The sessions saved in ``kv_dir``, the one saved last first; none without ``kv_dir``."""
        return [] if self.kv_dir is None else self._session_files().list()

    # ----------------------------------------------------------------------------------- facts

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            TokenizerError: The model has none.
        """
        return self._encoder.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts may be used; otherwise only token ids."""
        return self._tokenizer is not None

    @property
    def has_vision(self) -> bool:
        """Whether images may be used."""
        return self._images.supported

    @property
    def image_cache(self) -> ImageCache:
        """The features of images that are kept: how many, their bytes, hits and misses."""
        return self._image_cache

    @property
    def chat_template(self) -> ChatTemplate:
        """The format of conversations: the checkpoint's own, else the built-in one.

        Raises:
            ChatTemplateError: The checkpoint's template has a syntax error.
            TokenizerError: The model has no tokenizer.
        """
        return self._encoder.chat_template

    @property
    def max_context(self) -> int:
        """Most tokens that one sequence may have, prompt and output together."""
        return self._engine.max_context

    @property
    def kv_memory(self) -> int | None:
        """Most bytes of keys and values of all requests together; None where there is no limit,
        because the system does not say how much memory there is."""
        return self._engine.kv_memory

    @property
    def warnings(self) -> list[str]:
        """Remarks about the model's files that are worth knowing; usually none."""
        return list(self._engine.warnings)

    @property
    def device(self) -> str:
        """What computes, in words."""
        return self._engine.device

    def summary(self) -> str:
        """A table of the model's size: parameters, formats, bytes and context, to print.

        Example:
            >>> import llama4rs
            >>> print(llama4rs.Llama4().summary())  # doctest: +ELLIPSIS
            parameters ...
        """
        return summary_text(
            self._engine.summary(),
            max_context=self.max_context,
            weights=self._engine.weights,
            device=self.device,
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Llama4 cannot be pickled or copied: open the model in every process that uses it; "
            "a packed one opens in milliseconds, and processes share its memory"
        )

    def __repr__(self) -> str:
        return f"Llama4({str(self.path)!r}, weights={self._engine.weights!r}, {self.device})"

    # -------------------------------------------------------------------------------- internals

    def _session_files(self) -> SessionFiles:
        from .session_files import model_sessions

        return model_sessions(self.kv_dir, self._engine.config_json, self._tokenizer)
