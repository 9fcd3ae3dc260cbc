"""Opening any image a user has, upright and in 8 bits, and what is said of one that is not."""

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pillow_heif
import pytest

from magistral_mlx.chat import images
from magistral_mlx.chat.images import load_image
from magistral_mlx.errors import ImageError

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(width: int = 32, height: int = 16) -> PIL.Image.Image:
    """Red, green, blue and white quarters, reading from the top left."""
    image = PIL.Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def corners(image: PIL.Image.Image) -> list[str]:
    """The colours of the four quarters, by their strongest channels."""
    width, height = image.size
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    spots = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    return [names[tuple(int(c > 127) for c in image.getpixel(spot)[:3])] for spot in spots]


def encoded(image: PIL.Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def heic(image: PIL.Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, format="HEIF", quality=90, **options)
    return buffer.getvalue()


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources and formats


def test_a_path_bytes_and_a_pil_image_give_the_same(tmp_path: Path):
    path = tmp_path / "été 図.png"
    path.write_bytes(encoded(quadrants(), "PNG"))
    for source in (path, str(path), path.read_bytes(), quadrants(), PIL.Image.open(path)):
        opened = load_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), np.asarray(quadrants()))


def test_a_plain_rgb_image_is_given_back_as_it_is():
    image = quadrants()
    assert load_image(image) is image


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"]
)
def test_common_formats_open(format: str):
    opened = load_image(encoded(quadrants(64, 64), format))
    assert opened.size == (64, 64)
    assert corners(opened) == ["red", "green", "blue", "white"]


def test_heic_opens():
    opened = load_image(heic(quadrants(64, 32)))
    assert (opened.mode, opened.size) == ("RGB", (64, 32))
    assert corners(opened) == ["red", "green", "blue", "white"]


def test_the_extension_does_not_matter(tmp_path: Path):
    path = tmp_path / "image.jpg"
    path.write_bytes(heic(quadrants(64, 32)))
    assert corners(load_image(path)) == ["red", "green", "blue", "white"]


def test_a_file_may_be_deleted_once_it_is_open(tmp_path: Path):
    path = tmp_path / "animation.gif"
    path.write_bytes(encoded(quadrants(), "GIF", save_all=True, append_images=[quadrants(32, 16)]))
    opened = load_image(path)
    path.unlink()
    assert type(opened) is PIL.Image.Image
    assert corners(opened) == ["red", "green", "blue", "white"]


def test_a_pipe_can_be_read(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = encoded(quadrants(), "PNG")
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert corners(load_image(pipe)) == ["red", "green", "blue", "white"]
    writer.join()


# Orientation

TURNED = {
    1: ["red", "green", "blue", "white"],
    2: ["green", "red", "white", "blue"],
    3: ["white", "blue", "green", "red"],
    4: ["blue", "white", "red", "green"],
    5: ["red", "blue", "green", "white"],
    6: ["blue", "red", "white", "green"],
    7: ["white", "green", "blue", "red"],
    8: ["green", "white", "red", "blue"],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF"])
def test_exif_orientation_is_applied(format: str, orientation: int):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    image = quadrants(64, 32)
    if format == "HEIF":
        data = heic(image, exif=exif.tobytes())
    else:
        data = encoded(image, format, exif=exif)
    opened = load_image(data)
    assert opened.size == ((64, 32) if orientation < 5 else (32, 64))
    assert corners(opened) == TURNED[orientation]


def test_an_image_opened_twice_is_turned_once():
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    once = load_image(encoded(quadrants(), "PNG", exif=exif))
    assert corners(load_image(once)) == corners(once) == TURNED[6]


def test_broken_exif_is_no_reason_to_refuse_an_image():
    data = encoded(quadrants(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert corners(load_image(data)) == TURNED[1]


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    assert corners(load_image(encoded(quadrants(), "JPEG", exif=exif))) == TURNED[1]


# Animations


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str):
    second = PIL.Image.new("RGB", (32, 32), BLUE)
    data = encoded(quadrants(32, 32), format, save_all=True, append_images=[second])
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 2
    assert corners(load_image(data)) == ["red", "green", "blue", "white"]


# Depths and colours


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str):
    values = np.array([[0, 127, 257, 32768, 65407, 65535]], dtype=np.uint16)
    opened = load_image(encoded(PIL.Image.fromarray(values), format))
    assert opened.mode == "RGB"
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert np.ptp(np.asarray(opened), axis=2).max() == 0


def test_big_endian_16_bit_grey_is_scaled_likewise():
    image = PIL.Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 32768, 65535))
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[0, 100, 200]], dtype=np.int32), [0, 100, 200]),
        (np.array([[-1000, 0, 1000]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 200]], dtype=np.float32), [0, 100, 200]),
        (np.array([[-2, 0, 2]], dtype=np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0, 1]], dtype=np.float32), [0, 0, 255]),
        (np.array([[-np.inf, 0.5, np.inf]], dtype=np.float32), [0, 128, 255]),
        (np.array([[np.nan]], dtype=np.float32), [0]),
        (np.array([[7e4, 7e4]], dtype=np.float32), [0, 0]),
    ],
)
def test_32_bit_and_float_images_are_scaled(values: np.ndarray, expected: list[int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = load_image(encoded(PIL.Image.fromarray(values), "TIFF"))
    assert np.asarray(opened)[0, :, 0].tolist() == expected


def test_a_16_bit_pgm_is_scaled():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535)
    assert np.asarray(load_image(data))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "RGBX"])
