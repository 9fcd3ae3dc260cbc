"""The compute dtype of a model without `--dtype`: float16 where bfloat16 is emulated.

The GPUs of M1 and M2 emulate bfloat16, and float16 is reported 20 to 34 % faster there in prefill
and 14 % in decoding. A float16 holds less than 65,504, so a model is probed with one prompt when it
is first loaded; the answer is kept with its fingerprint.
"""

from __future__ import annotations

import logging

from magistral_mlx.backend import backend, free_memory, mx
from magistral_mlx.chat.messages import Image, User
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import OnProgress, load_model, load_vision
from magistral_mlx.engine.precision import FLOAT16_LIMIT, largest_hidden_state
from magistral_mlx.errors import CheckpointError
from magistral_mlx.hub import find_tokenizer
from magistral_mlx.measurements import read_float16_answer, store_float16_answer
from magistral_mlx.model.magistral import MagistralModel

_log = logging.getLogger("magistral_mlx")

_TEXT = """Summarise, then answer in JSON, in French and in 中文. It rained 37.5 mm on 2024-02-29!

def gcd(a: int, b: int) -> int:
    return a if b == 0 else gcd(b, a % b)  # ∀ a, b ∈ ℕ

{"name": "Ωmega", "tags": [null, true, -1e-9], "url": "https://example.org/?q=%20#x"}
"""
_IMAGE_SIDE = 224  # pixels


def default_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """Return the dtype in which a checkpoint is loaded next, as far as that is known."""
    if backend().prefers_float16 and _answer(checkpoint, images=False):
        return mx.float16
    return backend().dtype


def load_in_default_dtype(
    checkpoint: Checkpoint,
    on_progress: OnProgress | None = None,
    *,
    images: bool = True,
    tokenizer: str | None = None,
) -> MagistralModel:
    """Load a model in float16 if that is faster here and holds its values, else as by default.

    Args:
        images: whether the memory for an image was planned for.
        tokenizer: in place of the checkpoint's own; see `find_tokenizer`.

    Raises:
        CheckpointError: a file cannot be read to its end.
        TokenizerError: there is no tokenizer for the probe.
    """
    if not backend().prefers_float16:
        return load_model(checkpoint, None, on_progress)
    answer = _answer(checkpoint, images=images)
    if answer is not False:
        model = load_model(checkpoint, mx.float16, on_progress)
        if answer or probe(model, checkpoint, images=images, tokenizer=tokenizer):
            return model
        del model
        free_memory()
        _log.warning(
            "%s: its values do not fit into float16, so it computes in bfloat16 from now on.",
            checkpoint.folder,
        )
    return load_model(checkpoint, backend().dtype, on_progress)


def probe(
    model: MagistralModel,
    checkpoint: Checkpoint,
    *,
    images: bool = True,
    tokenizer: str | None = None,
) -> bool:
    """Find out whether a model's values fit into its dtype, float16, and keep the answer."""
    largest = largest_value(model, checkpoint, images=images, tokenizer=tokenizer)
    fits = largest < FLOAT16_LIMIT
    keep_answer(checkpoint, fits=fits, images=images and checkpoint.config.vision is not None)
    return fits


def keep_answer(checkpoint: Checkpoint, *, fits: bool, images: bool) -> None:
    """Keep whether a model's values fit into float16. images: an image was among them."""
    try:
        store_float16_answer(_key(checkpoint, images=images and fits), fits)
    except OSError as error:
        _log.warning("the answer of the float16 probe is not kept: %s", error)


def largest_value(
    model: MagistralModel,
    checkpoint: Checkpoint,
    *,
    images: bool = True,
    tokenizer: str | None = None,
) -> float:
    """Return the largest hidden state of a prompt with text, and an image if there is a tower.

    Raises:
        TokenizerError: the checkpoint has no tokenizer.
        CheckpointError: the vision tower cannot be read.
    """
    vision = images and checkpoint.config.vision is not None
    prompt = _prompt(Tokenizer.load(find_tokenizer(checkpoint.folder, tokenizer)), vision)
    if not prompt.images:
        return largest_hidden_state(model, prompt.tokens, prompt.images)
    try:
        load_vision(model, checkpoint)
        return largest_hidden_state(model, prompt.tokens, prompt.images)
    finally:
        if model.vision_loaded:
            model.drop_vision()
        free_memory()


def _prompt(tokenizer: Tokenizer, vision: bool) -> Prompt:
    if not vision or not tokenizer.has_image_tokens:
        return encode([User(_TEXT)], tokenizer)
    from PIL import Image as PILImage

    gradient = PILImage.linear_gradient("L").resize((_IMAGE_SIDE, _IMAGE_SIDE))
    rgb = PILImage.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    return encode([User((Image(rgb), _TEXT))], tokenizer)


def _answer(checkpoint: Checkpoint, *, images: bool) -> bool | None:
    """The kept answer; one without an image holds for a run without images, or against float16."""
    alone = read_float16_answer(_key(checkpoint, images=False))
    if alone is False:
        return False
    if images and checkpoint.config.vision is None:
        images = False
    with_image = read_float16_answer(_key(checkpoint, images=True))
    return with_image if images else with_image or alone


def _key(checkpoint: Checkpoint, *, images: bool) -> str:
    try:
        fingerprint = checkpoint.fingerprint()
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read any more: {error.strerror}."
        ) from error
    return f"{fingerprint} with an image" if images else fingerprint
