"""The engines that are measured, behind one face.

Each is asked for the same things: read a prompt, go on from it token by token, and do so for
several sequences at once. Times are taken outside of the engines with one clock.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llama4rs._llama4rs import Engine, Request

Tokens = list[int]
Clock = Callable[[], float]


class Measured(Protocol):
    """What an engine must do to be measured."""

    name: str
    config: dict[str, Any]
    path: Path

    def prefill(self, prompt: Tokens) -> float:
        """Seconds to read a prompt that was not seen before, up to the first new token."""

    def begin(self, prompt: Tokens, count: int) -> None:
        """Reads a prompt, after which `decode` makes `count` tokens in all."""

    def decode(self, count: int) -> float:
        """Seconds of `count` further tokens."""

    def end(self) -> None:
        """Forgets what `begin` began."""

    def decode_batch(self, prompts: list[Tokens], count: int) -> float:
        """Seconds of `count` steps, each of which makes one token for every prompt."""

    def bytes_per_step(self, sequences: int, depth: int) -> float:
        """Bytes that one step must read from memory."""


def expected_share(config: dict[str, Any], sequences: int) -> float:
    """The share of the routed experts that some token of a step goes to."""
    experts: int = config["num_local_experts"]
    used: int = config["num_experts_per_tok"]
    return 1 - float(1 - used / experts) ** sequences


def visible_tokens(config: dict[str, Any], depth: int) -> int:
    """Keys that one token sees, added up over the layers."""
    chunk = config["attention_chunk_size"]
    return sum(depth % chunk if rope else depth for rope in config["no_rope_layers"])


class Llama4rs:
    """This project."""

    def __init__(
        self, path: Path, threads: int, context: int, clock: Clock, **options: Any
    ) -> None:
        """Opens a packed model; `options` go to the engine."""
        self._clock, self.path = clock, path
        self.engine = Engine(str(path), threads=threads, max_context=context, **options)
        self.config: dict[str, Any] = json.loads(self.engine.config_json)
        self.name = f"llama4rs {self.engine.weights}"
        self._tensors = self.engine.summary()["tensors"]
        self._cache_bytes = self.engine.summary()["kv_bytes_per_token"]
        self._request: Request | None = None

    def prefill(self, prompt: Tokens) -> float:
        """See `Measured`."""
        started = self._clock()
        request = self.engine.submit(prompt, max_tokens=1)
        while request.next() is not None:
            pass
        return self._clock() - started

    def begin(self, prompt: Tokens, count: int) -> None:
        """See `Measured`."""
        self._request = self.engine.submit(prompt, max_tokens=count + 1)
        while (event := self._request.next()) is not None and event.token_id is None:
            pass

    def decode(self, count: int) -> float:
        """See `Measured`."""
        assert self._request is not None
        started = self._clock()
        for _ in range(count):
            self._request.next()
        return self._clock() - started

    def end(self) -> None:
        """See `Measured`."""
        if self._request is not None:
            self._request.cancel()
            self._request = None

    def decode_batch(self, prompts: list[Tokens], count: int) -> float:
        """See `Measured`."""
        requests = [self.engine.submit(prompt, max_tokens=count + 1) for prompt in prompts]
        for request in requests:
            while (event := request.next()) is not None and event.token_id is None:
                pass
        started = self._clock()
        for _ in range(count):
            for request in requests:
                request.next()
        return self._clock() - started

    def bytes_per_step(self, sequences: int, depth: int) -> float:
        """See `Measured`."""
        share = expected_share(self.config, sequences)
        weights: float = sum(
            tensor["bytes"] * (share if ".experts." in tensor["name"] else 1)
            for tensor in self._tensors
            if tensor["name"] != "embed_tokens"
        )
        per_key: float = self._cache_bytes / self.config["num_hidden_layers"]
        return weights + sequences * visible_tokens(self.config, depth) * per_key


class LlamaCpp:
    """llama.cpp through the package llama-cpp-python."""

    BATCH_TOKENS = 2048
    # Longer prompts take it minutes: what it knows after them is kept in a file beside its model.
    KEPT_TOKENS = 4096

    def __init__(
        self, path: Path, config: dict[str, Any], threads: int, context: int, clock: Clock
    ) -> None:
        """Opens a GGUF file; `config` is that of the model which it was made after."""
        import llama_cpp

        self._clock, self.path = clock, path
        self.core = llama_cpp
        self.config, self.context, self.threads = config, context, threads
        self.name = "llama.cpp Q4_0"
        self.version = importlib.metadata.version("llama-cpp-python")
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise OSError(f"llama.cpp cannot open {path}")
        self._sequences = 0
        self._state: Any = None
        self._memory: Any = None
        self._rng = np.random.default_rng(1)

    def prefill(self, prompt: Tokens) -> float:
        """See `Measured`."""
        self._use_sequences(1)
        self._forget()
        started = self._clock()
        self._read(prompt)
        return self._clock() - started

    def begin(self, prompt: Tokens, count: int) -> None:
        """See `Measured`."""
        self._use_sequences(1)
        self._forget()
        if len(prompt) > self.KEPT_TOKENS:
            self._read_once(prompt)
        else:
            self._read(prompt)
        self._read(self._random_tokens(1))

    def decode(self, count: int) -> float:
        """See `Measured`."""
        started = self._clock()
        for token in self._random_tokens(count):
            self._read([token])
        return self._clock() - started

    def end(self) -> None:
        """See `Measured`."""
        self._forget()

    def decode_batch(self, prompts: list[Tokens], count: int) -> float:
        """See `Measured`."""
        self._use_sequences(len(prompts))
        self._forget()
        self._step(
            [
                (token, at, sequence)
                for sequence, prompt in enumerate(prompts)
                for at, token in enumerate(prompt)
            ]
        )
        started = self._clock()
        for step in range(count):
            tokens = self._random_tokens(len(prompts))
            entries = [
                (token, len(prompts[sequence]) + step, sequence)
                for sequence, token in enumerate(tokens)
            ]
            self._step(entries)
        return self._clock() - started

    def bytes_per_step(self, sequences: int, depth: int) -> float:
        """See `Measured`."""
        from random_gguf import tensors

        share = expected_share(self.config, sequences)
        weights = sum(
            tensor.num_bytes * (share if "_exps" in tensor.name else 1)
            for tensor in tensors(self.config)
            if not tensor.name.startswith("token_embd")
        )
        per_key: int = 2 * self.config["num_key_value_heads"] * self.config["head_dim"] * 2
        return weights + sequences * visible_tokens(self.config, depth) * per_key

    def _use_sequences(self, sequences: int) -> None:
        """A context for so many sequences; the last one is kept."""
        if sequences == self._sequences:
            return
        if self._state:
            self.core.llama_free(self._state)
        parameters = self.core.llama_context_default_params()
        parameters.n_ctx = self.context
        parameters.n_batch = self.BATCH_TOKENS
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.swa_full = False  # chunked layers keep their chunk, as in llama-server
        parameters.n_threads = parameters.n_threads_batch = self.threads
        self._state = self.core.llama_init_from_model(self._model, parameters)
        if not self._state:
            raise MemoryError("llama.cpp cannot make a context")
        self._sequences = sequences
        self._memory = self.core.llama_get_memory(self._state)

    def _forget(self) -> None:
        self.core.llama_memory_clear(self._memory, True)

    def _random_tokens(self, count: int) -> Tokens:
        tokens: Tokens = self._rng.integers(0, self.config["vocab_size"], count).tolist()
        return tokens

    def _read(self, tokens: Tokens) -> None:
        for first in range(0, len(tokens), self.BATCH_TOKENS):
            part = tokens[first : first + self.BATCH_TOKENS]
            array = (ctypes.c_int32 * len(part))(*part)
            self._check(self.core.llama_batch_get_one(array, len(part)))

    def _read_once(self, prompt: Tokens) -> None:
        """Takes the state after a prompt from its file, or reads the prompt and writes the file."""
        file = self.path.with_suffix(f".{len(prompt)}-tokens")
        name, count = str(file).encode(), len(prompt)
        tokens = (ctypes.c_int32 * count)()
        found = ctypes.c_size_t()
        if file.exists() and self.core.llama_state_seq_load_file(
            self._state, name, 0, tokens, count, ctypes.byref(found)
        ):
            if list(tokens[: found.value]) != prompt:
                raise ValueError(f"{file} belongs to another prompt; remove it")
            return
        self._read(prompt)
        tokens = (ctypes.c_int32 * count)(*prompt)
        if not self.core.llama_state_seq_save_file(self._state, name, 0, tokens, count):
            raise OSError(f"llama.cpp cannot write {file}")

    def _step(self, entries: list[tuple[int, int, int]]) -> None:
        """Reads (token, position, sequence) together; logits of all of them."""
        batch = self.core.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = True
        self._check(batch)
        self.core.llama_batch_free(batch)

    def _check(self, batch: Any) -> None:
        if (code := self.core.llama_decode(self._state, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self.core.llama_synchronize(self._state)
