"""The compiled core of llama4rs. Private: use the names that `llama4rs` exports."""

import os
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Engine",
    "Event",
    "GpuProbe",
    "Request",
    "__version__",
    "are_plain_integers",
    "attention_seconds",
    "cpu_features",
    "cuda_devices",
    "integer_dot_peak",
    "kv_list",
    "kv_prune",
    "kv_verify",
    "matmul_seconds",
    "multiply_add_peak",
    "open_info",
    "pack",
    "pair_dot_peak",
    "plan_sizes",
    "plan_tensors",
    "read_bandwidth",
    "synth",
    "verify",
]

__version__: str

_Progress = Callable[[str, int, int], object]
"""Called as `progress(what, done, total)` from the calling thread; may raise to interrupt."""

def are_plain_integers(items: object) -> bool:
    """Whether a list or tuple holds plain integers and nothing else: no booleans, no numbers of
    other libraries."""

def cpu_features() -> dict[str, Any]:
    """What the CPU backend found:
    `{"instruction_set": "avx512", "available": [...], "threads": 4}`."""

def cuda_devices(nvrtc_folders: Sequence[str]) -> dict[str, Any]:
    """What the CUDA backend found: `{"driver": "13.0" | None, "nvrtc": "13.0" | None,
    "nvrtc_path": Path | None, "devices": [{"device": "cuda:0", "name", "capability": "9.0",
    "memory": bytes, "multiprocessors", "prompt_products": "wgmma (...)" | "mma (why)"}...],
    "problems": [...]}`. Hopper's devices are opened, to see what the products of prompts are made
    of."""

def read_bandwidth(
    bytes: int, threads: int, rounds: int = 5, *, path: str | PathLike[str] | None = None
) -> list[float]:
    """Bytes per second that `threads` threads read from `bytes` bytes of memory (in large pages
    where the system has them), or from at most as many of a mapped file, once per round."""

def multiply_add_peak(threads: int, rounds: int = 5) -> list[float]:
    """Single-precision operations per second of multiply-adds (two each), once per round."""

def integer_dot_peak(threads: int, rounds: int = 5) -> list[float]:
    """Operations per second of dot products of bytes (two per product), once per round."""

def pair_dot_peak(threads: int, rounds: int = 5) -> list[float]:
    """Operations per second of products of pairs of bf16 numbers (two per product), once per
    round."""

def matmul_seconds(
    weights: str,
    rows: int,
    cols: int,
    inputs: int,
    *,
    threads: int | None = None,
    rounds: int = 3,
) -> list[float]:
    """Seconds, once per round, of a product of `inputs` rows of activations with a matrix of `rows`
    outputs by `cols` inputs, whose values mean nothing."""

def attention_seconds(
    kv_cache: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tokens: int,
    queries: int,
    *,
    threads: int | None = None,
    rounds: int = 3,
) -> list[float]:
    """Seconds, once per round, of attention of the last `queries` of `tokens` tokens in a layer."""

@final
class GpuProbe:
    """A GPU whose operations are measured, one at a time, with random data made on the device.

    Each method returns a dict: `seconds` of one operation, once for each of `rounds` replays of a
    graph that holds several; `bytes` that the algorithm must move; its `operations` (additions and
    multiplications). Weights are others each time, so that no cache holds them. With no rounds the
    operation is done once, for counters. Raises
    `DeviceError` without a device and `ValueError` for sizes that an operation does not take.
    """

    def __new__(cls, ordinal: int, nvrtc_folders: Sequence[str]) -> GpuProbe:
        """Opens device `ordinal`."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def prompt_products(self) -> str:
        """What the products of prompts are made of, and why: as in `cuda_devices`."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of memory."""

    def copy(self, bytes: int, *, rounds: int) -> dict[str, Any]:
        """A copy within the device: every byte is read and written."""

    def matmul(
        self, weights: str, rows: Sequence[int], cols: int, tokens: int, *, rounds: int
    ) -> dict[str, Any]:
        """`tokens` rows of `cols` inputs times matrices of `rows` outputs each."""

    def experts(
        self, weights: str, experts: int, tokens: int, hidden: int, inner: int, *, rounds: int
    ) -> dict[str, Any]:
        """Routed experts of one layer; each token goes to one of them, at random."""

    def attend(
        self,
        kv_cache: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        sequences: int,
        context: int,
        rows: int,
        *,
        rounds: int,
    ) -> dict[str, Any]:
        """Attention of the last `rows` of `context` tokens of each sequence, in one layer."""

    def add_norm(self, rows: int, cols: int, *, rounds: int) -> dict[str, Any]:
        """The residual sum and its norm."""

    def sample(self, rows: int, vocab: int, draw: bool, *, rounds: int) -> dict[str, Any]:
        """The largest logit of each row; with `draw` a draw from the nucleus of 0.9."""

    def differing_products(self, weights: str, rows: int, cols: int, tokens: int) -> int:
        """Values of a product that differ in a bit between all rows at once and one by one."""

