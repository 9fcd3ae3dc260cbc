"""`magistral-mlx doctor --check`, on this machine with the demo model."""

from __future__ import annotations

import json
from pathlib import Path

from magistral_mlx.cache.scheme import SCHEMES
from tests.e2e.test_generate import run


def test_the_demo_model_passes_all_checks_and_what_is_measured_is_used(tmp_path: Path) -> None:
    here = {"MAGISTRAL_MLX_HOME": str(tmp_path)}
    done = run("doctor", "--check", "demo", "--json", **here)
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["good"], told
    checks = {check["what"]: check for check in told["checks"]}
    assert {check["verdict"] for check in checks.values()} <= {"good", "warning"}
    for scheme in SCHEMES:
        assert checks[f"attention, KV cache {scheme}"]["figures"]["errors"]
        peak = checks[f"memory, KV cache {scheme}"]["figures"]
        assert 0 < peak["measured"] <= peak["predicted"]
        assert "7 of 7 answers, same tokens" in checks[f"demo, KV cache {scheme}"]["words"]
    assert "holds this model" in checks["float16"]["words"]
    assert {"matrix products", "vision tower", "bandwidth", "longest dispatch"} <= set(checks)
    assert told["versions"]["mlx"] and told["model"] == "demo"
    kept = json.loads((tmp_path / "measurements.json").read_text())
    (machine,) = kept["machines"].values()
    assert machine["bandwidth"] == checks["bandwidth"]["figures"]["bandwidth"]
    computed = json.loads(run("plan", "demo", "--json", **here).stdout)["computed"]
    assert computed["measured"] and computed["decode_tokens_per_second"] > 0
    assert (tmp_path / "pass-costs.json").exists()


def test_a_model_without_check_and_one_that_is_not_there_are_one_line() -> None:
    for command, words in (
        (("doctor", "demo"), "only with --check"),
        (("doctor", "--check", "/nonexistent/model"), "/nonexistent/model"),
    ):
        done = run(*command)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.count("\n") == 1 and words in done.stderr
