"""The demo model in transformers: its dimensions, a batched forward, and what 4 bits do to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

RANKS = 1024  # of the Tekken vocabulary
VOCABULARY = 1000 + RANKS
GROUP, LEVELS = 64, 15  # of 4-bit quantization


def demo_config() -> Mistral3Config:
    """Magistral's architecture at 2.8M parameters; every input width is a multiple of 64."""
    text = {
        "model_type": "mistral",
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,  # 4 heads of 64 are 256, not hidden_size: as in the full model
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 1540,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }
    return Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=10,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        multimodal_projector_bias=False,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def tower_features(model: Mistral3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The tower's output for images of one size: (N, 3, H, W) -> (N, H/14, W/14, D).

    transformers strings all images into one sequence under one mask; images of one size,
    stacked, need no mask and give the same numbers in a third of the time.
    """
    tower = model.model.vision_tower
    patches = tower.patch_conv(pixels)  # (N, D, h, w)
    _, width, h, w = patches.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=-1)  # (h*w, 2)
    x = tower.ln_pre(patches.flatten(2).transpose(1, 2))  # (N, h*w, D)
    rope = tower.patch_positional_embedding(x, places)
    for layer in tower.transformer.layers:
        x = layer(x, None, position_embeddings=rope)
    return x.view(-1, h, w, width)


def image_embeddings(model: Mistral3ForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Image features: (N, 3, H, W) -> (N, H/28 * W/28, hidden)."""
    projector = model.model.multi_modal_projector
    x = projector.norm(tower_features(model, pixels)).permute(0, 3, 1, 2)  # (N, D, h, w)
    x = nn.functional.unfold(x, kernel_size=2, stride=2).transpose(1, 2)  # (N, h*w/4, 4*D)
    x = projector.linear_1(projector.patch_merger.merging_layer(x))
    return projector.linear_2(projector.act(x))


class SeenHeads(nn.Module):
    """Two linear heads that read colour and shape from image embeddings, only for training."""

    def __init__(self, width: int, colours: int, shapes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(width, colours), nn.Linear(width, shapes)])

    def forward(self, seen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and whether the mean embedding tells each truth: (N, 2).

        seen (N, T, D) are the embeddings of N images, truth (N, 2) their colours and shapes.
        Every one of the T places has to know, and so has their mean: wherever the decoder looks,
        it finds what it needs.
        """
        losses, right = [], []
        for head, wanted in zip(self.heads, truth.unbind(-1), strict=True):
            places = head(seen)  # (N, T, C)
            mean = places.mean(1)  # (N, C)
            each = wanted.unsqueeze(-1).expand(places.shape[:2])
            losses += [
                nn.functional.cross_entropy(mean, wanted),
                nn.functional.cross_entropy(places.flatten(0, 1), each.flatten()),
            ]
            right.append(mean.argmax(-1) == wanted)
        return torch.stack(losses).sum() / 2, torch.stack(right, dim=-1)


def target_logits(
    model: Mistral3ForConditionalGeneration, ids: Tensor, labels: Tensor, seen: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits (T, V) at the T places whose next token counts, and those tokens (T,).

    ids (B, L) padded on the right; labels (B, L) are the next tokens, -100 where none counts;
    seen: the embeddings (B, P, D) of each image, in the order of the prompt.
    """
    x = model.get_input_embeddings()(ids)  # (B, L, D)
    if seen:
        mask = (ids == model.config.image_token_index).unsqueeze(-1)
        x = x.masked_scatter(mask, torch.cat(seen, dim=1))
    hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
    counts = labels != -100
    return model.lm_head(hidden[counts]), labels[counts]


def decoder_matrices(model: Mistral3ForConditionalGeneration) -> list[nn.Parameter]:
    """Modules that the converter quantizes: embedding, linear layers of the decoder, head."""
    text = [p for p in model.model.language_model.parameters() if p.ndim == 2]
    return [*text, model.lm_head.weight]


def at_four_bits(weight: Tensor) -> Tensor:
    """`weight` after MLX's affine quantization to 4 bits in groups of 64, and back.

    The scale takes the sign that puts the end of the range farther from zero on a level, and is
    then stretched so that zero is a level as well. Scales and biases are stored in bfloat16.
    """
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low_is_far = low.abs() > high.abs()
    scale = ((high - low) / LEVELS).clamp_min(1e-7)
    scale = torch.where(low_is_far, scale, -scale)
    edge = torch.where(low_is_far, low, high)
    level = torch.round(edge / scale)
    zero = level == 0
    scale = torch.where(zero, scale, edge / torch.where(zero, torch.ones_like(level), level))
    bias = torch.where(zero, torch.zeros_like(edge), edge)
    scale, bias = (value.bfloat16().to(weight.dtype) for value in (scale, bias))
    levels = torch.round((groups - bias) / scale).clamp(0, LEVELS)
    return (levels * scale + bias).view_as(weight)


@contextmanager
def four_bit_decoder(model: Mistral3ForConditionalGeneration) -> Iterator[None]:
    """Inside, the decoder's matrices are what 4 bits leave of them; gradients pass straight on."""
    matrices = decoder_matrices(model)
    kept = [p.data for p in matrices]
    for p in matrices:
        p.data = at_four_bits(p.data.bfloat16().float())
    try:
        yield
    finally:
        for p, data in zip(matrices, kept, strict=True):
            p.data = data
