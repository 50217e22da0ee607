"""The choice of a device, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama4rs import DeviceError, Llama4
from llama4rs.cli.app import app
from llama4rs.device import cuda_devices, nvrtc_folders


@pytest.fixture
def no_driver() -> None:
    if cuda_devices()["driver"]:
        pytest.skip("this machine has an NVIDIA driver")


def test_without_a_driver_the_gpu_is_a_clear_error(no_driver: None) -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=r"no NVIDIA driver.*device=\"cpu\""):
            Llama4(device=device)
    result = CliRunner().invoke(app, ["generate", "hello", "--device", "cuda"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no NVIDIA driver")
    assert "Traceback" not in result.stderr


def test_without_a_driver_the_cpu_computes(no_driver: None) -> None:
    assert Llama4(device="auto", threads=1).device.startswith("cpu")


def test_nvrtc_of_a_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if not nvrtc_folders():
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    monkeypatch.delenv("LLAMA4RS_NVRTC", raising=False)
    found = cuda_devices()
    assert found["nvrtc"].startswith(("12.", "13."))
    assert Path(found["nvrtc_path"]).is_file()


def test_a_named_place_without_nvrtc_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in (tmp_path, tmp_path / "libnvrtc.so.13"):
        monkeypatch.setenv("LLAMA4RS_NVRTC", str(place))
        found = cuda_devices()
        assert found["nvrtc"] is None
        assert any(str(place) in problem for problem in found["problems"])


def test_the_devices_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA4RS_NVRTC", str(tmp_path))
    result = CliRunner().invoke(app, ["info", "--device"])
    assert result.exit_code == 0
    assert "threads" in result.stdout
    assert "no CUDA" in result.stdout
    as_json = json.loads(CliRunner().invoke(app, ["info", "--device", "--json"]).stdout)
    assert as_json["cpu"]["threads"] >= 1
    assert as_json["cuda"]["problems"]
