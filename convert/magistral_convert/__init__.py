"""Quantize a Magistral checkpoint to MLX format, a few tensors at a time.

    from magistral_convert import ConvertOptions, convert

    convert("mistralai/Magistral-Small-2509", "magistral-4bit", ConvertOptions(bits=4))

The way of the data: `recipe` decides how each tensor is quantized, `plan` computes the whole
output from that, `stream` moves rows from the `source` to their place in the `work` folder, and
the folder gets the target's name when everything is there.
"""

from __future__ import annotations

from magistral_convert.conversion import Conversion, check, convert, prepare, run
from magistral_convert.options import ConvertOptions
from magistral_convert.progress import Converting, Downloading, OnProgress, Progress

__all__ = [
    "Conversion",
    "ConvertOptions",
    "Converting",
    "Downloading",
    "OnProgress",
    "Progress",
    "check",
    "convert",
    "prepare",
    "run",
]
