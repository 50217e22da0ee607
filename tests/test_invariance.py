"""A request's results do not depend on how it was cut, on its company, or on the threads."""

from __future__ import annotations

import signal
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeCheckpoint
from draining import drain
from llama4rs._llama4rs import Engine
from oracle.configs import TEXT
from oracle.prompts import text_prompts

CONFIGS = ["scout_like", "odd_sizes", "top2"]


@cache
def engine(path: Path, weights: str, step_tokens: int, threads: int) -> Engine:
    return Engine(str(path), weights=weights, step_tokens=step_tokens, threads=threads)


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_split_gives_the_same_logits(
    checkpoint: MakeCheckpoint, name: str, weights: str
) -> None:
    path = checkpoint(name)
    ids = text_prompts(TEXT[name])["60_tokens"]
    whole = engine(path, weights, 512, 1).logits(ids)

    @settings(max_examples=12, deadline=None)
    @given(
        step_tokens=st.integers(1, 60),
        threads=st.integers(1, 3),
        length=st.integers(1, len(ids)),
    )
    def check(step_tokens: int, threads: int, length: int) -> None:
        cut = Engine(str(path), weights=weights, step_tokens=step_tokens, threads=threads)
        np.testing.assert_array_equal(cut.logits(ids[:length]), whole[:length])

    check()


@pytest.mark.parametrize("kv_cache", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["scout_like", "dense"])
def test_any_split_gives_the_same_logits_in_every_kv_cache(
    checkpoint: MakeCheckpoint, name: str, kv_cache: str
) -> None:
    path = str(checkpoint(name))
    ids = [(31 * i * i + 7 * i) % TEXT[name]["vocab_size"] for i in range(400)]
    whole = Engine(path, kv_cache=kv_cache, step_tokens=512, threads=1).logits(ids)
    assert np.isfinite(whole).all()
    if kv_cache == "int8":
        exact = Engine(path, kv_cache="bf16", step_tokens=512, threads=1).logits(ids)
        # The first two pages see nothing that is sealed.
        np.testing.assert_array_equal(whole[:128], exact[:128])
        assert (whole[128:] != exact[128:]).any()

    @settings(max_examples=6, deadline=None)
    @given(
        step_tokens=st.integers(1, 200), threads=st.integers(1, 3), length=st.integers(1, len(ids))
    )
    def check(step_tokens: int, threads: int, length: int) -> None:
        cut = Engine(path, kv_cache=kv_cache, step_tokens=step_tokens, threads=threads)
        others = [cut.submit(ids[i::7], max_tokens=2) for i in range(2)]
        np.testing.assert_array_equal(cut.logits(ids[:length]), whole[:length])
        for other in others:
            drain(other)

    check()


@pytest.mark.parametrize("weights", ["f32", "int4"])
def test_company_does_not_matter(checkpoint: MakeCheckpoint, weights: str) -> None:
    path = checkpoint("scout_like")
    vocab = TEXT["scout_like"]["vocab_size"]
    shared = engine(path, weights, 24, 2)

    prompts = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=40)

    @settings(max_examples=10, deadline=None)
    @given(prompts=st.lists(prompts, min_size=2, max_size=32), seed=st.integers(0, 2**64 - 1))
    def check(prompts: list[list[int]], seed: int) -> None:
        options = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": seed}
        together = [shared.submit(prompt, **options) for prompt in prompts]
        answers = [drain(request) for request in together]
        for prompt, answer in list(zip(prompts, answers, strict=True))[:3]:
            assert drain(shared.submit(prompt, **options)) == answer

    check()


def test_threads_may_share_an_engine(checkpoint: MakeCheckpoint) -> None:
    shared = engine(checkpoint("scout_like"), "f32", 8, 2)
    ids = text_prompts(TEXT["scout_like"])["43_tokens"]
    alone = drain(shared.submit(ids, max_tokens=20))
    answers: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        answers[index] = drain(shared.submit(ids, max_tokens=20))

    workers = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert answers == dict.fromkeys(range(6), alone)


def test_cancelling_leaves_the_others_alone(checkpoint: MakeCheckpoint) -> None:
    shared = engine(checkpoint("scout_like"), "f32", 8, 1)
    ids = text_prompts(TEXT["scout_like"])["43_tokens"]
    alone = drain(shared.submit(ids, max_tokens=20))
    doomed = shared.submit(ids, max_tokens=1000)
    kept = shared.submit(ids, max_tokens=20)
    assert doomed.next() is not None
    doomed.cancel("enough")
    assert drain(kept) == alone
    assert doomed.finish_reason == "enough"
    drain(doomed)
    assert doomed.next() is None


def test_an_interrupted_step_counts_once(checkpoint: MakeCheckpoint) -> None:
    class AlarmError(Exception):
        pass

    def ring(*_: object) -> None:
        raise AlarmError

    path = checkpoint("scout_like")
    ids = text_prompts(TEXT["scout_like"])["43_tokens"] * 100

    def run(interrupted: bool) -> tuple[list[int], list[list[int]]]:
        rings = 0
        shared = Engine(str(path), weights="f32", threads=1, step_tokens=10_000)
        request = shared.submit(ids, max_tokens=4)
        tokens = []
        while True:
            signal.setitimer(signal.ITIMER_REAL, 0.025 if interrupted and rings < 3 else 0)
            try:
                event = request.next()
            except AlarmError:
                rings += 1
                continue
            if event is None:
                assert not interrupted or rings
                return tokens, request.expert_usage().tolist()
            if event.token_id is not None:
                tokens.append(event.token_id)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        assert run(interrupted=True) == run(interrupted=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_dropping_a_request_ends_it(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("scout_like")
    shared = Engine(str(path), weights="f32", threads=1, prefix_cache_bytes=0)
    ids = text_prompts(TEXT["scout_like"])["43_tokens"]
    request = shared.submit(ids, max_tokens=1000)
    request.next()
    assert shared.kv_bytes_in_use() > 0
    del request
    assert shared.kv_bytes_in_use() == 0
