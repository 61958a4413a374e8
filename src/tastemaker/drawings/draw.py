"""Drawings of scenes: flat, bold shapes that stay legible at 32x32 pixels."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from tastemaker.drawings.scene import COLOURS, Scene, Thing

RGB = tuple[int, int, int]
Point = tuple[float, float]
_OVERSAMPLING = 6


def render(scene: Scene, size: int = 32, rng: random.Random | None = None) -> Image.Image:
    """Draws `scene` as an RGB image of size x size pixels.

    With `rng`, colours are jittered a little and pattern directions vary; without it the drawing is the
    same every time.
    """
    rng = rng or random.Random(0)
    side = size * _OVERSAMPLING
    canvas = _ground(side, _jitter(COLOURS[scene.ground], rng), scene.pattern, rng)
    for thing in scene.things:
        _paste(canvas, thing, _jitter(COLOURS[thing.colour], rng), rng)
    return canvas.resize((size, size), Image.Resampling.BOX)


def _jitter(colour: RGB, rng: random.Random) -> RGB:
    return tuple(max(0, min(255, value + rng.randint(-8, 8))) for value in colour)  # type: ignore[return-value]


def _shade(colour: RGB, amount: float) -> RGB:
    """Darker by `amount`, or lighter where the colour is too dark for that to show."""
    if max(colour) < 80:
        return tuple(round(value + (255 - value) * amount) for value in colour)  # type: ignore[return-value]
    return tuple(round(value * (1 - amount)) for value in colour)  # type: ignore[return-value]


def _ground(side: int, colour: RGB, pattern: str, rng: random.Random) -> Image.Image:
    canvas = Image.new("RGB", (side, side), colour)
    pen = ImageDraw.Draw(canvas)
    second = _shade(colour, 0.30)
    if pattern == "striped":
        _stripes(pen, side, side / 5.3, rng.choice((0, 45, 90, 135)), rng.random(), second)
    if pattern == "checkered":
        cell = side / 4
        for row in range(4):
            for column in range(row % 2, 4, 2):
                pen.rectangle((column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1), fill=second)
    return canvas


def _stripes(pen: ImageDraw.ImageDraw, side: int, period: float, degrees: float, phase: float, colour: RGB) -> None:
    """Bands of half a period, at an angle, over a square of the given side."""
    angle = math.radians(degrees)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    reach = 2 * side
    for number in range(-int(reach / period), int(reach / period) + 1):
        start = (number + phase) * period
        corners = [
            (side / 2 + along[0] * u + across[0] * v, side / 2 + along[1] * u + across[1] * v)
            for u, v in ((-reach, start), (reach, start), (reach, start + period / 2), (-reach, start + period / 2))
        ]
        pen.polygon(corners, fill=colour)


def _paste(canvas: Image.Image, thing: Thing, colour: RGB, rng: random.Random) -> None:
    side = canvas.width
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    paint = Image.new("RGB", canvas.size, colour)
    if thing.texture == "striped":
        _stripes(ImageDraw.Draw(paint), side, side / 5.3, rng.choice((0, 45, 135)), rng.random(), _shade(colour, 0.42))
    mask = Image.new("L", canvas.size, 0)
    pen = ImageDraw.Draw(mask)
    for polygon in _outline(thing.kind, x, y, radius):
        pen.polygon(polygon, fill=255)
    canvas.paste(paint, mask=mask)
    _details(ImageDraw.Draw(canvas), thing.kind, x, y, radius, colour)


def _disc(x: float, y: float, rx: float, ry: float) -> list[Point]:
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in (2 * math.pi * i / 64 for i in range(64))]


def _outline(kind: str, x: float, y: float, r: float) -> list[list[Point]]:
    """The polygons that make up a kind's silhouette, all within the circle of radius r or close to it."""
    at = lambda *points: [(x + px * r, y + py * r) for px, py in points]  # noqa: E731
    if kind == "circle":
        return [_disc(x, y, 0.95 * r, 0.95 * r)]
    if kind == "square":
        return [at((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))]
    if kind == "triangle":
        return [at((0, -0.98), (0.98, 0.78), (-0.98, 0.78))]
    if kind == "star":
        spokes = [(1.05 if i % 2 == 0 else 0.42, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
        return [at(*((d * math.cos(a), d * math.sin(a)) for d, a in spokes))]
    if kind == "heart":
        turn = [2 * math.pi * i / 64 for i in range(64)]
        wave = lambda t: 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)  # noqa: E731
        return [at(*((math.sin(t) ** 3, -0.06 - wave(t) / 16) for t in turn))]
    if kind == "tree":
        return [_disc(x, y - 0.28 * r, 0.78 * r, 0.70 * r)]
    if kind == "house":
        return [at((-0.72, -0.15), (0.72, -0.15), (0.72, 0.92), (-0.72, 0.92))]
    if kind == "fish":
        return [_disc(x - 0.18 * r, y, 0.78 * r, 0.55 * r), at((0.38, 0), (1.02, -0.58), (1.02, 0.58))]
    raise ValueError(f"unknown kind of thing {kind!r}")


def _details(pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, colour: RGB) -> None:
    """The marks that tell a house from a square and a tree from a circle."""
    if kind == "tree":
        pen.rectangle((x - 0.17 * r, y + 0.34 * r, x + 0.17 * r, y + 1.0 * r), fill=(116, 74, 40))
    if kind == "house":
        pen.polygon(
            [(x - 1.0 * r, y - 0.12 * r), (x, y - 1.0 * r), (x + 1.0 * r, y - 0.12 * r)], fill=_shade(colour, 0.45)
        )
        pen.rectangle((x - 0.2 * r, y + 0.36 * r, x + 0.2 * r, y + 0.92 * r), fill=_shade(colour, 0.45))
    if kind == "fish":
        eye = (20, 20, 24) if max(colour) >= 80 else (244, 244, 240)
        pen.polygon(_disc(x - 0.52 * r, y - 0.14 * r, 0.15 * r, 0.15 * r), fill=eye)
