"""Images of the largest size through a tower of full width: peak of ours, and of mlx-vlm.

    python -m benchmarks.large_images

Images of 1540 x 1540 pixels (12,100 patches), and one of 1120 x 1120 that mlx-vlm can do too; the
tower 1024 wide with 16 heads, 1 of its 24 layers (they run one after the other, so the peak is that
of one); ours and mlx-vlm's own classes, random weights in float32. MLX's peak above the weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import COLOURS, Record, arguments, console, peers, show
from magistral_mlx.bench.process import OURS, Program

LAYERS = 1
CASES = ((1, 1120), (1, 1540), (4, 1540), (8, 1540))  # images, side
PATCH, HEADS = 14, 16

THEIRS = """
import sys
import mlx.core as mx
from mlx_vlm.models.pixtral import VisionModel
from mlx_vlm.models.pixtral.config import VisionConfig
side, layers, count = map(int, sys.argv[1:])
config = VisionConfig(
    model_type="pixtral", num_hidden_layers=layers, hidden_size=1024, head_dim=64,
    intermediate_size=4096, num_attention_heads=16, image_size=1540, patch_size=14,
    num_channels=3, rms_norm_eps=1e-5, rope_theta=1e4,
)
tower = VisionModel(config)
mx.eval(tower.parameters())
pixels = mx.random.normal((count, side, side, 3))
mx.eval(pixels)
held = mx.get_active_memory()
mx.reset_peak_memory()
mx.eval(tower(pixels, output_hidden_states=True)[0])
print(mx.get_peak_memory() - held)
"""


def ours(count: int, side: int) -> int:
    """MLX's peak above the weights for so many images, tower and projector."""
    import numpy as np

    from magistral_mlx.backend import mx
    from magistral_mlx.engine.images import encode_images
    from magistral_mlx.memory.known import MAGISTRAL_SMALL
    from magistral_mlx.model.magistral import MagistralModel

    vision = MAGISTRAL_SMALL.vision
    assert vision is not None
    config = replace(MAGISTRAL_SMALL, vision=replace(vision, num_hidden_layers=LAYERS))
    model = MagistralModel(config, mx.float32)
    model.add_vision()
    parts = (model.vision_tower, model.multi_modal_projector)
    mx.eval([part.parameters() for part in parts])
    images = [np.random.default_rng(n).random((3, side, side), np.float32) for n in range(count)]
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    encode_images(model, images)
    return mx.get_peak_memory() - held


def in_process(count: int, side: int) -> int:
    """`ours` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large_images", "--one", str(count), str(side)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def theirs(program: Program, count: int, side: int) -> int | str:
    """The same for mlx-vlm, or why there is no figure."""
    # One mask and one score matrix over all images: heads x patches^2 x 4 bytes.
    scores = HEADS * (count * (side // PATCH) ** 2) ** 2
    if 4 * scores > 12e9:
        return f"does not fit: scores alone are {4 * scores / 1e9:,.0f} GB"
    words = [program.command[0], "-c", THEIRS, str(side), str(LAYERS), str(count)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return f"crashes, with {scores / 1e9:.1f} billion scores in one array"
    return int(done.stdout)


def main() -> None:
    given = arguments(
        __doc__ or "",
        one={"nargs": 2, "type": int, "help": argparse.SUPPRESS},
    )
    if given.one:
        print(ours(*given.one))
        return
    others = list(peers("mlx-vlm", blas=False))
    record = Record("large_images", others)
    results: list[dict[str, Any]] = []
    for count, side in CASES:
        console.print(f"{count} x {side}", style="dim")
        peaks: dict[str, int | str] = {OURS: in_process(count, side)}
        peaks |= {program.label: theirs(program, count, side) for program in others}
        results.append({"images": count, "side": side, "peaks": peaks})
    labels = [OURS, *(program.label for program in others)]
    rows = [
        [f"{found['images']} x {found['side']}", *map(_shown, found["peaks"].values())]
        for found in results
    ]
    show("Peak above the weights", ["images", *labels], rows)
    _plot(record, given.out, labels, results)
    record.save(given.out, results=results)


def _shown(peak: int | str) -> str:
    return peak if isinstance(peak, str) else f"{peak / 1e9:.2f} GB"


def _plot(record: Record, out: Path, labels: list[str], results: list[dict[str, Any]]) -> None:
    with record.plot(out, title="Images of the largest size: peak above the weights") as (ax,):
        for n, label in enumerate(labels):
            measured = [
                (place, found["peaks"][label] / 1e9)
                for place, found in enumerate(results)
                if not isinstance(found["peaks"][label], str)
            ]
            places = [place + n * 0.4 for place, _ in measured]
            values = [value for _, value in measured]
            bars = ax.bar(places, values, 0.38, color=COLOURS.get(label), label=label)
            ax.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=8)
        names = [f"{found['images']} x {found['side']}" for found in results]
        ax.set_xticks([place + 0.2 for place in range(len(results))], names)
        ax.set(xlabel="images and side; no bar: it does not run", ylabel="GB")
        ax.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
