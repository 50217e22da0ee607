"""The choice of a device, and what is said where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama4rs.cli.app import app
from llama4rs.device import cuda_devices, nvrtc_folders

WITHOUT_A_DRIVER = """
import sys, llama4rs
from llama4rs.device import cuda_devices
if cuda_devices()["driver"]:
    sys.exit("this machine has an NVIDIA driver")
for device in ("cuda", "cuda:1"):
    try:
        llama4rs.Llama4(device=device)
    except llama4rs.DeviceError as error:
        print(error)
print(llama4rs.Llama4(device="auto", threads=1).device)
"""


def test_without_a_driver_the_gpu_is_a_clear_error_and_the_cpu_computes() -> None:
    # A process of its own: others may have loaded the simulated driver into this one.
    command = [sys.executable, "-c", WITHOUT_A_DRIVER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "has an NVIDIA driver" in done.stderr:
        pytest.skip(done.stderr.strip())
    one, two, device = done.stdout.splitlines()
    assert done.returncode == 0
    assert one == two
    assert one.startswith("no NVIDIA driver was found")
    assert one.endswith('use device="cpu"')
    assert device.startswith("cpu")


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
