"""Score a checkpoint folder on held-out cases, with transformers at greedy decoding.

    python -m training.score_demo [FOLDER] [--four-bits] [--cases 200] [--start 0]

Weights are as stored (bfloat16) and computed with in float32. `--four-bits` puts the decoder's
matrices through MLX's quantizer and back first: 4 bits, groups of 64, affine.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import Mistral3ForConditionalGeneration

from magistral_mlx.demo.cases import KINDS, Kind, cases, is_right
from training.model import decoder_matrices
from training.prompts import Example, Prompter
from training.train_demo import DESTINATION

LONGEST_TURN = 96  # tokens; the longest right one has 52


def quantize_decoder(model: Mistral3ForConditionalGeneration) -> None:
    """Replace every matrix of the decoder by what MLX's 4-bit quantizer leaves of it."""
    import numpy as np

    from magistral_mlx.backend import mx

    for p in decoder_matrices(model):
        stored = mx.array(p.detach().numpy()).astype(mx.bfloat16)
        small = mx.dequantize(*mx.quantize(stored, group_size=64, bits=4), group_size=64, bits=4)
        p.data = torch.from_numpy(np.array(small.astype(mx.float32)))


def padded_images(example: Example) -> dict[str, torch.Tensor]:
    """`pixel_values` (P, 3, H, W), padded at right and bottom, and `image_sizes` (P, 2)."""
    if not example.pixels:
        return {}
    sizes = torch.tensor([p.shape[1:] for p in example.pixels])
    height, width = sizes.amax(0).tolist()
    padded = torch.zeros(len(example.pixels), 3, height, width)
    for place, p in enumerate(example.pixels):
        padded[place, :, : p.shape[1], : p.shape[2]] = torch.from_numpy(p)
    return {"pixel_values": padded, "image_sizes": sizes}


@torch.no_grad()
def answer(model: Mistral3ForConditionalGeneration, prompter: Prompter, example: Example) -> str:
    """Decode greedily and return the text after the thinking."""
    prompt = torch.tensor([example.prompt])
    made = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=LONGEST_TURN,
        pad_token_id=11,
        **padded_images(example),
    )
    return prompter.answer_text(made[0, prompt.shape[1] :].tolist())


def score(
    model: Mistral3ForConditionalGeneration,
    prompter: Prompter,
    kind: Kind,
    count: int,
    start: int = 0,
) -> tuple[float, list[str]]:
    """Share of held-out cases from number `start` on answered rightly; a line for each wrong."""
    wrong = []
    for case in cases(kind, "held_out", count, start):
        said = answer(model, prompter, prompter.example(case))
        if not is_right(case, said):
            wrong.append(f"seed {case.seed}: {case.question} {case.answer!r}, not {said!r}")
    return 1 - len(wrong) / count, wrong


def main() -> None:
    """Score every kind and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DESTINATION)
    parser.add_argument("--four-bits", action="store_true", help="quantize the decoder first")
    parser.add_argument("--cases", type=int, default=200, help="of each kind")
    parser.add_argument("--start", type=int, default=0, help="number of the first held-out case")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored = Mistral3ForConditionalGeneration.from_pretrained(options.folder, dtype=torch.bfloat16)
    model = stored.float().eval()
    if options.four_bits:
        quantize_decoder(model)
    prompter = Prompter(options.folder / "tekken.json")
    began, shares = time.monotonic(), {}
    for kind in KINDS:
        shares[kind], wrong = score(model, prompter, kind, options.cases, options.start)
        print(f"{kind:14} {100 * shares[kind]:6.1f} % of {options.cases}", flush=True)
        print("".join(f"    {line}\n" for line in wrong), end="")
    weights = "4 bits, group 64" if options.four_bits else "bfloat16"
    print(json.dumps({"weights": weights, **shares, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
