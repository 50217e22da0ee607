"""A plan as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..summary import byte_count, table_text
from .tokens import token_count

if TYPE_CHECKING:
    from ..plan import Plan
    from .speed import Speed

__all__ = ["plan_text"]

_VERDICTS = {
    "fits": "fits into memory",
    "streams": "does not fit: it runs, but weights are read from disk again and again",
    "does not fit": "does not fit into memory",
    "unknown": "how much memory is available is not known",
}


def plan_text(plan: Plan) -> str:
    """What ``print(plan)`` shows: memory by component, this machine, speed, advice."""
    blocks = [_title(plan), _memory(plan), _machine(plan)]
    if plan.speed is not None:
        blocks.append(_speed(plan.speed, plan.fits))
    remarks = [f"note: {note}" for note in plan.notes]
    if plan.advice:
        remarks.append(f"advice: {plan.advice}")
    return "\n\n".join([*blocks, "\n".join(remarks)]).rstrip()


def _title(plan: Plan) -> str:
    title = f"{plan.model}: weights {plan.weights}, KV {plan.kv_cache}, context "
    title += token_count(plan.context)
    if plan.batch > 1:
        title += f" x {plan.batch} sequences"
    if plan.images.count:
        images = plan.images
        title += f", {images.count} images of {images.tiles} tiles ({images.tokens} tokens)"
    return title


def _memory(plan: Plan) -> str:
    rows = [("", "", "per sequence", "bytes")]
    group = ""
    for part in plan.components:
        each = "" if part.per_sequence is None else byte_count(part.per_sequence)
        shown = part.group if part.group != group else ""
        rows.append((shown, part.name, each, byte_count(part.bytes)))
        group = part.group
    rows.append(("memory", "at most", "", byte_count(plan.total_bytes)))
    return table_text(rows, right=(2, 3))


def _machine(plan: Plan) -> str:
    machine = plan.machine
    rows = [("memory", _VERDICTS[plan.verdict])]
    if machine.memory_available is not None:
        shown = f"{byte_count(machine.memory_available)} available"
        if machine.memory_total is not None:
            shown += f" of {byte_count(machine.memory_total)}"
        if machine.memory_limit is not None:
            shown += f", limit of this process group {byte_count(machine.memory_limit)}"
        rows.append(("this machine", shown))
    free = "" if machine.disk_free is None else f", {byte_count(machine.disk_free)} free"
    if plan.disk_bytes:
        short = machine.disk_free is not None and machine.disk_free < plan.disk_bytes
        missing = ": too little" if short else ""
        rows.append(("disk", f"{byte_count(plan.disk_bytes)} for packed weights{free}{missing}"))
    rows.append(("weights per token", f"{byte_count(plan.decoded_bytes)} read to decode one"))
    return table_text(rows)


def _speed(speed: Speed, fits: bool) -> str:
    rate = f"{speed.prefill_tokens_per_second:,.1f} tokens/s"
    prefill = f"{duration(speed.prefill_seconds)}, {rate}"
    if speed.image_seconds:
        prefill += f" (images {duration(speed.image_seconds)})"
    decode = f"{speed.decode_tokens_per_second:,.2f} tokens/s at the end of the context"
    rows = [
        ("prefill", prefill),
        ("decode", f"{decode}, {speed.decode_at_start:,.2f} at its start"),
    ]
    heading = "predicted from a probe of this machine's kernels"
    return f"{heading}{'' if fits else ', if it fitted'}:\n{table_text(rows)}"


def duration(seconds: float) -> str:
    """A time in words that fit its length.

    Example:
        >>> duration(0.25), duration(90), duration(7200), duration(1e6)
        ('250 ms', '90.0 s', '2.0 hours', '11.6 days')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, limit in (("s", 1, 120), ("minutes", 60, 7200), ("hours", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
