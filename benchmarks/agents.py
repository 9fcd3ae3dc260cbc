"""Claude Code, Codex CLI and OpenCode from their npm packages, at work against the real server.

    npm install --prefix build/agents @anthropic-ai/claude-code @openai/codex opencode-ai
    python -m benchmarks.agents [--agents claude codex opencode] [--npm build/agents]

A tiny model with random weights plays a scripted agent: it reads a file, mends it, runs its test,
hands a part to a sub-agent, waits for it, and answers. Its tokens are forced, so that all else is
as with any model: prompts, tools, parsing, cache. Each agent works alone, goes on in a second
process, and then the first and the last work side by side. The file must be mended at the end, and
from the second turn of each conversation on at least 95 % of the prompt's tokens must come from the
prefix cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import Record, arguments, console, show
from magistral_mlx import LoadOptions, Options
from magistral_mlx.api.composer import Composer
from magistral_mlx.cli.client_configs import CLIENTS, Served
from magistral_mlx.engine.constraint import Grammar
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.settings import Settings
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.serving import live_server
from training.tekken import write_tekken

CONTEXT = VOCAB = 131_072
LEAST_CACHED = 0.95
BROKEN, MENDED = "return a - b", "return a + b"
_TASK = re.compile(r"TASK-(\w+) in (\S+?)[.\s]")
_AGENT_ID = re.compile(r'"agent_id":\s*"([^"]+)"')
_SECONDS = 600  # for one run of an agent


@dataclass(frozen=True)
class Call:
    """A call of the scripted model."""

    name: str
    arguments: dict[str, Any]


# The scripted model


def steps(task: str, folder: str, tools: Sequence[str], results: str) -> list[Call]:
    """The calls that a task takes, with the tools that the agent offers.

    `results`: of the calls so far.
    """
    path, test = f"{folder}/add.py", f"cd {folder} && python3 test_add.py"
    prompt = f"TASK-sub in {folder} . Read the file."
    if "exec_command" in tools:
        return _codex_steps(task, path, test, prompt, tools, results)
    # Claude Code and OpenCode have the same tools in other spellings.
    spell = str if "Bash" in tools else _camel
    called = {name.lower(): name for name in tools}

    def call(name: str, **given: str) -> Call:
        return Call(called[name], {spell(key): value for key, value in given.items()})

    if task != "main":
        return [call("bash", command=f"cat {path}", description="Show the file")]
    part = {"description": "Read the file", "prompt": prompt}
    agent = "general-purpose" if "Bash" in tools else "general"
    return [
        call("read", file_path=path),
        call("edit", file_path=path, old_string=BROKEN, new_string=MENDED),
        call("bash", command=test, description="Run the test"),
        Call(called.get("agent") or called["task"], part | {"subagent_type": agent}),
    ]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _codex_steps(
    task: str, path: str, test: str, prompt: str, tools: Sequence[str], results: str
) -> list[Call]:
    look = Call("exec_command", {"cmd": f"cat {path}"})
    if task != "main":
        return [look]
    mend = Call("exec_command", {"cmd": f"sed -i 's/{BROKEN}/{MENDED}/' {path}"})
    spawn = next(name for name in tools if name.endswith("spawn_agent"))
    # An agent that is not waited for is interrupted when the process ends.
    begun = {"targets": _AGENT_ID.findall(results)[-1:], "timeout_ms": 1000 * _SECONDS}
    return [
        look,
        mend,
        Call("exec_command", {"cmd": test}),
        Call(spawn, {"message": prompt}),
        Call(spawn.replace("spawn", "wait"), begun),
    ]


def next_step(messages: Sequence[Mapping[str, Any]], tools: Sequence[str]) -> Call | str:
    """What the scripted model says to a conversation."""
    found, results = None, list[str]()
    for message in messages:
        tasks = _TASK.findall(_text(message)) if message["role"] == "user" else []
        if tasks:
            found, results = tasks[-1], []
        elif message["role"] == "tool":
            results.append(_text(message))
    if found is None or not tools:
        return "Fine."
    wanted = steps(*found, tools, "\n".join(results))
    return wanted[len(results)] if len(results) < len(wanted) else f"Done: {found[0]}."


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


@contextmanager
def scripted() -> Iterator[None]:
    """Have every model say what the script says, by a grammar of its very tokens."""
    said: dict[int, Call | str] = {}
    answer = GenerationService.answer

    def scripted_answer(
        self: GenerationService,
        request: Any,
        model: Any,
        prompt: Any,
        options: Options,
        **more: Any,
    ) -> Any:
        options = replace(options.seeded(), thinking="off")
        assert options.seed is not None
        said[options.seed] = next_step(prompt, [tool.name for tool in options.offered_tools])
        return answer(self, request, model, prompt, options, **more)

    def scripted_grammar(self: Composer, options: Options) -> Grammar:
        with self._lock:
            compiler = self.grammars
        step, special = said[options.seed or 0], self.tokenizer.special
        if isinstance(step, str):
            ids = self.tokenizer.encode(step)
        else:
            name = self.tokenizer.encode(step.name)
            written = self.tokenizer.encode(json.dumps(step.arguments, ensure_ascii=False))
            ids = [special.tool_calls, *name, special.args, *written]
        return compiler._compile("start: " + " ".join(f"<[{id}]>" for id in ids), "the script")

    with (
        mock.patch.object(GenerationService, "answer", scripted_answer),
        mock.patch.object(Composer, "_grammar", scripted_grammar),
    ):
        yield


# The agents


class Agent:
    """An agent, its home folder, and a folder that it works in."""

    name = ""

    def __init__(self, npm: Path, root: Path, url: str) -> None:
        self.program = npm / "node_modules/.bin" / self.name
        self.home, self.folder, self.url = root / "home", root / "work", url
        for folder in (self.home, self.folder):
            folder.mkdir(parents=True)
        (self.folder / "add.py").write_text(f"def add(a, b):\n    {BROKEN}\n")
        (self.folder / "test_add.py").write_text("from add import add\nassert add(1, 2) == 3\n")
        self.prepare()

    def prepare(self) -> None:
        """Write its configuration."""

    def words(self, prompt: str, *, resume: bool) -> list[str]:
        """Its command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Its environment beyond the usual one."""
        raise NotImplementedError

    def run(self, prompt: str, *, resume: bool = False) -> str:
        """Have it work -> what it says. Raises RuntimeError if it fails."""
        usual = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
        ended = subprocess.run(
            [self.program, *self.words(prompt, resume=resume)],
            cwd=self.folder,
            env=usual | {"HOME": str(self.home)} | self.environment(),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_SECONDS,
        )
        if ended.returncode:
            raise RuntimeError(f"{self.name} failed: {ended.stderr[-2000:]}{ended.stdout[-2000:]}")
        return ended.stdout

    def work(self) -> None:
        """Do the task, and go on in a second process. Raises RuntimeError if it is not done."""
        first = self.run(f"TASK-main in {self.folder} . Mend add.py.")
        again = self.run(f"TASK-more in {self.folder} . Look once more.", resume=True)
        if "Done: main." not in first or "Done: more." not in again:
            raise RuntimeError(f"{self.name} did not come to the end: {first!r} {again!r}")
        if MENDED not in (self.folder / "add.py").read_text():
            raise RuntimeError(f"{self.name} did not mend the file.")


class Claude(Agent):
    name = "claude"

    def words(self, prompt: str, *, resume: bool) -> list[str]:
        more = ["--continue"] if resume else []
        return ["--print", "--model", "model", "--permission-mode", "acceptEdits",
                "--allowedTools", "Bash,Read,Edit,Agent,Task", *more, "--", prompt]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }


class Codex(Agent):
    name = "codex"

    def prepare(self) -> None:
        served = Served(self.url, "model", CONTEXT, images=False, thinks=True, key="none")
        (self.home / "magistral.config.toml").write_text(CLIENTS[self.name](served))

    def words(self, prompt: str, *, resume: bool) -> list[str]:
        begin = ["exec", "resume", "--last"] if resume else ["exec"]
        return [
            "--profile",
            "magistral",
            *begin,
            "--dangerously-bypass-approvals-and-sandbox",
            "--skip-git-repo-check",
            prompt,
        ]

    def environment(self) -> dict[str, str]:
        return {"CODEX_HOME": str(self.home)}


class OpenCode(Agent):
    name = "opencode"

    def prepare(self) -> None:
        folder = self.home / ".config/opencode"
        folder.mkdir(parents=True)
        served = Served(self.url, "model", CONTEXT, images=False, thinks=True, key="none")
        (folder / "opencode.jsonc").write_text(CLIENTS[self.name](served))

    def words(self, prompt: str, *, resume: bool) -> list[str]:
        return ["run", *(["--continue"] if resume else []), prompt]

    def environment(self) -> dict[str, str]:
        return {"OPENCODE_DISABLE_AUTOUPDATE": "1"}


AGENTS: dict[str, type[Agent]] = {agent.name: agent for agent in (Claude, Codex, OpenCode)}


def together(agents: Sequence[Agent]) -> None:
    """Have all of them work at once."""
    failures: list[Exception] = []

    def work(agent: Agent) -> None:
        try:
            agent.work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[agent]) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# The figures


def turns(traces: Path, root: Path) -> Iterator[dict[str, Any]]:
    """Each turn of each conversation: its prompt's tokens, and those from the cache."""
    begun: dict[str, int] = defaultdict(int)
    for file in sorted(traces.glob("*.json")):
        trace = json.loads(file.read_text())
        request, [sample] = trace["request"], trace["samples"]
        if not request.get("tools"):
            continue  # a title, or the like
        said = json.dumps(request.get("messages") or request.get("input"))
        task, folder = next(iter(_TASK.findall(said)), ("", "-"))
        conversation = f"{folder} {'sub' if task == 'sub' else 'main'}"
        begun[conversation] += 1
        stats = sample["stats"]
        yield {
            "conversation": conversation.removeprefix(f"{root}/"),
            "turn": begun[conversation],
            "prompt": stats["prompt_tokens"],
            "cached": stats["cached_tokens"],
        }


