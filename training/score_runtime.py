"""Score a checkpoint on held-out cases through this package's own runtime, greedily.

python -m training.score_runtime demo
python -m training.score_runtime build/demo-4bit [--kv 8/8] [--cases 200]
"""

import argparse
import time

from magistral_mlx import Magistral
from magistral_mlx.demo.cases import KINDS, Case, cases, is_right


def answer(magistral: Magistral, case: Case) -> str:
    """Return the model's text after the thinking."""
    return magistral.generate(case.question, case.images, temperature=0, max_tokens=96).text


def main() -> None:
    """Print the share of right answers of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder, or demo")
    parser.add_argument("--kv", help="full, or bits of keys and values, as in 6/4")
    parser.add_argument("--cases", type=int, default=200)
    options = parser.parse_args()
    with Magistral.load(options.model, kv=options.kv) as magistral:
        for kind in KINDS:
            start = time.perf_counter()
            held_out = list(cases(kind, "held_out", options.cases))
            right = sum(is_right(case, answer(magistral, case)) for case in held_out)
            seconds = time.perf_counter() - start
            print(f"{kind:14} {right}/{len(held_out)} right ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
