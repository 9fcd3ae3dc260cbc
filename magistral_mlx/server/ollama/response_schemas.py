"""Schemas of answers, as Ollama's API has them. A field that was not set is left out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from magistral_mlx.server.shared_fields import Notes

DoneReason = Literal["stop", "length", "load", "unload"]


class OllamaError(BaseModel):
    """An error as Ollama's API reports it."""

    error: str


class OllamaTopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class OllamaLogprob(OllamaTopLogprob):
    top_logprobs: list[OllamaTopLogprob] = []


class OllamaEnd(BaseModel):
    """Fields of every line; those from `done_reason` on are in the last one. Times are in ns."""

    model: str
    created_at: datetime
    logprobs: list[OllamaLogprob] = []
    done: bool
    done_reason: DoneReason = "stop"
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    notes: Notes = []


class OllamaFunctionCallOut(BaseModel):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaToolCallOut(BaseModel):
    id: str
    function: OllamaFunctionCallOut


class OllamaMessageOut(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    thinking: str = ""
    tool_calls: list[OllamaToolCallOut] = []


class OllamaChatAnswer(OllamaEnd):
    """An answer, or a line of it."""

    message: OllamaMessageOut


class OllamaGeneration(OllamaEnd):
    """An answer, or a line of it."""

    response: str
    thinking: str = ""


class OllamaDetails(BaseModel):
    parent_model: str = ""
    format: Literal["gguf", "safetensors"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(BaseModel):
    """A model that requests may name."""

    name: str
    model: str
    modified_at: datetime
    size: Annotated[int, Field(description="Bytes of its weights.")]
    digest: str
    details: OllamaDetails
    capabilities: list[str]


class OllamaModels(BaseModel):
    models: list[OllamaModel]


class OllamaRunningModel(OllamaModel):
    """A model in memory."""

    expires_at: datetime
    size_vram: int
    context_length: int


class OllamaRunningModels(BaseModel):
    models: list[OllamaRunningModel]


class OllamaModelInfo(BaseModel):
    """All about a model."""

    modelfile: str
    parameters: str
    template: str
    license: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: datetime


class OllamaVersion(BaseModel):
    version: Annotated[str, Field(description="The version of Ollama whose API this is.")]


class OllamaStatus(BaseModel):
    status: str
