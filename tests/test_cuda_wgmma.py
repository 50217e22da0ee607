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

LOGITS = """
import ctypes, json, os, sys
simulated = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import numpy as np
from llama4rs._llama4rs import Engine
from llama4rs.device import nvrtc_folders
ids = np.random.default_rng(1).integers(0, 900, 270).tolist()
logits, launched = [], []
for wgmma in ("0", "1"):
    os.environ["LLAMA4RS_CUDA_WGMMA"] = wgmma
    engine = Engine("synth:tiny", device="cuda", nvrtc_folders=nvrtc_folders(), weights="int4")
    logits.append(engine.logits(ids))
    room = ctypes.create_string_buffer(1 << 16)
    simulated.llama4rs_sim_counters(room, len(room))
    launched.append(json.loads(room.value).get("matmul_wgmma", {}).get("launches", 0))
same, finite = bool(np.array_equal(*logits)), bool(np.isfinite(logits[0]).all())
print(json.dumps([engine.device, same, finite, launched]))
"""

WARNINGS = """
import ctypes, json, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from llama4rs._llama4rs import Engine
from llama4rs.device import nvrtc_folders
engine = Engine("synth:tiny", device="cuda", nvrtc_folders=nvrtc_folders(), weights="int4")
print(json.dumps([engine.device, engine.warnings]))
"""


def run(script: str, settings: dict[str, str]) -> str:
    """What a script prints that finds the simulated device."""
    simulated = next((str(path) for path in SIMULATED if path.is_file()), None)
    if simulated is None or cuda_devices()["nvrtc"] is None:
        pytest.skip("no simulated device, or no NVRTC")
    done = subprocess.run(
        [sys.executable, "-c", script, simulated],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_prompt_has_the_same_bits_either_way() -> None:
    device, same, finite, launched = json.loads(run(LOGITS, {"LLAMA4RS_SIM_CAPABILITY": "9.0"}))
    if "simulated" not in device:
        pytest.skip("there is a GPU")
    assert same
    assert finite
    # The check is one launch.
    assert launched[0] == 0
    assert launched[1] > 1


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
    (device,) = json.loads(run(SHOW, settings))["cuda"]["devices"]
    if "simulated" not in device["name"]:
        pytest.skip("there is a GPU")
    assert device["prompt_products"].startswith(expected)


@pytest.mark.parametrize("off", ["0", "1"])
def test_slower_prompts_are_warned_of(off: str) -> None:
    settings = {"LLAMA4RS_SIM_CAPABILITY": "9.0", "LLAMA4RS_SIM_PRODUCTS": "backwards"}
    device, warnings = json.loads(run(WARNINGS, settings | {"LLAMA4RS_CUDA_WGMMA": off}))
    if "simulated" not in device:
        pytest.skip("there is a GPU")
    # Who turns wgmma off knows of it.
    found = [warning for warning in warnings if "prompts take longer than they could" in warning]
    assert len(found) == int(off)
