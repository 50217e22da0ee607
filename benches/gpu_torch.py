"""PyTorch's side of gpu.py. Without a card tiny work runs on the CPU: a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_shapes import scout_text_config
from torch.nn import functional

GROUP = 128


def kernel_seconds(work: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of every launch on the card while `work` runs, whoever makes them, by kernel."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    if ProfilerActivity.CUDA not in supported_activities():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
    times: dict[str, list[float]] = {}
    for event in found.events() or []:
        if event.device_type.name == "CUDA":
            times.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    return times


class Torch:
    """Operations of PyTorch, timed."""

    def __init__(self, ordinal: int, tiny: bool) -> None:
        self.on_card = torch.cuda.is_available()
        if not self.on_card and not tiny:
            raise ImportError("torch has no CUDA device")
        self.device = f"cuda:{ordinal}" if self.on_card else "cpu"
        if self.on_card:
            torch.cuda.set_device(ordinal)
        where = f"CUDA {torch.version.cuda}" if self.on_card else "CPU: dry run"
        self.name = f"torch {torch.__version__.split('+')[0]} ({where})"

    def seconds(self, operations: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Seconds of one operation. On a card all are captured into a graph, which is replayed."""
        if not self.on_card:
            return [self._clocked(operations) for _ in range(min(rounds, 3))]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for operation in operations:
                operation()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for operation in operations:
                operation()
        graph.replay()
        times = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / len(operations))
        return times

    def _clocked(self, operations: Sequence[Callable[[], Any]]) -> float:
        if self.on_card:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for operation in operations:
            operation()
        if self.on_card:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / len(operations)

    def random(self, *shape: int) -> torch.Tensor:
        """Random bf16 on the device."""
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def copies(self, weight_bytes: float) -> int:
        """Copies of so many bytes that no cache holds them."""
        return min(64, max(4, int(160e6 // weight_bytes))) if self.on_card else 2

    def matmul(self, rows: int, cols: int, tokens: int, rounds: int) -> list[float]:
        """cuBLAS bf16."""
        x = self.random(tokens, cols)
        weights = [self.random(rows, cols) for _ in range(self.copies(rows * cols * 2))]
        return self.seconds([lambda w=w: x @ w.T for w in weights], rounds)

    def packed_int4(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes 0..15 `[rows, cols]` in the order of PyTorch's int4 product."""
        if not self.on_card:
            return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        # The even input in the upper half of a byte.
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        return torch.ops.aten._convert_weight_to_int4pack(pairs, 8)

    def int4_product(
        self, x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """tinygemm: x times the transpose, weights (code - 8) * scale + zero."""
        aten = torch.ops.aten
        product = aten._weight_int4pack_mm if self.on_card else aten._weight_int4pack_mm_for_cpu
        result: torch.Tensor = product(x, packed, GROUP, scales)
        return result

    def check_int4(self, rows: int, cols: int) -> dict[str, Any]:
        """Whether the int4 product does what it is taken for."""
        codes = torch.randint(0, 16, (rows, cols), device=self.device, dtype=torch.int32)
        x, scales = self.random(3, cols), self.random(cols // GROUP, rows, 2)
        found = self.int4_product(x, self.packed_int4(codes), scales).float()
        scale, zero = (scales[:, :, i].T.float().repeat_interleave(GROUP, 1) for i in range(2))
        expected = x.float() @ ((codes.float() - 8) * scale + zero).T
        error = float((found - expected).norm() / expected.norm())
        return {"ok": error < 2e-2, "relative_error": error}

    def int4(self, rows: int, cols: int, tokens: int, rounds: int) -> list[float]:
        """PyTorch's int4 product in groups of 128."""
        x, weights = self.random(tokens, cols), []
        for _ in range(self.copies(rows * cols / 2)):
            codes = torch.randint(0, 16, (rows, cols), device=self.device, dtype=torch.uint8)
            weights.append((self.packed_int4(codes), self.random(cols // GROUP, rows, 2)))
        return self.seconds([lambda w=w: self.int4_product(x, *w) for w in weights], rounds)

    def attend(
        self, heads: tuple[int, int, int], sequences: int, context: int, rows: int, rounds: int
    ) -> list[float]:
        """Scaled dot product attention of the last `rows` tokens."""
        from torch.nn.attention.bias import causal_lower_right

        query_heads, kv_heads, dim = heads
        q = self.random(sequences, query_heads, rows, dim)
        k, v = (self.random(sequences, kv_heads, context, dim) for _ in range(2))
        # One row sees everything. Fewer rows than keys stand at the end, which the fused kernels
        # know as this bias; it takes no groups of heads.
        bias = None
        if rows not in (1, context):
            bias = causal_lower_right(rows, context)
            k, v = (x.repeat_interleave(query_heads // kv_heads, 1) for x in (k, v))

        def operation() -> Any:
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, is_causal=rows == context, enable_gqa=bias is None
            )

        return self.seconds([operation] * 4, rounds)

    def prefill(self, layers: int, length: int, rounds: int, tiny: bool) -> list[float]:
        """Seconds of a prompt in transformers' Llama 4, bf16, random weights."""
        from transformers import Llama4ForCausalLM, Llama4TextConfig

        fields = scout_text_config(layers, 32000)
        if tiny:
            fields |= {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
            fields |= {"intermediate_size": 256, "intermediate_size_mlp": 512}
        config = Llama4TextConfig(**fields)
        config._attn_implementation = "sdpa"
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                model = Llama4ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        ids = torch.randint(0, 32000, (1, length), device=self.device)
        with torch.inference_mode():
            step = lambda: model(ids, use_cache=True, logits_to_keep=1)  # noqa: E731
            step()
            return [self._clocked([step]) for _ in range(rounds)]
