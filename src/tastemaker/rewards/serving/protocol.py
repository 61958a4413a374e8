"""The messages between a reward's client and server (docs/guides/remote-rewards.md): JSON with PNGs, or safetensors.

Nothing that is read is trusted: sizes are checked before anything is decoded, and nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from tastemaker.data.images import upright_rgb
from tastemaker.data.tables import checked_text
from tastemaker.errors import DataError
from tastemaker.rewards.jpeg import to_bytes

PROTOCOL = 1
JSON, SAFETENSORS = "application/json", "application/x-safetensors"
_PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = {0: "grey", 2: "RGB"}
"""PNG's colour types that are accepted; transparency or a palette could be read in more than one way."""


class RequestError(Exception):
    """A request that is refused, with its HTTP status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The limits of one request."""

    body: int = 64 * 2**20
    """Bytes of its body."""
    images: int = 64
    """Images."""
    pixels: int = 2**24
    """Pixels of all its images together: 64 of 512 x 512."""
    prompt: int = 10_000
    """Characters of a prompt."""


@dataclass(frozen=True)
class ScoreRequest:
    """A request: images [B,3,H,W] in [0,1], float32, and B prompts."""

    x: Tensor
    prompts: list[str]


@dataclass(frozen=True)
class Identity:
    """Which reward answers: two servers, or one before and after a restart, must be of one identity."""

    reward: str
    version: str

    def __str__(self) -> str:
        return f"{self.reward} ({self.version})"


# ---------------------------------------------------------------- requests


def write_json(x: Tensor, prompts: Sequence[str]) -> bytes:
    """The body of a request as JSON. Images [B,3,H,W] in [0,1] are rounded to the nearest of 256 levels."""
    images = [base64.b64encode(png(image)).decode() for image in to_bytes(x).numpy()]
    return json.dumps({"prompts": list(prompts), "images": images}).encode()


def write_safetensors(x: Tensor, prompts: Sequence[str]) -> bytes:
    """The body of a request with the exact images; the prompts stand in the file's metadata, as JSON."""
    return serialise({"images": x.float().cpu().contiguous()}, metadata={"prompts": json.dumps(list(prompts))})


def png(image: Any) -> bytes:
    """An image uint8 [H,W,3] as PNG, weakly compressed: the network is faster than zlib's best level."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_json(body: bytes, limits: Limits) -> ScoreRequest:
    """A request out of JSON. Raises RequestError."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {_short(error)}") from error
    if not isinstance(content, dict) or set(content) != {"prompts", "images"}:
        raise RequestError(400, 'expected a JSON object {"prompts": [text, ...], "images": [PNG in base64, ...]}')
    coded = content["images"]
    if not isinstance(coded, list) or not all(isinstance(image, str) for image in coded):
        raise RequestError(400, "images must be a list of PNG files, each in base64")
    prompts = _prompts(content["prompts"], len(coded), limits)
    try:
        files = [base64.b64decode(image, validate=True) for image in coded]
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"an image is not base64: {_short(error)}") from error
    sizes = [_png_size(file, index) for index, file in enumerate(files)]
    _check_sizes(sizes, limits)
    images = [_decode(file, index) for index, file in enumerate(files)]
    # Once more: an image may be turned by its EXIF orientation.
    _check_sizes([(image.shape[2], image.shape[1]) for image in images], limits)
    return ScoreRequest(torch.stack(images).float().div_(255), prompts)


