"""Images on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from chain_model import IMAGE_START, PATCH, SCRIPT
from images.pictures import picture
from llama4rs import Llama4
from llama4rs.cli.app import app

from .cases import png


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    path.write_bytes(png(picture(112, 56)))
    return str(path)


def test_generate_command(folder: Path, file: str) -> None:
    options = ("-m", str(folder), "-t", "0", "--threads", "1", "--image", file)
    assert run("generate", "what?", *options) == SCRIPT + "\n"
    assert run("generate", "what?", *options, "--image", file) == SCRIPT + "\n"
    assert run("generate", "<|image|>a", *options) == SCRIPT[1:] + "\n"  # raw
    blank = CliRunner().invoke(app, ["generate", "x", *options, "--image", "nowhere.png"])
    assert blank.exit_code == 1
    assert blank.stderr.startswith("error: image 2 of 2: cannot read image")


def test_chat_command(folder: Path, file: str) -> None:
    options = (str(folder), "-t", "0", "--threads", "1")
    talk = f"what?\n/image {file}\nand this?\n/image nowhere.png\n"
    assert run("chat", *options, "--image", file, "--image", file, stdin=talk) == 2 * f"{SCRIPT}\n"
    result = CliRunner().invoke(app, ["chat", *options, "--json"], input=f"/image {file}\nwhat?\n")
    assert f"{IMAGE_START}, {PATCH}" in result.stdout.replace("\n", " ")
    missing = CliRunner().invoke(app, ["chat", *options, "--image", "nowhere.png"], input="a\n")
    assert (missing.exit_code, missing.stdout) == (1, "")


def test_text_only_models_on_the_command_line(blind: Llama4, file: str) -> None:
    result = CliRunner().invoke(app, ["chat", str(blind.path)], input=f"/image {file}\nhi\n")
    assert result.exit_code == 0
    assert "reads no images" in result.stderr


def test_info_command(folder: Path, blind: Llama4) -> None:
    shown = run("info", str(folder))
    assert "56 x 56 pixels" in shown
    assert "tokens per tile" in shown
    assert "tokens per tile" not in run("info", str(blind.path))
