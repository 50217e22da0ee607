"""Which products a Hopper device uses for prompts, and what `info --device` says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llama4rs.device import cuda_devices
from test_cuda import SIMULATED

SHOW = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from typer.testing import CliRunner
from llama4rs.cli.app import app
print(CliRunner().invoke(app, ["info", "--device", "--json"]).stdout)
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "mma (compute capability 8.0 has no wgmma)"),
        ({"LLAMA4RS_SIM_CAPABILITY": "9.0"}, "wgmma (checked: the bits of mma)"),
        (
            {"LLAMA4RS_SIM_CAPABILITY": "9.0", "LLAMA4RS_SIM_PRODUCTS": "backwards"},
            "mma (wgmma adds in another way here: ",
        ),
        (
            {"LLAMA4RS_SIM_CAPABILITY": "9.0", "LLAMA4RS_CUDA_WGMMA": "0"},
            "mma (LLAMA4RS_CUDA_WGMMA=0)",
        ),
    ],
)
def test_products_of_prompts_are_shown(settings: dict[str, str], expected: str) -> None:
    simulated = next((str(path) for path in SIMULATED if path.is_file()), None)
    if simulated is None or cuda_devices()["nvrtc"] is None:
        pytest.skip("no simulated device, or no NVRTC")
    done = subprocess.run(
        [sys.executable, "-c", SHOW, simulated],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (device,) = json.loads(done.stdout)["cuda"]["devices"]
    if "simulated" not in device["name"]:
        pytest.skip("there is a GPU")
    assert device["prompt_products"].startswith(expected)
