"""Requests share a budget of memory: nobody runs out of it, and everybody gets the same answer."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama4rs
from conftest import MakeCheckpoint
from draining import drain
from llama4rs._llama4rs import Engine, Request
from llama4rs.errors import OutOfMemoryError, RequestError
from llama4rs.planning.budget import kv_memory, parse_bytes
from llama4rs.planning.machine import Machine
from llama4rs.planning.shape import read_shape
from llama4rs.presets import preset_config
from oracle.checkpoint import make_checkpoint
from oracle.configs import TEXT

PAGE = 64
CONFIG = TEXT["scout_like"]
VOCAB = CONFIG["vocab_size"]
STEP = 48


@pytest.fixture(scope="module", params=[24, 128], ids=lambda chunk: f"chunk{chunk}")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout-like checkpoint with chunks of less than a page, and of two."""
    directory = tmp_path_factory.mktemp("admission")
    make_checkpoint(directory, CONFIG | {"attention_chunk_size": request.param}, 5)
    return directory


def open_engine(path: Path, budget: int | None = None, **options: Any) -> Engine:
    engine = Engine(str(path), weights="f32", threads=1, **{"step_tokens": STEP, **options})
    if budget is not None:
        engine.set_kv_memory(budget)
    return engine


def text(stem: int, length: int) -> list[int]:
    """Tokens that begin like those of other stems, and go on in their own way."""
    return [(7 * i + (13 * stem if i >= PAGE else 0)) % VOCAB for i in range(length)]


