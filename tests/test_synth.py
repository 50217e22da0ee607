"""Synthetic models: they open, verify and answer; the seed decides all of their bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

from typer.testing import CliRunner

import llama4rs
from llama4rs._llama4rs import Engine
from llama4rs.cli.app import app
from llama4rs.synth import synth


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "tiny"
    synth(path, shape="tiny", threads=2)
    return path


def test_opens_verifies_and_generates(tiny: Path) -> None:
    assert llama4rs.verify(tiny)["tensors"] > 30
    assert llama4rs.inspect(tiny)["config"]["model_type"] == "llama4_text"
    engine = Engine(str(tiny), threads=2, max_context=512)
    tokens = np.random.default_rng(0).integers(0, 32000, 256).tolist()
    logits = engine.logits(tokens)
    assert logits.shape == (256, 32000)
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 2.0, "activations do not keep unit size"


def test_tokens_spread_over_the_experts(tiny: Path) -> None:
    engine = Engine(str(tiny), threads=2, max_context=2048)
    tokens = np.random.default_rng(1).integers(0, 32000, 1024).tolist()
    request = engine.submit(tokens, max_tokens=1)
    while request.next() is not None:
        pass
    usage = request.expert_usage()
    assert usage.shape == (4, 16)
    assert (usage > 0).mean() > 0.9
    assert usage.max() < usage.sum(axis=1).max() / 2


def test_the_seed_decides(tiny: Path, tmp_path: Path) -> None:
    synth(tmp_path / "same", shape="tiny", threads=1)
    synth(tmp_path / "other", shape="tiny", seed=1)
    tokens = [1, 2, 3]
    paths = (tiny, tmp_path / "same", tmp_path / "other")
    first, same, other = (Engine(str(path), max_context=64).logits(tokens) for path in paths)
    assert (first == same).all()
    assert (first != other).any()


def test_a_model_that_is_nowhere_on_disk(tiny: Path) -> None:
    tokens = [1, 2, 3]
    stored, made = (
        Engine(path, device="cpu", max_context=64) for path in (str(tiny), "synth:tiny")
    )
    assert (stored.logits(tokens) == made.logits(tokens)).all()
    assert stored.summary() == made.summary()
    with pytest.raises(llama4rs.CheckpointError, match="scout-layers=N"):
        Engine("synth:huge")


@pytest.mark.parametrize("kv_cache", ["bf16", "int8"])
def test_a_text_that_is_filled_and_not_computed(tiny: Path, kv_cache: str) -> None:
    # 8448 tokens are a chunk and 4 pages: the fourth is still computed.
    engine = Engine(str(tiny), device="cpu", threads=2, max_context=9000, kv_cache=kv_cache)
    prompt = np.random.default_rng(2).integers(0, 32000, 8450).tolist()
    request = engine.submit(prompt, max_tokens=3, filled_to=8449)
    events = []
    while (event := request.next()) is not None:
        events.append(event)
    assert [event.prefilled for event in events] == [8448, 8450, 8450, 8450]
    assert request.usage == {"prompt_tokens": 8450, "completion_tokens": 3, "cached_tokens": 0}
    computed = request.expert_usage().sum(axis=1)
    assert (computed == 128 + 2 + 2).all(), computed
    # What says nothing is kept for nobody.
    again = engine.submit(prompt[:300], max_tokens=1)
    while again.next() is not None:
        pass
    assert again.usage["cached_tokens"] == 0


def test_a_callback_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        synth(tmp_path / "model", shape="edge", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_errors(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(llama4rs.RequestError, match="scout-layers=N"):
        synth(tmp_path / "model", shape="huge")
    with pytest.raises(llama4rs.RequestError, match="int3"):
        synth(tmp_path / "model", shape="tiny", weights="int3")
    with pytest.raises(llama4rs.PackError, match="exists"):
        synth(tiny, shape="tiny")


def test_command(tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    result = CliRunner().invoke(app, ["synth", path, "--shape", "tiny", "--weights", "int8/g32"])
    assert result.exit_code == 0, result.output
    assert "layers.*.feed_forward.experts.gate_proj" in result.stdout
    assert llama4rs.inspect(path)["weights"] == "int8/g32"
    result = CliRunner().invoke(app, ["synth", path, "--shape", "tiny"])
    assert result.exit_code == 1
