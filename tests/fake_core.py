"""A stand-in for `llama4rs._llama4rs`: a toy model that repeats its prompt, for tests of the
Python side while the compiled core is not built. Temperature 0 repeats exactly; above it, seeded
noise replaces some tokens."""

from __future__ import annotations

import json
import random
import sys
import threading
import types
from pathlib import Path

import numpy as np

VOCAB = 300
LAYERS, EXPERTS = 4, 2


class Event:
    def __init__(self, token_id, prefilled, logprob=None, top=None, finish_reason=None):
        self.token_id = token_id
        self.prefilled = prefilled
        self.logprob = logprob
        self.top_logprobs = top
        self.finish_reason = finish_reason


class Request:
    def __init__(self, engine, prompt, options):
        self.engine = engine
        self.prompt = list(prompt)
        self.options = options
        self.random = random.Random(options["seed"])
        self.made = 0
        self.prefilled = 0
        self.finish_reason = None

    def next(self):
        with self.engine.lock:
            return self._next()

    def _next(self):
        if self.engine.interrupt_after is not None:
            if self.engine.interrupt_after == 0:
                self.engine.interrupt_after = None
                raise KeyboardInterrupt
            self.engine.interrupt_after -= 1
        if self.finish_reason is not None:
            return None
        if self.prefilled == 0 and len(self.prompt) > 4:
            self.prefilled = 4
            return Event(None, 4)
        self.prefilled = len(self.prompt)
        echoed = self.prompt[1:] or self.prompt
        token = echoed[self.made % len(echoed)]
        if self.options["temperature"] > 0 and self.random.random() < 0.5:
            token = 97 + self.random.randrange(26)
        self.made += 1
        if token in self.options["stop_token_ids"]:
            self.finish_reason = "stop"
        elif self.made == self.options["max_tokens"]:
            self.finish_reason = "length"
        top = None
        n = self.options["logprobs"]
        if n is not None:
            top = [((token + i) % VOCAB, -0.5 - i) for i in range(n)]
        return Event(token, self.prefilled, None if n is None else -0.5, top, self.finish_reason)

    def cancel(self, reason="cancelled"):
        if self.finish_reason is None:
            self.finish_reason = reason
        self.engine.cancelled.append(reason)

    @property
    def timings(self):
        return {"queue": 0.0, "prefill": 0.25, "decode": 0.5}

    @property
    def usage(self):
        return {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": self.made,
            "cached_tokens": 0,
        }

    def expert_usage(self):
        return np.full((LAYERS, EXPERTS), self.made, dtype=np.uint64)


class Engine:
    def __init__(self, path, *, max_context=None, weights=None, progress=None, **_ignored):
        self.path = Path(path)
        self.config_json = (self.path / "config.json").read_text()
        self.weights = weights or "bf16"
        self.max_context = max_context or 512
        self.device = "cpu (toy, 1 thread)"
        self.lock = threading.Lock()
        self.cancelled = []
        self.warnings = []
        self.interrupt_after = None
        if progress:
            progress("weights", 1, 1)

    def summary(self):
        tensors = [
            {"group": "experts", "format": "int4/g64", "bytes": 10_000, "relative_error": 0.05}
        ]
        return {
            "parameters": 7_100_000,
            "active_parameters": 1_900_000,
            "weight_bytes": 5_000_000,
            "mapped_bytes": 5_000_000,
            "tensors": tensors,
            "kv_bytes_per_token": 2048,
            "kv_cache": "f16",
        }

    def submit(self, prompt, **options):
        if not prompt:
            raise ValueError("the prompt is empty")
        for token in prompt:
            if not 0 <= token < VOCAB:
                raise ValueError(f"token id {token} is outside of the vocabulary")
        return Request(self, prompt, options)

    def logits(self, token_ids):
        if not token_ids:
            raise ValueError("the prompt is empty")
        out = np.zeros((len(token_ids), VOCAB), dtype=np.float32)
        out[np.arange(len(token_ids)), token_ids] = 1
        return out


def _tensors():
    return [
        {
            "name": f"model.layers.{i}.feed_forward.experts.down_proj",
            "format": "int4/g64",
            "shape": [2, 8, 8],
            "bytes": 64,
            "relative_error": 0.05,
        }
        for i in range(LAYERS)
    ]


def open_info(path):
    from llama4rs.errors import CheckpointError

    config = Path(path) / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{path} has no config.json")
    return {
        "kind": "packed",
        "config": json.loads(config.read_text()),
        "tensors": _tensors(),
        "parameters": 512,
        "bytes": 256,
        "format_version": 1,
    }


def pack(source, destination, *, progress=None, force=False, **_ignored):
    from llama4rs.errors import PackError

    if Path(destination).exists() and not force:
        raise PackError(f"{destination} exists already; pass force to replace it")
    Path(destination).mkdir(exist_ok=True)
    for file in Path(source).iterdir():
        (Path(destination) / file.name).write_bytes(file.read_bytes())
    if progress:
        progress("tensors", 4, 4)
    return {"tensors": _tensors(), "bytes": 256}


def verify(path, *, progress=None):
    if progress:
        progress("tensors", 4, 4)
    return {"tensors": LAYERS, "files": 2, "bytes": 256}


def cpu_features():
    return {"instruction_set": "toy", "available": ["toy"], "threads": 1}


def install():
    """Puts the toy in the place of the compiled core."""
    module = types.ModuleType("llama4rs._llama4rs")
    for name in ("Engine", "Request", "Event", "open_info", "pack", "verify", "cpu_features"):
        setattr(module, name, globals()[name])
    module.__version__ = "0.0.0"
    sys.modules["llama4rs._llama4rs"] = module


def write_model(folder, *, tokenizer=True):
    """A model directory: bytes as tokens 0..255, then special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama4",
        "eos_token_id": [257],
        "text_config": {"vocab_size": VOCAB, "num_local_experts": EXPERTS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        from llama4rs.tokenizer import _ALPHABET

        vocab = {char: byte for byte, char in enumerate(_ALPHABET)}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        names = ["begin_of_text", "end_of_text", "header_start", "header_end", "eom", "eot"]
        names += ["python_start", "python_end"]
        backend.add_special_tokens([AddedToken(f"<|{n}|>", special=True) for n in names])
        (folder / "tokenizer.json").write_text(backend.to_str())
    return folder
