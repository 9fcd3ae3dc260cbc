"""Hidden states between two layers, kept on the disk so that a conversion can be resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from magistral_convert.disk import flush_to_disk, storage_errors
from magistral_mlx.backend import mx


@dataclass
class HiddenStates:
    """Hidden states that go into a layer, (S, L, D) each.

    `calibration` and `held_out` are those of the two kinds of sequences through quantized layers,
    `original` those of the held-out ones through the original layers.
    """

    calibration: mx.array
    held_out: mx.array
    original: mx.array


class SavedStates:
    """The folder with the hidden states of the layer that is being converted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, *, anew: bool) -> None:
        """Make the folder; empty it to begin anew."""
        with storage_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            for path in self._folder.iterdir() if anew else ():
                path.unlink()

    def layers(self) -> list[int]:
        """Return the numbers of the layers whose inputs are there."""
        return [
            int(path.stem[len("layer-") :]) for path in self._folder.glob("layer-*.safetensors")
        ]

    def save(self, layer: int, states: HiddenStates) -> None:
        """Save what goes into a layer, then delete what went into those before it.

        Raises:
            StorageError: the disk is full, or cannot be written.
        """
        path = self._path(layer)
        partial = path.with_name(f"partial-{path.name}")
        with storage_errors(self._folder):
            with partial.open("wb") as stream:  # Python's errors say why; those of MLX do not
                mx.save_safetensors(stream, vars(states))
                stream.flush()
                flush_to_disk(stream.fileno())
            partial.replace(path)
            for number in self.layers():
                if number < layer:
                    self._path(number).unlink()

    def load(self, layer: int) -> HiddenStates:
        """Load what goes into a layer."""
        arrays = mx.load(str(self._path(layer)))
        assert isinstance(arrays, dict)
        mx.eval(arrays)
        return HiddenStates(**arrays)

    def _path(self, layer: int) -> Path:
        return self._folder / f"layer-{layer}.safetensors"
