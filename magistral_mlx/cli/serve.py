"""`magistral-mlx serve`: a model behind the APIs that apps know, and a page to talk to it."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.client_configs import CLIENTS, config_option, served_of
from magistral_mlx.cli.loading import (
    load_bar,
    load_options,
    loading_options,
    mcp_servers,
    waiting_for,
)
from magistral_mlx.cli.machine_options import machine_options
from magistral_mlx.cli.machines import machines_of, run_on_machines
from magistral_mlx.cli.params import DURATION, FILE, INTEGER, MODEL, SIZE, command, option
from magistral_mlx.cli.terminal import log_to_stderr, say
from magistral_mlx.option_spec import Integer, Number

if TYPE_CHECKING:
    from magistral_mlx.server.service import GenerationService
    from magistral_mlx.server.settings import Settings

_PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "h11")


@command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=MODEL)
@option(
    "-m",
    "--model",
    "named",
    multiple=True,
    type=MODEL,
    metavar="NAME_OR_DIR",
    section="Loading",
    help="A model, as MODEL names it. Give it again for more.",
)
@option(
    "--host",
    default="127.0.0.1",
    section="Network",
    help="Address to listen on.  [default: 127.0.0.1]",
)
@option(
    "--port",
    type=INTEGER(Integer(0, 65535)),
    default=8080,
    section="Network",
    help="Port to listen on; 0 takes a free one.  [default: 8080]",
)
@option(
    "--ollama",
    is_flag=True,
    section="Network",
    help="Listen on port 11434 too, Ollama's, for apps that look for it there.",
)
@option(
    "--api-key",
    envvar="MAGISTRAL_MLX_API_KEY",
    metavar="KEY",
    section="Network",
    help="Key that requests must bring. Better in MAGISTRAL_MLX_API_KEY, where no one sees it.",
)
@option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    section="Network",
    help="Another name that this machine is called by.",
)
@option(
    "--cors",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    section="Network",
    help="Web page that may use this server, as in https://chat.example; '*' for all.",
)
@option(
    "--allow-remote-images",
    is_flag=True,
    section="Network",
    help="Fetch images from the internet.",
)
@option(
    "--any-model",
    is_flag=True,
    section="Server",
    help="Let the first model answer requests for names that no model has.",
)
@option(
    "--keep-alive",
    type=DURATION(Number(0)),
    default="never",
    metavar="TIME",
    section="Server",
    help="Time after which an idle model gives its memory back, as in 10m.  [default: never]",
)
@option(
    "--traces",
    type=FILE,
    metavar="DIR",
    section="Server",
    help="Folder that gets a trace of each exchange, a JSON file.",
)
@option(
    "--mcp",
    type=FILE,
    metavar="FILE",
    section="Server",
    help='Tools of the MCP servers in FILE ({"mcpServers": …}) on the page; each call asks first.',
)
@option(
    "--log-prompts", is_flag=True, section="Server", help="Write prompts and answers to the log."
)
@option(
    "--grace",
    type=DURATION(Number(0)),
    default="30s",
    metavar="TIME",
    section="Server",
    help="Time that running answers may take after Ctrl-C or SIGTERM.  [default: 30s]",
)
@option(
    "--max-body",
    type=SIZE(Integer(1)),
    default="64MiB",
    metavar="SIZE",
    section="Limits",
    help="Largest request body.  [default: 64MiB]",
)
@option(
    "--max-images",
    type=INTEGER(Integer(0)),
    default=32,
    metavar="N",
    section="Limits",
    help="Images of one request at most.  [default: 32]",
)
@option(
    "--max-tokens",
    type=INTEGER(Integer(1)),
    metavar="N",
    section="Limits",
    help="Tokens of one answer at most.  [default: what the context leaves]",
)
@option(
    "--max-time",
    type=DURATION(Number(above=0)),
    default="1h",
    metavar="TIME",
    section="Limits",
    help="Time for one answer, or never.  [default: 1h]",
)
@option(
    "--max-queue",
    type=INTEGER(Integer(1)),
    default=128,
    metavar="N",
    section="Limits",
    help="Requests that may wait.  [default: 128]",
)
@option(
    "--adapter",
    "adapters",
    multiple=True,
    type=FILE,
    metavar="[NAME=]DIR_OR_NAME",
    section="Loading",
    help="A LoRA adapter, for requests that name MODEL:NAME. Give it again for more.",
)
@option(
    "--load-adapters",
    is_flag=True,
    section="Server",
    help="Let clients load and drop adapters, from any folder of this machine and the hub.",
)
@config_option
@loading_options(without=("adapter",), defaults={"wire": "off"})
@machine_options
def serve(models: tuple[str, ...], named: tuple[str, ...], **options: Any) -> int:
    """Answer apps and browsers: OpenAI's, Anthropic's and Ollama's APIs, and a chat page at /.

    Give several MODELs to have one of them in memory at a time, as requests name them. Default:
    the model that generate takes.
    """
    from magistral_mlx.requirements import check_extra

    check_extra("serve", "server", *_PACKAGES)
    from magistral_mlx.server.launcher import serve as run

    settings = _settings((*models, *named), options)
    if options["client"] is not None:
        click.echo(CLIENTS[options["client"]](served_of(settings)), nl=False)
        return 0
    if (machines := machines_of(options)) is not None:
        every = settings.models or (None,)
        return run_on_machines(machines, every, settings.load, options["split"], again=True)
    with _ending_quietly(), ExitStack() as bar:

        def on_waiting(names: list[str]) -> None:
            bar.close()
            say(waiting_for(names))

        def on_ready() -> None:
            bar.close()
            say("ready.")

        run(
            settings,
            on_listening=lambda urls, service: _tell(urls, service, settings),
            on_waiting=on_waiting,
            on_ready=on_ready,
            on_progress=bar.enter_context(load_bar()),
        )
    return 0


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """SIGTERM before the server runs, and takes its signals itself, is one line."""

    def end(*_: object) -> None:
        say("stopped before it had started.")
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings(models: tuple[str, ...], options: dict[str, Any]) -> Settings:
    from magistral_mlx.api.adapters import adapters_by_name
    from magistral_mlx.server.settings import Limits, Settings

    taken = (
        *("host", "port", "api_key", "allowed_hosts", "cors_origins", "allow_remote_images"),
        *("keep_alive", "log_prompts", "ollama", "any_model", "load_adapters"),
    )
    return Settings(
        **{name: options[name] for name in taken},
        models=models,
        mcp=mcp_servers(options["mcp"]),
        traces=Path(options["traces"]) if options["traces"] is not None else None,
        grace=math.inf if options["grace"] is None else options["grace"],
        limits=Limits(
            body_bytes=options["max_body"],
            images=options["max_images"],
            tokens=options["max_tokens"],
            seconds=options["max_time"],
            queue=options["max_queue"],
        ),
        load=load_options(
            options, wire=bool(options["wire"]), adapters=adapters_by_name(options["adapters"])
        ),
    )


def _tell(urls: list[str], service: GenerationService, settings: Settings) -> None:
    """Where it listens, and what of each model fits."""
    from magistral_mlx.memory.plan import gib

    log_to_stderr()
    for url in urls:
        say(f"{url}/ is the page, {url}/v1 the API{_reach(settings)}.")
    if service.pool.disk_problem:
        say(service.pool.disk_problem)
    for model in service.registry:
        plan, info = model.plan, model.info
        skills = ["images"] * info.supports_images + ["thinking"] * info.thinks
        say(
            f"{info.id}: {plan.context:,} tokens of context, KV cache {plan.scheme.name}, "
            f"{gib(plan.peak.total)} of {gib(plan.limit)}"
            + (f"; {' and '.join(skills)}" if skills else "")
        )
        for adapter in model.adapters:
            say(f"{model.name_with(adapter)}: with the adapter {adapter}")
        if plan.warning:
            say(plan.warning)


def _reach(settings: Settings) -> str:
    """Describe which other machines reach the server."""
    if settings.host in ("0.0.0.0", "::"):
        return ", for other machines too, with the key"
    return ", with the key" if settings.api_key else ""
