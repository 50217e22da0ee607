"""Where a GPU's compiler is, and what was found on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["cuda_devices", "nvrtc_folders"]

# In the packages nvidia-cuda-nvrtc (CUDA 13) and nvidia-cuda-nvrtc-cu12.
_FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")


def nvrtc_folders() -> list[str]:
    """Folders of installed packages that may hold NVRTC, the compiler of CUDA kernels."""
    spec = find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    found = [Path(root) / folder for root in roots or () for folder in _FOLDERS]
    return [str(folder) for folder in found if folder.is_dir()]


def cuda_devices() -> dict[str, Any]:
    """The driver, NVRTC and the GPUs of this machine; ``problems`` says what is missing and why."""
    from ._llama4rs import cuda_devices

    return cuda_devices(nvrtc_folders())
