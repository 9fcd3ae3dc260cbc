"""Prefix reuse: time to first token of a prompt with a cached prefix, against a cold one.

    python -m benchmarks.prefix_reuse [--model demo|midsize|FOLDER] [--kv SCHEME] [--full]

Four cases, each after a cold run of its own in the same process: a document of 4,000 tokens asked
about a second time, in the same process and, from --cache-dir, in a new one; the second turn of a
chat; an image that was seen before, with another text around it. All answer the same, token for
token, as without reuse: a case that does not has no ratio, and the status at the end is not 0. The
ratio is what counts; both of its times come from one run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.common import Figure, Record, console, options, show, spread
from benchmarks.midsize import midsize

TOKENS = 4_000
ANSWER = 12
QUESTIONS = (
    "Which of these sums is wrong?",
    "What is the largest sum?",
    "How many sums are there?",
)
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": ANSWER, "thinking": "off"}


def document(magistral: Any, salt: int) -> str:
    """Sums, until they are so many tokens."""
    sums: list[str] = []
    while True:
        n = len(sums)
        sums.append(f"{salt + n} + {n * 7 % 90} = {salt + n + n * 7 % 90}. ")
        if n % 20 == 19 and len(magistral.tokenizer.encode("".join(sums))) >= TOKENS:
            return "".join(sums)


def ask(magistral: Any, prompt: Any, image: Any = None) -> dict[str, Any]:
    """Ask -> time to the first token, what was known of the prompt, and the answer."""
    return figures(magistral.generate(prompt, () if image is None else image, **GREEDY))


def figures(result: Any) -> dict[str, Any]:
    stats = result.stats
    return {
        "seconds": stats.first_token_seconds,
        "prompt": stats.prompt_tokens,
        "known": stats.cached_tokens,
        "answer": result.text,
    }


def load(model: str, kv: str | None, cache_dir: str | None = None) -> Any:
    from magistral_mlx import Magistral

    return Magistral.load(model, kv=kv, cache_dir=cache_dir, context=8_192)  # type: ignore[arg-type]


def afresh(magistral: Any, text: str) -> dict[str, Any]:
    """Ask with nothing known."""
    magistral.release_memory()
    return ask(magistral, text)


def same_process(magistral: Any, salt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    text = document(magistral, salt)
    cold = afresh(magistral, text + QUESTIONS[1])
    afresh(magistral, text + QUESTIONS[0])
    return cold, ask(magistral, text + QUESTIONS[1])


def second_turn(magistral: Any, salt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chat whose first turn is long."""
    text = document(magistral, salt)
    sides = []
    for warm in (False, True):
        magistral.release_memory()
        chat = magistral.chat(**GREEDY)
        chat.send(text + QUESTIONS[0])
        if not warm:
            magistral.release_memory()
        sides.append(figures(chat.send(QUESTIONS[1])))
    return sides[0], sides[1]


