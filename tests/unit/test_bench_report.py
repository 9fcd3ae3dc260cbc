"""What `magistral-mlx bench` says of its figures, to a person and in the line to paste."""

from __future__ import annotations

from typing import Any

import pytest

from magistral_mlx.bench.compare import Comparison, Speed
from magistral_mlx.bench.process import OURS
from magistral_mlx.bench.record import Limit, describe_speeds, line_to_paste
from magistral_mlx.bench.rounds import Figure
from magistral_mlx.cli.bench_report import remarks, show

STEADY = (10.0, 10.1, 10.2)


def speed(label: str, decode: tuple[float, ...] = STEADY, **figures: tuple[float, ...]) -> Speed:
    values = {"prefill": STEADY, "first": STEADY, **figures, "decode": decode}
    return Speed(label, 2048, peak=3 << 30, **{name: Figure.of(values[name]) for name in values})


def facts(*speeds: Speed, took_turns: bool = True, **others: Any) -> dict[str, Any]:
    result = Comparison(took_turns, list(speeds))
    limit = Limit(100e9, 90e9)
    found = {
        "model": "demo",
        "kv": "8/8",
        "dtype": "bfloat16",
        "machine": {"name": "Apple M4 Pro", "memory": 48 << 30, "system": "macOS 26.1"},
        "versions": {OURS: "1.0", "mlx-lm": "0.32.2", "mlx": "0.32.4"},
        "mlx_versions": {OURS: "0.32.4", "mlx-lm": "0.32.4"},
        "limit": {"published": limit.published, "reached": limit.reached, "origin": limit.origin},
        "speeds": describe_speeds(
            result, limit, lambda label, _: 10**9 if label == OURS else 10**8
        ),
        "parallel": [],
        "took_turns": took_turns,
        "equal_tokens": {},
        "left_out": {},
        "disturbances": [],
        **others,
    }
    return found | {"line": line_to_paste(found)}


def test_the_line_says_versions_dtype_cache_and_spread_in_one_line():
    line = facts(speed(OURS, (9.0, 10.0, 11.0)), speed("mlx-lm"))["line"]
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{OURS} 1.0, mlx-lm 0.32.2, mlx 0.32.4 | Apple M4 Pro 48 GB, macOS")
    for part in (
        "demo in bfloat16, KV cache 8/8 (of peers: full) |",
        "decode 10.00 (spread 10%) tokens/s (10% of 100 GB/s)",
        f"not steady: {OURS} at 2048 (decode 10%, after 3 rounds)",
    ):
        assert part in line
    assert "mlx-lm at 2048 (" not in line


def test_another_mlx_of_a_peer_is_told():
    line = facts(speed(OURS), mlx_versions={OURS: "0.32.4", "mlx-lm": "0.31.0"})["line"]
    assert line.startswith(f"{OURS} 1.0, mlx-lm 0.32.2 with mlx 0.31.0, mlx 0.32.4 | ")


@pytest.mark.parametrize(("name", "words"), [("prefill", "prefill"), ("first", "first token")])
def test_any_figure_that_did_not_become_steady_is_named(name: str, words: str):
    found = facts(speed(OURS, **{name: (5.0, 10.0, 20.0)}))
    assert f"Not steady: {OURS} at 2048 ({words} 75%, after 3 rounds)." in remarks(found)
    described = found["speeds"][0]
    assert not described["steady"] and not described[name]["steady"]
    assert described["decode"]["steady"]


def test_one_round_is_not_steady_and_has_no_spread():
    found = facts(speed(OURS, (10.0,), prefill=(9.0,), first=(1.0,)))
    expected = f"{OURS} at 2048 (prefill, decode, first token, after 1 round)"
    assert f"Not steady: {expected}." in remarks(found)
    assert f"not steady: {expected}" in found["line"]
    assert "spread" not in found["line"]


def test_steady_figures_need_no_remark():
    assert remarks(facts(speed(OURS))) == []


def test_the_ratio_has_a_spread_where_runtimes_took_turns(capsys: pytest.CaptureFixture[str]):
    found = facts(speed(OURS, (10.0, 20.0, 30.0)), speed("mlx-lm", (10.0, 10.0, 10.0)))
    assert found["speeds"][1]["ours_over_theirs"] == {"median": 2.0, "spread": 0.5}
    assert "ours_over_theirs" not in found["speeds"][0]
    show(found)
    assert "2.00 (50%)" in capsys.readouterr().out


def test_it_is_said_where_runtimes_did_not_take_turns():
    pair = speed(OURS, (20.0, 20.0)), speed("mlx-lm", (10.0, 10.0))
    found = facts(*pair, took_turns=False)
    assert found["speeds"][1]["ours_over_theirs"] == {"median": 2.0, "spread": None}
    assert any("do not fit into memory together" in remark for remark in remarks(found))
    assert not any("fit into memory" in remark for remark in remarks(facts(*pair)))
    assert not any("fit into memory" in r for r in remarks(facts(pair[0], took_turns=False)))


def test_the_cache_of_peers_is_told_where_ours_is_another():
    pair = speed(OURS), speed("mlx-lm")
    assert any(remark.startswith("mlx-lm: full KV cache") for remark in remarks(facts(*pair)))
    assert remarks(facts(*pair, kv="full")) == []


def test_a_peer_that_failed_later_keeps_what_was_measured_before():
    found = facts(
        speed(OURS),
        speed("mlx-lm"),
        left_out={"mlx-lm": "at 4,096 tokens: it ended."},
        equal_tokens={"mlx-lm": 16},
        kv="full",
    )
    assert remarks(found) == [
        "Left out: mlx-lm: at 4,096 tokens: it ended.",
        "mlx-lm gave the same first 16 tokens.",
    ]
