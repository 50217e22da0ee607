"""Saved sessions: each is there as a whole or not at all, whatever happens beside it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama4rs
from conftest import MakeCheckpoint
from llama4rs import session_files
from llama4rs.demo import draw_picture
from llama4rs.errors import RequestError, SessionError
from llama4rs.session_files import SessionFiles, SessionState

from .texts import BOOK, GREEDY


def test_what_is_saved(llm: llama4rs.Llama4, kv_dir: Path) -> None:
    for name in ("a", "b"):
        session = llm.session(name)
        session.append("Once" if name == "a" else BOOK)
        session.save()
    assert [info.name for info in llm.sessions()] == ["b", "a"]
    file = kv_dir / "sessions" / "a.session"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(llm.session("c")) == 0
    assert not llm.session("c").delete()


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a.", "a ", "ä", "a" * 101, None, 7])
def test_names_that_are_none(llm: llama4rs.Llama4, name: Any) -> None:
    with pytest.raises(RequestError, match="a session's name has up to 100"):
        llm.session(name)
    with pytest.raises(RequestError):
        llm.session("good").fork(name)


def test_without_a_place() -> None:
    llm = llama4rs.Llama4(threads=1)
    session = llm.session("memory")
    session.generate("Once", **GREEDY)
    assert llm.sessions() == []
    for call in (session.save, session.delete):
        with pytest.raises(RequestError, match="without it\nhint: Llama4"):
            call()
    assert len(session) == 1 + 1 + GREEDY["max_tokens"]


def test_another_model_is_refused(
    llm: llama4rs.Llama4, kv_dir: Path, checkpoint: MakeCheckpoint
) -> None:
    session = llm.session("s")
    session.append("Once")
    session.save()
    for other in (
        llama4rs.Llama4(checkpoint("scout_like"), kv_dir=kv_dir),
        llama4rs.Llama4(checkpoint("scout_like"), kv_dir=kv_dir, tokenizer=llm.tokenizer),
    ):
        with pytest.raises(SessionError, match="of other sizes or with another tokenizer"):
            other.session("s")
        assert other.sessions()[0].problem == "made with another model"


def test_damage_is_always_seen(llm: llama4rs.Llama4, kv_dir: Path) -> None:
    session = llm.session("s")
    session.append("I see ", images=[draw_picture(84).image])
    session.save()
    file = kv_dir / "sessions" / "s.session"
    image = next((kv_dir / "sessions" / "images").iterdir())
    whole = {path: path.read_bytes() for path in (file, image)}

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), path=st.sampled_from([file, image]), cut=st.booleans())
    def check(data: st.DataObject, path: Path, cut: bool) -> None:
        content = whole[path]
        at = data.draw(st.integers(0, len(content) - 1))
        flipped = bytes([content[at] ^ data.draw(st.integers(1, 255))])
        path.write_bytes(content[:at] + (b"" if cut else flipped + content[at + 1 :]))
        try:
            with pytest.raises(SessionError, match="damaged"):
                llm.session("s")
        finally:
            path.write_bytes(content)

    check()
    assert llm.session("s").token_ids == session.token_ids
    file.write_bytes(b"")
    assert llm.sessions()[0].problem == "the file is damaged"
    session.fork("t").save()
    llm.session("t").delete()
    assert image.exists(), "a damaged session may be restored"


def test_saving_is_all_or_nothing(
    llm: llama4rs.Llama4, kv_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = llm.session("s")
    session.append("Once")
    session.save()
    before = session.token_ids
    session.append(" upon a time")
    for name in ("fsync", "replace"):

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space"):
                session.save()
        assert llm.session("s").token_ids == before
        assert [path.name for path in (kv_dir / "sessions").glob("*.session")] == ["s.session"]
        assert not list((kv_dir / "sessions").rglob(".writing-*"))
    session.save()
    assert llm.session("s").token_ids == session.token_ids
    stale = kv_dir / "sessions" / ".writing-of-a-crash"
    stale.write_bytes(b"")
    os.utime(stale, (0, 0))
    session.save()
    assert not stale.exists()


def _picture(number: float) -> SessionState:
    """A session that shows one image."""
    state = SessionState(features=[np.full((2, 1), number, dtype=np.float32)])
    state.token_ids.append(1)
    return state


def test_an_image_that_is_being_saved_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, others = SessionFiles(tmp_path), SessionFiles(tmp_path)
    files.save("old", _picture(1))
    write, deletions = session_files._write, []

    def delete_meanwhile(path: Path, content: bytes) -> None:
        write(path, content)
        if path.parent.name == "images":
            deletions.append(threading.Thread(target=others.delete, args=["old"]))
            deletions[0].start()
            deletions[0].join(timeout=0.2)

    monkeypatch.setattr(session_files, "_write", delete_meanwhile)
    files.save("new", _picture(2))
    deletions[0].join()
    assert [info.name for info in files.list()] == ["new"]
    assert len(list((tmp_path / "images").iterdir())) == 1
    loaded = files.load("new")
    assert loaded is not None
    assert loaded.features[0].tolist() == [[2], [2]]


def test_sessions_that_come_and_go_beside_each_other(tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def save_and_load(name: str) -> None:
        files = SessionFiles(tmp_path)
        try:
            for number in range(15):
                files.save(name, _picture(number))
                assert files.load(name) is not None
                files.list()
                assert files.delete(name)
                assert files.load(name) is None
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=save_and_load, args=[f"s{i}"]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list((tmp_path / "images").iterdir()) == []


def test_saving_repairs_an_image(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path)
    files.save("s", _picture(1))
    image = next((tmp_path / "images").iterdir())
    image.write_bytes(b"\0" * image.stat().st_size)
    with pytest.raises(SessionError, match="damaged or missing"):
        files.load("s")
    files.save("s", _picture(1))
    assert files.load("s") is not None


def test_a_directory_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "sessions")
    assert files.load("s") is None
    assert not files.delete("s")
    assert not (tmp_path / "sessions").exists(), "looking makes nothing"
    files.save("s", _picture(1))
    (tmp_path / "sessions" / ".lock").unlink(missing_ok=True)
    (tmp_path / "sessions" / ".lock").mkdir()  # as root, permissions do not count
    assert files.load("s") is not None
