"""`Llama4`: an opened model."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .config import Config
from .counts import MOST_THREADS, check_count, check_path, check_text
from .device import nvrtc_folders
from .encoding import PromptEncoder
from .errors import option_errors
from .hub import resolve_model
from .image_cache import DEFAULT_CACHE_BYTES, ImageCache
from .model_requests import ModelRequests
from .opening import free_kv_memory, generation_defaults, open_chat_template, open_tokenizer
from .packing import Policy, policy_pairs
from .planning.budget import PREFIX_CACHE_BYTES, parse_bytes
from .progress import Progress, progress_bar
from .sampling import SamplingParams
from .submission import Submitter
from .summary import summary_text
from .vision import PromptImages

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .images import ImagePlan
    from .plan import Plan
    from .session import Session
    from .session_files import SessionFiles, SessionInfo
    from .tokenizer import Tokenizer

__all__ = ["Llama4"]


class Llama4(ModelRequests):
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
            on a GPU 4096 (65535 at most). Smaller steps let new requests in sooner.
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
        check_text("device", device, optional=False)
        for name, text in (
            ("weights", weights),
            ("kv_cache", kv_cache),
            ("kv_read", kv_read),
            ("arithmetic", arithmetic),
        ):
            check_text(name, text)
        check_path("kv_dir", kv_dir)
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

    # -------------------------------------------------------------------------------- planning

    def plan_image(self, width: int, height: int) -> ImagePlan:
        """What an image of this size will cost, without looking at one.

        Args:
            width: In pixels.
            height: In pixels.

        Returns:
            A plan with `num_tiles` for the vision encoder and `num_tokens` in the prompt.

        Raises:
            ImageError: The image has no pixels, or a side that is no whole number.
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