def plan_sizes(config_json: str) -> dict[str, Any]:
    """The sizes in a configuration that decide about memory and arithmetic, defaults filled in.

    Those of the decoder by name (`chunk_size` is None where no layer is chunked), and `vision`: a
    dict of its sizes, or None. Raises `CheckpointError` for what is no Llama 4.
    """

def plan_tensors(
    config_json: str,
    weights: str = "int4",
    policy: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Every tensor of a configuration as `pack` would store it: `name`, `format`, `shape`, `bytes`,
    and a `relative_error` of None. Raises `CheckpointError` for what is no Llama 4."""

def open_info(path: str) -> dict[str, Any]:
    """Reads a model directory's headers only.

    Returns `{"kind": "packed" | "published", "config": <config.json as dict>,
    "tensors": [{"name", "format", "shape", "bytes", "relative_error"}...],
    "parameters": int, "bytes": int, "format_version": int | None}`.

    Raises `CheckpointError` for a damaged or foreign directory.
    """

def pack(
    source: str,
    destination: str,
    *,
    weights: str = "int4",
    policy: Sequence[tuple[str, str]] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: _Progress | None = None,
) -> dict[str, Any]:
    """Packs a published checkpoint into a llama4rs directory; see `llama4rs.pack`."""

def verify(path: str, *, progress: _Progress | None = None) -> dict[str, Any]:
    """Checks every tensor's checksum of a packed directory; see `llama4rs.verify`."""

def kv_list(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The files of a directory of keys and values (`kv_dir`), what was used last first. For each:
    `file` (its name), `layers` (`"global"` or `"chunked"`), `start` (tokens of the text before it),
    `tokens`, `bytes`, `used` (seconds since 1970), `fingerprint` (hexadecimal; of the model and the
    options that pages depend on; None for a file that cannot be read), and `problem` (why it cannot
    be used, or None). Headers are read, pages are not. Raises `OSError`."""

def kv_verify(
    directory: str | os.PathLike[str], *, progress: _Progress | None = None
) -> dict[str, Any]:
    """Reads a whole directory of keys and values and compares every checksum and hash:
    `{"files": int, "pages": int, "bytes": int, "problems": [(file, problem), ...]}`.
    Nothing is changed. Raises `OSError`, and `KeyboardInterrupt` on Ctrl-C."""

def kv_prune(
    directory: str | os.PathLike[str],
    *,
    budget_bytes: int | None = None,
    older_than: float | None = None,
    fingerprints: Sequence[str] | None = None,
    damaged: bool = False,
    files: Sequence[str] | None = None,
) -> dict[str, int]:
    """Removes files of a directory of keys and values: those not used for `older_than` seconds, of
    these `fingerprints`, with a `problem` (`damaged`), of these names (`files`), and then what was
    not used for longest until `budget_bytes` are left; and always what writers that were killed
    left behind. Returns `{"files": int, "bytes": int}` removed. A process that uses a file keeps
    it until it lets it go. Raises `OSError`."""

def synth(
    destination: str,
    *,
    shape: str,
    weights: str = "int4",
    policy: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    threads: int | None = None,
    force: bool = False,
    progress: _Progress | None = None,
) -> dict[str, Any]:
    """Writes a random model in packed form; see `llama4rs.synth.synth`."""

@final
class Engine:
    """One opened model and the requests that run on it. Safe to use from many threads.

    `path` is a directory, or `"synth:SHAPE"` for random weights of a shape of `synth`, which are
    made in memory as they are brought to the device.
    """

    def __new__(
        cls,
        path: str,
        *,
        device: str = "auto",
        nvrtc_folders: Sequence[str] = ...,
        weights: str | None = None,
        policy: Sequence[tuple[str, str]] | None = None,
        threads: int | None = None,
        max_context: int | None = None,
        kv_cache: str | None = None,
        step_tokens: int | None = None,
        prefix_cache_bytes: int | None = None,
        arithmetic: str | None = None,
        kv_dir: str | os.PathLike[str] | None = None,
        kv_budget: int | None = None,
        kv_read: str | None = None,
        progress: _Progress | None = None,
    ) -> Engine: ...
    @property
    def config_json(self) -> str:
        """The model's configuration as JSON text (published field names, defaults filled in)."""
    @property
    def weights(self) -> str:
        """The family of the decoder's weight format, such as `"int4/g64"`."""
    @property
    def device_free_bytes(self) -> int | None:
        """Free bytes of a GPU's memory; None on the CPU."""
    @property
    def max_context(self) -> int:
        """Most tokens that one sequence may have."""
    @property
    def step_tokens(self) -> int:
        """Most prompt tokens that one step computes."""
    @property
    def device(self) -> str:
        """The backend in words, such as `"cpu (avx512, 4 threads)"`."""
    @property
    def warnings(self) -> list[str]:
        """Remarks about the checkpoint: tensors left aside, settings known to be wrong."""
    @property
    def kv_memory(self) -> int | None:
        """Bytes that key/value pages and kept logits may take together; None: no limit."""
    def set_kv_memory(self, bytes: int) -> None:
        """Sets the limit for requests to come. One that would not fit alone is refused, others
        wait in order of arrival until the memory that they may need is free."""
    def kv_bytes_in_use(self) -> int | None:
        """Bytes of key/value pages in use; None while a step is being computed."""
    def kv_bytes_read(self) -> dict[str, int] | None:
        """Bytes read from the files of `kv_dir` to find texts and to check their pages: `pages`,
        and `meta` (headers, token keys, page tables). None while a step is being computed."""
    def summary(self) -> dict[str, Any]:
        """Sizes: `parameters`, `active_parameters`, `weight_bytes`, `tensors` (as in `open_info`),
        `kv_cache` (its format), `kv_bytes_per_token`, `kv_bytes_per_token_beyond_chunk`."""
    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop_token_ids: Sequence[int] | None = None,
        seed: int = 0,
        logprobs: int | None = None,
        image_features: npt.NDArray[np.float32] | None = None,
        filled_to: int = 0,
    ) -> Request:
        """Queues a prompt. `logprobs=n` reports the chosen token's and the n best tokens' log
        probabilities. `image_features` `[patches, hidden]` (from `encode_image`) replace the
        embeddings of the prompt's patch tokens, in order. `filled_to` is for measurements behind
        long texts: the prompt's tokens from the 129th up to there (whole pages of 64) are not
        computed, their keys and values repeat those of the page before. Raises `RequestError` for
        an empty prompt, an id outside of the vocabulary, a prompt longer than `max_context`, or an
        option out of range; `OutOfMemoryError` for one that needs more than `kv_memory`."""
    def encode_image(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Encodes normalised tiles `[tiles, channels, size, size]` (C order) into
        `[tiles * tokens_per_tile, hidden]`. Raises `RequestError` for a text-only model."""
    def logits(
        self,
        token_ids: Sequence[int],
        *,
        image_features: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits `[tokens, vocab]` of a fresh sequence, all positions. Raises as `submit`."""

@final
class Request:
    """A submitted prompt. Iterating over `next()` drives the engine."""

    def next(self) -> Event | None:
        """The next event, computing steps (for all requests of the engine) until there is one.
        `None` after the finishing event. Releases the interpreter lock; `KeyboardInterrupt`
        comes between two steps and leaves the request usable."""
    def cancel(self, reason: str = "cancelled") -> None:
        """Ends the request now and frees its memory. Does nothing when it has finished."""
    @property
    def finish_reason(self) -> str | None:
        """`"stop"` (a stop token), `"length"`, what `cancel` was given, or None while running."""
    @property
    def timings(self) -> dict[str, float]:
        """Seconds: `queue`, `prefill`, `decode`; first token time included in `prefill`."""
    @property
    def usage(self) -> dict[str, int]:
        """`prompt_tokens`, `completion_tokens`, `cached_tokens`."""
    def expert_usage(self) -> npt.NDArray[np.uint64]:
        """Tokens of this request per layer and expert, `[layers, experts]`; dense layers are
        all zero. `[layers, 0]` for a model without experts."""

@final
class Event:
    """One thing that happened to a request."""

    @property
    def token_id(self) -> int | None:
        """The new token, or None when a part of the prompt was processed."""
    @property
    def prefilled(self) -> int:
        """Prompt tokens processed so far."""
    @property
    def logprob(self) -> float | None:
        """Log probability of the token under the model's own distribution (temperature 1)."""
    @property
    def top_logprobs(self) -> list[tuple[int, float]] | None:
        """The best tokens and their log probabilities, best first."""
    @property
    def finish_reason(self) -> str | None:
        """Set on the last event. A stop token is reported as its last event's `token_id`."""
