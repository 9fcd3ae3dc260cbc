"""What `serve --print-config` prints, as each client reads it."""

import json
import re
import shlex
import tomllib

import pytest

from magistral_mlx.cli.client_configs import CLIENTS, Served
from tests.command_line import run

SERVED = Served("http://127.0.0.1:8080", "magistral", 40_960, images=True, thinks=True, key="none")
TEXT_ONLY = Served("http://[::1]:1", 'a "b"', 8192, images=False, thinks=False, key="KEY")


def json_of(text: str) -> dict:
    return json.loads(re.sub(r"^//.*\n", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_is_told_of_the_address(client: str):
    assert SERVED.url in CLIENTS[client](SERVED) and TEXT_ONLY.url in CLIENTS[client](TEXT_ONLY)


def test_codex_gets_toml():
    config = tomllib.loads(CLIENTS["codex"](TEXT_ONLY))
    provider = config["model_providers"][config["model_provider"]]
    assert config["model"] == 'a "b"' and config["model_context_window"] == 8192
    assert provider["base_url"] == "http://[::1]:1/v1" and provider["wire_api"] == "responses"
    assert provider["env_key"] == "MAGISTRAL_MLX_API_KEY"
    assert "env_key" not in CLIENTS["codex"](SERVED)


def test_a_configuration_that_exists_stays_as_it_is():
    codex, opencode, aider = (CLIENTS[name](SERVED) for name in ("codex", "opencode", "aider"))
    assert "in ~/.codex/magistral.config.toml" in codex and "codex --profile magistral" in codex
    assert "\n// OPENCODE_CONFIG=~/.config/opencode/magistral.jsonc opencode\n" in opencode
    [written] = re.findall(r"^cat > (\S+)", aider, flags=re.MULTILINE)
    assert f"--model-metadata-file {written} " in aider and "magistral" in written


def test_opencode_and_zed_get_json_with_what_the_model_can():
    for served in (SERVED, TEXT_ONLY):
        opencode = json_of(CLIENTS["opencode"](served))
        provider, _, name = opencode["model"].partition("/")
        model = opencode["provider"][provider]["models"][name]
        assert name == served.model and model["limit"]["context"] == served.context
        assert model["attachment"] == served.images and model["reasoning"] == served.thinks
        zed = json_of(CLIENTS["zed"](served))
        chosen = zed["agent"]["default_model"]
        [card] = zed["language_models"]["openai_compatible"][chosen["provider"]]["available_models"]
        assert card["name"] == chosen["model"] == served.model
        assert card["capabilities"]["images"] == served.images


def test_claude_code_gets_an_address_without_v1():
    lines = CLIENTS["claude-code"](SERVED).splitlines()
    assert "export ANTHROPIC_BASE_URL=http://127.0.0.1:8080" in lines


@pytest.mark.parametrize("client", ["claude-code", "cline", "aider"])
def test_a_shell_reads_the_name_of_a_model_as_one_word(client: str):
    words = shlex.split(CLIENTS[client](TEXT_ONLY).replace("<<'END'", ""), comments=True)
    assert any(word.endswith('a "b"') for word in words)


def test_aider_gets_its_table_of_models():
    text = CLIENTS["aider"](SERVED)
    [table] = re.findall(r"<<'END'\n(.*)END\n", text, flags=re.DOTALL)
    assert json.loads(table)["openai/magistral"]["max_input_tokens"] == 40_960


def test_serve_prints_a_configuration_and_ends():
    done = run("serve", "demo", "--port", "8123", "--print-config", "codex")
    assert done.status == 0 and done.stderr == ""
    config = tomllib.loads(done.stdout.decode())
    assert config["model"] == "demo" and config["model_context_window"] == 8192
    assert config["model_providers"]["magistral"]["base_url"] == "http://127.0.0.1:8123/v1"


def test_an_unknown_client_is_refused_with_the_known_ones():
    done = run("serve", "demo", "--print-config", "emacs")
    assert "claude-code, codex, opencode" in done.refusal


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:8123"), ("::", "http://[::1]:8123")]
)
def test_an_address_for_all_is_given_as_that_of_this_machine(host: str, url: str):
    place = ("--port", "8123", "--host", host, "--api-key", "a-long-secret-key")
    done = run("serve", "demo", *place, "--print-config", "codex")
    config = tomllib.loads(done.stdout.decode())
    assert config["model_providers"]["magistral"]["base_url"] == f"{url}/v1"
