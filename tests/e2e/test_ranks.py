"""One model over two processes of this machine: the same answers, and what goes wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.distributed.place import FOLDERS
from magistral_mlx.paths import demo_dir
from tests.ranks import all_answers, run, started

WAIT = 240  # seconds, on a machine that is busy


@pytest.mark.parametrize("options", [{"split": "tensor"}, {"split": "pipeline", "kv": "6/4"}])
def test_two_ranks_answer_as_one(options: dict[str, Any], tmp_path: Path) -> None:
    command = run("demo", options | {"cache_dir": str(tmp_path / "of two")})
    # One has a copy of the model, the other gets its part from the first.
    elsewhere = {str(demo_dir().resolve()): str(tmp_path / "nowhere")}
    lent = {FOLDERS: json.dumps(elsewhere)} if options["split"] == "tensor" else {}
    with started(tmp_path, command, environment=lent) as (first, other):
        expected = all_answers("demo", options | {"cache_dir": str(tmp_path / "of one")})
        printed, said = first.communicate(timeout=WAIT)
        assert json.loads(printed) == expected, said
        assert expected["from disk"] > 100
        assert other.wait(WAIT) == first.returncode == 0


def test_a_rank_that_is_killed_ends_all_answers_with_its_name(tmp_path: Path) -> None:
    with started(tmp_path, run("demo", {"split": "tensor"}, "PID")) as (first, _):
        printed, said = first.communicate(timeout=WAIT)
        assert first.returncode == 0, said
    found = json.loads(printed)
    assert found["before"][0] == 200
    assert [found[name][0] for name in ("next", "health", "ready")] == [503, 503, 503]
    for told in (*found["ended"], *(found[name][1] for name in ("next", "health", "ready"))):
        assert told["error"]["message"].startswith("rank 1 (127.0.0.1) has ended."), told


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        (
            "follower.content_digest = lambda checkpoint: 'of others'",
            "are not the same as on rank 0",
        ),
        ("meeting.versions = lambda: ['0.9', '0.1']", "has magistral-mlx 0.9 with MLX 0.1, and"),
    ],
)
def test_other_weights_and_versions_are_refused_before_loading(
    differs: str, said: str, tmp_path: Path
) -> None:
    command = run("demo", {})
    code = (
        "import sys, tests.ranks as ranks\n"
        "from magistral_mlx.distributed import follower, meeting\n"
        f"{differs}\nsys.argv = {command[2:]!r}\nranks.main()"
    )
    with started(tmp_path, command, others=[sys.executable, "-c", code]) as (first, other):
        _, told = first.communicate(timeout=WAIT)
        assert first.returncode == 1 and said in told.splitlines()[-1]
        assert "rank 1 (127.0.0.1)" in told.splitlines()[-1]
        other.wait(WAIT)
