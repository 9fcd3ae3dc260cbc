"""`magistral-mlx models`, `show`, `pull` and `rm`: the models on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.loading import chosen_model, load_bar, loading_options, model_argument
from magistral_mlx.cli.params import command, option
from magistral_mlx.cli.terminal import say, visible, write

if TYPE_CHECKING:
    from magistral_mlx.library import FoundModel

_UNKNOWN = {"tokenizer": "none found (--tokenizer names one)"}


@command()
@option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def models(as_json: bool) -> None:
    """List the models on this machine that this runtime can run."""
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import default_model, find_models

    found = find_models()
    if as_json:
        for model in found:
            write(json.dumps(_facts(model)) + "\n")
        return
    if found:
        _show(found)
    try:
        write(f"\ngenerate takes {default_model()} unless --model names another.\n", err=True)
    except ModelNotFound as error:
        say(str(error))


@command()
@model_argument
@loading_options("tokenizer")
@option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def show(as_json: bool, **options: Any) -> None:
    """Describe MODEL: its architecture, weights and prompt. Default: the one of generate.

    Nothing is loaded but headers and the tokenizer; a model of the hub is downloaded first.
    """
    facts = _describe(locate_with_bar(chosen_model(options)), options["tokenizer"])
    if as_json:
        write(json.dumps(facts) + "\n")
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        words = _UNKNOWN.get(name, "unknown") if value is None else _words(value)
        write(f"{name.replace('_', ' '):{width}}  {words}\n")


@command()
@model_argument
def pull(**options: Any) -> None:
    """Download MODEL from the hub, or the rest of it, and print its folder.

    An interrupted download goes on where it was when the same command is run again.
    """
    name = chosen_model(options)
    if name is None:
        raise click.UsageError("name a model, as in pull mistralai/Magistral-Small-2509.")
    write(f"{locate_with_bar(name)}\n")


@command()
@model_argument
@option("-y", "--yes", is_flag=True, help="Delete without asking.")
def rm(yes: bool, **options: Any) -> None:
    """Delete MODEL, a conversion or a download of the hub, from this machine."""
    from magistral_mlx.api.deletion import delete_model, model_to_delete

    name = chosen_model(options)
    if name is None:
        raise click.UsageError("name the model to delete, as `magistral-mlx models` lists it.")
    if not yes:
        model = model_to_delete(name)
        about = f"{model.path} ({model.size_bytes / 1e9:.2f} GB)"
        if not sys.stdin.isatty():
            raise click.UsageError(f"give --yes to delete {about} without being asked.")
        click.confirm(visible(f"Delete {about}?"), abort=True, err=True)
    say(f"{name} is deleted; {delete_model(name) / 1e9:.2f} GB are free again.")


def locate_with_bar(name: str | None) -> Path:
    """The folder of a model, downloaded if need be, with a progress bar."""
    from magistral_mlx.api.models import download_model
    from magistral_mlx.library import default_model

    if name is None:
        return default_model()
    with load_bar() as on_progress:
        return download_model(name, on_progress=on_progress)


def _describe(folder: Path, tokenizer: str | None) -> dict[str, Any]:
    """Facts about a model, as JSON types; those that its tokenizer tells are None without one."""
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.hub.support import stored_bits

    checkpoint = Checkpoint.open(folder)
    text, vision = checkpoint.config.text, checkpoint.config.vision
    return {
        "folder": str(folder),
        "layout": checkpoint.layout,
        "bytes": checkpoint.nbytes,
        "bits": stored_bits(folder) or 16,
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "attention_heads": text.num_attention_heads,
        "key_value_heads": text.num_key_value_heads,
        "vocabulary": text.vocab_size,
        "context": text.max_position_embeddings,
        "images": vision is not None,
        **_describe_tokenizer(folder, tokenizer),
    }


def _describe_tokenizer(folder: Path, named: str | None) -> dict[str, Any]:
    """What the tokenizer tells about a model; None for all of it where there is no tokenizer."""
    from magistral_mlx.chat.system import default_system
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.errors import TokenizerError
    from magistral_mlx.hub import find_tokenizer

    try:
        tekken = find_tokenizer(folder, named)
    except TokenizerError:
        if named is not None:
            raise
        return dict.fromkeys(("thinking", "tokenizer", "system_prompt"))
    tokenizer = Tokenizer.load(tekken)
    system = default_system(folder, thinking=tokenizer.has_thinking_tokens, tokenizer=tekken)
    return {
        "thinking": tokenizer.has_thinking_tokens,
        "tokenizer": f"{tekken} ({tokenizer.version})",
        "system_prompt": "none" if system is None else _first_line(system.content),
    }


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _first_line(content: Any) -> str:
    text = content if isinstance(content, str) else str(content[0])
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line if len(line) <= 60 else f"{line[:59]}…"


def _show(found: list[FoundModel]) -> None:
    from rich.table import Table

    from magistral_mlx.cli.terminal import print_wide

    table = Table("name", "from", "bits", "images", "size", "folder", box=None, pad_edge=False)
    for model in found:
        name = model.name if model.complete else f"{model.name} (damaged or incomplete)"
        table.add_row(
            visible(name),
            model.source,
            str(model.bits or 16),
            "yes" if model.has_vision else "no",
            f"{model.size_bytes / 1e9:.2f} GB",
            visible(str(model.path)),
        )
    print_wide(table)


def _facts(model: FoundModel) -> dict[str, object]:
    return {
        "name": model.name,
        "source": model.source,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "bits": model.bits,
        "has_vision": model.has_vision,
        "complete": model.complete,
        "problem": model.problem,
    }
