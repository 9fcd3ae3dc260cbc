"""`magistral-mlx plan`, as a user and as a program read it."""

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
    assert (
        "Computed from the chip's published figures, not measured: a prompt that fills the context "
        "takes " in seen
    )
    assert (
        "; decoding reaches 23.2 tokens/s at most while the cache is empty, 15.3 once the context "
        "is full." in seen
    )


def test_a_figure_that_cannot_be_computed_is_missed_with_a_reason() -> None:
    nameless = plan("--machine", "32GB")
    assert "name the chip, as in --machine 'M4 Pro 48GB'" in nameless
    assert "Computed from" not in nameless
    half_known = plan("--machine", "M6 32GB")
    assert "not measured: decoding reaches 13.2 tokens/s at most" in half_known
    assert "no compute of the Apple M6 is published" in half_known
    computed = json.loads(plan("--machine", "M6 32GB", "--json"))["computed"]
    assert computed["prefill_seconds"] is None and computed["decode_tokens_per_second"] > 10
    assert 5 < computed["decode_tokens_per_second_full"] < computed["decode_tokens_per_second"]
    assert "M6" in computed["missing"]


def test_the_bytes_of_the_cache_stand_under_each_scheme() -> None:
    facts = json.loads(plan("--machine", "32GB", "--context", "131072", "--json"))
    sizes = facts["kv_bytes"]
    assert list(sizes) == ["full", "8/8", "6/6", "6/4", "5/4", "4/4"]
    assert sizes["full"] == 131_072 * 40 * 2 * 8 * 128 * 2
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes["6/4"] == facts["bytes"]["cache"]
    seen = plan("--machine", "32GB", "--context", "131072")
    assert "131,072 tokens take" in seen
    assert all(size in seen for size in ("20.0 GiB", "7.0 GiB", "5.7 GiB"))


def test_the_cache_is_shown_whatever_needs_most() -> None:
    """A large image of the demo model takes more than its caches, which come later."""
    facts = json.loads(plan("demo", "--context", "1024", "--json"))
    assert facts["bytes"]["cache"] == facts["kv_bytes"][facts["kv"]] > 0


def test_it_says_why_precision_was_given_up() -> None:
    seen = " ".join(plan("--machine", "32GB", "--context", "131072").split())
    assert "131,072 tokens of context, KV cache 6/4" in seen
    assert "the highest precision that fits: 6/6 needs" in seen


def test_a_scheme_that_was_asked_for_stands_among_the_others() -> None:
    words = ("--machine", "24GB", "--context", "41000", "--kv", "8/3")
    facts = json.loads(plan(*words, "--json"))
    assert (facts["kv"], facts["why"]) == ("8/3", "a 8/3 cache was asked for")
    sizes = facts["kv_bytes"]
    assert list(sizes) == ["full", "8/8", "6/6", "8/3", "6/4", "5/4", "4/4"]
    assert sizes["6/6"] > sizes["8/3"] == facts["bytes"]["cache"] > sizes["6/4"]
    assert "8/3 bits" in plan(*words)


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
    assert "Any of these makes it fit: --kv 6/4" in seen


def test_all_machines_stand_in_one_table_of_a_line_each() -> None:
    rows = plan("--all-machines").splitlines()
    for size in (16, 24, 32, 48, 64, 128):
        (row,) = [row for row in rows if row.startswith(f"{size} GB Mac")]
        assert len(row.split()) >= 12 or "does not fit" in row
    assert "131,072  131,072" in rows[-3]


def test_all_machines_and_one_of_them_are_not_asked_for_together() -> None:
    message = refusal("plan", "--all-machines", "--machine", "32GB", **EMPTY)
    assert "give only one of --machine, --machines and --all-machines" in message


def test_a_model_on_this_machine_is_planned_from_its_files() -> None:
    facts = json.loads(plan("demo", "--json"))
    assert facts["fits"] and facts["bytes"]["weights"] < 20_000_000


def test_a_machine_that_is_none_is_named() -> None:
    assert "is not a machine" in refusal("plan", "--machine", "toaster", **EMPTY)


def test_it_plans_for_a_size_that_is_not_converted_yet() -> None:
    seen = " ".join(plan("--weights", "9.9GB", "--machine", "16GB").split())
    assert "Magistral Small 1.2, 9.9 GB of weights on 16 GB Mac" in seen
    assert "leave MODEL out" in refusal("plan", "demo", "--weights", "9.9GB", **EMPTY)
