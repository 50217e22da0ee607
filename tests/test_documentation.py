"""What the documentation shows works as printed; the files that it names are there."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chain_model import make_chain_model
from llama4rs.cli.app import app
from llama4rs.demo import draw_picture
from llama4rs.hub import demo_model_path, resolve_model

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("training/**/*.md"))
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "console")


def examples(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return [code for language, code in FENCE.findall(text) if language in languages]


def commands(page: str) -> list[str]:
    lines = "\n".join(examples(page, *SHELLS)).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ")[:9] == "llama4rs "]


# Those of training/ need torch.
WITH_PYTHON = [page for page in PAGES if examples(page, "python") and page[:9] != "training/"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that examples name."""
    monkeypatch.chdir(tmp_path)
    draw_picture(84).image.save("cat.png")
    Path("book.txt").write_text("Once upon a time there was a little dog. " * 30)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """In one process, from top to bottom; every model is the demo model."""
    monkeypatch.setattr("llama4rs.llm.resolve_model", lambda *_, **__: demo_model_path())
    names: dict[str, Any] = {}
    for number, code in enumerate(examples(page, "python"), start=1):
        exec(compile(code, f"{page}, example {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Every ``llama4rs`` command, with a small model for each that would be downloaded."""
    published = make_chain_model(folder / "path" / "to")

    def resolved(model: Any, **_: Any) -> Path:
        return resolve_model(model) if model is None or Path(model).exists() else published

    for module in ("llm", "packing"):
        monkeypatch.setattr(f"llama4rs.{module}.resolve_model", resolved)
    if not any(command.startswith("llama4rs pack") for command in commands(page)):
        run("llama4rs pack path/to scout-int4")
    for command in commands(page):
        if "--device cuda" not in command:  # which wants a GPU
            run(command.replace("--shape edge", "--shape tiny"))


def run(command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:], input="")
    assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths(page: str) -> None:
    text = FENCE.sub("", (ROOT / page).read_text("utf-8"))
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    named = re.findall(r"`((?:crates|python|tests|docs|scripts|benches|training)/[^`\s]*)`", text)
    paths = itertools.chain.from_iterable(expanded(path) for path in named)
    missing += [path for path in paths if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing, f"{page} names what is not there"


def expanded(path: str) -> list[str]:
    """``a/{b,c}.rs`` written out; a word in capitals is anything."""
    path = re.sub(r"\b[A-Z]+\b(?!\.md)", "*", path)
    head, brace, rest = path.partition("{")
    if not brace:
        return [path]
    choices, _, tail = rest.partition("}")
    return [head + choice + tail for choice in choices.split(",")]