def read_safetensors(body: bytes, limits: Limits) -> ScoreRequest:
    """A request out of safetensors. Raises RequestError."""
    header = _header(body)
    metadata, entry = header.get("__metadata__"), header.get("images")
    if set(header) != {"__metadata__", "images"} or not isinstance(metadata, dict) or not isinstance(entry, dict):
        raise RequestError(400, "expected one tensor `images`, and metadata with `prompts`")
    shape: Any = entry.get("shape")
    if entry.get("dtype") != "F32" or not _is_shape(shape):
        raise RequestError(400, f"images must be F32 of shape [B,3,H,W], not {_short((entry.get('dtype'), shape))}")
    try:
        written = json.loads(metadata.get("prompts", ""))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(400, f"the metadata's prompts are no JSON list of texts: {_short(error)}") from error
    prompts = _prompts(written, shape[0], limits)
    _check_sizes([(shape[3], shape[2])] * shape[0], limits)
    try:
        x = parse(body)["images"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise RequestError(400, f"the body is not safetensors: {_short(error)}") from error
    if not x.isfinite().all():
        raise RequestError(400, "the images have values that are not finite")
    low, high = x.min().item(), x.max().item()
    if low < -0.01 or high > 1.01:
        raise RequestError(400, f"the images have values from {low:g} to {high:g}, but must have them in [0, 1]")
    return ScoreRequest(x, prompts)


READ = {JSON: read_json, SAFETENSORS: read_safetensors}


def _is_shape(shape: Any) -> bool:
    """Whether it is [B,3,H,W]."""
    return (
        isinstance(shape, list) and len(shape) == 4 and all(type(n) is int and n > 0 for n in shape) and shape[1] == 3
    )


def _header(body: bytes) -> dict[str, Any]:
    """safetensors' own JSON header, whose length stands in the first 8 bytes."""
    try:
        length = struct.unpack("<Q", body[:8])[0]
        if length > len(body) - 8:
            raise ValueError(f"its header should have {length} bytes, the body has {len(body)}")
        header = json.loads(body[8 : 8 + length])
    except (struct.error, ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not safetensors: {_short(error)}") from error
    if not isinstance(header, dict):
        raise RequestError(400, "the body is not safetensors: its header is no JSON object")
    return header


def _prompts(given: Any, images: int, limits: Limits) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(prompt, str) for prompt in given):
        raise RequestError(400, "prompts must be a list of texts")
    if len(given) != images:
        raise RequestError(400, f"{len(given)} prompts for {images} images: give one for each")
    if not given:
        raise RequestError(400, "there are no images")
    if len(given) > limits.images:
        raise RequestError(413, f"{len(given)} images, but a request may have {limits.images}: send fewer at a time")
    for index, prompt in enumerate(given):
        try:
            checked_text(prompt, f"prompt {index}", "prompt")
        except DataError as error:
            raise RequestError(400, str(error)) from error
    longest = max(map(len, given))
    if longest > limits.prompt:
        raise RequestError(413, f"a prompt has {longest} characters, but may have {limits.prompt}")
    return given


def _check_sizes(sizes: Sequence[tuple[int, int]], limits: Limits) -> None:
    """Widths and heights, before a pixel is decoded."""
    pixels = sum(width * height for width, height in sizes)
    if pixels > limits.pixels:
        raise RequestError(413, f"the images have {pixels} pixels, but a request may have {limits.pixels}")
    if len(set(sizes)) > 1:
        raise RequestError(
            400, f"the images are of several sizes ({_short(sorted(set(sizes)))}): send one size at a time"
        )


def _png_size(file: bytes, index: int) -> tuple[int, int]:
    if file[:8] != _PNG or file[12:16] != b"IHDR" or len(file) < 33:
        raise RequestError(400, f"image {index} is not a PNG file")
    width, height = struct.unpack(">II", file[16:24])
    if not width or not height:
        raise RequestError(400, f"image {index} has no pixels ({width} x {height})")
    if file[24] != 8 or file[25] not in _KINDS:
        raise RequestError(
            400,
            f"image {index} has {file[24]} bits a channel and PNG's colour type {file[25]}: send 8 bits, and RGB or "
            "grey, without transparency or palette",
        )
    return width, height


def _decode(file: bytes, index: int) -> Tensor:
    """The image, uint8 [3,H,W]."""
    try:
        with Image.open(io.BytesIO(file), formats=("PNG",)) as image:
            transparent = "transparency" in image.info
            pixels = upright_rgb(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for broken files
        raise RequestError(400, f"image {index} cannot be decoded: {_short(error)}") from error
    if transparent:
        raise RequestError(400, f"image {index} has a transparent colour: send RGB or grey, without transparency")
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(pixels.height, pixels.width, 3).permute(2, 0, 1)


def _short(what: Any) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= 200 else text[:197] + "..."


# ---------------------------------------------------------------- answers


def response(values: Tensor, identity: Identity) -> dict[str, Any]:
    """A server's response to images whose rewards are `values` [B]."""
    return {"rewards": values.tolist(), "reward": identity.reward, "version": identity.version}


def read_identity(content: Any) -> Identity:
    """Which reward an answer is from. Raises ValueError where it does not say so."""
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    found = content.get("reward"), content.get("version")
    if not all(isinstance(part, str) and 0 < len(part) <= 500 for part in found):
        raise ValueError("it does not name the reward and its version (`reward`, `version`)")
    return Identity(*found)  # type: ignore[arg-type]


def read_answer(body: bytes, count: int) -> tuple[list[float], Identity]:
    """The rewards of `count` images, and whose they are. Raises ValueError for anything else than so many numbers."""
    try:
        content = json.loads(body)
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    identity = read_identity(content)
    return read_rewards(content.get("rewards"), count), identity


def read_rewards(rewards: Any, count: int) -> list[float]:
    """The rewards of `count` images out of JSON. Raises ValueError for anything else than so many finite numbers."""
    # A bool is an int in Python, and no reward.
    if not isinstance(rewards, list) or not all(type(value) in (int, float) for value in rewards):
        raise ValueError("its `rewards` are not a list of numbers")
    if len(rewards) != count:
        raise ValueError(f"it has {len(rewards)} rewards for {count} images")
    if not all(abs(value) <= _LARGEST for value in rewards):
        bad = next(value for value in rewards if not abs(value) <= _LARGEST)
        raise ValueError(f"one of its rewards is {_short(bad)}, which is not finite in float32")
    return [float(value) for value in rewards]


_LARGEST = torch.finfo(torch.float32).max