def main() -> None:
    given = arguments(
        __doc__ or "",
        agents={"nargs": "+", "choices": list(AGENTS), "default": list(AGENTS)},
        npm={"type": Path, "default": Path("build/agents"), "help": "folder with node_modules"},
    )
    record = Record("agents")
    npm = given.npm.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        more = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
        config = tiny_config(layers=1, vision=False, **more)
        model = write_hf_checkpoint(root / "model", config=config, shards=1)
        write_tekken(model / "tekken.json", VOCAB - 1000)  # prompts of real lengths
        traces = given.out.resolve() / "agents"
        shutil.rmtree(traces, ignore_errors=True)
        settings = Settings(models=(str(model),), traces=traces, load=LoadOptions(context=CONTEXT))
        with scripted(), live_server(settings) as server:
            for name in given.agents:
                AGENTS[name](npm, root / f"{name}-alone", server.url).work()
            pair = [given.agents[0], given.agents[-1]]
            together(
                [AGENTS[name](npm, root / f"{name}-{n}", server.url) for n, name in enumerate(pair)]
            )
        found = list(turns(traces, root))
    rows = [
        [turn["conversation"], str(turn["turn"]), f"{turn['prompt']:,}", f"{turn['cached']:,}",
         f"{turn['cached'] / turn['prompt']:.1%}"]
        for turn in found
    ]  # fmt: skip
    show("Turns of the agents", ["conversation", "turn", "prompt", "cached", ""], rows)
    record.save(given.out, turns=found)
    short = [
        turn
        for turn in found
        if turn["turn"] > 1 and turn["cached"] < LEAST_CACHED * turn["prompt"]
    ]
    if short:
        console.print(f"{len(short)} later turns had less than {LEAST_CACHED:.0%} in the cache.")
        sys.exit(1)


if __name__ == "__main__":
    main()
