"""`magistral-mlx plan` and `doctor`, as a user and as a program read them."""

from __future__ import annotations

import json

from tests.e2e.test_generate import refusal, run

EMPTY = {"HF_HOME": "/nonexistent", "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}


def plan(*words: str) -> str:
    done = run("plan", *words, **EMPTY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_plans_for_a_mac_before_anything_is_downloaded() -> None:
    seen = " ".join(plan("--machine", "M3 Max 36GB").split())
    assert "Magistral Small 1.2 at 4 bits on Apple M3 Max, 36 GB" in seen
    assert "40,960 tokens of context, KV cache full" in seen
    assert "Computed from the chip's published figures, not measured" in seen


def test_it_says_why_precision_was_given_up() -> None:
    seen = " ".join(plan("--machine", "32GB", "--context", "131072").split())
    assert "131,072 tokens of context, KV cache 4/4" in seen
    assert "the highest precision that fits: 8/4 needs" in seen


def test_json_holds_every_figure() -> None:
    facts = json.loads(plan("--machine", "32GB", "--json"))
    assert facts["fits"] is True
    assert (facts["context"], facts["kv"]) == (40_960, "full")
    parts = facts["bytes"]
    total = sum(parts[part] for part in ("weights", "vision", "cache", "workspace"))
    assert total == parts["total"] == facts["machine"]["limit"] - parts["headroom"]


def test_what_does_not_fit_says_what_would() -> None:
    seen = " ".join(plan("--machine", "32GB", "--context", "131072", "--kv", "full").split())
    assert "does not fit" in seen
    assert "Any of these makes it fit: --kv 4/4" in seen


def test_all_machines_stand_in_one_table() -> None:
    rows = plan("--all-machines").splitlines()
    for size in (16, 24, 32, 48, 64, 128):
        assert any(row.startswith(f"{size} GB Mac") for row in rows)


def test_a_model_on_this_machine_is_planned_from_its_files() -> None:
    facts = json.loads(plan("demo", "--json"))
    assert facts["fits"] and facts["bytes"]["weights"] < 20_000_000


def test_a_machine_that_is_none_is_named() -> None:
    assert "names no machine" in refusal("plan", "--machine", "toaster", **EMPTY)


def test_doctor_says_in_words_whether_this_machine_will_do() -> None:
    done = run("doctor", **EMPTY)
    assert "MLX: " in done.stdout and "memory: " in done.stdout
    assert ("good to go" in done.stdout) == (done.returncode == 0)
    findings = json.loads(run("doctor", "--json", **EMPTY).stdout)["findings"]
    assert {finding["what"] for finding in findings} >= {
        "system",
        "Python",
        "MLX",
        "memory",
        "disk",
    }
