"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chain_model import SCRIPT, make_chain_model

pytest.importorskip("llama4rs._llama4rs", reason="the compiled core is not built")

from typer.testing import CliRunner, Result

from llama4rs import Llama4
from llama4rs.cli.app import app
from llama4rs.cli.reporting import fail
from llama4rs.errors import CheckpointNotFoundError, OutOfMemoryError
from llama4rs.hub import demo_model_path

COMMANDS = ("generate", "chat", "pack", "info", "verify", "warm", "plan", "demo", "synth")
GREEDY = ("--temperature", "0", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_chain_model(tmp_path_factory.mktemp("chain")))


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llama4rs", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"llama4rs {command}" in result.stdout


def test_help_lists_all_commands() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        result = run(*arguments)
        assert result.exit_code == 0
        for command in COMMANDS:
            assert command in result.stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("llama4rs ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--no-such-option"],
        ["generate", "a", "--max-tokens", "0"],
        ["generate", "a", "--temperature", "warm"],
        ["no-such-command"],
        ["pack", "source-only"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


# -------------------------------------------------------------------------------------- generate


def test_generate_prints_the_new_text_only(model: str) -> None:
    result = run("generate", "b", "-m", model, *GREEDY)
    assert (result.exit_code, result.stdout, result.stderr) == (0, SCRIPT[2:] + "\n", "")


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_generate_reads_standard_input(model: str, arguments: list[str]) -> None:
    result = run("generate", *arguments, "-m", model, *GREEDY, stdin="b")
    assert result.stdout == SCRIPT[2:] + "\n"


def test_generate_chat_and_stop(model: str) -> None:
    result = run("generate", "hi", "--chat", "-m", model, *GREEDY, "--stop", "END", "--stop", "?")
    assert result.stdout == SCRIPT.partition("END")[0] + "\n"


def test_generate_json(model: str) -> None:
    result = run("generate", "b", "-m", model, *GREEDY, "-n", "2", "--logprobs", "1", "--json")
    output = json.loads(result.stdout)
    assert (output["text"], output["finish_reason"]) == ("cñ"[:1] + "\ufffd", "length")
    assert len(output["logprobs"]) == 2


def test_generate_streams(model: str) -> None:
    # The first piece arrives while the model still writes.
    process = start("generate", "a", "-m", model, *GREEDY, "--ignore-eos", "-n", "1500")
    with process:
        assert process.stdout is not None
        assert process.stdout.read(1) != ""
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_missing_model_is_one_clean_line(model: str) -> None:
    for name in ("./nowhere", "nowhere"):
        result = run("generate", "a", "--model", name)
        assert result.exit_code == 1
        assert result.stdout == ""
        error, hint = result.stderr.splitlines()
        assert error == f"error: no model directory '{name}'"
        assert hint.startswith("hint: give a directory")


def test_bad_values_are_clean_lines(model: str) -> None:
    for arguments, words in (
        (["--device", "tpu"], 'device must be "auto"'),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--weights", "int3"], "int3"),
        (["--max-context", "1"], "tokens"),
    ):
        result = run("generate", "hello", "-m", model, *arguments)
        assert result.exit_code == 1, arguments
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    process = start("generate", "a", "-m", "./no", env={**os.environ, "LLAMA4RS_DEBUG": "1"})
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in stderr
    assert "CheckpointNotFoundError" in stderr


def test_out_of_memory_has_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    fail(OutOfMemoryError("the key/value cache does not fit"))
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: the key/value cache does not fit\nhint: try --weights int4")


def test_ctrl_c_is_130(model: str) -> None:
    process = start("chat", model, "--threads", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("hi\n")
    process.stdin.flush()
    assert process.stdout.read(1) != ""  # it runs, and waits for the next line
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr


def test_closed_pipe_is_quiet(model: str) -> None:
    process = start("generate", "a", "-m", model, *GREEDY, "--ignore-eos", "-n", "1500")
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""


# ------------------------------------------------------------------------------------------ chat


def test_chat_from_a_pipe(model: str) -> None:
    result = run("chat", model, *GREEDY, stdin="hi\n\n/reset\n/nonsense\nyou\n/exit\nnot read\n")
    assert result.exit_code == 0
    assert result.stdout == f"{SCRIPT}\n{SCRIPT}\n"
    assert "unknown command /nonsense" in result.stderr


def test_chat_remembers_until_reset(model: str) -> None:
    lines = "hi\nyou\n/reset\nhi\n"
    result = run("chat", model, *GREEDY, "--json", "--system", "S", stdin=lines)
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert first["message"] == {"role": "assistant", "content": SCRIPT}
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + len(SCRIPT)
    assert third["prompt_token_ids"] == first["prompt_token_ids"]


def test_chat_with_a_full_context_says_so(model: str) -> None:
    result = run("chat", model, *GREEDY, "--max-context", "70", stdin="hi\nyou\nyou\nyou\n")
    assert result.exit_code == 1
    assert "hint: shorten it" in result.stderr


# ------------------------------------------------------------------------- info, pack and verify


def test_info(model: str) -> None:
    result = run("info", model)
    assert result.exit_code == 0, result.stderr
    for word in ("published", "parameters", "experts per layer", "this machine", "lm_head"):
        assert word in result.stdout


def test_info_json(model: str) -> None:
    values = json.loads(run("info", model, "--json").stdout)
    assert values["kind"] == "published"
    assert values["machine"]["threads"] >= 1


def test_pack_info_verify_generate(model: str, tmp_path: Path) -> None:
    packed = str(tmp_path / "packed")
    result = run("pack", model, packed, "--weights", "int8", "--policy", "*.shared_expert.*=bf16")
    assert result.exit_code == 0, result.stderr
    assert "int8" in result.stdout
    assert "bf16" in result.stdout
    assert f"llama4rs chat {packed}" in result.stdout

    result = run("pack", model, packed)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    result = run("pack", model, packed, "--weights", "int8", "--force", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tensors"]

    assert "packed" in run("info", packed).stdout
    assert f"{packed} is intact" in run("verify", packed).stdout
    assert f"{packed}: " in run("warm", packed).stdout
    assert run("generate", "\n", "-m", packed, *GREEDY).stdout == SCRIPT + "\n"


def test_verify_finds_damage(model: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert run("pack", model, str(packed)).exit_code == 0
    weights = max(packed.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = run("verify", str(packed))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("rule", ["nothing", "=int8", "x="])
def test_malformed_policy(model: str, tmp_path: Path, rule: str) -> None:
    result = run("pack", model, str(tmp_path / "new"), "--policy", rule)
    assert result.exit_code == 1
    assert "PATTERN=FORMAT" in result.stderr


def test_verify_of_nothing(tmp_path: Path) -> None:
    result = run("verify", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "no model directory" in result.stderr


# -------------------------------------------------------------------------------------- terminal


def test_chat_on_a_terminal(model: str) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "llama4rs", "chat", model, *GREEDY]
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            _read_until(ours, b"> ")
            os.write(ours, b"hi\n")
            shown = _read_until(ours, b"> ")
            assert SCRIPT.encode() in shown
            assert b"tokens/s" in shown
            os.write(ours, b"/image nowhere.png\n")
            assert b"No such file" in _read_until(ours, b"> ")
            time.sleep(0.5)  # `input` prints its prompt a moment before it listens to signals
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
            os.close(ours)


def _read_until(terminal: int, end: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + 60
    while not seen.endswith(end):
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096)
    return seen


# -------------------------------------------------------------------------------- keys and values


def test_a_directory_of_keys_and_values(tmp_path: Path) -> None:
    kv_dir = str(tmp_path)
    story = "Once upon a time there was a little dog. " * 30
    for _ in range(2):
        assert run("generate", story, "-n", "5", "--kv-dir", kv_dir).exit_code == 0
    session = Llama4(kv_dir=kv_dir, threads=1).session("my book")
    session.append(story)
    session.save()
    result = run("kv", "list", kv_dir)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"my book +\d+ +\d.*kB", result.stdout)
    found = json.loads(run("kv", "list", kv_dir, "--json").stdout)
    assert found["files"]
    assert found["sessions"][0]["tokens"] == len(session)
    assert f"{len(found['files'])} files" in result.stdout
    assert "intact: " in run("kv", "verify", kv_dir).stdout

    damaged = tmp_path / found["files"][0]["file"]
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "sessions" / "bad.session").write_bytes(b"")
    result = run("kv", "verify", kv_dir)
    assert result.exit_code == 1
    assert "2 problems in" in result.stdout
    assert f"{damaged.name}: " in result.stderr
    assert "bad: the file is damaged" in result.stderr
    assert json.loads(run("kv", "prune", kv_dir, "--damaged", "--json").stdout)["files"] == 1
    assert "removed 0 files" in run("kv", "prune", kv_dir, "--older-than", "1d").stdout
    assert "removed 0 files" in run("kv", "prune", kv_dir, "--budget", "1GB").stdout
    assert run("kv", "prune", kv_dir, "--budget", "0").exit_code == 0
    assert json.loads(run("kv", "list", kv_dir, "--json").stdout)["files"] == []
    assert "my book" in run("kv", "list", kv_dir).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "no/such/directory"),
        ("prune", ".", "--budget", "much"),
        ("prune", ".", "--older-than", "30"),
        ("prune", ".", "--older-than", "long"),
    ],
)
def test_errors_of_kv(arguments: tuple[str, ...]) -> None:
    result = run("kv", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


# ------------------------------------------------------------------------------------------ demo


def test_demo() -> None:
    try:
        demo_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])
    began = time.monotonic()
    result = run("demo")
    print(f"demo: {time.monotonic() - began:.1f} s (limit: 10 s)")
    assert result.exit_code == 0, result.stderr
    assert "Once upon a time" in result.stdout
    assert re.search(r"right: 1\d\d\d tokens back", result.stdout)
    assert "layer     0" in result.stdout
    assert "llama4rs chat meta-llama/Llama-4-Scout" in result.stdout


def test_commands_without_a_model_use_the_demo_model() -> None:
    try:
        demo_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])
    assert run("generate", "Once upon a time", "-n", "5").exit_code == 0
    assert run("chat", stdin="Hello!\n").stdout.strip()
    assert "the demo model" in run("info").stdout