def repeated_image(magistral: Any, salt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An image behind another text than the first time, so that its features alone are known."""
    import PIL.Image

    def look(image: Any, n: int) -> dict[str, Any]:
        system = {"role": "system", "content": f"{n} is your number."}
        return ask(magistral, [system, {"role": "user", "content": "What is it?"}], image)

    first, second = (PIL.Image.effect_noise((616, 616), salt / 100 + n) for n in (1, 50))
    magistral.release_memory()
    look(first, 1)  # reads the tower
    cold, warm = look(second, 2), look(second, 3)
    magistral.release_memory()
    return cold | {"answer": look(second, 3)["answer"]}, warm


def new_process(model: str, kv: str | None, salt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A cold one, one that fills the folder, and one that finds it full: three processes."""
    with tempfile.TemporaryDirectory() as folder:
        cold = in_process(model, kv, None, salt, 1)
        in_process(model, kv, folder, salt, 0)
        return cold, in_process(model, kv, folder, salt, 1)


def in_process(model: str, kv: str | None, folder: str | None, salt: int, n: int) -> dict[str, Any]:
    given = json.dumps({"model": model, "kv": kv, "folder": folder, "salt": salt, "question": n})
    command = [sys.executable, "-m", "benchmarks.prefix_reuse", "--process", given]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def process(given: dict[str, Any]) -> None:
    """Entry point of `in_process`: warm the device up, then ask one question."""
    with load(given["model"], given["kv"], given["folder"]) as magistral:
        magistral.generate("word " * 600, **GREEDY)
        found = ask(magistral, document(magistral, given["salt"]) + QUESTIONS[given["question"]])
    sys.stdout.write(json.dumps(found) + "\n")


def measure(model: str, kv: str | None, rounds: int) -> dict[str, dict[str, Any]]:
    """Case -> ratios, times and tokens."""
    cases: dict[str, Callable[[int], tuple[dict[str, Any], dict[str, Any]]]] = {}
    results: dict[str, dict[str, Any]] = {}
    with load(model, kv) as magistral:
        magistral.generate("word " * 600, **GREEDY)
        cases["document, same process"] = lambda salt: same_process(magistral, salt)
        cases["second turn of a chat"] = lambda salt: second_turn(magistral, salt)
        if magistral.supports_images:
            cases["image seen before"] = lambda salt: repeated_image(magistral, salt)
        for name, case in cases.items():
            results[name] = summary(name, [case(1000 * n) for n in range(1, rounds + 1)])
    name = "document, new process"
    results[name] = summary(name, [new_process(model, kv, 1000 * n) for n in range(1, rounds + 1)])
    return results


def summary(name: str, runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    console.print(name, style="dim")
    identical = all(cold["answer"] == warm["answer"] for cold, warm in runs)
    ratio = Figure.of([warm["seconds"] / cold["seconds"] for cold, warm in runs])
    return {
        "prompt": runs[-1][1]["prompt"],
        "known": runs[-1][1]["known"],
        "cold": Figure.of([cold["seconds"] for cold, _ in runs]),
        "warm": Figure.of([warm["seconds"] for _, warm in runs]),
        "ratio": ratio if identical else None,
        "identical": identical,
    }


def main() -> None:
    given = options(
        __doc__ or "",
        model={"default": "demo", "help": "demo, midsize (0.36B, random; 10 minutes) or a folder"},
        kv={"help": "KV cache: full, or bits of keys and values, as in 6/4"},
        process={"help": "for its own use"},
    )
    if given.process:
        process(json.loads(given.process))
        return
    record = Record("prefix_reuse")
    model = str(midsize()) if given.model == "midsize" else given.model
    results = measure(model, given.kv, given.rounds)
    rows = [
        [
            name,
            f"{found['prompt']:,}",
            f"{found['known']:,}",
            f"{found['cold'].median:.2f} s",
            f"{found['warm'].median:.3f} s",
            f"{found['ratio'].median:.1%}" if found["ratio"] else "",
            spread(found["ratio"]) if found["ratio"] else "",
            "yes" if found["identical"] else "NO",
        ]
        for name, found in results.items()
    ]
    header = ["case", "prompt", "known", "cold", "known before", "ratio", "spread", "same answer"]
    show(f"Time to the first token, {given.model}", header, rows)
    with record.plot(given.out, title="Time to the first token against a cold one") as (ax,):
        names = [name for name, found in results.items() if found["identical"]]
        ax.barh(names, [results[name]["ratio"].median * 100 for name in names], color="#d9480f")
        ax.axvline(10, color="#868e96", linewidth=1)
        ax.set(xlabel="% of the time without reuse")
    record.save(given.out, model=given.model, kv=given.kv, results=results)
    different = [name for name, found in results.items() if not found["identical"]]
    if different:
        sys.exit(f"answers were others than without reuse: {', '.join(different)}")


if __name__ == "__main__":
    main()
