"""docs/api.md is true: every example in it is run as it stands, against a live server."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.cli.serve import serve
from magistral_mlx.server.errors import Busy, NotAuthorized, TooLarge, Unavailable, UnknownModel
from tests.serving import Server

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """An example, and what stands under it as its output."""

    language: str
    code: str
    output: str | None
    line: int

    def at(self, server: Server) -> str:
        return self.code.replace("http://127.0.0.1:8080", server.url)


def blocks(language: str) -> list[Block]:
    return [
        Block(language, found[2], found[3], PAGE[: found.start()].count("\n") + 1)
        for found in _BLOCK.finditer(PAGE)
        if found[1] == language
    ]


@pytest.mark.parametrize("block", blocks("bash"), ids=lambda block: f"line {block.line}")
def test_curl_examples_are_answered(server: Server, block: Block):
    done = subprocess.run(
        ["bash", "-c", block.at(server)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if block.code.rstrip().endswith("/metrics"):
        assert "magistral_tokens_total" in done.stdout
    elif '"stream": true' in block.code:
        assert done.stdout.rstrip().endswith("data: [DONE]")
        assert '"usage":{"prompt_tokens":40' in done.stdout
    elif '"hot"' in block.code:
        assert json.loads(done.stdout)["error"]["param"] == "temperature"
    else:
        choice = json.loads(done.stdout)["choices"][0]
        assert choice["finish_reason"] in ("stop", "length", "tool_calls")
        if '"thinking": 24' in block.code:
            assert choice["message"]["content"] == "122"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_python_examples_print_what_is_said(
    server: Server, block: Block, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.at(server), f"docs/api.md:{block.line}", "exec"), {})
    assert block.output is not None, "an example shows its output"
    assert out.getvalue() == block.output


def test_every_option_of_serve_that_is_named_there_exists():
    known = {name for option in serve.params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert named - known == {"--plot", "--json"}, "those are options of traces"


def test_defaults_are_as_said():
    defaults = {option.name: option.default for option in serve.params}
    for said in (
        f"`--parallel` ({LoadOptions().parallel})",
        f"`--max-queue` ({defaults['max_queue']})",
        f"`--max-images` ({defaults['max_images']})",
        "`--max-body` (64 MiB)",
        "`--grace` (30 s)",
        "`--max-time` (1 h)",
    ):
        assert said in PAGE
    sizes = (defaults["max_body"], defaults["grace"], defaults["max_time"])
    assert sizes == ("64MiB", "30s", "1h")


def test_the_table_of_errors_holds_each_code_beside_its_status():
    for refusal in (NotAuthorized, UnknownModel, TooLarge, Busy, Unavailable):
        assert re.search(rf"^\| {refusal.status} \|.*`{refusal.code}`", PAGE, re.M), refusal


def test_every_metric_is_in_the_table(server: Server):
    families = set(re.findall(r"^# TYPE (magistral_\w+)", server.get("/metrics")[1], re.M))
    named = set(re.findall(r"`(magistral_\w+)", PAGE)) | set(
        re.findall(r"`, `(magistral_\w+)", PAGE)
    )
    assert {family for family in families if not family.endswith("_created")} == named


def test_every_endpoint_is_in_the_table(server: Server):
    paths = set(server.get("/openapi.json")[1]["paths"])
    for path in paths - {"/v1/models/{id}"}:
        assert path in PAGE, path
