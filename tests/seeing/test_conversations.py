"""Images in conversations: sources of every kind, and who may name files and URLs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from chain_model import IMAGE, IMAGE_START, PATCH
from images.pictures import picture
from llama4rs import ImageError, Llama4

from .cases import GREEDY, ONE_TILE, data_url, grey, image_part, png, text_part


def test_images_of_a_chat_come_before_the_text(llm: Llama4) -> None:
    short = llm.chat("what?", images=[grey(9), grey(8)], **GREEDY)
    parts = [image_part(grey(9)), image_part(grey(8)), text_part("what?")]
    whole = llm.chat([{"role": "user", "content": parts}], **GREEDY)
    assert short.prompt_token_ids == whole.prompt_token_ids
    ids = short.prompt_token_ids
    start = ids.index(IMAGE_START)
    assert ids[start : start + 19] == (*ONE_TILE, *ONE_TILE, *b"what?")


def test_names_of_image_tokens_in_messages_are_text(llm: Llama4) -> None:
    output = llm.chat("<|image|><|patch|>", images=[grey(9)], **GREEDY)
    assert (output.prompt_token_ids.count(IMAGE), output.prompt_token_ids.count(PATCH)) == (1, 4)
    assert IMAGE not in llm.chat("<|image|>", **GREEDY).prompt_token_ids


def test_every_kind_of_source_is_the_same_picture(fresh: Llama4, tmp_path: Path) -> None:
    pixels = picture(80, 70)
    file = tmp_path / "cat.png"
    file.write_bytes(png(pixels))
    sources = [str(file), file, png(pixels), Image.fromarray(pixels), pixels, data_url(pixels)]
    parts = [
        *map(image_part, sources),
        {"type": "image", "path": str(file)},
        {"type": "image", "url": data_url(pixels)},
        {"type": "image_url", "image_url": {"url": data_url(pixels), "detail": "high"}},
        {"type": "image_url", "image_url": data_url(pixels)},
    ]
    for source in sources:
        fresh.generate("a", images=[source], **GREEDY)
    fresh.chat([{"role": "user", "content": parts}], **GREEDY)
    assert (fresh.image_cache.misses, len(fresh.image_cache)) == (1, 1)
    assert fresh.image_cache.hits == len(sources) - 1 + len(parts)


@pytest.mark.parametrize("scheme", ["", "file://", "FILE://", "ftp://", "./", " data:,"])
def test_an_image_url_never_names_a_file(llm: Llama4, tmp_path: Path, scheme: str) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(png(grey(9)))
    for url in (f"{scheme}{file}", file):
        for part in ({"url": url}, url):
            messages = [{"role": "user", "content": [{"type": "image_url", "image_url": part}]}]
            with pytest.raises(ImageError, match="an image_url takes a data or http"):
                llm.chat(messages)
    assert llm.chat([{"role": "user", "content": [image_part(file)]}], **GREEDY).token_ids


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a server with one picture."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = png(grey(9))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cat.png"
        server.shutdown()
        thread.join()


def test_the_network_is_opt_in(folder: Path, llm: Llama4, site: str) -> None:
    part = {"type": "image_url", "image_url": {"url": site}}
    messages = [{"role": "user", "content": [part, text_part("what?")]}]
    with pytest.raises(ImageError, match="allow_image_urls=True"):
        llm.chat(messages)
    with pytest.raises(ImageError, match="network is off"):
        llm.generate("a", images=[site.upper()])
    bold = Llama4(folder, threads=1, allow_image_urls=True)
    assert bold.chat(messages, **GREEDY).prompt_token_ids.count(PATCH) == 4
