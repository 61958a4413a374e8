"""The independent witness: what an image of the bundled model's world shows, and whether the prompt asked for it.

A small detector trained on drawings whose truth is known (scripts/bundled/judge.py; accuracy on held-out
drawings in docs/guides/bundled-model.md). It is never a training reward unless a user makes it one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tastemaker.drawings.scene import (
    COLOURS,
    KINDS,
    PATTERNS,
    TEXTURES,
    Request,
    Scene,
    Thing,
    Wanted,
    parse,
    relation_of,
)
from tastemaker.errors import ModelError

SIDE, CELLS = 32, 16
THRESHOLD = 0.35
"""Confidence from which a peak counts as an object."""
_COLOUR_NAMES = tuple(COLOURS)
WEIGHTS = Path(__file__).parent.parent / "assets/judge/judge.safetensors"


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU(inplace=True)
    )


class JudgeNet(nn.Module):
    """A centre-point detector on images [B,3,32,32] in [0,1], with outputs on a grid of 16x16 cells."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, width), _block(width, 2 * width, 2), _block(2 * width, 2 * width))
        self.coarse = nn.Sequential(
            _block(2 * width, 4 * width, 2), _block(4 * width, 4 * width), _block(4 * width, 4 * width)
        )
        self.joint = nn.Sequential(_block(6 * width, 4 * width), _block(4 * width, 4 * width))
        self.heads = nn.Conv2d(4 * width, len(KINDS) + len(COLOURS) + len(TEXTURES) + 1, 1)
        self.scene = nn.Sequential(
            nn.Linear(8 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, len(COLOURS) + len(PATTERNS))
        )
        nn.init.constant_(self.heads.bias[: len(KINDS)], -4.0)  # type: ignore[index]  # objects are rare

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits: kind [B,8,16,16], colour [B,8,16,16], texture [B,2,16,16], ground [B,8], pattern [B,3]; and
        the log of the radius as a fraction of the side, log_radius [B,1,16,16]."""
        fine = self.fine(x * 2 - 1)
        coarse = self.coarse(fine)
        up = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        cells = self.heads(self.joint(torch.cat([fine, up], dim=1)))
        kind, colour, texture, log_radius = cells.split([len(KINDS), len(COLOURS), len(TEXTURES), 1], dim=1)
        pooled = torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=1)
        ground, pattern = self.scene(pooled).split([len(COLOURS), len(PATTERNS)], dim=1)
        return {
            "kind": kind, "colour": colour, "texture": texture, "log_radius": log_radius,
            "ground": ground, "pattern": pattern,
        }  # fmt: skip


@cache
def load_judge() -> JudgeNet:
    """The network that ships with the package. Raises ModelError where the installation lacks it."""
    if not WEIGHTS.is_file():
        raise ModelError(
            f"the judge is missing at {WEIGHTS}: install tastemaker again, or build it with `make bundled`"
        )
    network = JudgeNet()
    network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def see(x: Tensor, network: JudgeNet | None = None) -> list[Scene]:
    """What each image [B,3,H,W] in [0,1] shows; larger images are averaged down to 32x32."""
    network = network or load_judge()
    x = x.detach().float().cpu()
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="area")
    return [scene for part in x.split(256) for scene in _decode(network(part))]


def _decode(out: dict[str, Tensor]) -> list[Scene]:
    """Peaks of the kind maps, each the largest of its 5x5 neighbourhood, with the attributes found there."""
    best, kind = out["kind"].sigmoid().max(dim=1)
    peak = (best == F.max_pool2d(best.unsqueeze(1), 5, 1, 2).squeeze(1)) & (best > THRESHOLD)
    colour, texture, radius = out["colour"].argmax(1), out["texture"].argmax(1), out["log_radius"][:, 0].exp()
    scenes = []
    for index in range(len(best)):
        things = tuple(
            Thing(
                KINDS[int(kind[index, row, column])], _COLOUR_NAMES[int(colour[index, row, column])],
                (column + 0.5) / CELLS, (row + 0.5) / CELLS, float(radius[index, row, column]),
                TEXTURES[int(texture[index, row, column])],
            )
            for row, column in peak[index].nonzero().tolist()
        )  # fmt: skip
        ground, pattern = int(out["ground"][index].argmax()), int(out["pattern"][index].argmax())
        scenes.append(Scene(things, _COLOUR_NAMES[ground], PATTERNS[pattern]))
    return scenes


@dataclass(frozen=True)
class Verdict:
    """Which of the attributes that a prompt names an image has; only those that it names are there."""

    attributes: dict[str, bool]

    @property
    def correct(self) -> bool:
        """Everything that the prompt asks for is there."""
        return all(self.attributes.values())

    @property
    def objects(self) -> bool:
        """As `correct`, whatever the relation."""
        return all(right for name, right in self.attributes.items() if name != "relation")


def compare(request: Request, scene: Scene) -> Verdict:
    """Holds a scene against a request. Two objects are matched in the order that agrees best."""
    wanted = request.things * request.count if request.template == "count" else request.things
    attributes = {"count": len(scene.things) == len(wanted)}
    orders: list[tuple[Thing, ...]] = [scene.things]
    if request.template == "pair" and len(scene.things) >= 2:
        orders = list(permutations(scene.things, 2))
    found = max((_match(wanted, order, request) for order in orders), key=lambda match: sum(match.values()))
    attributes |= found
    if request.ground:
        attributes["ground"] = scene.ground == request.ground
    if request.pattern:
        attributes["pattern"] = scene.pattern == request.pattern
    return Verdict(attributes)


def _match(wanted: Sequence[Wanted], things: Sequence[Thing], request: Request) -> dict[str, bool]:
    pairs = list(zip(wanted, things, strict=False))
    complete = len(things) >= len(wanted)
    result = {"object": complete and all(w.kind == t.kind for w, t in pairs)}
    for name in ("colour", "texture", "size"):
        if any(getattr(w, name) for w in wanted):
            result[name] = complete and all(getattr(w, name) in (None, getattr(t, name)) for w, t in pairs)
    if request.relation:
        result["relation"] = len(things) == 2 and relation_of(things[0], things[1]) == request.relation
    return result


def judge(x: Tensor, prompts: Sequence[str], network: JudgeNet | None = None) -> list[Verdict | None]:
    """A verdict for each image; None where the prompt is not of the bundled model's grammar."""
    requests = [parse(prompt) for prompt in prompts]
    if not any(requests):
        return [None] * len(prompts)
    scenes = see(x, network)
    return [None if r is None else compare(r, s) for r, s in zip(requests, scenes, strict=True)]
