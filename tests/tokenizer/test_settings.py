"""Folders of checkpoints: BOS, EOS, stop ids and templates beside the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama4rs.errors import CheckpointNotFoundError, TokenizerError
from llama4rs.tokenizer import Tokenizer

from .small import rank_lines, saved, small_backend, write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(small_backend(), tmp_path / "tokenizer.json")
    return tmp_path


def test_plain(folder: Path) -> None:
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.vocab_size == 416
    assert tokenizer.chat_template is None


def test_json_is_preferred(folder: Path) -> None:
    write_model(folder / "tokenizer.model", rank_lines())
    assert Tokenizer.from_dir(folder).vocab_size == 416
    (folder / "tokenizer.json").unlink()
    assert Tokenizer.from_dir(folder).vocab_size == 260 + 2048


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no tokenizer\.json and no tokenizer\.m"):
        Tokenizer.from_dir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        Tokenizer.from_dir(tmp_path / "nowhere")
    file = write_model(tmp_path / "tokenizer.model", rank_lines())
    with pytest.raises(FileNotFoundError, match=r"use Tokenizer\.from_file"):
        Tokenizer.from_dir(file)


def test_configs(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<|header_start|>"}, "eos_token": "<|step|>"})
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [401, 7]}')
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.bos_id == tokenizer.special_id("header_start")
    assert tokenizer.eos_token == "<|step|>"
    assert tokenizer.eos_ids == {7, 401, 404, 405, tokenizer.special_id("step")}
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert 9 in Tokenizer.from_dir(folder).eos_ids


def test_token_names_that_do_not_exist(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = Tokenizer.from_dir(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|eot|>")


def test_template_sources(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    config.write_text(json.dumps({"chat_template": named}))
    tokenizer = Tokenizer.from_dir(folder)
    assert (tokenizer.chat_template, tokenizer.chat_template_for_tools) == ("D", "T")
    config.write_text(json.dumps({"chat_template": "C"}))
    assert Tokenizer.from_dir(folder).chat_template == "C"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert Tokenizer.from_dir(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("日\n")
    tokenizer = Tokenizer.from_dir(folder)
    assert (tokenizer.chat_template, tokenizer.chat_template_for_tools) == ("日\n", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not valid JSON"),
        ("generation_config.json", "[]", "must hold a JSON object, not a list"),
        ("generation_config.json", '{"eos_token_id": ["x"]}', "ids of tokens, got 'x'"),
        ("generation_config.json", '{"eos_token_id": -1}', "ids of tokens, got -1"),
        ("chat_template.json", '{"chat_template": 3}', "neither a string nor named strings"),
    ],
)
def test_damage(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_dir(folder)
