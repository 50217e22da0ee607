"""Streams and results for asyncio, of models and of sessions: the same text, and cancelling."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import llama4rs
from chain_model import MAX_CONTEXT, SCRIPT
from llama4rs import AsyncTextStream, Llama4, RequestError, Session, SessionError
from llama4rs.session_additions import added

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
ENDLESS: dict[str, Any] = {"temperature": 0, "max_tokens": 10**6, "ignore_eos": True}
BOOK = "Once upon a time there was a little dog who lived in a big house. " * 20


@pytest.fixture(scope="module")
def cria() -> Llama4:
    return Llama4(threads=1)


@pytest.fixture
def session(cria: Llama4) -> Session:
    session = cria.session("s")
    session.append(BOOK)
    return session


async def joined(stream: AsyncTextStream) -> str:
    text = "".join([piece async for piece in stream])
    assert stream.output.text == text
    return text


async def cancelled_after(seconds: float, work: Awaitable[Any]) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ----------------------------------------------------------------------------------------- models


def test_the_same_text_as_without(llm: Llama4) -> None:
    async def all_of_them() -> list[str]:
        calls = (
            joined(llm.astream("\n", temperature=0)),
            joined(llm.achat_stream("hi", temperature=0)),
            llm.agenerate("\n", temperature=0),
            llm.achat("hi", temperature=0),
        )
        return [getattr(result, "text", result) for result in await asyncio.gather(*calls)]

    assert asyncio.run(all_of_them()) == [SCRIPT] * 4


def test_many_more_tasks_than_threads(llm: Llama4) -> None:
    async def many() -> list[llama4rs.Output]:
        return await asyncio.gather(*(llm.agenerate("\n", temperature=0) for _ in range(100)))

    assert {output.text for output in asyncio.run(many())} == {SCRIPT}


def test_errors_come_with_the_first_piece(llm: Llama4) -> None:
    async def fail() -> None:
        stream = llm.astream([])
        with pytest.raises(RequestError, match="empty"):
            await anext(stream)
        with pytest.raises(RequestError, match="one stream for each"):
            await llm.agenerate(["a", "b"])  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="temperature"):
            async with llm.astream("a", temperature=-1):
                pass
        with pytest.raises(TypeError, match="did you mean 'temperature'"):
            await llm.achat("a", tempurature=1)  # type: ignore[call-arg]

    asyncio.run(fail())


def test_the_loop_is_free_while_a_prompt_is_encoded(
    llm: Llama4, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = llm._encoder.encode
    threads = []

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return encode(*arguments, **options)

    monkeypatch.setattr(llm._encoder, "encode", noted)
    asyncio.run(llm.agenerate("\n", temperature=0))
    assert threads and threading.main_thread() not in threads


def test_cancelling_a_task_cancels_its_request(llm: Llama4) -> None:
    stream = llm.astream("\n", temperature=0, ignore_eos=True, max_tokens=MAX_CONTEXT)
    asyncio.run(cancelled_after(0.05, stream.result()))
    assert stream.output.finish_reason == "cancelled"
    assert llm.generate("\n", temperature=0).text == SCRIPT


def test_leaving_a_stream(llm: Llama4) -> None:
    async def first() -> str:
        async with llm.astream("\n", temperature=0) as stream:
            assert stream.output.finish_reason is None
            piece = await anext(stream)
        assert stream.output.finish_reason == "cancelled"
        assert [piece async for piece in stream] == []
        return piece

    assert asyncio.run(first()) == "a"


# --------------------------------------------------------------------------------------- sessions


def test_a_session_grows_as_without(cria: Llama4) -> None:
    plain, other = cria.session("plain"), cria.session("other")

    async def grow() -> tuple[Any, ...]:
        return (
            await other.aappend(BOOK),
            await joined(other.astream("The dog", **GREEDY)),
            (await other.agenerate(**GREEDY)).text,
            await joined(other.achat_stream("Tell me more.", **GREEDY)),
            (await other.achat("And then?", **GREEDY)).text,
        )

    assert asyncio.run(grow()) == (
        plain.append(BOOK),
        "".join(plain.stream("The dog", **GREEDY)),
        plain.generate(**GREEDY).text,
        "".join(plain.chat_stream("Tell me more.", **GREEDY)),
        plain.chat("And then?", **GREEDY).text,
    )
    assert other.token_ids == plain.token_ids
    assert other.messages == plain.messages


@pytest.mark.parametrize("call", ["astream", "agenerate", "achat"])
def test_cancelling_leaves_a_session_as_it_was_and_free(session: Session, call: str) -> None:
    before = session.token_ids
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "astream": lambda: joined(session.astream("The dog", **ENDLESS)),
        "agenerate": lambda: session.agenerate("The dog", **ENDLESS),
        "achat": lambda: session.achat("The dog", **ENDLESS),
    }

    async def cancel() -> None:
        await cancelled_after(0.1, calls[call]())
        assert session.token_ids == before
        await session.agenerate("The dog", **GREEDY)

    asyncio.run(cancel())
    assert len(session) > len(before)
    assert session.messages == []


def test_leaving_a_stream_keeps_what_there_was(session: Session) -> None:
    before = len(session)

    async def leave() -> str:
        async with session.astream("The dog", **ENDLESS) as stream:
            return await anext(stream)

    piece = asyncio.run(leave())
    assert "The dog" + piece in session.text[-100:]
    assert len(session) > before


def test_one_call_at_a_time(session: Session) -> None:
    async def twice() -> None:
        async with session.astream("The dog", **ENDLESS) as stream:
            await anext(stream)
            for call in (session.aappend("more"), session.agenerate("more", **GREEDY)):
                with pytest.raises(SessionError, match="busy with another call"):
                    await call
        await session.agenerate("more", **GREEDY)

    asyncio.run(twice())


def test_cancelling_an_addition(session: Session) -> None:
    """It goes on from where it was: what was computed stays."""
    before = session.token_ids
    begun = threading.Event()
    held: list[int] = []
    seen: list[int] = []

    def hold(what: str, done: int, total: int) -> None:
        held.append(done)
        if len(held) == 3:
            begun.set()
            time.sleep(0.05)

    async def cancel() -> None:
        task = asyncio.create_task(session.aappend(BOOK * 20, progress=hold))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.token_ids == before
        await session.aappend(BOOK * 20, progress=lambda what, done, total: seen.append(done))

    asyncio.run(cancel())
    assert held[2] <= seen[0] < seen[-1] == len(session)


def test_cancelling_an_addition_that_has_not_begun(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    addition, encoding = added, threading.Event()

    def slow(*arguments: Any) -> Any:
        encoding.set()
        time.sleep(0.1)
        return addition(*arguments)

    monkeypatch.setattr("llama4rs.session.added", slow)
    before = session.token_ids

    async def cancel(call: Awaitable[Any]) -> None:
        encoding.clear()
        task = asyncio.ensure_future(call)
        await asyncio.get_running_loop().run_in_executor(None, encoding.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel(session.aappend("more")))
    asyncio.run(cancel(session.agenerate("more", **ENDLESS)))  # waits for threads at its end
    assert session.token_ids == before
    assert session.append("more")
