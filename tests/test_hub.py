"""Names of models to directories. The network is never used: the hub's client is replaced."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

from llama4rs import CheckpointError, CheckpointNotFoundError
from llama4rs.hub import demo_model_path, resolve_model

NAME = "some-one/Some-Model"


def _http_error(name: str) -> Exception:
    from huggingface_hub import errors

    # Their constructors want a response, which no part of this test looks at.
    kind = getattr(errors, name)
    error: Exception = kind.__new__(kind)
    error.args = ("refused",)
    return error


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Calls of `snapshot_download`, which "downloads" to a folder."""
    calls: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`failing(error)`: makes `snapshot_download` raise."""

    def fail_with(error: Exception) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    return fail_with


def test_a_path_that_exists_wins(
    downloads: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME) == Path(NAME)
    assert resolve_model(tmp_path / NAME) == tmp_path / NAME
    assert downloads == []


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./a/b", "/a/b", "a/b/c", "model", "~/nowhere", ""])
def test_what_looks_like_a_path_is_never_fetched(
    name: str, downloads: list[dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointNotFoundError, match="hint: give a directory") as caught:
        resolve_model(name)
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert downloads == []


def test_a_path_object_is_never_fetched(downloads: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointNotFoundError):
        resolve_model(Path("owner/name"))
    assert downloads == []


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model(file)


def test_an_id_is_fetched_without_other_weights(
    downloads: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert resolve_model(NAME, revision="v1", token="secret", local_files_only=True) == tmp_path
    (call,) = downloads
    assert call["name"] == NAME
    assert (call["revision"], call["token"], call["local_files_only"]) == ("v1", "secret", True)
    assert {"*.safetensors", "*.json", "*.jinja", "tokenizer.model"} == set(call["allow_patterns"])
    assert call["ignore_patterns"] == ["original/*"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", ("restricted", "licence", "hf auth login")),
        ("RepositoryNotFoundError", ("neither a directory nor a model", "spelling")),
        ("RevisionNotFoundError", ("no revision 'v9'", "main branch")),
        ("LocalEntryNotFoundError", ("not in the local cache", "network")),
        ("HfHubHTTPError", ("refused",)),
    ],
)
def test_errors_of_the_hub_say_what_to_do(error: str, words: tuple[str, ...], failing: Any) -> None:
    failing(_http_error(error))
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve_model(NAME, revision="v9")
    for word in words:
        assert word in str(caught.value)
    assert "\nhint: " in str(caught.value)


def test_offline_mode_is_named(failing: Any) -> None:
    failing(_http_error("LocalEntryNotFoundError"))
    with pytest.raises(CheckpointNotFoundError, match="HF_HUB_OFFLINE"):
        resolve_model(NAME, local_files_only=True)


def test_no_network(failing: Any) -> None:
    failing(ConnectionError("no route"))
    with pytest.raises(CheckpointNotFoundError, match="no route"):
        resolve_model(NAME)


def test_full_disk(failing: Any) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointNotFoundError, match=r"disk is full.*\n.*HF_HOME"):
        resolve_model(NAME)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointNotFoundError, match="pip install huggingface_hub"):
        resolve_model(NAME)


def test_missing_demo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llama4rs.hub.__file__", str(tmp_path / "hub.py"))
    with pytest.raises(CheckpointNotFoundError, match="demo model is missing"):
        demo_model_path()
