"""``make_checkpoint`` writes what it promises; files are read back by a reader written here."""

import json
from pathlib import Path

import numpy as np
import pytest

from oracle.checkpoint import Dtype, RopeKeys, make_checkpoint, weights
from oracle.configs import ALL, MULTIMODAL, TEXT

BYTE_FORMATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_checkpoint(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, widened to float32."""
    index_path = directory / "model.safetensors.index.json"
    if not index_path.exists():
        return read_safetensors(directory / "model.safetensors")
    weight_map = json.loads(index_path.read_text())["weight_map"]
    tensors: dict[str, np.ndarray] = {}
    for file_name in sorted(set(weight_map.values())):
        in_file = read_safetensors(directory / file_name)
        assert {name for name, file in weight_map.items() if file == file_name} == set(in_file)
        tensors |= in_file
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    del header["__metadata__"]
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = np.frombuffer(content[start + first : start + last], BYTE_FORMATS[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = raw.astype(np.float32).reshape(entry["shape"])
    return tensors


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", TEXT)
def test_every_dtype_holds_the_same_numbers(tmp_path: Path, name: str, dtype: Dtype) -> None:
    make_checkpoint(tmp_path, TEXT[name], 0, dtype=dtype)
    assert_same(read_checkpoint(tmp_path), weights(TEXT[name], 0))


def test_shards(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TEXT["top2"], 0, num_shards=3)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(read_checkpoint(tmp_path), weights(TEXT["top2"], 0))


def test_split_experts(tmp_path: Path) -> None:
    config = TEXT["odd_sizes"]
    make_checkpoint(tmp_path, config, 0, layout="split")
    split, fused = read_checkpoint(tmp_path), weights(config, 0)
    experts = "model.layers.1.feed_forward.experts."
    width = config["intermediate_size"]
    gate_up, down = fused[experts + "gate_up_proj"][7], fused[experts + "down_proj"][7]
    np.testing.assert_array_equal(split[experts + "7.gate_proj.weight"], gate_up[:, :width].T)
    np.testing.assert_array_equal(split[experts + "7.up_proj.weight"], gate_up[:, width:].T)
    np.testing.assert_array_equal(split[experts + "7.down_proj.weight"], down.T)
    assert experts + "gate_up_proj" not in split
    assert json.loads((tmp_path / "config.json").read_text())["for_llm_compressor"] is True


def test_multimodal_prefix(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TEXT["top2"], 0, multimodal_prefix=True)
    expected = {f"language_model.{n}": tensor for n, tensor in weights(TEXT["top2"], 0).items()}
    assert_same(read_checkpoint(tmp_path), expected)
    assert "hidden_size" in json.loads((tmp_path / "config.json").read_text())["text_config"]


@pytest.mark.parametrize("name", MULTIMODAL)
def test_multimodal_names(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path, MULTIMODAL[name], 0)
    prefixes = {tensor.partition(".")[0] for tensor in read_checkpoint(tmp_path)}
    assert prefixes == {"language_model", "vision_model", "multi_modal_projector"}


@pytest.mark.parametrize("name", ALL)
def test_rope_keys(tmp_path: Path, name: str) -> None:
    cases: list[tuple[RopeKeys, str, str]] = [
        ("new", "rope_parameters", "rope_theta"),
        ("old", "rope_theta", "rope_parameters"),
    ]
    for rope_keys, present, absent in cases:
        make_checkpoint(tmp_path / rope_keys, ALL[name], 0, rope_keys=rope_keys)
        written = json.loads((tmp_path / rope_keys / "config.json").read_text())
        for part in (written.get("text_config", written), written.get("vision_config")):
            assert part is None or (present in part and absent not in part)


def test_weights_never_change() -> None:
    """Stored answers rest on these numbers; they were computed once and written down."""
    tensor = weights(TEXT["scout_like"], 0)["model.layers.0.self_attn.q_proj.weight"]
    first_four = [-0.224609375, -0.3046875, 0.07763671875, 0.01318359375]
    np.testing.assert_array_equal(tensor[0, :4], first_four)
