"""What a decode step asks of the driver, and that it changes no bit how it is asked."""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from typing import Any

import pytest

from llama4rs._llama4rs import Engine
from oracle.checkpoint import make_checkpoint
from oracle.configs import TEXT
from test_cuda import CudaEngine, device

__all__ = ["device"]

GRAPHS = "LLAMA4RS_CUDA_GRAPHS"
WAITS = ("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cuMemcpyDtoH_v2")
OUT_OF_MEMORY = 2
# Heads that tensor cores take, one rotary and one global layer.
SHAPE = {
    "num_hidden_layers": 2,
    "head_dim": 64,
    "attention_chunk_size": 64,
    "no_rope_layers": [1, 0],
}
PROMPTS = {
    # They cross the ends of a page and of a chunk, and the first 256 tokens.
    "crosses": [1] + [10 + 7 * i % 100 for i in range(250)],
    "chunk": [1] + [11 + 3 * i % 90 for i in range(61)],
    "short": [1, 17, 23, 99, 5],
}

Tokens = list[tuple[Any, ...]]


class Driver:
    """The stand-in's own functions."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def calls(self) -> Counter[str]:
        """How often each function was called since the start of the process."""
        text = ctypes.create_string_buffer(1 << 16)
        self.library.llama4rs_sim_calls(text, len(text))
        return Counter(json.loads(text.value))

    def reset_launches(self) -> None:
        """Forgets what kernels did."""
        self.library.llama4rs_sim_reset_counters()

    def launches(self) -> Counter[str]:
        """How often each kernel was launched, alone or in a graph."""
        text = ctypes.create_string_buffer(1 << 20)
        self.library.llama4rs_sim_counters(text, ctypes.c_size_t(len(text)))
        return Counter({name: found["launches"] for name, found in json.loads(text.value).items()})

    def fail(self, name: str, calls: int = 1, code: int = 999) -> None:
        """Lets the next calls of a function fail."""
        self.library.llama4rs_sim_fail(name.encode(), calls, code)


@pytest.fixture(scope="module")
def driver(device: str) -> Driver:
    try:
        found = Driver()
        found.calls()
    except (OSError, AttributeError):
        pytest.skip("a real driver counts no calls")
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("steps")
    make_checkpoint(path, TEXT["scout_like"] | SHAPE, 7)
    return str(path)


def run(engine: Engine, options: dict[str, Any], **some: dict[str, Any]) -> dict[str, Tokens]:
    """Two requests, and a third that comes while they run; they end one after the other. All have
    `options`, and `some` more."""

    def submit(name: str, tokens: int) -> None:
        more = options | some.get(name, {})
        requests[name] = engine.submit(PROMPTS[name], max_tokens=tokens, stop_token_ids=[], **more)

    requests: dict[str, Any] = {}
    submit("chunk", 12)
    submit("crosses", 18)
    tokens: dict[str, Tokens] = {}
    step = 0
    while requests:
        for name in list(requests):
            event = requests[name].next()
            if event is None:
                del requests[name]
            elif event.token_id is not None:
                kept = (event.token_id, event.logprob, tuple(event.top_logprobs or ()))
                tokens.setdefault(name, []).append(kept)
        step += 1
        if step == 6:
            submit("short", 5)
    return tokens


@pytest.mark.parametrize(
    ("weights", "kv_cache"), [("int4", "bf16"), ("int4", "int8"), ("bf16", "int4"), ("f32", "f32")]
)
def test_graphs_change_no_bit(
    model: str, driver: Driver, monkeypatch: pytest.MonkeyPatch, weights: str, kv_cache: str
) -> None:
    answers = []
    for graphs in ("1", "0"):
        monkeypatch.setenv(GRAPHS, graphs)
        engine = CudaEngine(model, weights=weights, kv_cache=kv_cache)
        before = driver.calls()
        # Log probabilities show every bit of the logits.
        answers.append(run(engine, {"logprobs": 3}))
        launched = (driver.calls() - before)["cuGraphLaunch"]
        assert (launched > 8) if graphs == "1" else (launched == 0)
    assert answers[0] == answers[1]
    assert {name: len(tokens) for name, tokens in answers[0].items()} == {
        "chunk": 12,
        "crosses": 18,
        "short": 5,
    }


def test_a_decode_step_is_one_launch_and_one_wait(model: str, driver: Driver) -> None:
    engine = CudaEngine(model, weights="int4")
    drawn: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
    for options in ({"temperature": 0.0}, drawn):
        request = engine.submit(PROMPTS["short"], max_tokens=20, stop_token_ids=[], **options)
        steps = []
        while True:
            before = driver.calls()
            if request.next() is None:
                break
            steps.append(driver.calls() - before)
        # The first ones find their memory and are recorded; then no shape changes.
        for calls in steps[6:]:
            assert calls["cuGraphLaunch"] == 1
            assert sum(calls[name] for name in WAITS) == 1
            # The inputs go down, the tokens and the experts come back.
            assert calls["cuMemcpyHtoDAsync_v2"] == 1
            assert calls["cuMemcpyDtoHAsync_v2"] == 1
            others = set(calls) - {"cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"}
            assert others == {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"}


def test_prompts_wait_once_for_a_step(model: str, driver: Driver) -> None:
    engine = CudaEngine(model, weights="int4", step_tokens=300)
    waits = []
    for first in range(2, 5):
        request = engine.submit([first, *PROMPTS["crosses"] * 2], max_tokens=1)
        while True:
            before = driver.calls()
            if request.next() is None:
                break
            waits.append((driver.calls() - before)["cuStreamSynchronize"])
    # Later ones find their memory.
    assert waits[-2:] == [1, 1]


def test_scratch_of_a_step_is_that_of_a_layer(
    driver: Driver, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the first step, too, which finds no region for it. Only two results of each layer, which
    the host reads at the end, stay."""
    allocations = []
    for layers in (2, 6):
        path = tmp_path_factory.mktemp("layers")
        shape = SHAPE | {"num_hidden_layers": layers, "no_rope_layers": [1, 0] * (layers // 2)}
        make_checkpoint(path, TEXT["scout_like"] | shape, 7)
        engine = CudaEngine(str(path), weights="int4")
        before = driver.calls()
        engine.submit(PROMPTS["crosses"][:200], max_tokens=1).next()
        allocations.append((driver.calls() - before)["cuMemAlloc_v2"])
    assert allocations[1] - allocations[0] <= 2 * (6 - 2)


def test_a_region_for_which_there_is_no_memory_costs_no_request(model: str, driver: Driver) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "stop_token_ids": []}
    answers = []
    for fails in (False, True):
        engine = CudaEngine(model, weights="int4")
        request, tokens = engine.submit(PROMPTS["short"], **options), []
        while (event := request.next()) is not None:
            tokens.append(event.token_id)
            if fails and len(tokens) == 1:
                # The next step wants what the first one lacked; given up memory is tried again.
                driver.fail("cuMemAlloc_v2", 2, OUT_OF_MEMORY)
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.9, "seed": 2},
        {"temperature": 1.5, "top_k": 7, "min_p": 0.05, "seed": 3},
    ],
    ids=str,
)
def test_the_device_draws_the_hosts_tokens(
    model: str, driver: Driver, options: dict[str, Any]
) -> None:
    engine = CudaEngine(model, weights="int4")
    on_device = run(engine, options)
    on_host = run(engine, options | {"logprobs": 0})
    ids = [
        {name: [token[0] for token in tokens] for name, tokens in answer.items()}
        for answer in (on_device, on_host)
    ]
    assert ids[0] == ids[1]
    assert all(token[1] is None for tokens in on_device.values() for token in tokens)
    # One that shows its log probabilities beside others that are drawn.
    mixed = run(engine, options, chunk={"logprobs": 0})
    assert mixed == on_device | {"chunk": on_host["chunk"]}


