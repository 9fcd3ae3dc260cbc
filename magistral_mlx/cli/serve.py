"""`magistral-mlx serve`: a model behind the APIs that apps know, and a page to talk to it."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.durations import parse_duration
from magistral_mlx.cli.loading import loading, loading_options
from magistral_mlx.cli.sizes import parse_size

if TYPE_CHECKING:
    from magistral_mlx.server.model_registry import ModelRegistry
    from magistral_mlx.server.settings import Settings

_PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "h11")


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key",
    envvar="MAGISTRAL_MLX_API_KEY",
    metavar="KEY",
    help="What requests must bring. Better in MAGISTRAL_MLX_API_KEY, where no one sees it.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name that this machine is called by.",
)
@click.option(
    "--cors",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page that may use this server, as in https://chat.example. '*' lets all.",
)
@click.option("--allow-remote-images", is_flag=True, help="Fetch images from the internet.")
@click.option(
    "--keep-alive",
    default="never",
    show_default=True,
    metavar="TIME",
    help="Give an idle model's memory back after so long, as in 10m.",
)
@click.option("--traces", metavar="DIR", help="Write a trace of each exchange, a JSON file, there.")
@click.option("--log-prompts", is_flag=True, help="Write what is said into the log.")
@click.option(
    "--grace",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long running answers may go on after Ctrl-C or SIGTERM.",
)
@loading_options
@click.option("--images", type=int, default=1, show_default=True, help="Images to plan for.")
@click.option(
    "--parallel",
    type=int,
    default=16,
    show_default=True,
    help="Answers at once at most, as far as memory allows.",
)
@click.option(
    "--max-body", default="64MiB", show_default=True, metavar="SIZE", help="Of one request."
)
@click.option(
    "--max-images", type=int, default=32, show_default=True, help="In one request, all told."
)
@click.option("--max-tokens", type=int, help="Of one answer. Default: what fits.")
@click.option(
    "--max-time", default="1h", show_default=True, metavar="TIME", help="For one answer, or never."
)
@click.option(
    "--max-queue", type=int, default=128, show_default=True, help="Requests that may wait."
)
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Answer apps and browsers: OpenAI's and Anthropic's APIs, and a chat page at /.

    Give several MODELs to have one of them in memory at a time, as requests name them. Default:
    the model that generate takes.
    """
    from magistral_mlx.requirements import check_extra

    check_extra("serve", "server", *_PACKAGES)
    from magistral_mlx.cli.progress import load_bar
    from magistral_mlx.server.launcher import serve as run

    settings = _settings(models, options)
    with _ending_quietly(), ExitStack() as bar:

        def on_ready() -> None:
            bar.close()
            _say("ready.")

        run(
            settings,
            on_listening=lambda urls, registry: _tell(urls, registry, settings),
            on_ready=on_ready,
            on_progress=bar.enter_context(load_bar()),
        )


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """SIGTERM before the server runs, and takes its signals itself, is one line."""

    def end(*_: object) -> None:
        _say("stopped before it had started.")
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings(models: tuple[str, ...], options: dict[str, Any]) -> Settings:
    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.server.settings import Limits, Settings

    body = parse_size(options["max_body"])
    assert body is not None
    grace = parse_duration(options["grace"])
    taken = ("host", "port", "api_key", "allowed_hosts", "cors_origins", "allow_remote_images")
    return Settings(
        **{name: options[name] for name in taken},
        models=models,
        keep_alive=parse_duration(options["keep_alive"]),
        traces=Path(options["traces"]) if options["traces"] else None,
        log_prompts=options["log_prompts"],
        grace=float("inf") if grace is None else grace,
        limits=Limits(
            body_bytes=body,
            images=options["max_images"],
            tokens=options["max_tokens"],
            seconds=parse_duration(options["max_time"]),
            queue=options["max_queue"],
        ),
        load=LoadOptions(
            **loading(options), images=options["images"], parallel=options["parallel"]
        ),
    )


def _log_to_stderr() -> None:
    """Our own lines, and warnings of uvicorn's; nothing of stdout."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("magistral_mlx", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)


def _tell(urls: list[str], registry: ModelRegistry, settings: Settings) -> None:
    """Where it listens, and what of each model fits."""
    from magistral_mlx.memory.plan import gib

    _log_to_stderr()
    for url in urls:
        _say(f"{url}/ is the page, {url}/v1 the API{_reach(settings)}.")
    for model in registry:
        plan, info = model.plan, model.info
        skills = ["images"] * info.supports_images + ["thinking"] * info.thinks
        _say(
            f"{info.id}: {plan.context:,} tokens of context, KV cache {plan.scheme.name}, "
            f"{gib(plan.peak.total)} of {gib(plan.limit)}"
            + (f"; {' and '.join(skills)}" if skills else "")
        )
        if plan.warning:
            _say(plan.warning)


def _reach(settings: Settings) -> str:
    """Who else reaches it, and with what."""
    if settings.host in ("0.0.0.0", "::"):
        return ", for other machines too, with the key"
    return ", with the key" if settings.api_key else ""


def _say(text: str) -> None:
    click.echo(f"magistral-mlx: {text}", err=True)
