"""Configurations of coding agents and chat apps for this server: `serve --print-config NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

from magistral_mlx.cli.params import Value, option
from magistral_mlx.option_spec import Choice

if TYPE_CHECKING:
    from magistral_mlx.server.settings import Settings

_SHARE = 4  # of the context, that an answer may take at most


@dataclass(frozen=True)
class Served:
    """What a configuration names.

    url: the server's, without a slash at its end. context: in tokens. key: the API key; "none"
    for a server without one, as many clients want some.
    """

    url: str
    model: str
    context: int
    images: bool
    thinks: bool
    key: str


def served_of(settings: Settings) -> Served:
    """What a client's configuration names: the first model, at the address that clients reach.

    Raises:
        MagistralError: the model is missing or damaged, or does not fit.
    """
    from magistral_mlx.server.launcher import url_at
    from magistral_mlx.server.model_registry import ModelRegistry

    info = ModelRegistry(settings).first.info
    return Served(
        url=url_at(settings.host, settings.port),
        model=info.id,
        context=info.context,
        images=info.supports_images,
        thinks=info.thinks,
        key="KEY" if settings.api_key else "none",
    )


def _claude_code(served: Served) -> str:
    return f"""\
# Claude Code: in the shell that starts it.
export ANTHROPIC_BASE_URL={served.url}
export ANTHROPIC_API_KEY={served.key}
export ANTHROPIC_MODEL={quote(served.model)}
export ANTHROPIC_SMALL_FAST_MODEL={quote(served.model)}
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
"""


def _codex(served: Served) -> str:
    key = ""
    if served.key != "none":
        key = 'env_key = "MAGISTRAL_MLX_API_KEY"  # export it with the key\n'
    return f"""\
# Codex CLI: in ~/.codex/magistral.config.toml, a profile; config.toml stays as it is.
# codex --profile magistral
model = {json.dumps(served.model)}
model_provider = "magistral"
model_context_window = {served.context}

[model_providers.magistral]
name = "magistral-mlx"
base_url = "{served.url}/v1"
wire_api = "responses"
{key}"""


def _opencode(served: Served) -> str:
    limit = {"context": served.context, "output": served.context // _SHARE}
    inputs = ["text", "image"] if served.images else ["text"]
    model = {
        "name": served.model,
        "tool_call": True,
        "reasoning": served.thinks,
        "attachment": served.images,
        "modalities": {"input": inputs, "output": ["text"]},
        "limit": limit,
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "magistral-mlx",
        "options": {"baseURL": f"{served.url}/v1", "apiKey": served.key},
        "models": {served.model: model},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"magistral/{served.model}",
        "provider": {"magistral": provider},
    }
    return (
        "// OpenCode: in ~/.config/opencode/magistral.jsonc, merged with opencode.jsonc by\n"
        "// OPENCODE_CONFIG=~/.config/opencode/magistral.jsonc opencode\n" + _json(config)
    )


def _zed(served: Served) -> str:
    model = {
        "name": served.model,
        "display_name": served.model,
        "max_tokens": served.context,
        "max_output_tokens": served.context // _SHARE,
        "capabilities": {
            "tools": True,
            "images": served.images,
            "parallel_tool_calls": True,
            "prompt_cache_key": False,
        },
    }
    models = {"api_url": f"{served.url}/v1", "available_models": [model]}
    config = {
        "language_models": {"openai_compatible": {"magistral-mlx": models}},
        "agent": {"default_model": {"provider": "magistral-mlx", "model": served.model}},
    }
    return (
        "// Zed: in settings.json, within the braces that are there; the key in the environment:\n"
        f"// MAGISTRAL_MLX_API_KEY={served.key}\n" + _json(config)
    )


def _continue(served: Served) -> str:
    able = ["tool_use", *(["image_input"] if served.images else [])]
    return f"""\
# Continue: in ~/.continue/config.yaml; into one that exists, the entry of models alone.
# On the command line a file of its own will do: cn --config FILE
name: magistral-mlx
version: 1.0.0
schema: v1
models:
  - name: {json.dumps(served.model)}
    provider: openai
    model: {json.dumps(served.model)}
    apiBase: {served.url}/v1
    apiKey: {json.dumps(served.key)}
    roles: [chat, edit, apply]
    capabilities: [{", ".join(able)}]
    defaultCompletionOptions:
      contextLength: {served.context}
      maxTokens: {served.context // _SHARE}
"""


def _cline(served: Served) -> str:
    return f"""\
# Cline in an editor: API Provider "OpenAI Compatible", with
#   Base URL        {served.url}/v1
#   API Key         {served.key}
#   Model ID        {served.model}
#   Context Window  {served.context}
# Cline's command line:
cline auth --provider openai --apikey {served.key} --modelid {quote(served.model)} \\
  --baseurl {served.url}/v1
"""


def _aider(served: Served) -> str:
    metadata = {
        f"openai/{served.model}": {
            "max_input_tokens": served.context,
            "max_output_tokens": served.context // _SHARE,
            "litellm_provider": "openai",
            "mode": "chat",
            "supports_vision": served.images,
        }
    }
    return f"""\
# aider: in the shell that starts it.
export OPENAI_API_BASE={served.url}/v1
export OPENAI_API_KEY={served.key}
cat > ~/.aider.magistral.json <<'END'
{_json(metadata)}END
aider --model-metadata-file ~/.aider.magistral.json --model {quote(f"openai/{served.model}")}
"""


def _open_webui(served: Served) -> str:
    return f"""\
# Open WebUI: in the environment of its first start; later under Admin Settings, Connections.
# In a container: host.docker.internal in place of the host, and here --allow-host of that name.
export OPENAI_API_BASE_URL={served.url}/v1
export OPENAI_API_KEY={served.key}
export ENABLE_OLLAMA_API=False
"""


CLIENTS: dict[str, Callable[[Served], str]] = {
    "claude-code": _claude_code,
    "codex": _codex,
    "opencode": _opencode,
    "zed": _zed,
    "continue": _continue,
    "cline": _cline,
    "aider": _aider,
    "open-webui": _open_webui,
}

config_option = option(
    "--print-config",
    "client",
    type=Value(str, Choice(*CLIENTS), words=tuple(CLIENTS)),
    metavar="CLIENT",
    section="Server",
    help="Print what CLIENT needs to use this server, and end: " + ", ".join(CLIENTS) + ".",
)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
