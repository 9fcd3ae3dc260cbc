"""Pictures of the largest size through a tower of full width: peak of ours, and of mlx-vlm.

    python -m benchmarks.large_pictures

Pictures of 1540 x 1540 pixels (12,100 patches), the tower 1024 wide with 16 heads, 1 of its 24
layers; ours and mlx-vlm's own classes with random weights in float32. MLX's peak above the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.common import console, show

SIDE, LAYERS = 1540, 1
COUNTS = (1, 4, 8)
MLX_VLM = Path(__file__).parent.parent / ".venv-mlx-vlm" / "bin" / "python"

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


def ours(count: int) -> int:
    """MLX's peak above the weights for so many pictures, tower and projector."""
    import numpy as np

    from magistral_mlx.backend import mx
    from magistral_mlx.engine.prefill import see_pictures
    from magistral_mlx.memory.known import MAGISTRAL_SMALL
    from magistral_mlx.model.magistral import MagistralModel

    vision = MAGISTRAL_SMALL.vision
    assert vision is not None
    config = replace(MAGISTRAL_SMALL, vision=replace(vision, num_hidden_layers=LAYERS))
    model = MagistralModel(config, mx.float32)
    model.add_vision()
    parts = (model.vision_tower, model.multi_modal_projector)
    mx.eval([part.parameters() for part in parts])
    pictures = [np.random.default_rng(n).random((3, SIDE, SIDE), np.float32) for n in range(count)]
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    see_pictures(model, pictures)
    return mx.get_peak_memory() - held


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--one"]:
        print(ours(int(sys.argv[2])))
        return
    rows = []
    for count in COUNTS:
        command = [sys.executable, "-m", "benchmarks.large_pictures", "--one", str(count)]
        peak = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        # One mask and one score matrix over all pictures: 16 heads x patches^2 x 4 bytes.
        needed = 16 * (count * 12_100) ** 2 * 4
        if needed < 12e9:
            words = [str(MLX_VLM), "-c", THEIRS, str(SIDE), str(LAYERS), str(count)]
            done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
            theirs = f"{int(done.stdout) / 1e9:.2f} GB" if done.returncode == 0 else "failed"
        else:
            theirs = f"does not fit: scores alone are {needed / 1e9:,.0f} GB"
        rows.append([f"{count} x {SIDE}", f"{peak / 1e9:.2f} GB", theirs])
        console.print(rows[-1], style="dim")
    show("Peak above the weights", ["pictures", "ours", "mlx-vlm"], rows)
    console.print(json.dumps(rows))


if __name__ == "__main__":
    main()