@pytest.mark.parametrize("call", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
def test_without_graphs_it_goes_on(model: str, driver: Driver, call: str) -> None:
    expected = run(CudaEngine(model, weights="int4"), {})
    engine = CudaEngine(model, weights="int4")
    before = driver.calls()
    driver.fail(call)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs") as warnings:
        assert run(engine, {}) == expected
    assert len(warnings) == 1
    assert (driver.calls() - before)["cuGraphLaunch"] == 0


def test_a_start_does_no_needless_work(model: str, driver: Driver) -> None:
    def answer() -> tuple[dict[str, Tokens], Counter[str]]:
        before = driver.calls()
        engine = CudaEngine(model, weights="int4")
        opened = driver.calls() - before
        # Weights are on their way; nobody has waited for them.
        assert not any(opened[name] for name in WAITS)
        tokens = run(engine, {})
        return tokens, driver.calls() - before

    (expected, cold), (tokens, warm) = answer(), answer()
    assert tokens == expected
    assert warm == cold
    # A file of kernels is loaded once, and each kernel is looked up once.
    assert warm["cuModuleLoadDataEx"] <= warm["cuModuleGetFunction"] <= 24


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize(("config", "mixtures"), [("scout_like", 4), ("maverick_like", 2)])
def test_launches_of_a_layer(
    driver: Driver,
    tmp_path_factory: pytest.TempPathFactory,
    config: str,
    mixtures: int,
    rows: int,
) -> None:
    """A decode step of few rows through four more layers, `mixtures` of them with experts."""
    launches = []
    for layers in (2, 6):
        path = tmp_path_factory.mktemp("launches")
        shape = SHAPE | {"num_hidden_layers": layers, "no_rope_layers": [1, 0] * (layers // 2)}
        make_checkpoint(path, TEXT[config] | shape, 7)
        engine = CudaEngine(str(path), weights="int4")
        requests = [
            engine.submit([1, 5 + i, 17], max_tokens=8, stop_token_ids=[]) for i in range(rows)
        ]
        for _ in range(4):
            for request in requests:
                request.next()
        driver.reset_launches()
        for request in requests:
            request.next()
        launches.append(driver.launches())
    more: Counter[str] = Counter()
    for kernel, count in (launches[1] - launches[0]).items():
        more["matmul_decode" if kernel.startswith("matmul_decode_") else kernel] += count
    assert more == {
        # q, k and v; o; gate and up; down. What follows o and down is theirs, too.
        "matmul_decode": 4 * 4,
        "rope_cache": 4,
        "attend_decode": 4,
        "router": mixtures,
    }
