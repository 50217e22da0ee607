"""The model on a GPU, or on the simulated device where there is none."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from llama4rs.device import cuda_devices, nvrtc_folders
from oracle.answers import load_answers
from oracle.comparison import assert_agrees
from oracle.configs import MULTIMODAL, TEXT
from oracle.prompts import image_prompts, text_prompts

# The stand-in for libcuda, as `cargo build -p llama4rs-cuda-sim` leaves it.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parent.parent / "target"))
SIMULATED = [TARGET / kind / "libllama4rs_cuda_sim.so" for kind in ("release", "debug")]


@pytest.fixture(scope="module", autouse=True)
def device() -> str:
    """The name of a device; loads the stand-in where there is no driver."""
    if cuda_devices()["driver"] is None:
        found = next((path for path in SIMULATED if path.is_file()), None)
        if found is not None:
            ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
    found_now = cuda_devices()
    if found_now["problems"]:
        pytest.skip("; ".join(found_now["problems"]))
    return str(found_now["devices"][0]["device"])


CudaEngine = partial(Engine, device="cuda", nvrtc_folders=nvrtc_folders())


def generate(engine: Engine, *prompts: list[int], max_tokens: int) -> list[list[int]]:
    """Token ids of requests that run side by side."""
    requests = [engine.submit(prompt, max_tokens=max_tokens) for prompt in prompts]
    tokens: list[list[int]] = []
    for request in requests:
        tokens.append([])
        while (event := request.next()) is not None:
            if event.token_id is not None:
                tokens[-1].append(event.token_id)
    return tokens


@pytest.mark.parametrize("name", ["scout_like", "odd_sizes", "top2", "dense"])
def test_logits_and_greedy_tokens_equal_transformers(checkpoint: MakeCheckpoint, name: str) -> None:
    answers, ids = load_answers(), text_prompts(TEXT[name])["43_tokens"]
    engine = CudaEngine(str(checkpoint(name)), weights="f32")
    assert engine.device.startswith("cuda:0")
    assert_agrees(engine.logits(ids), answers[f"{name}/43_tokens/logits"], name, tolerance=1e-3)
    expected = answers[f"{name}/43_tokens/greedy"].tolist()[:6]
    assert generate(engine, ids, max_tokens=len(expected)) == [expected]


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int4"])
def test_logits_are_those_of_the_cpu_in_exact_arithmetic(
    checkpoint: MakeCheckpoint, weights: str
) -> None:
    path, ids = str(checkpoint("scout_like")), text_prompts(TEXT["scout_like"])["43_tokens"]
    options: dict[str, Any] = {"weights": weights, "kv_cache": "f32", "arithmetic": "exact"}
    expected = Engine(path, device="cpu", threads=1, **options).logits(ids)
    got = CudaEngine(path, **options).logits(ids)
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_tensor_cores_stay_near(checkpoint: MakeCheckpoint, weights: str) -> None:
    # Without experts: which one is best may hang on the last bit.
    path, ids = str(checkpoint("dense")), text_prompts(TEXT["dense"])["43_tokens"]
    exact = CudaEngine(path, weights=weights, arithmetic="exact")
    fast = CudaEngine(path, weights=weights)
    assert "exact" in exact.device
    assert "exact" not in fast.device
    expected, got = exact.logits(ids), fast.logits(ids)
    assert not np.array_equal(got, expected)
    errors = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(errors) < 1.5e-2
    assert errors.max() < 5e-2


@pytest.mark.parametrize("weights", ["f32", "int4"])
def test_cuts_and_company_change_no_bit(checkpoint: MakeCheckpoint, weights: str) -> None:
    path, prompts = str(checkpoint("scout_like")), text_prompts(TEXT["scout_like"])
    ids, other = prompts["43_tokens"], prompts["60_tokens"]
    whole = CudaEngine(path, weights=weights)
    cut = CudaEngine(path, weights=weights, step_tokens=5)
    np.testing.assert_array_equal(cut.logits(ids), whole.logits(ids))
    alone = [generate(whole, prompt, max_tokens=3)[0] for prompt in (ids, other[:7])]
    assert generate(cut, ids, other[:7], max_tokens=3) == alone


@pytest.mark.parametrize("kv_cache", ["bf16", "int8", "int4"])
def test_pages_of_every_kind(checkpoint: MakeCheckpoint, kv_cache: str) -> None:
    path, prompts = str(checkpoint("scout_like")), text_prompts(TEXT["scout_like"])
    ids = (prompts["60_tokens"] * 3)[:140]
    options: dict[str, Any] = {"weights": "f32", "kv_cache": kv_cache}
    expected = Engine(path, device="cpu", threads=1, **options).logits(ids)
    got = CudaEngine(path, **options).logits(ids)
    # A key that rounds to the other of two neighbours is a difference of its size.
    assert np.linalg.norm(got - expected) < 1e-2 * np.linalg.norm(expected)


def test_texts_on_disk_are_read_back(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    path, prompts = str(checkpoint("scout_like")), text_prompts(TEXT["scout_like"])
    ids = (prompts["60_tokens"] * 3)[:150]
    answers, cached = [], []
    for _ in range(2):
        engine = CudaEngine(path, weights="f32", kv_cache="int8", kv_dir=tmp_path)
        request = engine.submit(ids, max_tokens=3)
        tokens = []
        while (event := request.next()) is not None:
            if event.token_id is not None:
                tokens.append(event.token_id)
        answers.append(tokens)
        cached.append(request.usage["cached_tokens"])
        del request, engine
    assert answers[0] == answers[1]
    assert cached == [0, 128]


def test_images(checkpoint: MakeCheckpoint) -> None:
    name = "vision_tiny_56"
    ids, pixels = image_prompts(MULTIMODAL[name])["one_image"]
    engine = CudaEngine(str(checkpoint(name)), weights="f32")
    features = engine.encode_image(np.ascontiguousarray(pixels, dtype=np.float32))
    answers = load_answers()
    expected = answers[f"{name}/one_image/image_features"].reshape(features.shape)
    assert_agrees(features, expected, name, tolerance=1e-4)
    logits = engine.logits(ids, image_features=features)
    assert_agrees(logits, answers[f"{name}/one_image/logits"], name, tolerance=1e-3)


def test_steps_of_more_rows_than_a_launch_has_blocks(checkpoint: MakeCheckpoint) -> None:
    path = str(checkpoint("dense"))
    assert CudaEngine(path, step_tokens=65_535).step_tokens == 65_535
    with pytest.raises(ValueError, match="step_tokens must be at most 65535 on"):
        CudaEngine(path, step_tokens=65_536)
    assert Engine(path, device="cpu", step_tokens=65_536).step_tokens == 65_536


def test_a_device_that_is_not_there(checkpoint: MakeCheckpoint) -> None:
    from llama4rs import DeviceError

    with pytest.raises(DeviceError, match="no CUDA device 7"):
        Engine(str(checkpoint("dense")), device="cuda:7", nvrtc_folders=nvrtc_folders())


def test_a_simulated_device_must_be_asked_for(checkpoint: MakeCheckpoint) -> None:
    if "simulated" not in cuda_devices()["devices"][0]["name"].lower():
        pytest.skip("a real GPU")
    engine = Engine(str(checkpoint("dense")), device="auto", nvrtc_folders=nvrtc_folders())
    assert engine.device.startswith("cpu")
