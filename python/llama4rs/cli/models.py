"""``llama4rs info``, ``pack``, ``verify`` and ``warm``: model directories."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..device import cuda_devices
from ..errors import RequestError
from ..packing import inspect
from ..packing import pack as pack_model
from ..packing import verify as verify_model
from ..summary import byte_count, groups_text, number, table_text, tensor_groups
from ..warming import warm as warm_model
from .options import MODEL_HELP, Json, LocalFilesOnly, Revision, Threads
from .reporting import reported, warn
from .terminal import print_json

__all__ = ["info", "pack", "verify", "warm"]


@reported
def info(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    device: Annotated[
        bool, typer.Option("--device", help="Show the devices of this machine instead.")
    ] = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Show what a model directory holds, and this machine.

    Reads headers only. A model on the hub must have been downloaded before.

    Examples:

        llama4rs info

        llama4rs info scout-int4 --json

        llama4rs info --device
    """
    from .._llama4rs import cpu_features

    if device:
        _show_devices(json=json)
        return
    found = inspect(model, revision=revision, local_files_only=True)
    machine = cpu_features()
    if json:
        print_json({**found, "machine": machine})
        return
    kind = found["kind"]
    weights = found.get("weights")
    rows = [
        ("model", model or "cria, the demo model"),
        ("kind", f"{kind}, {weights}" if weights else kind),
        ("parameters", number(found["parameters"])),
        ("size", byte_count(found["bytes"])),
        *_config_rows(found["config"]),
        ("this machine", _cpu_text(machine)),
    ]
    print(table_text(rows))
    print("\nstored as:" if weights else "\nwith --weights int4 it would be:")
    _print_tensors(found)


def _cpu_text(machine: dict[str, Any]) -> str:
    sets = ", ".join(machine["available"])
    return f"{machine['instruction_set']} (of {sets}), {machine['threads']} threads"


def _show_devices(*, json: bool) -> None:
    from .._llama4rs import cpu_features

    cpu, cuda = cpu_features(), cuda_devices()
    if json:
        print_json({"cpu": cpu, "cuda": {**cuda, "nvrtc_path": str(cuda["nvrtc_path"] or "")}})
        return
    rows = [("cpu", _cpu_text(cpu))]
    rows += [
        (
            device["device"],
            f"{device['name']}, compute capability {device['capability']}, "
            f"{byte_count(device['memory'])}, {device['multiprocessors']} multiprocessors, "
            f"products of prompts: {device['prompt_products']}",
        )
        for device in cuda["devices"]
    ]
    if cuda["driver"]:
        rows.append(("driver", f"CUDA {cuda['driver']}"))
    if cuda["nvrtc"]:
        rows.append(("NVRTC", f"{cuda['nvrtc']} at {cuda['nvrtc_path']}"))
    rows += [("no CUDA", problem) for problem in cuda["problems"]]
    print(table_text(rows))


@reported
def pack(
    source: Annotated[str, typer.Argument(help="Model directory or Hugging Face id.")],
    destination: Annotated[str, typer.Argument(help="Directory to make.")],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            "-w",
            metavar="FORMAT",
            help="int4, int8, bf16 or f32.",
        ),
    ] = "int4",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="'PATTERN=FORMAT'",
            help="Another format for matrices whose name matches. May be repeated, first one wins.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DESTINATION.")] = False,
    threads: Threads = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> None:
    """Convert a published checkpoint into a directory that opens at once.

    Examples:

        llama4rs pack meta-llama/Llama-4-Scout-17B-16E-Instruct scout-int4

        llama4rs pack scout scout-mixed -w int4 --policy 'layers.*.shared_expert.*=int8'
    """
    report = pack_model(
        source,
        destination,
        weights=weights,
        policy=[_rule(text) for text in policy or ()],
        threads=threads,
        force=force,
        revision=revision,
        local_files_only=local_files_only,
        progress=sys.stderr.isatty(),
    )
    if json:
        print_json(report)
        return
    _print_tensors(report)
    print(f"\n{destination}: {byte_count(report['bytes'])}")
    print(f"next: llama4rs chat {destination}")


@reported
def verify(
    directory: Annotated[str, typer.Argument(help="A directory that `llama4rs pack` made.")],
    json: Json = False,
) -> None:
    """Read a packed directory completely and check every checksum.

    Example:

        llama4rs verify scout-int4
    """
    report = verify_model(directory, progress=sys.stderr.isatty())
    if json:
        print_json(report)
        return
    print(
        f"{directory} is intact: {report['tensors']} tensors, {report['files']} files, "
        f"{byte_count(report['bytes'])}"
    )


@reported
def warm(
    directory: Annotated[str, typer.Argument(help="A directory that `llama4rs pack` made.")],
    json: Json = False,
) -> None:
    """Read a packed directory into the page cache, in large pages.

    Decoding reads a third faster from large pages; worth it for a model that was copied, or read
    when memory was short.

    Example:

        llama4rs warm scout-int4
    """
    report = warm_model(directory, progress=sys.stderr.isatty())
    if json:
        print_json(report)
        return
    large = report["large_page_bytes"]
    pages = "" if large is None else f", {large / max(report['bytes'], 1):.0%} in large pages"
    print(f"{directory}: {byte_count(report['bytes'])} read in {report['seconds']:.1f} s{pages}")


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, form = text.rpartition("=")
    if not (pattern and equals and form):
        raise RequestError(f"--policy takes PATTERN=FORMAT, got {text!r}")
    return pattern, form


def _print_tensors(report: dict[str, Any]) -> None:
    print(groups_text(tensor_groups(report["tensors"])))
    for remark in report.get("warnings", ()):
        warn(remark)


def _config_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    text = config.get("text_config", config)
    named = {
        "layers": "num_hidden_layers",
        "experts per layer": "num_local_experts",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    rows = [(label, f"{text[name]:,}") for label, name in named.items() if name in text]
    return rows + _vision_rows(config)


def _vision_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    vision = config.get("vision_config")
    if vision is None:
        return []
    from ..images import ImageConfig

    images = ImageConfig.from_dicts(None, vision)
    return [
        ("vision layers", f"{vision['num_hidden_layers']}, {vision['hidden_size']:,} wide"),
        ("image tiles", f"{images.tile_size} x {images.tile_size} pixels"),
        ("tokens per tile", f"{images.tokens_per_tile}"),
    ]
