"""Users' images: values by hand for every mode, orientation, and one sentence for every way of being damaged."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tastemaker.data.captioned_images import fitted
from tastemaker.data.images import image_path, read_image, to_tensor
from tastemaker.errors import DataError

WHITE, BLACK = [255, 255, 255], [0, 0, 0]
LOSSLESS = {"WEBP": {"lossless": True}}


def file(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png(width, depth, colour, line, *chunks):
    """A PNG of one line, written by hand: Pillow cannot write all kinds that it reads."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + line)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def line(data):
    """The values [W,3] of the first line."""
    return np.asarray(read_image(data, "here"))[0].tolist()


def array(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


def palette(**options):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return file(image, "PNG", **options)


def grey(*values):
    return [[value] * 3 for value in values]


# 16 bits: v * 255 / 65535 = v / 257, so 32896 = 128 * 257 is 128 and 300 is 1.17.
SIXTEEN = array([0, 300, 32896, 65535], np.uint16)
MODES = {
    "16-bit grey PNG": (file(SIXTEEN, "PNG"), grey(0, 1, 128, 255)),
    "16-bit grey TIFF": (file(SIXTEEN, "TIFF"), grey(0, 1, 128, 255)),
    "16-bit grey PGM": (file(SIXTEEN, "PPM"), grey(0, 1, 128, 255)),
    "10-bit grey PGM": (b"P5\n2 1\n1023\n" + struct.pack(">2H", 1023, 512), grey(255, 128)),  # 512 / 1023 * 255 = 127.6
    "I;16B": (Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 32896, 65535)), grey(128, 255)),
    "big-endian 16-bit TIFF": (
        file(Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 32896, 65535)), "TIFF"), grey(128, 255),
    ),
    "32-bit integers": (file(array([0, 32896, 65535], np.int32), "TIFF"), grey(0, 128, 255)),
    "floats to 1": (file(array([0, 0.25, 1], np.float32), "TIFF"), grey(0, 64, 255)),  # 63.75
    "floats to 255": (file(array([0, 64, 255], np.float32), "TIFF"), grey(0, 64, 255)),
    "1 bit": (file(array([True, False], bool), "PNG"), grey(255, 0)),
    "2-bit grey PNG": (png(4, 2, 0, b"\x1b"), grey(0, 85, 170, 255)),
    "8-bit grey": (file(array([7, 200], np.uint8), "PNG"), grey(7, 200)),
    "palette": (palette(), [[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
    # 255 * (1 - a) + c * a: half of green on white is 127 in red and blue.
    "palette with alpha": (palette(transparency=bytes([0, 128, 255])), [WHITE, [127, 255, 127], [0, 0, 255]]),
    "palette with a transparent colour": (palette(transparency=1), [[255, 0, 0], WHITE, [0, 0, 255]]),
    "LA": (file(Image.merge("LA", [Image.new("L", (1, 1), v) for v in (0, 51)]), "PNG"), grey(204)),  # 51 = 255 / 5
    "RGBA": (file(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG"), [[255, 127, 127]]),
    "RGBA, wholly transparent": (file(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "PNG"), [WHITE]),
    "RGBA as WebP": (file(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "WEBP", lossless=True), [[255, 127, 127]]),
    "RGB with a transparent colour": (
        png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">3H", 1, 2, 3))), [WHITE, [4, 5, 6]],
    ),
    "1-bit grey with a transparent level": (png(2, 1, 0, b"\x40", (b"tRNS", struct.pack(">H", 0))), [WHITE, WHITE]),
    "2-bit grey with a transparent level": (
        png(4, 2, 0, b"\x1b", (b"tRNS", struct.pack(">H", 1))), grey(0, 255, 170, 255),
    ),
    "4-bit grey with a transparent level": (png(2, 4, 0, b"\x02", (b"tRNS", struct.pack(">H", 0))), grey(255, 34)),
    "8-bit grey with a transparent level": (png(2, 8, 0, b"\x05\x09", (b"tRNS", struct.pack(">H", 5))), grey(255, 9)),
    "16-bit grey with a transparent level": (
        png(3, 16, 0, struct.pack(">3H", 514, 512, 257), (b"tRNS", struct.pack(">H", 514))), grey(255, 2, 1),
    ),
    "16-bit RGB": (png(1, 16, 2, struct.pack(">3H", 65535, 32896, 0)), [[255, 128, 0]]),
    "16-bit RGB with a transparent colour": (
        png(2, 16, 2, struct.pack(">6H", 1795, 0, 0, 65535, 0, 0), (b"tRNS", struct.pack(">3H", 1795, 0, 0))),
        [WHITE, [255, 0, 0]],
    ),
    "16-bit RGBA": (png(1, 16, 6, struct.pack(">4H", 65535, 0, 0, 32896)), [[255, 127, 127]]),
    "16-bit grey and alpha": (png(1, 16, 4, struct.pack(">2H", 0, 13107)), grey(204)),  # 13107 = 65535 / 5
    "CMYK TIFF": (file(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[255, 0, 0]]),
    "HSV": (Image.new("HSV", (1, 1), (0, 255, 255)), [[255, 0, 0]]),
    "YCbCr": (Image.new("YCbCr", (1, 1), (255, 128, 128)), [WHITE]),
    "premultiplied alpha": (Image.frombytes("RGBa", (1, 1), bytes([128, 0, 0, 128])), [[255, 127, 127]]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_values_of_every_mode(name):
    given, expected = MODES[name]
    assert line(given) == expected


def test_inverted_cmyk_of_adobe():
    """Pillow writes CMYK as Adobe does, inverted and marked so: ink on yellow and magenta is red in both."""
    data = file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert line(data)[0] == pytest.approx([255, 0, 0], abs=3)


def test_cielab():
    """sRGB's red is (54.29, 80.81, 69.89) for D50, and L* = 50 is 119: 116 * 0.184^(1/3) - 16 = 50, 0.184 -> 0.466.

    L* is stored as 2.55 L*, a* and b* as whole numbers, which is up to 5 levels here.
    """
    image = Image.frombytes("LAB", (3, 1), bytes([138, 81, 70, 128, 0, 0, 255, 0, 0]))
    assert np.asarray(read_image(file(image, "TIFF"), "here"))[0].tolist() == [
        pytest.approx([255, 0, 0], abs=5), pytest.approx([119] * 3, abs=1), pytest.approx(WHITE, abs=1),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_image_of_several(kind):
    frames = [Image.new("RGB", (2, 1), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert line(file(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == [[255, 0, 0]] * 2


def test_a_transparent_gif_is_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 255, 0, 0])
    image.putdata([0, 1])
    assert line(file(image, "GIF", transparency=0)) == [WHITE, [255, 0, 0]]


# A 2x2 image a b / c d as it is to be seen, and how a camera stored it for each orientation (Exif 2.32, 4.6.4).
STORED = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "bdac", 7: "dbca", 8: "cadb"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation(kind, orientation):
    levels = {"a": 0, "b": 80, "c": 160, "d": 240}
    # Blocks of 16 pixels, which JPEG does not smear into each other.
    stored = (
        np.array([levels[name] for name in STORED[orientation]], np.uint8).reshape(2, 2).repeat(16, 0).repeat(16, 1)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(
        Image.fromarray(stored).convert("RGB"), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
    )
    seen = np.asarray(read_image(data, "here"))[8::16, 8::16, 0]
    assert seen.ravel().tolist() == pytest.approx([0, 80, 160, 240], abs=2)


def test_orientation_of_images_that_are_not_square():
    """Of three columns and two lines, turned by a quarter: two columns and three lines."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).convert("RGB")
    assert np.asarray(read_image(file(stored, "PNG", exif=exif), "x"))[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junkjunk", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"junk", b"Exif\0\0II*\0\x08\0\0\0\x01\0"]
)
@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
def test_broken_exif_is_ignored(kind, exif):
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    data = file(image, kind, exif=exif, **LOSSLESS.get(kind, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert line(data)[0] == pytest.approx([255, 0, 0], abs=2)


def test_an_orientation_beside_broken_exif_counts():
    """The pointer to the Exif block leads nowhere, and the orientation is sound."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack("<HHII", 0x8769, 4, 1, 10_000)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    stored = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("RGB")
    assert line(file(stored, "WEBP", lossless=True, exif=exif)) == [WHITE, BLACK]


def test_a_colour_profile_is_not_applied():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    image = Image.new("RGB", (1, 1), (10, 100, 200))
    for given in (profile, b"no profile"):
        assert line(file(image, "PNG", icc_profile=given)) == [[10, 100, 200]]


def truncated(kind, **options):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = file(Image.fromarray(pixels), kind, **options)
    return data[: len(data) // 2]


DAMAGED = {
    "nothing": (b"", "it is empty"),
    "html": (b"<html>404</html>", r"begins with b'<html>404</html>'"),
    "truncated PNG": (truncated("PNG"), "truncated"),
    "truncated JPEG": (truncated("JPEG"), "truncated"),
    "truncated WebP": (truncated("WEBP"), "cannot be read"),
    "truncated GIF": (truncated("GIF"), "cannot be read"),
    "truncated TIFF": (truncated("TIFF"), "cannot be read"),
    "truncated BMP": (truncated("BMP"), "truncated"),
    "a bad checksum": (palette()[:40] + b"\xff" * 4 + palette()[44:], "cannot be read"),
    "bad zlib data": (png(2, 8, 0, b"")[:-20] + b"x" * 20, "cannot be read"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "HEIC file, for which Pillow has no decoder"),
    "none": (None, "expected an image or its path, but found none"),
    "a number": (7, "but found int"),
    "a list": ([b"x"], "but found list"),
    "an empty path": ("", "but found ''"),
    "an empty struct": ({"bytes": None, "path": None}, "found none"),
    "a struct of nothing": ({"bytes": b"", "path": "there.png"}, "it is empty"),
    "another struct": ({"url": "x"}, "found none"),
    "a URL": ("https://example.org/a.png", "not downloaded"),
    "a store": ("s3://bucket/a.png", "not downloaded"),
    "a data URL": ("data:image/png;base64,AAAA", "not downloaded"),
    "no file": ("nowhere.png", "there is no image nowhere.png"),
    "a NUL in a name": ("a\0b.png", "there is no image"),
    "half a surrogate": ("a\ud83d.png", r"there is no image a\\ud83d.png"),
    "a long name": ("a" * 5000, "there is no image aaa"),
    "a folder": (".", "is a folder"),
    "NaN": (file(array([0, float("nan")], np.float32), "TIFF"), "floats from nan to nan"),
    "negative floats": (file(array([-1, 1], np.float32), "TIFF"), "floats from -1 to 1"),
    "large floats": (file(array([0, 1000], np.float32), "TIFF"), "floats from 0 to 1000"),
    "large integers": (file(array([0, 70000], np.int32), "TIFF"), "32-bit integers from 0 to 70000"),
    "negative integers": (file(array([-5, 7], np.int32), "TIFF"), "32-bit integers from -5 to 7"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_images_are_named_in_one_sentence(name):
    value, message = DAMAGED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged TIFF files
        with pytest.raises(DataError, match=message) as caught:
            read_image(value, "list.csv:3")
    assert str(caught.value).startswith("list.csv:3: ")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


RAISED = [
    SyntaxError("broken PNG file"), struct.error("unpack requires"), OverflowError("too large"), ValueError("bad"),
    IndexError("index"), EOFError(), MemoryError(), zlib.error("Error -3"), KeyError(0x8769), TypeError("an integer"),
    Image.DecompressionBombError("exceeds limit"), Image.DecompressionBombWarning("exceeds limit"), OSError("-2"),
    RuntimeError("x"), AttributeError("x"), AssertionError(), ZeroDivisionError("x"), RecursionError(),
    NotImplementedError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "y"),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("when", ["open", "load"])
def test_whatever_a_decoder_raises_is_one_sentence(error, when):
    target = (Image, "open") if when == "open" else (Image.Image, "load")
    image = Image.new("RGB", (2, 2))
    data = file(image, "PNG")
    with (
        mock.patch.object(*target, side_effect=error),
        pytest.raises(DataError, match=rf"here: the image cannot be read \({type(error).__name__}"),
    ):
        read_image(data if when == "open" else image, "here")


def test_too_many_pixels(monkeypatch):
    """Pillow warns beyond its limit and raises beyond twice as many; here a warning is an error."""
    data = file(Image.new("L", (30, 10)), "PNG")
    for limit, kind in ((200, "Warning"), (100, "Error")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"DecompressionBomb{kind}"):
            read_image(data, "here")


def test_paths_as_other_systems_write_them(tmp_path):
    (tmp_path / "Sub").mkdir()
    for name in ("Sub/Cafe\u0301.PNG", "back\\slash.png", " blank .png"):
        Image.new("RGB", (1, 1)).save(tmp_path / name)
    assert image_path("back\\slash.png", "x", tmp_path) == tmp_path / "back\\slash.png"
    assert image_path(" blank .png", "x", tmp_path) == tmp_path / " blank .png"
    assert image_path("Sub\\Cafe\u0301.PNG ", "x", tmp_path) == tmp_path / "Sub/Cafe\u0301.PNG"
    assert image_path(str(tmp_path / "Sub/Cafe\u0301.PNG"), "x", tmp_path.parent) == tmp_path / "Sub/Cafe\u0301.PNG"
    for other in ("sub/cafe\u0301.png", "Sub/Caf\u00e9.PNG", "SUB\\CAFE\u0301.png"):
        with pytest.raises(DataError, match=r"did you mean .*Sub/Cafe\u0301.PNG"):
            image_path(other, "x", tmp_path)
    with pytest.raises(DataError, match=r"there is no image .*$") as caught:
        image_path("C:\\images\\1.png", "x", tmp_path)
    assert "did you mean" not in str(caught.value)


def test_sizes(tmp_path):
    """One pixel becomes a plain image; of a very long one the middle stays; an image of the right size is kept."""
    assert fitted(Image.new("RGB", (1, 1), (255, 0, 51)), 4, 4).equal(
        torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 4, 4)
    )
    long = Image.new("RGB", (1001, 1), "black")
    long.putpixel((500, 0), (255, 255, 255))
    assert fitted(long, 1, 1).eq(1).all()
    exact = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    assert fitted(exact, 8, 8).equal(to_tensor(exact))
    assert to_tensor(exact)[1, 2, 3].item() == pytest.approx(exact.getpixel((3, 2))[1] / 255)
