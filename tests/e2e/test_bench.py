"""`magistral-mlx bench` as a user meets it, on a tiny 4-bit checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from magistral_convert import convert
from magistral_mlx.bench.record import bytes_per_token
from magistral_mlx.cache.scheme import FULL
from magistral_mlx.checkpoint.folder import Checkpoint
from tests.checkpoints import write_hf_checkpoint

ROOT = Path(__file__).parents[2]
HOME, KEPT = "MAGISTRAL_MLX_HOME", tempfile.mkdtemp(prefix="bench-")
VLM_PYTHON = ROOT / ".venv-mlx-vlm/bin/python"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    convert(str(write_hf_checkpoint(folder / "source")), folder / "tiny-4bit")
    return folder / "tiny-4bit"


def bench(*arguments: object, home: str = KEPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "magistral_mlx.cli.main", "bench", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {HOME: home},
    )


@pytest.fixture(scope="module")
def facts(model: Path) -> dict:
    """One run beside both peers."""
    options = ("--context", "24,48", "--tokens", 6, "--rounds", 3, "--json")
    result = bench("--model", model, "--against", f"mlx-lm,mlx-vlm={VLM_PYTHON}", *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_every_runtime_is_measured_at_every_context(facts: dict):
    measured = [(speed["label"], speed["context"]) for speed in facts["speeds"]]
    runtimes = ("magistral-mlx", "mlx-lm", "mlx-vlm")
    assert measured == [(name, context) for context in (24, 48) for name in runtimes]
    for speed in facts["speeds"]:
        assert all(speed[name]["median"] > 0 for name in ("prefill", "decode", "first"))
        assert len(speed["decode"]["values"]) == 3
        assert speed["peak"] > 0
    assert facts["left_out"] == {}


def test_peers_answer_the_same_tokens_before_they_are_timed(facts: dict):
    assert facts["equal_tokens"] == {"mlx-lm": 16, "mlx-vlm": 16}


def test_what_wider_passes_cost_is_measured_and_kept(facts: dict):
    assert [rows for rows, _ in facts["pass_costs"]][:3] == [1, 2, 3]
    costs = [cost for _, cost in facts["pass_costs"]]
    assert costs == sorted(costs) and costs[0] == 1
    kept = json.loads((Path(KEPT) / "pass-costs.json").read_text())
    assert facts["pass_costs"] in kept.values()


def test_the_share_of_the_limit_is_bytes_read_over_bandwidth(facts: dict, model: Path):
    for speed in facts["speeds"]:
        read = bytes_per_token(Checkpoint.open(model), speed["context"] + 3, FULL, 4)
        assert speed["bytes_per_token"] == read
        share = speed["decode"]["median"] * read / facts["limit"]["reached"]
        assert speed["share_of_limit"] == pytest.approx(share)


def test_the_record_says_what_ran_where(facts: dict):
    assert set(facts["versions"]) == {"mlx", "magistral-mlx", "mlx-lm", "mlx-vlm"}
    assert all(facts["versions"].values())
    assert set(facts["mlx_versions"]) == {"magistral-mlx", "mlx-lm", "mlx-vlm"}
    assert facts["mlx_versions"]["mlx-lm"] == facts["versions"]["mlx"]
    assert facts["machine"]["cores"] == os.cpu_count()
    assert facts["command"][1] == "bench"
    for part in ("magistral-mlx at 24: prefill", "mlx-vlm at 48", "tokens/s", "first token"):
        assert part in facts["line"]


def test_a_person_gets_a_table_and_a_line_to_paste_at_the_end(model: Path):
    result = bench("--model", model, "--context", 16, "--tokens", 4, "--rounds", 1)
    assert result.returncode == 0, result.stderr
    *table, last = result.stdout.splitlines()
    assert any("runtime" in line and "decode" in line for line in table)
    assert any(line.startswith("magistral-mlx") and " GiB" in line for line in table)
    assert last.startswith("magistral-mlx ") and "magistral-mlx at 16: prefill" in last


def test_a_home_that_cannot_be_written_costs_no_figures(model: Path):
    options = ("--context", 16, "--tokens", 4, "--rounds", 1)
    result = bench(model, *options, home="/dev/null/home")
    assert result.returncode == 0, result.stderr
    assert "magistral-mlx at 16: prefill" in result.stdout
    assert "the costs of wider passes are not kept for speculation" in result.stderr


def test_a_peer_that_is_not_installed_is_named_and_skipped(model: Path):
    options = ("--context", 16, "--tokens", 4, "--rounds", 1)
    result = bench("--model", model, "--against", "mlx-vlm", *options)
    assert result.returncode == 0, result.stderr
    assert "Left out: mlx-vlm: it is not installed" in result.stdout
    assert "--against mlx-vlm=" in result.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--against", "llama.cpp"), "the peer is 'llama.cpp'; it must be one of mlx-lm, mlx-vlm."),
        (("--against", "mlx-lm=/no/python"), "/no/python is not a program"),
        (("--context", "12,x"), "context is '12,x'; give numbers of tokens, as in 512,4096."),
        (("--context", "0"), "context is '0'"),
        (("--context", "5000"), "this model has 4,096 tokens in all."),
        (("--tokens", "1"), "--tokens is 1; it must be 2 or more."),
        (("--kv", "7/7"), "--kv is '7/7'; it must be full, or bits of"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(model: Path, options: tuple, complaint: str):
    result = bench("--model", model, *options)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert complaint in result.stderr
