"""Writes a safetensors file: u64 header length, JSON header, tensor bytes, all little-endian."""

import json
from pathlib import Path

import numpy as np

from oracle.float_formats import bfloat16_bits

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Store float32 ``tensors`` under their names in ``dtype``."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    payloads = []
    offset = 0
    for name, tensor in tensors.items():
        payload = _encode(tensor, dtype)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(payload)],
        }
        payloads.append(payload)
        offset += len(payload)
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)  # keeps the tensor bytes aligned
    with path.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little"))
        file.write(header_bytes)
        file.writelines(payloads)


def _encode(tensor: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":
        return bfloat16_bits(tensor).astype("<u2").tobytes()
    return tensor.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()
