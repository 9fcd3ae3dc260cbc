"""The model that `magistral-mlx eval` asks, and the sampling of its answers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.options import Options
from magistral_mlx.cli.loading import load_bar, load_options, open_model
from magistral_mlx.cli.params import given
from magistral_mlx.cli.terminal import say
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.evaluation.tasks import TaskSpec

_CARD_TOKENS = 131_072  # that an answer may have, by the model card


def check_options(specs: list[TaskSpec], options: dict[str, Any]) -> None:
    """Raises InvalidOption for options that do not go together, or Docker that is missing."""
    if _remote(options):
        loading = [f"--{name.replace('_', '-')}" for name in given(options, LoadOptions)]
        loading = [name for name in loading if name != "--parallel"]
        loading += ["--thinking"] * (options["thinking"] is not None)
        if loading:
            raise InvalidOption(
                f"{loading[0]} is for models that this process loads; leave it out for a server."
            )
    elif options["api_key_env"]:
        raise InvalidOption("--api-key-env is the key of a server; give its address with --url.")
    if any(spec.sandbox for spec in specs) and not options["run_code_here"]:
        from magistral_mlx.evaluation.sandbox import check_docker

        check_docker()


def _remote(options: dict[str, Any]) -> bool:
    model = options["model"]
    hosted = model is not None and model.startswith("mistral/") and not user_path(model).exists()
    return options["url"] is not None or hosted


def _key(options: dict[str, Any]) -> str | None:
    variable = options["api_key_env"]
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidOption(f"--api-key-env is {variable}, which is not set. Set it to the key.")
    return key


def open_asked(
    specs: list[TaskSpec], options: dict[str, Any], stack: ExitStack
) -> tuple[Model, dict[str, Any]]:
    """Open the model, and say with which settings it answers."""
    from magistral_mlx.evaluation.models import hosted_model, local_model, server_model

    if options["url"] is not None:
        model = server_model(options["url"], options["model"], _key(options))
        return model, {"model": model.api.model_name.partition("/")[2], "server": options["url"]}
    if _remote(options):
        model = hosted_model(options["model"], _key(options))
        return model, {"model": options["model"], "server": "Mistral's API"}
    loaded = stack.enter_context(_load(specs, options))
    plan = loaded.plan
    facts = {
        "model": loaded.name,
        "bytes": plan.peak.weights,
        "context": loaded.context,
        "kv": plan.scheme.name,
        **{
            name: str(value)
            for name, value in given(options, LoadOptions).items()
            if name in ("dtype", "adapter", "tokenizer")
        },
    }
    return local_model(loaded, loaded.name, facts), facts


def _load(specs: list[TaskSpec], options: dict[str, Any]) -> Magistral:
    """Load the model with the context of the model card, or with the longest that fits."""
    from magistral_mlx.api.models import download_progress
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.library import locate

    with load_bar() as on_progress:
        folder = locate(options["model"], on_progress=download_progress(on_progress))
    name = options["model"]
    needs_images = any(spec.images for spec in specs)
    loading = load_options(options)
    if not needs_images and options["images"] is None:
        loading = replace(loading, images=0)
    if loading.context is not None:
        return open_model(name, loading)
    longest = Checkpoint.open(folder).config.text.max_position_embeddings
    try:
        return open_model(name, replace(loading, context=min(longest, _CARD_TOKENS)))
    except OutOfMemory:
        return open_model(name, loading)


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling of the model card, as far as options do not change it, for Inspect."""
    card = Options()
    changes = given(options, Options)
    sampling: dict[str, Any] = {
        "temperature": changes.get("temperature", card.temperature),
        "top_p": changes.get("top_p", card.top_p),
    }
    if "max_tokens" in changes:
        sampling["max_tokens"] = changes["max_tokens"]
    if "seed" in changes or not _remote(options):
        sampling["seed"] = changes.get("seed", 0)
    thinking = changes.get("thinking")
    if thinking == "off":
        sampling["reasoning_effort"] = "none"
    elif isinstance(thinking, int):
        sampling["reasoning_tokens"] = thinking
    return sampling


def say_what_fits(facts: dict[str, Any]) -> None:
    """Say where the context, rather than the model card, limits an answer."""
    context = facts.get("context", _CARD_TOKENS)
    if context < _CARD_TOKENS:
        say(
            f"answers may have what a context of {context:,} tokens leaves; the model card allows "
            f"{_CARD_TOKENS:,}."
        )
