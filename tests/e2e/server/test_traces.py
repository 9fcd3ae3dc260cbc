"""`serve --traces DIR` and `traces DIR`: from an exchange to a file, and from files to figures."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx.cli.main import main
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.trace_recorder import TraceRecorder
from tests.serving import CHAT, Server, live_server, wait_until, write_endless_checkpoint

SUM = "What is 37 + 85?"
KEY = "a-key-that-nobody-should-find"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces") / "here"


@pytest.fixture(scope="module")
def traced(folder: Path) -> Iterator[Server]:
    settings = Settings(models=("demo",), api_key=KEY, traces=folder)
    with live_server(settings) as running:
        yield running


@pytest.fixture(scope="module")
def answered(traced: Server, folder: Path) -> list[dict[str, Any]]:
    """What stands in the files after a question, one for two answers, and one that is wrong."""
    traced.ask(SUM, AUTHORIZED, seed=7)
    traced.ask(SUM, AUTHORIZED, n=2, max_tokens=3)
    traced.ask(SUM, AUTHORIZED, thinking=5)
    traced.ask("word " * 20_000, AUTHORIZED)
    wait_until(lambda: len(list(folder.glob("*.json"))) == 4)
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `magistral-mlx traces`."""
    monkeypatch.setattr(sys, "argv", ["magistral-mlx", "traces", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        main()
    said = capsys.readouterr()
    return exit.value.code, said.out, said.err  # type: ignore[return-value]


class TestTraceFiles:
    def test_an_exchange_is_kept_whole(self, answered: list[dict[str, Any]]):
        first = answered[0]
        assert first["endpoint"] == CHAT
        assert first["model"] == "demo"
        assert first["request"]["messages"] == [{"role": "user", "content": SUM}]
        assert first["error"] is None
        (sample,) = first["samples"]
        assert sample["text"] == "122"
        assert sample["thinking"].startswith("7+5")
        assert sample["finish_reason"] == "stop"
        assert sample["seed"] == 7
        assert sample["stats"]["thinking_tokens"] > 0
        seconds = first["seconds"]
        assert 0 <= seconds["waited"] <= seconds["first_token"] <= seconds["total"]

    def test_every_answer_of_several_is_kept(self, answered: list[dict[str, Any]]):
        samples = answered[1]["samples"]
        assert len(samples) == 2
        assert samples[1]["seed"] == samples[0]["seed"] + 1
        assert all(sample["finish_reason"] == "length" for sample in samples)

    def test_what_went_wrong_is_kept_too(self, answered: list[dict[str, Any]]):
        assert answered[3]["samples"] == []
        assert answered[3]["error"]["type"] == "ContextOverflow"

    def test_the_key_is_in_no_file(self, answered: list[dict[str, Any]], folder: Path):
        assert all(KEY not in file.read_text() for file in folder.iterdir())

    def test_files_are_for_their_owner_and_nothing_half_written_stays(
        self, answered: list[dict[str, Any]], folder: Path
    ):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert file.suffix == ".json"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_folder_that_others_can_read_is_told_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        for mode, told in ((0o700, False), (0o755, True)):
            tmp_path.chmod(mode)
            TraceRecorder(tmp_path)
            assert ("chmod 700" in caplog.text) is told

    def test_an_answer_that_was_left_is_kept_as_far_as_it_got(self, tmp_path: Path):
        endless = write_endless_checkpoint(tmp_path / "endless")
        folder = tmp_path / "traces"
        with live_server(Settings(models=(str(endless),), traces=folder)) as server:
            with server.streaming("Go") as chunks:
                for _ in range(9):
                    next(chunks)
            wait_until(lambda: bool(list(folder.glob("*.json"))))
        (file,) = folder.glob("*.json")
        (sample,) = json.loads(file.read_text())["samples"]
        assert sample["finish_reason"] == "cancelled"
        assert sample["text"].startswith(" on on on")

    def test_a_folder_that_went_away_does_not_stop_the_server(self, tmp_path: Path):
        folder = tmp_path / "traces"
        with live_server(Settings(models=("demo",), traces=folder)) as server:
            folder.rmdir()
            assert server.ask(SUM)[0] == 200
            assert server.ask(SUM)[0] == 200


@pytest.mark.usefixtures("answered")
class TestTraces:
    def test_the_table_tells_tokens_thinking_speed_and_percentiles(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        status, out, err = run(monkeypatch, capsys, folder)
        assert (status, err) == (0, "")
        assert "4 exchanges, 4 answers, 1 failed (ContextOverflow 1)" in out
        assert "loops found" in out
        assert "of all tokens" in out
        for word in ("p50", "p90", "p99", "first token", "decode", "thinking tokens"):
            assert word in out

    def test_json_holds_the_same_figures_and_each_answer(
        self,
        folder: Path,
        answered: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        status, out, _ = run(monkeypatch, capsys, folder, "--json")
        facts = json.loads(out)
        samples = [sample["stats"] for each in answered for sample in each["samples"]]
        thinking = sum(stats["thinking_tokens"] for stats in samples)
        answer = sum(stats["answer_tokens"] for stats in samples)
        assert status == 0
        assert facts["exchanges"] == 4
        assert facts["answers"] == len(facts["traces"]) == len(samples) == 4
        assert facts["tokens"]["thinking"] == thinking
        assert facts["tokens"]["answer"] == answer
        assert facts["thinking_share"] == pytest.approx(thinking / (thinking + answer))
        assert facts["finish_reasons"] == {"stop": 2, "length": 2}
        first = facts["percentiles"]["first_token_seconds"]
        assert 0 < first["p50"] <= first["p90"] <= first["p99"]
        speeds = [stats["decode_tokens_per_second"] for stats in samples]
        assert facts["percentiles"]["decode_tokens_per_second"]["p99"] <= max(speeds)

    @pytest.mark.parametrize("kind", ["png", "svg"])
    def test_a_plot_is_drawn_whole(
        self,
        folder: Path,
        kind: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        file = tmp_path / f"plot.{kind}"
        status, _, err = run(monkeypatch, capsys, folder, "--plot", file)
        assert status == 0
        assert str(file) in err
        assert list(tmp_path.iterdir()) == [file]
        if kind == "png":
            with PIL.Image.open(file) as image:
                assert len(image.convert("RGB").getcolors(1 << 24)) > 20

    def test_files_that_are_no_exchanges_are_told_and_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        good = {
            "format": "magistral-mlx exchange",
            "version": 1,
            "time": "2026-01-01T00:00:00+00:00",
            "endpoint": CHAT,
            "model": "demo",
            "samples": [],
            "error": {"type": "OutOfMemory", "message": ""},
            "seconds": {"waited": None, "first_token": None, "total": 0.1},
        }
        (tmp_path / "good.json").write_text(json.dumps(good))
        for n, bad in enumerate(["", "{", "[]", "{}", json.dumps(good | {"version": 2})]):
            (tmp_path / f"bad{n}.json").write_text(bad)
        (tmp_path / "._good.json").write_bytes(b"\0\5\26\7")  # as macOS writes
        status, out, err = run(monkeypatch, capsys, tmp_path)
        assert status == 0
        assert "1 exchanges, 0 answers, 1 failed (OutOfMemory 1)" in out
        assert "5 files are no traces: bad0.json" in err

    def test_so_are_exchanges_with_something_else_in_a_field(
        self,
        answered: list[dict[str, Any]],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        (sample,) = answered[0]["samples"]
        fields: list[dict[str, Any]] = [
            {"error": "OutOfMemory"},
            {"error": {"type": []}},
            {"time": None},
            {"model": []},
            {"endpoint": 1},
            {"seconds": "1"},
            {"seconds": answered[0]["seconds"] | {"total": "1"}},
            {"samples": None},
            {"samples": [sample | {"finish_reason": {}}]},
        ]
        stats = [
            {"prompt_tokens": "9"},
            {"prompt_tokens": 10**400},
            {"answer_tokens": None},
            {"thinking_tokens": -1},
            {"thinking_end": 1},
            {"decode_tokens_per_second": float("nan")},
            {"prefill_tokens_per_second": float("inf")},
        ]
        fields += [{"samples": [sample | {"stats": sample["stats"] | wrong}]} for wrong in stats]
        (tmp_path / "good.json").write_text(json.dumps(answered[0]))
        for n, wrong in enumerate(fields):
            (tmp_path / f"bad{n:02}.json").write_text(json.dumps(answered[0] | wrong))
        for words in ([], ["--json"]):
            status, out, err = run(monkeypatch, capsys, tmp_path, *words)
            assert status == 0 and "nan" not in out.lower()
            assert f"{len(fields)} files are no traces: bad00.json, bad01.json" in err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nowhere"], "nowhere cannot be read"),
            (["."], "holds no traces"),
            (["RECORDS", "--plot", "x.txt"], ".png, .svg, .pdf"),
            (["RECORDS", "--plot", "no/such/x.png"], "cannot be written"),
        ],
    )
    def test_mistakes_are_one_line(
        self,
        words: list[str],
        said: str,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        monkeypatch.chdir(tmp_path)
        given = [str(folder) if word == "RECORDS" else word for word in words]
        status, out, err = run(monkeypatch, capsys, *given)
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1

    def test_a_missing_matplotlib_is_named_with_its_extra(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        monkeypatch.setattr("magistral_mlx.requirements.importlib.util.find_spec", lambda _: None)
        status, _, err = run(monkeypatch, capsys, folder, "--plot", "x.png")
        assert status == 2
        assert ".[bench]" in err


def test_the_server_without_its_extra_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("magistral_mlx.requirements.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["magistral-mlx", "serve", "demo"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert "`uv tool install '.[server]'`" in capsys.readouterr().err
