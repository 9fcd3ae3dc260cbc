"""Peak memory of a run against context: predicted by the plan, measured, and mlx-lm's.

    python -m benchmarks.memory [--full]

The mid-size model at 4 bits; each KV scheme in a process of its own prefills a random prompt and
decodes 8 tokens. The prediction is what `magistral-mlx plan` and the refusal before a run stand on:
it must not be below the measurement. mlx-lm's cache is in full precision; its prefill is slow on a
CPU, so the quick run gives it the shortest prompt only. Each is measured once.
"""

from __future__ import annotations

from benchmarks.common import COLOURS, Record, arguments, console, peers, runtimes, show
from benchmarks.midsize import midsize
from magistral_mlx.backend import DTYPES, backend
from magistral_mlx.bench.process import Program, ours
from magistral_mlx.cache.scheme import RESERVED, SCHEMES, KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory.here import profile
from magistral_mlx.memory.peak import Shape, loaded_weights, predict

ANSWER = 8


def predicted(checkpoint: Checkpoint, scheme: str, prompt: int) -> int:
    """Bytes of the largest footprint, as the plan has it."""
    here = profile()
    shape = Shape(prompt, RESERVED, here.chunk)  # a run without an end, as it is measured
    weights = loaded_weights(checkpoint, here.float_bytes)
    return predict(checkpoint.config, weights, KVScheme.parse(scheme), shape, here).total


def measure(program: Program, checkpoint: Checkpoint, prompts: list[int]) -> dict[int, int]:
    """Prompt length -> peak bytes of MLX."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    vocabulary = checkpoint.config.text.vocab_size
    peaks = {}
    with runtimes([program], checkpoint.folder, names[backend().dtype]) as workers:
        for prompt in prompts:
            console.print(f"{program.label} {program.command[-1]}, {prompt:,} tokens", style="dim")
            answer = workers[program.label].ask(
                "generate", prompt=prompt, count=ANSWER, vocabulary=vocabulary
            )
            peaks[prompt] = answer["peak"]
    return peaks


def main() -> None:
    given = arguments(__doc__ or "", full=True)
    checkpoint = Checkpoint.open(midsize())
    lengths = [128, 1024, 4096, 8192] if given.full else [128, 1024]
    theirs = list(peers("mlx-lm", blas=False))
    record = Record("memory", theirs)
    schemes = list(SCHEMES) if given.full else ["full", "4/4"]
    results: dict[str, dict[int, dict[str, float]]] = {}
    for scheme in schemes:
        peaks = measure(ours(scheme), checkpoint, lengths)
        results[scheme] = {
            prompt: {"measured": peak, "predicted": predicted(checkpoint, scheme, prompt)}
            for prompt, peak in peaks.items()
        }
    mine = list(results.values())
    for program in theirs:
        peaks = measure(program, checkpoint, lengths[: 2 if given.full else 1])
        results[program.label] = {prompt: {"measured": peak} for prompt, peak in peaks.items()}
        for by_prompt in mine:
            for prompt, peak in peaks.items():
                by_prompt[prompt]["ratio"] = by_prompt[prompt]["measured"] / peak
    _show(results)
    with record.plot(given.out, title="Peak memory of a mid-size model") as (ax,):
        for name, by_prompt in results.items():
            values = [figures["measured"] / 1e6 for figures in by_prompt.values()]
            colour = COLOURS.get(name)
            (line,) = ax.plot(list(by_prompt), values, marker="o", label=name, color=colour)
            plans = [figures.get("predicted", 0) / 1e6 for figures in by_prompt.values()]
            if all(plans):
                ax.plot(list(by_prompt), plans, ":", color=line.get_color())
        ax.set(xlabel="tokens of the prompt (dotted: predicted)", ylabel="MB", ylim=(0, None))
        ax.legend(frameon=False, fontsize=8)
    record.save(given.out, results=results)


def _show(results: dict[str, dict[int, dict[str, float]]]) -> None:
    rows: list[list[str]] = []
    for name, by_prompt in results.items():
        for prompt, row in by_prompt.items():
            measured, plan, ratio = row["measured"], row.get("predicted"), row.get("ratio")
            rows.append(
                [
                    f"ours, {name}" if plan else name,
                    f"{prompt:,}",
                    _mb(measured),
                    f"{ratio:.2f}" if ratio else "",
                    _mb(plan) if plan else "",
                    f"{plan / measured - 1:+.1%}" if plan else "",
                ]
            )
    header = ["cache", "prompt", "measured", "ours / mlx-lm", "predicted", "above"]
    show("Peak memory", header, rows)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
