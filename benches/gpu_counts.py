"""What kernels ask of memory, counted on the simulated device; no card is needed.

Operations have Scout's widths and few rows of weights, so that they are quick. For each:

moved      different 32-byte sectors read, and bytes written, over the bytes that the work needs
sectors    bytes asked for over the bytes of the sectors touched: 1 when whole sectors are used
conflicts  passes over the banks of shared memory over the fewest that would do
issue      instructions of a warp for each 512 bytes of weights, keys or values; 132 multiprocessors
           with four schedulers at 1.7 GHz issue 107 while 4.3 TB/s bring as much. Instructions are
           PTX, of which machine code has fewer, and what surrounds the loops counts, too

From registers and shared memory as `kernels/resources.txt` has them (sm_90a) follows how many
blocks stay on a multiprocessor, and how many bytes are on their way at Scout's full sizes. 4.8 TB/s
times 700 ns are 25 kB for each of 132 multiprocessors.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama4rs._llama4rs import GpuProbe

Row = dict[str, Any]

RESOURCES = Path(__file__).parents[1] / "crates/llama4rs-cuda/kernels/resources.txt"
WEIGHTS = "int4/g128"
MULTIPROCESSORS, REGISTERS, SHARED, THREADS = 132, 65536, 227 << 10, 2048
ISSUE_SLOTS = MULTIPROCESSORS * 4 * 1.7e9 * 512 / 4.3e12
IN_FLIGHT = 25e3
# The most, or with sectors and flight the least, that counts as good.
MOVED, SECTORS, CONFLICTS = 1.02, 0.98, 1.05


class Counters:
    """The simulated device's counters."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        if not hasattr(self.library, "llama4rs_sim_counters"):
            raise ImportError("counts are those of the simulated device: make simulated-gpu")

    def of(self, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `work` returns, and what its kernels did, by name."""
        self.library.llama4rs_sim_reset_counters()
        measured = work()
        text = ctypes.create_string_buffer(1 << 20)
        self.library.llama4rs_sim_counters(text, ctypes.c_size_t(len(text)))
        found: dict[str, Any] = json.loads(text.value)
        return measured, {name: c for name, c in found.items() if name not in ("fill", "to_bf16")}


def operations(probe: GpuProbe) -> Iterator[tuple[str, Callable[[], dict[str, Any]], float]]:
    """Name, work, and the bytes that issue slots are counted against."""

    def product(name: str, weights: str, bits: float, rows: int, cols: int, tokens: int) -> Any:
        work = lambda: probe.matmul(weights, [rows], cols, tokens, rounds=0)  # noqa: E731
        return f"{name} {weights}, {tokens} tokens", work, rows * cols * bits / 8

    for tokens in (1, 8, 16):
        yield product("qkv, o", WEIGHTS, 4, 512, 5120, tokens)
        yield product("down", WEIGHTS, 4, 512, 8192, tokens)
        experts = lambda t=tokens: probe.experts(WEIGHTS, 1, t, 5120, 2048, rounds=0)  # noqa: E731
        yield f"experts {WEIGHTS}, {tokens} tokens", experts, 3 * 2048 * 5120 / 2
    yield product("lm_head", "int8/g128", 8, 512, 5120, 1)
    for tokens in (64, 256):
        yield product("down", WEIGHTS, 4, 256, 8192, tokens)
    for kv, size in (("bf16", 2), ("int8", 1)):
        for rows, context in ((1, 2048), (64, 512)):
            work = lambda k=kv, r=rows, c=context: probe.attend(  # noqa: E731
                k, 40, 8, 128, 1, c, r, rounds=0
            )
            yield f"attention {kv}, last {rows} of {context}", work, context * 8 * 256 * size
    yield "add and norm, 8 rows", lambda: probe.add_norm(8, 5120, rounds=0), 8 * 5120 * 8
    yield "largest logit", lambda: probe.sample(1, 32000, False, rounds=0), 32000 * 4


def rows(probe: GpuProbe) -> Iterator[Row]:
    """A row for each operation, and one for each kernel's residence."""
    counters = Counters()
    for name, work, streamed in operations(probe):
        measured, kernels = counters.of(work)
        total = {key: sum(c[key] for c in kernels.values()) for key in next(iter(kernels.values()))}
        moved = total["distinct_sectors"] * 32 + total["bytes_written"]
        found = {
            "moved": round(moved / measured["bytes"], 3),
            "sectors": round(total["bytes_read"] / (32 * total["sectors_read"]), 3),
            "conflicts": round(total["shared_wavefronts"] / max(total["shared_ideal"], 1), 3),
            "issue": round(total["instructions"] * 512 / streamed, 1),
            "launches": {kernel: c["launches"] for kernel, c in kernels.items()},
        }
        bound = "tokens" not in name or int(name.split()[-2]) <= 16
        good = {
            "moved": found["moved"] <= MOVED,
            "sectors": found["sectors"] >= SECTORS,
            "conflicts": found["conflicts"] <= CONFLICTS,
            # Long prompts are bound by arithmetic, not by issue slots for each byte.
            "issue": found["issue"] <= ISSUE_SLOTS or not bound or "last 64" in name,
        }
        bad = [key for key, fine in good.items() if not fine]
        yield {"name": name, "within": not bad, **found, "beyond": bad}
    yield from (residence.row() for residence in RESIDENCES)


@dataclass(frozen=True)
class Residence:
    """A kernel at Scout's full size: its launch, and what each block has under way."""

    name: str
    key: str
    """Line of resources.txt."""
    threads: int
    blocks: int
    bytes_under_way: int
    dynamic_shared: int = 0

    def row(self) -> Row:
        """Blocks that stay on a multiprocessor, waves, bytes under way on each."""
        lines = RESOURCES.read_text().splitlines()
        line = next(line for line in lines if line.startswith(self.key))
        registers, _, _, shared = (int(number) for number in line.split(" | ")[2].split())
        fit = [REGISTERS // (registers * self.threads), THREADS // self.threads]
        if shared + self.dynamic_shared:
            fit.append(SHARED // (shared + self.dynamic_shared + 1024))
        resident = min(fit)
        waves = self.blocks / (resident * MULTIPROCESSORS)
        under_way = min(resident, self.blocks / MULTIPROCESSORS) * self.bytes_under_way
        # Blocks of the last wave, if they alone cannot keep the memory busy.
        last = self.blocks % (resident * MULTIPROCESSORS)
        starved = waves > 1 and 0 < last * self.bytes_under_way / MULTIPROCESSORS < IN_FLIGHT
        return {
            "name": f"residence: {self.name}",
            "within": under_way >= IN_FLIGHT and not (starved and waves < 2),
            "registers": registers,
            "resident": resident,
            "waves": round(waves, 2),
            "under_way": round(under_way),
            "starved_tail": starved,
        }


def _decode(name: str, tokens: int, finish: int, blocks: int) -> Residence:
    panels = 2 if finish == 2 else 1
    constants = f"FORMAT=3,GROUP=128,FINISH={finish},ROW_PANELS={panels}"
    # Four blocks of 64 inputs ahead, 16 bytes a lane for each panel.
    ahead = 4 * panels * 16 * 128
    kernel = f"matmul_decode.cu matmul_decode_{8 if tokens <= 8 else 16} {constants}"
    return Residence(f"{name}, {tokens} tokens", kernel, 128, blocks, ahead)


def _attention(name: str, sealed: int, context: int) -> Residence:
    kernel = f"attention_decode.cu attend_decode HEAD_DIM=128,ROW_TILES=1,SEALED_PAGES={sealed}"
    # One of a warp's two slots is under way while it computes from the other.
    under_way = 4 * 64 * 128
    pages = context // 64
    splits = min(pages, 128) // 4 + max(min(pages, 512) - 128, 0) // 8 + max(pages - 512, 0) // 32
    return Residence(name, kernel, 128, splits * 8, under_way, 544 * 128)


RESIDENCES = (
    _decode("qkv", 1, 0, 7168 // 16),
    _decode("o", 1, 3, 5120 // 16),
    _decode("gate, up of two experts", 1, 2, 2 * 8192 // 16),
    _decode("down of two experts", 1, 3, 2 * 5120 // 16),
    _decode("down of two experts", 16, 3, 2 * 5120 // 16),
    _attention("attention of 8K, bf16", 0, 8192),
    _attention("attention of 128K, bf16", 0, 131072),
    _attention("attention of 128K, int8", 1, 131072),
)
