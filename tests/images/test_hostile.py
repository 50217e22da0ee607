"""Damaged and malicious files give an `ImageError`, soon, and without filling memory."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llama4rs.errors import ImageError
from llama4rs.images import load_image

from .hostile_files import FILES, WHOLE_FILES, png
from .pictures import picture

# Pillow warns about some damage before it gives up; users see that as well.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MEGABYTE = 2**20
KINDS = {
    "BMP": {},
    "GIF": {},
    "JPEG": {"quality": 50},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "PPM": {},
    "TIFF": {},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
}


def made(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(13, 11, 4)).save(file, kind.split()[0], **KINDS[kind])
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_anywhere(kind: str) -> None:
    """An error, or the whole picture where only an end mark or padding is missing."""
    data = made(kind)
    whole = np.asarray(load_image(data))
    num_whole = 0
    for length in range(len(data)):
        try:
            image = load_image(data[:length])
        except ImageError:
            continue
        assert np.array_equal(np.asarray(image), whole)
        num_whole += 1
    assert num_whole <= 4


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF"])
def test_cut_short_in_the_hands_of_pillow(kind: str) -> None:
    data = made(kind)
    image = Image.open(io.BytesIO(data[: len(data) * 9 // 10]))
    with pytest.raises(ImageError, match="damaged or incomplete"):
        load_image(image)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes(kind: str) -> None:
    """Whatever one to three wrong bytes do, nothing but an `ImageError` comes of it."""
    data = made(kind)
    source = random.Random(kind)
    for _ in range(250):
        changed = bytearray(data)
        for _ in range(source.randint(1, 3)):
            # The first bytes hold sizes and offsets: half of the changes go there.
            end = source.choice([min(64, len(data)), len(data)])
            changed[source.randrange(end)] = source.choice([0, 1, 127, 128, 255])
        try:
            image = load_image(bytes(changed), max_pixels=100_000)
        except ImageError:
            continue
        assert image.mode == "RGB" and image.width * image.height <= 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_after_the_start(kind: str) -> None:
    data = made(kind)
    source = random.Random(kind)
    for length in (8, 16, 30, 64, 100):
        try:
            load_image(data[:length] + source.randbytes(2000), max_pixels=100_000)
        except ImageError:
            continue


def chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Name of each chunk of a PNG and where its checksum is."""
    place = 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        yield data[place + 4 : place + 8], place + 8 + length
        place += length + 12


def test_wrong_checksums() -> None:
    data = made("PNG")
    names = []
    for name, place in chunks(data):
        changed = bytearray(data)
        changed[place] ^= 1
        if name == b"IEND":
            assert np.array_equal(np.asarray(load_image(bytes(changed))), picture(13, 11, 4))
            continue
        with pytest.raises(ImageError, match="damaged"):
            load_image(bytes(changed))
        names.append(name)
    assert {b"IHDR", b"IDAT"} <= set(names)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FILES)
def test_hostile_files(name: str) -> None:
    try:
        image = load_image(FILES[name])
    except ImageError as error:
        assert str(error)
    else:
        assert name in WHOLE_FILES and image.size == (4, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("png without pixels", "3000 x 3000 pixels is over the limit"),
        ("gif with a huge screen", "65535 x 65535|Pillow's own limit"),
        ("webp with a huge canvas", "16777216 x 16777216 pixels is over the limit"),
        ("webp lossless, 16384 square", "16384 x 16384 pixels is over the limit"),
        ("webp lossy, 16383 square", "16383 x 16383 pixels is over the limit"),
        ("tiff of one huge tile", "tiles have 60000 x 60000 pixels"),
    ],
)
def test_sizes_are_looked_at_before_pixels(name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(FILES[name], max_pixels=1_000_000)


def test_pillows_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="Pillow's own limit"):
        load_image(png(100, 100), max_pixels=10**9)


_MEASURE = """
import json, resource, sys, warnings
from pathlib import Path
from llama4rs.errors import ImageError
from llama4rs.images import load_image, preprocess

warnings.simplefilter("ignore")
unit = 1 if sys.platform == "darwin" else 1024
preprocess(load_image(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        preprocess(load_image(path, max_pixels=int(sys.argv[3])))
        outcomes[path.name] = "loaded"
    except ImageError:
        outcomes[path.name] = "refused"
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([outcomes, grown * unit]))
"""


def growth(directory: Path, small: Path, max_pixels: int) -> tuple[dict[str, str], int]:
    """What became of each file, and by how many bytes a process grew over them."""
    command = [sys.executable, "-c", _MEASURE, str(directory), str(small), str(max_pixels)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    outcomes, grown = json.loads(result.stdout)
    return outcomes, grown


@pytest.mark.skipif(sys.platform == "win32", reason="no module resource on Windows")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    (small := tmp_path / "small.png").write_bytes(made("PNG"))
    (refused := tmp_path / "refused").mkdir()
    for index, data in enumerate(FILES.values()):
        (refused / str(index)).write_bytes(data)
    outcomes, grown = growth(refused, small, 10**9)  # Pillow's own limit applies
    assert len(outcomes) == len(FILES)
    outcomes, grown = growth(refused, small, 8192 * 8192)
    assert list(outcomes.values()).count("loaded") <= len(WHOLE_FILES)
    assert grown < 60 * MEGABYTE, f"{grown / MEGABYTE:.0f} MB for files that are refused"


@pytest.mark.skipif(sys.platform == "win32", reason="no module resource on Windows")
def test_memory_of_the_largest_images(tmp_path: Path) -> None:
    """Files of a few kilobytes that hold as many pixels as the limit allows."""
    max_pixels = 6_000_000
    (small := tmp_path / "small.png").write_bytes(made("PNG"))
    (allowed := tmp_path / "allowed").mkdir()
    (allowed / "square").write_bytes(png(2400, 2500, bytes(2401 * 2500)))
    (allowed / "flat").write_bytes(png(60_000, 100, bytes(60_001 * 100)))
    (allowed / "narrow").write_bytes(png(91, 65_535, bytes(92 * 65_535)))
    (allowed / "empty").write_bytes(png(2400, 2500))
    Image.new("LA", (2400, 2500)).save(allowed / "transparent", "PNG")
    Image.new("RGBA", (2400, 2500)).save(allowed / "webp", "WEBP")
    Image.new("I;16", (2400, 2500)).save(allowed / "tiff", "TIFF", compression="tiff_lzw")
    outcomes, grown = growth(allowed, small, max_pixels)
    assert outcomes.pop("empty") == "refused"
    assert set(outcomes.values()) == {"loaded"}
    assert grown < 16 * max_pixels + 100 * MEGABYTE
