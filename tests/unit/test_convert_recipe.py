"""Which matrix is quantized how."""

import pytest

from magistral_convert import ConvertOptions
from magistral_convert.recipe import Recipe, is_sensitive_layer
from magistral_mlx.checkpoint.names import expected_tensors
from magistral_mlx.config_files import config_from_hf
from magistral_mlx.errors import InvalidOption
from magistral_mlx.quantization import Quantization
from tests.checkpoints import tiny_config

LOW, HIGH = Quantization(4, 64), Quantization(6, 64)


def schemes(config: dict, **asked) -> dict[str, Quantization | None]:
    model = config_from_hf(config)
    recipe = Recipe.of(ConvertOptions(**asked), model)
    return {name: recipe.scheme(name, shape) for name, shape in expected_tensors(model).items()}


def test_every_matrix_of_the_decoder_is_quantized_and_nothing_else():
    chosen = schemes(tiny_config())
    model = config_from_hf(tiny_config())
    for name, shape in expected_tensors(model).items():
        expected = name.startswith("language_model.") and len(shape) == 2
        assert chosen[name] == (LOW if expected else None), name


def test_vision_matrices_are_quantized_when_asked_but_never_the_patch_convolution():
    chosen = schemes(tiny_config(), quantize_vision=True)
    assert chosen["vision_tower.transformer.layers.1.feed_forward.up_proj.weight"] == LOW
    assert chosen["multi_modal_projector.patch_merger.merging_layer.weight"] == LOW
    assert chosen["vision_tower.patch_conv.weight"] is None
    assert chosen["vision_tower.ln_pre.weight"] is None


def test_4bit_plus_spares_the_layers_that_its_description_names():
    sensitive = [n for n in range(40) if is_sensitive_layer(n, 40)]
    assert sensitive == [0, 1, 2, 3, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 35, 36, 37, 38, 39]


def test_4bit_plus_gives_6_bits_to_the_head_and_to_value_and_down_projections():
    chosen = schemes(tiny_config(layers=8), recipe="4bit-plus")
    high = {name.removesuffix(".weight") for name, scheme in chosen.items() if scheme == HIGH}
    layers = [n for n in range(8) if is_sensitive_layer(n, 8)]
    assert layers == [0, 3, 6, 7]
    expected = {"language_model.lm_head"}
    for n in layers:
        expected.add(f"language_model.model.layers.{n}.self_attn.v_proj")
        expected.add(f"language_model.model.layers.{n}.mlp.down_proj")
    assert high == expected


def test_an_embedding_that_is_the_head_too_gets_the_heads_bits():
    chosen = schemes(tiny_config(tie_word_embeddings=True), recipe="4bit-plus")
    assert chosen["language_model.model.embed_tokens.weight"] == HIGH


def test_a_group_size_that_does_not_divide_a_matrix_is_refused_with_one_that_does():
    config = tiny_config(hidden_size=192)
    with pytest.raises(InvalidOption) as error:
        schemes(config, group_size=128)
    assert "embed_tokens has rows of 192, which groups of 128 do not divide" in str(error.value)
    assert "--group-size 64." in str(error.value)


def test_a_matrix_that_no_group_size_divides_stays_in_bfloat16():
    chosen = schemes(tiny_config(intermediate_size=240))
    assert chosen["language_model.model.layers.0.mlp.down_proj.weight"] is None
    assert chosen["language_model.model.layers.0.mlp.up_proj.weight"] == LOW
