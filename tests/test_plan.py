"""The planner: published sizes, what the engine really takes, this machine, advice."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

from typer.testing import CliRunner

import llama4rs
from conftest import MakeCheckpoint
from llama4rs._llama4rs import Engine
from llama4rs.cli.app import app
from llama4rs.errors import CheckpointError, CheckpointNotFoundError, RequestError
from llama4rs.plan import parse_tokens
from llama4rs.planning.advice import Setting, advise
from llama4rs.planning.machine import Machine, this_machine
from llama4rs.planning.sources import model_sizes
from llama4rs.planning.speed import measure
from llama4rs.presets import PRESETS, preset_config
from llama4rs.synth import synth

SCRIPT = Path(__file__).parent / "rss_of_a_run.py"
GIB = 1 << 30


def plan(model: Any = "scout", **options: Any) -> llama4rs.Plan:
    return llama4rs.plan(model, **{"probe": False, "prefix_cache_bytes": 0, **options})


# ------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("context", "gib"), [("8K", 1.5), ("128K", 7.125), ("1M", 49.125), ("10M", 481.125)]
)
def test_keys_and_values_of_scout(context: str, gib: float) -> None:
    for preset in PRESETS:
        assert plan(preset, context=context).kv_bytes_per_sequence == gib * GIB
    assert plan(context=context, kv_cache="f32", batch=4).kv_bytes == gib * GIB * 8


def test_kept_prefixes_are_bytes() -> None:
    found = [plan(prefix_cache_bytes=size).components for size in ("2GiB", 2 * GIB, None)]
    assert found[0] == found[1] != found[2]
    with pytest.raises(RequestError, match="prefix_cache_bytes is a number of bytes"):
        plan(prefix_cache_bytes=-1)


@pytest.mark.parametrize(
    ("preset", "weights", "gigabytes"),
    [
        ("scout", "bf16", 217.28),
        ("maverick", "bf16", 803.17),
        ("scout", "int4/g32", 61.1),
        ("scout", "int4/g64", 57.7),
        ("maverick", "int4/g64", 213.4),
        ("maverick", "int4/g128", 207.1),
    ],
)
def test_weights_of_the_published_models(preset: str, weights: str, gigabytes: float) -> None:
    """With every matrix in one format, as the reference counts."""
    found = plan(preset, weights=weights, policy={"*": weights}).weight_bytes
    assert found == pytest.approx(gigabytes * 1e9, rel=0.001)


def test_groups_of_weights() -> None:
    scout = {part.name: part.bytes for part in plan().components if part.group == "weights"}
    assert "dense layers" not in scout
    assert scout["experts"] == pytest.approx(96_636_764_160 * 4.25 / 8)
    assert scout["attention"] == pytest.approx(3_019_898_880 * 4.25 / 8)
    assert scout["embeddings"] == pytest.approx(2 * 1_034_485_760 * 8.25 / 8)
    assert "dense layers" in [part.name for part in plan("maverick").components]
    assert plan(weights="bf16").decoded_bytes == pytest.approx(32.3e9, rel=0.002)


def test_presets_are_read_without_files() -> None:
    assert plan("Scout").disk_bytes == plan("scout").weight_bytes
    assert preset_config("scout") is not preset_config("scout")
    with pytest.raises(RequestError, match="known are scout, maverick"):
        preset_config("behemoth")


# ---------------------------------------------------------------------- what the engine takes


@pytest.mark.parametrize("name", ["scout_like", "maverick_like"])
@pytest.mark.parametrize("kv_cache", ["bf16", "f32", "int8", "int4"])
@pytest.mark.parametrize("context", [63, 64, 66, 1030])
def test_pages_in_use(checkpoint: MakeCheckpoint, name: str, kv_cache: str, context: int) -> None:
    path = checkpoint(name)
    engine = Engine(str(path), kv_cache=kv_cache, threads=1, prefix_cache_bytes=0)
    request = engine.submit([1 + i % 100 for i in range(context - 1)], max_tokens=2)
    used = 0
    while request.next() is not None and request.finish_reason is None:
        used = engine.kv_bytes_in_use() or 0
    planned = plan(path, context=context - 1, kv_cache=kv_cache).kv_bytes
    assert used == pytest.approx(planned, rel=0.03)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("tiny", ("--kv", "f32", "--contexts", "8192", "--batches", "3")),
        # Chunks of 64 tokens: a step passes the ends of eight of them.
        ("cria", ("--kv", "f32", "--contexts", "4096", "--batches", "2")),
        ("cria", ("--kv", "bf16,int8", "--contexts", "4096", "--kv-read", "map")),
        ("cria", ("--kv", "int4", "--contexts", "4096", "--kv-read", "copy")),
    ],
)
def test_memory_of_a_run(tmp_path: Path, model: str, options: tuple[str, ...]) -> None:
    path = tmp_path / model
    if model == "tiny":
        synth(path, shape=model, weights="f32", threads=2)
    name = "cria" if model == "cria" else str(path)
    command = [sys.executable, str(SCRIPT), name, *options, "--dir", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    for line in done.stdout.splitlines():
        found = json.loads(line)
        print(found)
        if found["kv_read"] == "none":
            assert found["planned_kv"] == pytest.approx(found["kv"], rel=0.06)
        assert found["planned"] == pytest.approx(found["grown"], rel=0.05)


def test_packed_models_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "tiny"
    report = synth(path, shape="tiny", weights="int8/g32", threads=1)
    found = plan(path, images=0)
    assert (found.weights, found.disk_bytes) == ("int8/g32", 0)
    assert found.weight_bytes == sum(tensor["bytes"] for tensor in report["tensors"])
    other = plan(path, weights="int4")
    assert other.disk_bytes == other.weight_bytes < found.weight_bytes
    by_config = plan(path / "config.json", weights="int8/g32")
    assert by_config.components == found.components


def test_an_opened_model(checkpoint: MakeCheckpoint) -> None:
    llm = llama4rs.Llama4(checkpoint("scout_like"), weights="int8", prefix_cache_bytes=0)
    found = llm.plan(context=256, batch=3, probe=False)
    assert found.components == plan(llm.path, weights="int8", context=256, batch=3).components
    assert (found.weights, found.fits, found.disk_bytes) == ("int8/g64", True, 0)


# -------------------------------------------------------------------------------- this machine


def test_memory_of_this_machine(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    found = this_machine(tmp_path / "not" / "there", tmp_path)
    assert found.disk_free is not None
    assert dataclasses.replace(found, disk_free=None) == Machine(1024_000, 614_400, None, None)
    write("proc/self/cgroup", "0::/box/inner\n")
    write("sys/fs/cgroup/box/memory.max", "500000\n")
    write("sys/fs/cgroup/box/memory.current", "300000\n")
    write("sys/fs/cgroup/box/memory.stat", "anon 1\ninactive_file 100000\n")
    write("sys/fs/cgroup/box/inner/memory.max", "max\n")
    found = this_machine(tmp_path, tmp_path)
    assert (found.memory_limit, found.memory_available) == (500_000, 300_000)
    write("proc/self/cgroup", "4:cpu,memory:/old\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/old/memory.limit_in_bytes", "200000\n")
    found = this_machine(tmp_path, tmp_path)
    assert (found.memory_limit, found.memory_available) == (200_000, 200_000)
    assert this_machine(tmp_path, tmp_path / "none").memory_available is None


def on_a_machine(monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    machine = Machine(int(memory), int(memory), None, 10**12)
    module = importlib.import_module("llama4rs.plan")  # the package's `plan` is the function
    monkeypatch.setattr(module, "this_machine", lambda folder: machine)


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, verdict in ((70e9, "fits"), (40e9, "streams"), (5e9, "does not fit")):
        on_a_machine(monkeypatch, memory)
        found = plan()
        assert (found.verdict, found.fits) == (verdict, verdict == "fits")
        assert (found.advice is None) == found.fits


def test_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine(monkeypatch, 70e9)
    found = plan(weights="bf16", kv_cache="f32", context="1M", batch=4)
    assert found.setting == Setting("int4/g64", "int8", 262144, 1)
    assert "weights int4/g64 and KV int8 and context 256K and batch 1 need" in str(found)
    nearest = plan(**dataclasses.asdict(found.setting))
    assert nearest.fits
    on_a_machine(monkeypatch, 20e9)
    found = plan(context="1M")
    assert found.setting is None
    assert "no setting fits: the smallest needs 6" in str(found)


def test_advice_prefers_what_costs_least() -> None:
    sizes = {"bf16": 100, "int8/g64": 50, "int4/g64": 25}

    def need(setting: Setting) -> int:
        return sizes[setting.weights] + setting.batch * setting.context // 1024

    wanted = Setting("bf16", "bf16", 8192, 4)
    assert advise(wanted, need, 90, images=0) == (Setting("int8/g64", "bf16", 8192, 4), 82)
    assert advise(wanted, need, 45, images=0) == (Setting("int4/g64", "bf16", 8192, 2), 41)
    assert advise(wanted, need, 30, images=0) == (Setting("int4/g64", "bf16", 4096, 1), 29)
    assert advise(wanted, need, 30, images=5000) == (None, 33)


# ---------------------------------------------------------------------------- speed and images


def test_speed() -> None:
    short, long = (
        llama4rs.plan("scout", context=context, images=1, threads=2).speed
        for context in ("8K", "1M")
    )
    assert short is not None
    assert long is not None
    assert long.prefill_seconds > 128 * short.prefill_seconds * 0.5
    assert 0 < long.decode_tokens_per_second < long.decode_at_start
    assert 0 < short.image_seconds < short.prefill_seconds


def test_probe_is_short() -> None:
    import time

    started = time.perf_counter()
    found = measure(model_sizes("scout"), "bf16", threads=None, images=True)
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s (aim: 1 s): {found}")
    assert min(dataclasses.astuple(found)) > 0
    assert seconds < 20


def test_images_take_memory_and_context() -> None:
    none, two = plan(), plan(images=2, image_size=(336, 336))
    assert (two.images.tiles, two.images.tokens) == (1, 147)
    assert two.total_bytes - none.total_bytes == two.group_bytes("images") > 0
    with pytest.raises(RequestError, match="need a context of"):
        plan(images=4, image_size=(2000, 2000), context=8192)


def test_images_of_a_text_model(checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(RequestError, match="reads no images"):
        plan(checkpoint("scout_like"), images=1)


# ------------------------------------------------------------------------------ options, command


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("8k", 8192), (" 1M ", 1 << 20), ("10M", 10 << 20), ("10_000", 10000), (7, 7)],
)
def test_tokens(text: str | int, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "M", "-1", "1T", "0", "1.0001K", "8 192", 0, True])
def test_tokens_that_are_none(text: str | int) -> None:
    with pytest.raises(RequestError):
        parse_tokens(text)


def test_wrong_options(tmp_path: Path) -> None:
    for options in ({"batch": 0}, {"kv_cache": "int3"}, {"weights": "int3"}, {"images": -1}):
        with pytest.raises(RequestError):
            plan(**options)
    with pytest.raises(CheckpointNotFoundError):
        plan(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        plan(tmp_path / "config.json")


def test_notes() -> None:
    assert "made for 1M tokens" in str(plan("maverick", context="2M"))
    assert plan(batch=300).batch == 256


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_command() -> None:
    result = run("--preset", "scout", "--context", "1M", "--batch", "4", "--images", "2",
                 "--kv", "bf16", "--no-probe")  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("weights int4/g64", "1M x 4 sequences", "51.5 GB", "206.2 GB", "2 images"):
        assert text in result.stdout
    result = run("--preset", "maverick", "--weights", "int8", "--no-probe", "--json")
    found = json.loads(result.stdout)
    assert found["weights"] == "int8/g64"
    assert found["total_bytes"] == sum(part["bytes"] for part in found["components"])


def test_command_errors() -> None:
    for arguments in (
        ("--preset", "behemoth"),
        ("scout", "--preset", "scout"),
        ("scout", "--context", "long"),
        ("scout", "--kv", "int3", "--no-probe"),
        ("scout", "--images", "1", "--image-size", "large"),
    ):
        assert run(*arguments).exit_code == 1
