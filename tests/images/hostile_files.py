"""Image files that nobody should have to open: sizes that lie, data that swells."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

_PNG_START = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width: int, height: int, pixels: bytes = b"", *, extra: bytes = b"") -> bytes:
    """A PNG of 8-bit grey; `pixels` are the rows, each with its filter byte, not yet compressed."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(pixels, 9)
    chunks = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return _PNG_START + b"".join(chunks)


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    descriptor = struct.pack("<BHHHHB", 0x2C, 0, 0, *frame, 0)
    palette = bytes(6)
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + palette + descriptor + b"\x02\x00;"
    )


def tiff(tags: dict[int, int]) -> bytes:
    """A TIFF of one image, with numbers as tags and no pixels."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(64)


def webp(kind: bytes, data: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of 16 x 16 pixels that says it has others."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


_GREY_TIFF = {258: 8, 259: 1, 262: 1, 277: 1}
_BIG_TEXT = zlib.compress(bytes(300_000_000), 9)

FILES = {
    "png without width": png(0, 9),
    "png without height": png(9, 0),
    "png 50000 x 50000": png(50_000, 50_000),
    "png 2^31 wide": png(2**31 - 1, 1),
    "png 2^32 - 1 square": png(2**32 - 1, 2**32 - 1),
    "png one pixel over a side": png(65_536, 1, bytes(65_537)),
    "png without pixels": png(3000, 3000),
    "png with a text of 300 MB": png(
        4, 4, bytes(20)[:19], extra=png_chunk(b"zTXt", b"key\0\0" + _BIG_TEXT)
    ),
    "png with a profile of 300 MB": png(
        4, 4, bytes(20)[:19], extra=png_chunk(b"iCCP", b"key\0\0" + _BIG_TEXT)
    ),
    "png with a chunk of 2 GB": _PNG_START
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    + struct.pack(">I", 2**31 - 1)
    + b"IDAT",
    "gif without size": gif((0, 0), (0, 0)),
    "gif with a huge screen": gif((65_535, 65_535), (1, 1)),
    "gif with a huge frame": gif((4, 4), (65_535, 65_535)),
    "jpeg 65500 x 65500": jpeg(65_500, 65_500),
    "jpeg without height": jpeg(16, 0),
    "jpeg without width": jpeg(0, 16),
    "webp with a huge canvas": webp(b"VP8X", bytes(4) + b"\xff\xff\xff" * 2 + bytes(9)),
    "webp lossless, 16384 square": webp(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)),
    "webp lossy, 16383 square": webp(
        b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20)
    ),
    "webp lossy, without size": webp(b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a" + bytes(24)),
    "bmp 2^30 wide": b"BM"
    + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 2**30, 9, 1, 24, *[0] * 6),
    "bmp without size": b"BM"
    + struct.pack("<IIIIiiHHIIIIII", 60, 0, 54, 40, 0, 0, 1, 24, *[0] * 6),
    "ppm 100000 square": b"P6 100000 100000 255\n" + bytes(99),
    "ppm with an endless number": b"P6 " + b"9" * 10_000,
    "ppm without size": b"P6 0 0 255\n",
    "tiff 100000 square": tiff({256: 100_000, 257: 100_000, 273: 8, 278: 1, 279: 8, **_GREY_TIFF}),
    "tiff of one huge tile": tiff(
        {256: 16, 257: 16, 322: 60_000, 323: 60_000, 324: 8, 325: 8, **_GREY_TIFF, 259: 8}
    ),
    "tiff with a huge strip": tiff(
        {256: 16, 257: 16, 273: 8, 278: 2**32 - 1, 279: 2**32 - 1, **_GREY_TIFF, 259: 8}
    ),
}
"""Each to be refused without spending memory on it."""

WHOLE_FILES = {"png with a text of 300 MB", "png with a profile of 300 MB"}
"""Those whose pixels are in order; they may be read as well."""
