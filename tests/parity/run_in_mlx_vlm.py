"""Runs in mlx-vlm's own environment: ids and pixels in, logits of its model class out.

    python run_in_mlx_vlm.py INPUTS.npz CHECKPOINT OUTPUT.npz [CHECKPOINT OUTPUT.npz]...

INPUTS holds `ids` (1, L) with the tokens of images among them, `pixels` (N, 3, H, W) and `sizes`
(N, 2) in pixels (an image smaller than the largest is padded at the right and the bottom), and
`text` (1, L) without images. Each OUTPUT gets `images` and `text`, both (1, L, vocabulary).
"""

import sys
from pathlib import Path

import mlx.core as mx  # noqa: TID251  there is no magistral_mlx in this environment
import numpy as np
from mlx.utils import tree_map
from mlx_vlm.utils import load_model


def main(inputs: str, *pairs: str) -> None:
    given = np.load(inputs)
    ids, text, pixels = (mx.array(given[key]) for key in ("ids", "text", "pixels"))
    for checkpoint, output in zip(pairs[::2], pairs[1::2], strict=True):
        model = load_model(Path(checkpoint))
        model.update(tree_map(widen, model.parameters()))
        seen = model(ids, pixels, None, image_sizes=given["sizes"].tolist())
        read = model(text, None, None)
        np.savez(output, images=np.array(seen.logits), text=np.array(read.logits))


def widen(array: mx.array) -> mx.array:
    """float32, in which the other side computes; packed weights stay as they are."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


if __name__ == "__main__":
    main(*sys.argv[1:])
