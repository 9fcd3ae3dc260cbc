"""The demo model's answers, and its tokens against those of float32 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from magistral_mlx.api.magistral import Magistral
from magistral_mlx.cache.scheme import SCHEMES
from magistral_mlx.check.finding import Finding, Verdict
from magistral_mlx.demo.cases import Case, is_right, make_case

_CONTEXT = 2048


def check_answers() -> Iterator[Finding]:
    """Ask the demo model, with each cache scheme: a finding for each."""
    golden = golden_tokens()
    cases = [make_case(entry["kind"], entry["seed"]) for entry in golden]
    for name in SCHEMES:
        wrong, different = [], []
        with Magistral.load("demo", context=_CONTEXT, kv=name) as model:
            for case, entry in zip(cases, golden, strict=True):
                tokens, text = ask(model, case)
                if not is_right(case, text):
                    wrong.append(f"{case.question} {text!r}, not {case.answer!r}")
                elif tokens != entry["tokens"]:
                    different.append(case.question)
        yield _finding(name, len(cases), wrong, different)


def ask(model: Magistral, case: Case) -> tuple[list[int], str]:
    """Answer a case greedily -> the tokens, thinking included, and the text."""
    result = model.generate(case.question, case.images, temperature=0.0, logprobs=True)
    return [entry.id for entry in result.logprobs], result.text


def golden_tokens() -> list[dict[str, Any]]:
    """Cases with the tokens of the demo model in float32 on the CPU, by kind and seed."""
    entries: list[dict[str, Any]] = json.loads(
        files("magistral_mlx.demo").joinpath("golden.json").read_text("utf-8")
    )
    return entries


def _finding(name: str, count: int, wrong: list[str], different: list[str]) -> Finding:
    what, figures = f"demo, KV cache {name}", {"wrong": wrong, "different": different}
    if not wrong and not different:
        return Finding(what, "good", f"{count} of {count} answers, same tokens", figures=figures)
    verdict: Verdict = "bad" if wrong else "warning"
    words = f"{count - len(wrong)} of {count} answers right, {len(different)} in other tokens"
    advice = "report this with `magistral-mlx doctor --check --json`"
    return Finding(what, verdict, words, advice, figures)