def peak_bytes(engine: Engine, tokens: int, step_tokens: int = STEP) -> int:
    """The most that a lone sequence of so many stored tokens has in pages, step by step."""
    shape = read_shape(engine.config_json)
    layer = 2 * shape.num_kv_heads * shape.head_dim * PAGE * 4
    chunk = shape.chunk_size or tokens
    # The last step that may end in this chunk began as far before its end as it can.
    most = 0
    for start in range(tokens):
        end = min(start + step_tokens, tokens)
        ends = [*range((start // chunk + 1) * chunk, end, chunk), end]
        begins = [start // chunk * chunk, *ends[:-1]]
        pages = sum(-(-(b - a) // PAGE) for a, b in zip(begins, ends, strict=True))
        most = max(most, pages)
    return layer * (most * shape.chunked_layers + -(-tokens // PAGE) * shape.global_layers)


@dataclass
class Ask:
    """A request: its prompt, its seed, and how many events its owner wants before leaving."""

    stem: int
    length: int
    max_tokens: int
    patience: int | None
    tokens: list[int] = field(default_factory=list)

    def submit(self, engine: Engine) -> Request:
        prompt = text(self.stem, self.length)
        return engine.submit(prompt, max_tokens=self.max_tokens, temperature=1.0, seed=self.stem)

    @property
    def stored(self) -> int:
        return self.length + max(self.max_tokens - 1, 0)


ASKS = st.builds(
    Ask,
    stem=st.integers(0, 2),
    length=st.integers(1, 300),
    max_tokens=st.integers(0, 40),
    patience=st.none() | st.integers(0, 6),
)


def test_nobody_runs_out_of_memory(path: Path) -> None:
    plain = open_engine(path, prefix_cache_bytes=0)
    alone: dict[tuple[int, int, int], list[int]] = {}

    def answer(ask: Ask) -> list[int]:
        key = ask.stem, ask.length, ask.max_tokens
        if key not in alone:
            alone[key] = drain(ask.submit(plain))
        return alone[key]

    @settings(max_examples=25, deadline=None)
    @given(
        asks=st.lists(ASKS, min_size=1, max_size=12),
        arrivals=st.lists(st.integers(0, 5), min_size=12, max_size=12),
        room=st.floats(0.5, 3),
        prefix_cache_bytes=st.sampled_from([0, 100_000, 1 << 30]),
    )
    def check(asks: list[Ask], arrivals: list[int], room: float, prefix_cache_bytes: int) -> None:
        largest = max(peak_bytes(plain, ask.stored) for ask in asks)
        budget = max(1, int(room * largest))
        engine = open_engine(path, budget, prefix_cache_bytes=prefix_cache_bytes)
        running: list[tuple[Ask, Request]] = []
        served: list[Ask] = []

        def turn() -> None:
            for ask, request in list(running):
                if ask.patience == 0:
                    request.cancel()
                    running.remove((ask, request))
                    continue
                event = request.next()
                assert engine.kv_bytes_in_use() <= budget
                if event is None:
                    assert request.finish_reason == "length"
                    served.append(ask)
                    running.remove((ask, request))
                    continue
                if event.token_id is not None:
                    ask.tokens.append(event.token_id)
                if ask.patience is not None:
                    ask.patience -= 1

        for ask, turns in zip(asks, arrivals, strict=False):
            if peak_bytes(plain, ask.stored) > budget:
                with pytest.raises(OutOfMemoryError, match="are set aside"):
                    ask.submit(engine)
                continue
            running.append((ask, ask.submit(engine)))
            for _ in range(turns):
                turn()
        for _ in range(2000):
            if running:
                turn()
        assert not running, "every request ends"
        for ask in served:
            assert ask.tokens == answer(ask)
        for ask in asks:
            assert ask.tokens == answer(ask)[: len(ask.tokens)]
        kept = engine.kv_bytes_in_use()
        assert kept <= min(budget, prefix_cache_bytes)

    check()


def test_a_large_request_is_not_overtaken(path: Path) -> None:
    engine = open_engine(path, prefix_cache_bytes=0)
    small, large = text(0, 100), text(1, 600)
    budget = peak_bytes(engine, 610) + peak_bytes(engine, 105) - 1
    engine.set_kv_memory(budget)
    first = [engine.submit(small, max_tokens=6 + 20 * i) for i in range(2)]
    first[0].next()
    waits = engine.submit(large, max_tokens=11)
    late = [engine.submit(small, max_tokens=6) for _ in range(5)]
    for request in first:
        drain(request)
    # Each of the late ones would have fitted beside the first two, and been done by now.
    assert [request.usage["completion_tokens"] for request in late] == [0] * 5
    answer = drain(waits)
    assert answer == drain(open_engine(path).submit(large, max_tokens=11))
    assert len({tuple(drain(request)) for request in late}) == 1


def test_decoding_goes_on_beside_prompts(path: Path) -> None:
    engine = open_engine(path, prefix_cache_bytes=0)
    decoding = engine.submit([1], max_tokens=20)
    decoding.next()
    prompt = engine.submit(text(0, 20 * STEP), max_tokens=1)
    assert len(drain(decoding)) == 20 - 1
    # One token for each step: the prompt got the rest of every one of them.
    assert prompt.next().prefilled == STEP - 1


def test_a_short_prompt_does_not_wait_for_a_long_one(path: Path) -> None:
    engine = open_engine(path, prefix_cache_bytes=0)
    long = engine.submit(text(0, 100 * STEP), max_tokens=1)
    short = engine.submit(text(1, STEP), max_tokens=1)
    drain(short)
    assert long.next().prefilled <= STEP


def test_prompts_that_begin_alike_are_computed_once(path: Path) -> None:
    engine = open_engine(path)
    requests = [engine.submit([*text(0, 3 * PAGE), i], max_tokens=4) for i in range(40)]
    answers = [drain(request) for request in requests]
    cached = [request.usage["cached_tokens"] for request in requests]
    whole = 3 * PAGE if read_shape(engine.config_json).chunk_size == 2 * PAGE else 0
    assert sum(tokens >= whole for tokens in cached) >= 38
    plain = open_engine(path, prefix_cache_bytes=0)
    assert answers == [
        drain(plain.submit([*text(0, 3 * PAGE), i], max_tokens=4)) for i in range(40)
    ]


def test_hundreds_of_prompts(checkpoint: MakeCheckpoint) -> None:
    prompts = [text(i, 20 + i % 50) for i in range(300)]
    path, how = checkpoint("scout_like"), {"weights": "f32", "threads": 2}
    roomy = llama4rs.Llama4(path, **how)
    narrow = llama4rs.Llama4(path, **how, kv_memory=2_000_000, prefix_cache_bytes=0)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    answers = [output.token_ids for output in roomy.generate(prompts, **options)]
    assert [output.token_ids for output in narrow.generate(prompts, **options)] == answers
    assert answers[7] == roomy.generate(prompts[7], **options).token_ids
    assert narrow.kv_memory == 2_000_000


def test_cancelling_frees_memory_at_once(path: Path) -> None:
    engine = open_engine(path, prefix_cache_bytes=0)
    requests = [engine.submit(text(i, 200), max_tokens=50) for i in range(4)]
    for request in requests:
        request.next()
    engine.set_kv_memory(engine.kv_bytes_in_use())
    used = engine.kv_bytes_in_use()
    requests[0].cancel()
    assert engine.kv_bytes_in_use() < used
    for request in requests:
        request.cancel()
    assert engine.kv_bytes_in_use() == 0


def test_cancelling_while_another_thread_computes(path: Path) -> None:
    """Nobody drives the engine afterwards, and still the memory is free."""
    engine = open_engine(path, prefix_cache_bytes=0, step_tokens=10_000)
    request = engine.submit(text(0, 6000), max_tokens=1)
    worker = threading.Thread(target=drain, args=(request,))
    worker.start()
    while engine.kv_bytes_in_use() is not None and worker.is_alive():
        pass
    request.cancel()
    worker.join(timeout=60)
    assert request.finish_reason in ("cancelled", "length")
    assert engine.kv_bytes_in_use() == 0


def test_errors_say_by_how_much_and_what_to_do(checkpoint: MakeCheckpoint) -> None:
    llm = llama4rs.Llama4(checkpoint("scout_like"), weights="f32", kv_memory="500 kB")
    with pytest.raises(OutOfMemoryError) as caught:
        llm.generate([1] * 10_000, max_tokens=100)
    problem, hint = str(caught.value).split("\nhint: ")
    needed = peak_bytes(llm._engine, 10_099, 512)
    assert f"needs up to {needed / 1e6:.1f} MB for keys and values of 10099 tokens" in problem
    assert "500.0 kB are set aside" in problem
    fits = int(hint.split("together may be ")[1].split(" tokens")[0])
    assert llm.generate([1] * (fits - 1), max_tokens=2).finish_reason is not None
    with pytest.raises(OutOfMemoryError):
        llm.generate([1] * (fits - 1), max_tokens=3)
    with pytest.raises(OutOfMemoryError, match="keys, values and logits of 900 tokens"):
        llm.logits([1] * 900)


@pytest.mark.parametrize("value", ["", "GB", "8 XB", "-1", "8IB", 0, -5, True, 1.5, "0", 1 << 64])
def test_bytes_that_are_none(value: Any) -> None:
    with pytest.raises(RequestError, match="kv_memory is a number of bytes"):
        parse_bytes("kv_memory", value)


def test_the_default_leaves_room_for_the_rest(checkpoint: MakeCheckpoint) -> None:
    llm = llama4rs.Llama4(checkpoint("scout_like"))
    assert llm.kv_memory is None or llm.kv_memory >= 64 << 20
    shape = read_shape(json.dumps(preset_config("scout")))
    options = {"step_tokens": 512, "other_bytes": 10**9}
    gigabytes = 10**9

    def budget(available: int | None, mapped: int, total: int | None = None) -> int | None:
        machine = Machine(memory_available=available, memory_total=total)
        return kv_memory(shape, machine, mapped_bytes=mapped, **options)

    whole = budget(100 * gigabytes, 0)
    assert 85 * gigabytes < whole < 93 * gigabytes
    assert budget(100 * gigabytes, 60 * gigabytes) == whole - 60 * gigabytes
    assert budget(100 * gigabytes, 99 * gigabytes) == whole // 4
    assert budget(1 * gigabytes, 0) == 64 << 20
    assert budget(None, 0) is None
    assert budget(None, 0, total=200 * gigabytes) == whole


def test_the_planner_knows_who_waits() -> None:
    options: dict[str, Any] = {"context": 8192, "batch": 8, "probe": False}
    plan = llama4rs.plan("scout", kv_memory="4GiB", **options)
    assert plan.batch == 2
    assert plan.kv_bytes <= 4 << 30
    assert "2 sequences run at the same time, others wait" in plan.notes
    kept = [part.bytes for part in plan.components if part.name.startswith("kept")]
    assert kept == [1 << 30]
    refused = llama4rs.plan("scout", kv_memory="1GB", **options)
    assert "with kv_memory 1.00 GB it is refused" in refused.notes[0]


def test_with_files_texts_may_be_longer_than_memory(tmp_path: Path) -> None:
    """Full segments of 128 pages are mapped from files, so they take no memory."""
    path = tmp_path / "model"
    make_checkpoint(path, CONFIG | {"attention_chunk_size": 2 * PAGE}, 5)
    length = 170 * PAGE
    ids, options = text(0, length), {"max_tokens": 3, "temperature": 0.0}
    plain = open_engine(path, prefix_cache_bytes=0, step_tokens=512)
    answer = drain(plain.submit(ids, **options))
    budget = peak_bytes(plain, 145 * PAGE, 512)
    with pytest.raises(OutOfMemoryError):
        open_engine(path, budget, step_tokens=512).submit(ids, **options)

    how: dict[str, Any] = {"kv_dir": str(tmp_path / "kv"), "step_tokens": 512}
    stored = open_engine(path, budget, **how)
    request = stored.submit(ids, **options)
    while request.next() is not None:
        assert stored.kv_bytes_in_use() <= budget
    # Now all of it is in files: many fit at the same time.
    again = [stored.submit([*ids, i], **options) for i in range(8)]
    again[0].next()
    assert stored.kv_bytes_in_use() <= budget
    assert [drain(stored.submit(ids, **options)) for _ in range(2)] == [answer] * 2
    for request in again:
        drain(request)
        assert request.usage["cached_tokens"] == length

    copied = open_engine(path, budget, **how, kv_read="copy")
    with pytest.raises(OutOfMemoryError):
        copied.submit(ids, **options)
    short = copied.submit(ids[: 100 * PAGE], **options)
    small = [copied.submit([*ids[: 40 * PAGE], i], **options) for i in range(6)]
    for request in [short, *small]:
        while request.next() is not None:
            assert copied.kv_bytes_in_use() <= budget
        assert request.usage["cached_tokens"] > 30 * PAGE
