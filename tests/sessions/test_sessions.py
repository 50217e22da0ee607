"""Sessions: going on is the same as never having stopped."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import llama4rs
from llama4rs.chat_template import ChatTemplate
from llama4rs.demo import draw_picture
from llama4rs.errors import (
    ChatTemplateError,
    ImageError,
    OutOfMemoryError,
    RequestError,
    SessionError,
)
from oracle.checkpoint import make_checkpoint
from oracle.configs import TEXT

from .texts import BOOK, GREEDY


@pytest.fixture(scope="module")
def plain() -> llama4rs.Llama4:
    """cria, which computes every request from its beginning."""
    return llama4rs.Llama4(prefix_cache_bytes=0, threads=1)


# ---------------------------------------------------------------------------- against a reference

IDS = st.lists(st.integers(0, TEXT["scout_like"]["vocab_size"] - 1), max_size=150)


class Sessions(RuleBasedStateMachine):
    """Random operations on sessions, beside lists of token ids and a model without memory."""

    path: Path
    plain: llama4rs.Llama4
    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.folder = self.path.parent / "kv"
        self.sessions: dict[str, llama4rs.Session] = {}
        self.ids: dict[str, list[int]] = {}
        self.saved: dict[str, list[int]] = {}
        self.restart()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule()
    def restart(self) -> None:
        """Another process opens the model; what was not saved is lost."""
        self.llm = llama4rs.Llama4(
            self.path, weights="f32", threads=1, step_tokens=100, kv_dir=self.folder
        )
        self.sessions = {name: self.llm.session(name) for name in self.sessions}
        self.ids = {name: [*self.saved.get(name, [])] for name in self.ids}

    @rule(target=names, number=st.integers(0, 3))
    def open(self, number: int) -> str:
        name = f"session {number}"
        self.sessions[name] = self.llm.session(name)
        self.ids[name] = [*self.saved.get(name, [])]
        return name

    @rule(target=names, name=names, number=st.integers(0, 3))
    def fork(self, name: str, number: int) -> str:
        other = f"session {number}"
        self.sessions[other] = self.sessions[name].fork(other)
        self.ids[other] = [*self.ids[name]]
        return other

    @rule(name=names, ids=IDS)
    def append(self, name: str, ids: list[int]) -> None:
        assert self.sessions[name].append(ids) == len(ids)
        self.ids[name] += ids

    @rule(name=names, ids=IDS, seed=st.integers(0, 9), by_stream=st.booleans())
    def generate(self, name: str, ids: list[int], seed: int, by_stream: bool) -> None:
        session, whole = self.sessions[name], [*self.ids[name], *ids]
        options: dict[str, Any] = {"max_tokens": 5, "seed": seed, "logprobs": 0}
        if not whole:
            with pytest.raises(RequestError, match="the prompt is empty"):
                session.generate(ids, **options)
            return
        if by_stream:
            stream = session.stream(ids, **options)
            list(stream)
            output = stream.output
        else:
            output = session.generate(ids, **options)
        expected = self.plain.generate(whole, **options)
        assert output.token_ids == expected.token_ids
        assert output.logprobs == expected.logprobs
        assert output.usage.prompt_tokens == len(whole)
        self.ids[name] = [*whole, *output.token_ids]

    @rule(name=names)
    def save(self, name: str) -> None:
        self.sessions[name].save()
        self.saved[name] = [*self.ids[name]]

    @rule(name=consumes(names))
    def delete(self, name: str) -> None:
        assert self.sessions[name].delete() == (name in self.saved)
        self.saved.pop(name, None)

    @invariant()
    def tokens_are_the_truth(self) -> None:
        for name, session in getattr(self, "sessions", {}).items():
            assert list(session.token_ids) == self.ids[name]
        if hasattr(self, "llm"):
            found = {info.name: info.tokens for info in self.llm.sessions()}
            assert found == {name: len(ids) for name, ids in self.saved.items()}


def test_any_operations_equal_a_model_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make_checkpoint(path, TEXT["scout_like"] | {"attention_chunk_size": 128}, 5)
    Sessions.path = path
    Sessions.plain = llama4rs.Llama4(path, weights="f32", threads=1, prefix_cache_bytes=0)
    run_state_machine_as_test(
        Sessions,
        settings=settings(max_examples=20, stateful_step_count=15, deadline=None),
    )


# ------------------------------------------------------------------------------------------ texts


def test_a_book_is_read_once(llm: llama4rs.Llama4, plain: llama4rs.Llama4) -> None:
    book = llm.session("book")
    assert book.append(BOOK) == len(book)
    assert list(book.token_ids) == llm.tokenizer.encode(BOOK, bos=True)
    length = len(book)
    first = book.generate("The dog", **GREEDY)
    whole = llm.tokenizer.encode(BOOK, bos=True) + llm.tokenizer.encode("The dog")
    assert first.text == plain.generate(whole, **GREEDY).text
    assert first.usage.cached_tokens > length - 64 - 1
    assert book.text == BOOK + "The dog" + first.text
    assert book.append("") == 0


def test_a_saved_book_is_not_read_again(llm: llama4rs.Llama4, kv_dir: Path) -> None:
    book = llm.session("book")
    book.append(BOOK)
    fork = book.fork("fork")
    book.save()
    later = llama4rs.Llama4(kv_dir=kv_dir, threads=2).session("book")
    options = {**GREEDY, "logprobs": 3}
    answer = later.generate("The dog", **options)
    assert answer.usage.cached_tokens > len(book) - 64 - 1
    expected = fork.generate("The dog", **options)
    assert (answer.token_ids, answer.logprobs) == (expected.token_ids, expected.logprobs)
    # Keys and values that are lost are computed again.
    for file in kv_dir.glob("*"):
        if file.is_file():
            file.unlink()
    again = llama4rs.Llama4(kv_dir=kv_dir, threads=1).session("book").generate("The dog", **options)
    assert again.usage.cached_tokens == 0
    assert (again.token_ids, again.logprobs) == (expected.token_ids, expected.logprobs)


def test_pieces_are_encoded_on_their_own(llm: llama4rs.Llama4) -> None:
    words = llm.session("words")
    for piece in ("Once", " upon", " a", " time"):
        words.append(piece)
    encode = llm.tokenizer.encode
    assert list(words.token_ids) == [
        *encode("Once", bos=True), *encode(" upon"), *encode(" a"), *encode(" time")
    ]  # fmt: skip
    tokens = llm.session("tokens")
    tokens.append("<|eot|>")
    tokens.append("<|eot|>", parse_special=False)
    assert len(tokens) > 4
    assert tokens.token_ids[1] == llm.tokenizer.special_id("<|eot|>")


def test_a_stream_grows_the_session_when_it_ends(llm: llama4rs.Llama4) -> None:
    session = llm.session("s")
    session.append(BOOK)
    before = session.token_ids
    stream = session.stream("The", **GREEDY)
    with pytest.raises(SessionError, match="busy with another call"):
        session.append("more")
    next(stream)
    assert session.token_ids == before
    stream.close()
    assert len(before) < len(session) < len(before) + 1 + GREEDY["max_tokens"] + 1
    length = len(session)
    abandoned = session.stream("and", **GREEDY)
    next(abandoned)
    del abandoned
    gc.collect()
    assert len(session) > length
    whole = session.fork("other")
    output = whole.generate(max_tokens=3, temperature=0)
    assert whole.token_ids == session.token_ids + output.token_ids


@pytest.mark.parametrize("call", ["append", "generate"])
def test_an_interruption_loses_nothing(
    llm: llama4rs.Llama4, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    session = llm.session("s")
    session.append("Once upon a time")
    before = session.token_ids
    long = BOOK * 10

    def interrupt(what: str, done: int, total: int) -> None:
        assert (what, total) == ("tokens", len(llm.tokenizer.encode(long)) + len(before))
        if done > total // 2:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        session.append(long, progress=interrupt)
    assert session.token_ids == before
    if call == "append":
        session.append(long, progress=lambda what, done, total: seen.append(done))
        assert seen[0] > seen[-1] // 2
    else:
        output = session.generate(long, **GREEDY)
        assert output.usage.cached_tokens > output.usage.prompt_tokens // 2 - 64
    assert len(session) >= len(before) + len(llm.tokenizer.encode(long))


@pytest.mark.parametrize("call", ["generate", "chat", "stream"])
def test_ctrl_c_leaves_the_session_as_it_was(llm: llama4rs.Llama4, call: str) -> None:
    session = llm.session("s")
    session.append(BOOK)
    before = session.token_ids
    options: dict[str, Any] = {"ignore_eos": True, "max_tokens": 100_000}
    work: dict[str, Any] = {
        "generate": lambda: session.generate("The dog", **options),
        "chat": lambda: session.chat("The dog", **options),
        "stream": lambda: list(session.stream("The dog", **options)),
    }
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                work[call]()
                assert session.token_ids == before, "there was no interruption"
    finally:
        timer.cancel()
    gc.collect()
    assert session.messages == []
    assert session.generate(**GREEDY).usage.cached_tokens > len(before) - 64 - 1


def test_a_refused_call_changes_nothing(tmp_path: Path) -> None:
    llm = llama4rs.Llama4(max_context=100, threads=1)
    session = llm.session("s")
    session.append("Once upon a time")
    before = session.token_ids
    for wrong in (BOOK, [10**6], [-1], [2**40], ["text"], "a picture <|image|>"):
        with pytest.raises((RequestError, ImageError)):
            session.append(wrong)
        with pytest.raises((RequestError, ImageError)):
            session.generate(wrong)
        assert session.token_ids == before
    assert session.generate(**GREEDY).token_ids
    llm = llama4rs.Llama4(kv_memory="100kB", threads=1)
    with pytest.raises(OutOfMemoryError):
        llm.session("s").append(BOOK)


def test_memory_that_is_too_small_is_said_once() -> None:
    session = llama4rs.Llama4(prefix_cache_bytes=10_000, threads=1).session("s")
    with pytest.warns(UserWarning, match="with a larger prefix_cache_bytes or with kv_dir"):
        session.append(BOOK)
    session.append(BOOK)  # a warning would be an error here


# --------------------------------------------------------------------------------- conversations


def test_a_conversation_is_the_same_as_without_a_session(
    llm: llama4rs.Llama4, plain: llama4rs.Llama4
) -> None:
    session = llm.session("talk")
    session.append([{"role": "system", "content": "Be brief. "}])
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief. "}]
    for text in ("Tell me a story.", "Go on <|eot|>", "Why? "):
        messages.append({"role": "user", "content": text})
        answer = session.chat(text, temperature=0, max_tokens=200)
        expected = plain.chat(messages, temperature=0, max_tokens=200)
        assert (answer.text, answer.finish_reason) == (expected.text, "stop")
        assert answer.prompt_token_ids == expected.prompt_token_ids
        messages.append(answer.message)
        assert session.messages == messages
    assert session.token_ids[-1] == llm.tokenizer.special_id("<|eot|>")
    cut = session.chat("More.", temperature=0, max_tokens=2)
    assert cut.finish_reason == "length"
    assert session.token_ids[-1] == llm.tokenizer.special_id("<|eot|>"), "the turn is closed"
    document = llm.session("document")
    document.append(BOOK)
    length = len(document)
    pieces = document.chat_stream([{"role": "user", "content": "What was that?"}], **GREEDY)
    assert "".join(pieces) == pieces.output.text == document.messages[-1]["content"]
    assert llm.tokenizer.bos_id not in document.token_ids[length:]


def test_tools_come_with_the_first_messages(llm: llama4rs.Llama4) -> None:
    def tool(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": {}}}

    session = llm.session("tools")
    session.chat("What time is it?", tools=[tool("clock")], **GREEDY)
    session.chat("And now?", **GREEDY)
    session.chat("And now?", tools=[tool("clock")], **GREEDY)
    with pytest.raises(RequestError, match="come with its first messages"):
        session.chat("And now?", tools=[tool("calendar")], **GREEDY)
    with pytest.raises(TypeError, match="tools are for conversations"):
        session.append("text", tools=[tool("clock")])
    session.save()
    llm.session("tools").chat("And now?", tools=[tool("clock")], **GREEDY)


def test_a_conversation_is_the_sessions_own(llm: llama4rs.Llama4) -> None:
    session = llm.session("talk")
    messages = [{"role": "user", "content": "Hello", "note": {"for": ["me"]}}]
    tools = [{"name": "look_up", "parameters": {"word": {"type": "string"}}}]
    output = session.chat(messages, tools=tools, **GREEDY)
    before = session.messages
    messages[0]["note"]["for"].append("you")  # type: ignore[index]
    tools[0]["parameters"].clear()  # type: ignore[attr-defined]
    output.message["content"] = "something else"
    session.messages[0]["content"] = "Goodbye"
    assert session.messages == before
    assert session._state.tools[0]["parameters"] == {"word": {"type": "string"}}  # type: ignore[index]
    session.chat("Go on.", **GREEDY)
    assert session.messages[:2] == before


def test_a_template_that_cannot_go_on(kv_dir: Path) -> None:
    template = ChatTemplate(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    session = llama4rs.Llama4(chat_template=template, threads=1).session("s")
    session.chat("One", **GREEDY)
    before = session.token_ids
    with pytest.raises(ChatTemplateError, match="a session cannot go on"):
        session.chat("Two", **GREEDY)
    assert session.token_ids == before


# ----------------------------------------------------------------------------------------- images


def test_images_are_part_of_a_session(llm: llama4rs.Llama4, kv_dir: Path) -> None:
    one, two = (draw_picture(84, seed=seed).image for seed in (1, 2))
    session = llm.session("pictures")
    session.append("I see ", images=[one])
    session.append("and then ", images=[two])
    session.append([{"role": "user", "content": [
        {"type": "image", "image": one}, {"type": "text", "text": "Again?"}]}])  # fmt: skip
    session.save()
    assert len(list((kv_dir / "sessions" / "images").iterdir())) == 2, "by content"
    again = llama4rs.Llama4(kv_dir=kv_dir, threads=1).session("pictures")
    assert again.token_ids == session.token_ids
    answer = again.generate(**GREEDY, logprobs=2)
    assert answer.logprobs == session.generate(**GREEDY, logprobs=2).logprobs
    features = session._state.features
    assert [rows.shape[1] for rows in features] == [llm.config["hidden_size"]] * 3
    assert (session.logits() == again.logits()).all()
    info = llm.sessions()[0]
    assert info.bytes > 2 * features[0].nbytes
    other = session.fork("other")
    other.save()
    session.delete()
    assert llm.session("other").generate(**GREEDY, ignore_eos=True).token_ids
    other.delete()
    assert list((kv_dir / "sessions" / "images").iterdir()) == []
