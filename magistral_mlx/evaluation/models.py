"""The models that a run asks: of this machine, of a server, or Mistral's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelCall,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from magistral_mlx.api.magistral import Magistral
from magistral_mlx.errors import EvaluationError, InvalidOption
from magistral_mlx.evaluation.provider import epoch_seed, magistral_mlx
from magistral_mlx.evaluation.run import silent
from magistral_mlx.hub.client import http_module

HOSTED = "mistral/"
_MISTRAL = "https://api.mistral.ai"
_KEY = "MISTRAL_API_KEY"
_PATIENCE = 24 * 3600.0  # seconds that an answer of a server may take


def local_model(loaded: Magistral, name: str, facts: dict[str, Any]) -> Model:
    """Return a loaded model for Inspect. `facts` tell its logs how it was loaded."""
    with silent():
        make: Callable[..., ModelAPI] = magistral_mlx  # registered, it makes a provider
        return Model(make(model_name=name, loaded=loaded), GenerateConfig(), facts)


def server_model(url: str, name: str | None, key: str | None) -> Model:
    """Return a model behind an OpenAI-compatible address, the first one listed for None.

    Raises:
        EvaluationError: the server does not answer, refuses the key, or has no such model.
    """
    listed = _listed(url.rstrip("/"), key)
    if name is None and not listed:
        raise EvaluationError(f"{url} lists no model. Load one there, or name it with --model.")
    if name is not None and listed and name not in listed:
        raise EvaluationError(
            f"{url} has no model {name!r}; it has {', '.join(listed[:5])}. Give one with --model."
        )
    with silent():
        model = get_model(
            f"openai-api/server/{name or listed[0]}",
            base_url=url.rstrip("/"),
            api_key=key or "none",
            memoize=False,
            stream=True,
            client_timeout=_PATIENCE,
        )
    return _seeded_by_epoch(model)


def hosted_model(name: str, key: str | None) -> Model:
    """Return a model of Mistral's API, such as `mistral/magistral-medium-2509`.

    MISTRAL_BASE_URL names another address, as of a proxy.

    Raises:
        InvalidOption: there is no key.
        EvaluationError: the API does not answer, or refuses the key or the model.
    """
    key = key or os.environ.get(_KEY)
    if not key:
        raise InvalidOption(
            f"{name} needs a key of Mistral's API: set {_KEY}, or name the variable that holds "
            "it with --api-key-env. https://console.mistral.ai makes one."
        )
    base = os.environ.get("MISTRAL_BASE_URL", _MISTRAL).rstrip("/")
    listed = _listed(f"{base}/v1", key)
    wanted = name.removeprefix(HOSTED)
    if listed and wanted not in listed:
        found = ", ".join(each for each in listed if "magistral" in each) or ", ".join(listed[:5])
        raise EvaluationError(f"Mistral's API has no model {wanted!r}; it has {found}.")
    with silent():
        model = get_model(name, api_key=key, memoize=False, conversation_api=False, streaming=True)
    return _seeded_by_epoch(model)


def _seeded_by_epoch(model: Model) -> Model:
    """Give each epoch the next seed, as the provider does: with one seed all would be alike."""
    ask = model.api.generate

    async def generate(
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput | tuple[ModelOutput | Exception, ModelCall]:
        if config.seed is not None:
            config = config.model_copy(update={"seed": epoch_seed(config.seed)})
        return await ask(input, tools, tool_choice, config)

    model.api.generate = generate  # type: ignore[method-assign]
    return model


def _listed(url: str, key: str | None) -> list[str]:
    """Return the models that a server lists; none where it has no such list.

    Raises:
        EvaluationError: it does not answer, or refuses the key.
    """
    http = http_module()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = http.get(f"{url}/models", headers=headers, timeout=20)
    except (http.HTTPError, http.InvalidURL) as error:
        raise EvaluationError(
            f"{url} does not answer ({str(error) or type(error).__name__}). Start the server, or "
            "give its address up to /v1."
        ) from None
    if response.status_code in (401, 403):
        what = "refuses the key" if key else "asks for a key"
        raise EvaluationError(
            f"{url} {what} (HTTP {response.status_code}). Name the variable that holds one with "
            "--api-key-env."
        )
    try:
        data = response.json()["data"]
        return [str(entry["id"]) for entry in data]
    except (ValueError, KeyError, TypeError):
        return []