def test_other_opaque_modes_become_rgb(mode: str):
    image = PIL.Image.new("RGB", (4, 4), WHITE).convert(mode)
    opened = load_image(image)
    assert opened.mode == "RGB"
    assert opened.getpixel((1, 1)) == WHITE


def test_lab_becomes_rgb():
    opened = load_image(PIL.Image.new("RGB", (4, 4), WHITE).convert("LAB"))
    assert opened.mode == "RGB"
    assert min(opened.getpixel((1, 1))) >= 250


def test_cmyk_becomes_rgb_with_its_colours():
    opened = load_image(encoded(quadrants(64, 64).convert("CMYK"), "JPEG", quality=95))
    assert opened.mode == "RGB"
    assert corners(opened) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize(
    ("mode", "pixel"),
    [
        ("LA", (50, 0)),
        ("RGBA", (9, 9, 9, 0)),
        ("La", (0, 0)),
        ("PA", (5, 0)),
        ("RGBa", (0, 0, 0, 0)),
    ],
)
def test_modes_with_transparency_become_rgba(mode: str, pixel: tuple[int, ...]):
    opened = load_image(PIL.Image.new(mode, (2, 2), pixel))
    assert opened.mode == "RGBA"
    assert opened.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_of_a_png_is_transparent(mode: str):
    image = PIL.Image.new("RGB", (2, 1), WHITE)
    image.putpixel((0, 0), (0, 0, 0))
    image = image.convert(mode)
    key = image.getpixel((0, 0))
    opened = load_image(encoded(image, "PNG", transparency=key))
    assert opened.mode == "RGBA"
    assert [opened.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]


def test_a_palette_with_many_transparencies():
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    opened = load_image(encoded(image, "PNG", transparency=bytes([0, 128, 255])))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [
        (*RED, 0),
        (*GREEN, 128),
        (*BLUE, 255),
    ]


def test_a_turned_palette_image_keeps_its_transparency():
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 3
    opened = load_image(encoded(image, "PNG", transparency=0, exif=exif))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(*GREEN, 255), (*RED, 0)]


# Refusals


def test_a_missing_file_is_named(tmp_path: Path):
    assert f"there is no image {tmp_path / 'no.png'}. Check the path." in refusal(
        tmp_path / "no.png"
    )


def test_an_address_is_told_apart_from_a_file():
    assert "Download it first" in refusal("https://example.org/cat.jpg")


def test_a_folder_is_refused(tmp_path: Path):
    assert f"{tmp_path} is a folder" in refusal(tmp_path)


def test_an_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    assert "empty.jpg is empty" in refusal(tmp_path / "empty.jpg")
    assert "is empty" in refusal(b"")


def test_a_device_is_refused():
    assert "device" in refusal("/dev/null")


def test_a_path_with_a_zero_byte_is_refused():
    assert "is not a path" in refusal("a\x00b.png")


def test_a_name_that_is_too_long_is_refused():
    assert "cannot be read: File name too long" in refusal("x" * 5000)


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(quadrants(), "PNG"))

    def refuse(*args: object, **kwargs: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert f"no permission to read {path}" in refusal(path)


def test_what_is_not_an_image_is_named(tmp_path: Path):
    cases = {
        b"%PDF-1.7 ...": "it is a PDF",
        b"\n<!DOCTYPE html><html>404": "it is a web page",
        b"\xef\xbb\xbf<svg xmlns='http://www.w3.org/2000/svg'/>": "it is an SVG drawing",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "it is PostScript",
        b"\x00\x00\x00 ftypisom" + b"\x00" * 40: "it is a video or a camera's raw file",
        b"PK\x03\x04" + b"\x00" * 40: "it is a ZIP archive",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "Git LFS pointer",
    }
    for data, named in cases.items():
        path = tmp_path / "file.jpg"
        path.write_bytes(data)
        message = refusal(path)
        assert f"{path} is not an image that can be opened" in message
        assert named in message
        assert "Expected JPEG, PNG, HEIC" in message


@pytest.mark.parametrize("data", [b"hello, this is only text\n", b"\x00" * 100, b"x", b" "])
def test_junk_is_not_an_image(data: bytes):
    assert "is not an image that can be opened. Expected" in refusal(data)


def test_a_format_that_is_left_out_is_named():
    assert "it is PCX, which is not supported" in refusal(encoded(quadrants(), "PCX"))


def noise() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_image_is_refused(format: str, part: float):
    whole = heic(noise()) if format == "HEIF" else encoded(noise(), format)
    message = refusal(whole[: max(16, int(len(whole) * part))])
    assert "damaged or cut short" in message
    assert "again" in message or "convert" in message


def test_a_damaged_image_is_refused_whatever_the_decoder_says():
    data = bytearray(encoded(quadrants(64, 64), "PNG"))
    data[60:80] = b"\x00" * 20
    assert "damaged or cut short" in refusal(bytes(data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no more than one row of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\x00" * (width + 1))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    def decode(*args: object):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    message = refusal(png_header(50_000, 50_000))
    assert "too large" in message
    assert "178 megapixels" in message


def test_the_limit_holds_where_an_app_has_lifted_pillows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert "too large (50000×50000)" in refusal(png_header(50_000, 50_000))


def test_a_large_image_below_the_limit_opens_without_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encoded(PIL.Image.new("RGB", (64, 64)), "PNG")).size == (64, 64)


def test_exactly_the_limit_opens_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    assert load_image(PIL.Image.new("RGB", (64, 64))).size == (64, 64)
    assert "too large (64×65)" in refusal(PIL.Image.new("RGB", (64, 65)))


def test_an_image_without_pixels_is_refused():
    assert "has no pixels (0×5)" in refusal(PIL.Image.new("RGB", (0, 5)))
