"""How well rewards tell a drawing's caption from one that is wrong in one thing.

    python benchmarks/caption_score.py [--count 600]

Fresh drawings of the bundled model's world, whose truth is known. Of each caption a wrong one is made: another kind,
another colour, the opposite relation, or the two colours exchanged. Printed are the area under the ROC curve over all,
and the share of drawings by kind of mistake whose right caption scores higher.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from tastemaker.drawings import render, sample_scene
from tastemaker.drawings.scene import COLOURS, KINDS, Relation, Request
from tastemaker.rewards.registry import load_reward

OPPOSITE: dict[Relation, Relation] = {
    "above": "below", "below": "above", "on the left of": "on the right of", "on the right of": "on the left of",
}  # fmt: skip


def wrong(request: Request, rng: random.Random) -> tuple[Request, str]:
    """The request with one mistake, and which."""
    mistake, first = rng.choice(("kind", "colour", "relation", "exchanged")), request.things[0]
    if mistake == "relation" and request.relation:
        return replace(request, relation=OPPOSITE[request.relation]), mistake
    if mistake == "exchanged" and len({thing.colour for thing in request.things}) == 2:
        one, other = request.things
        return replace(request, things=(replace(one, colour=other.colour), replace(other, colour=one.colour))), mistake
    if mistake == "colour" and first.colour:
        changed: Any = replace(first, colour=rng.choice([name for name in COLOURS if name != first.colour]))
    else:
        mistake, changed = "kind", replace(first, kind=rng.choice([kind for kind in KINDS if kind != first.kind]))
    return replace(request, things=(changed, *request.things[1:])), mistake


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=600)
    count, rng = parser.parse_args().count, random.Random(0)
    pairs = [sample_scene(rng) for _ in range(count)]
    pixels = np.stack([np.asarray(render(scene, 64, rng), dtype=np.float32) / 255 for scene, _ in pairs])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    right = [request.caption() for _, request in pairs]
    others = [wrong(request, rng) for _, request in pairs]
    for name in ("judge-score", "caption-score:words", "caption-score:embeddings"):
        reward = load_reward(name)
        good, bad = reward(x, right), reward(x, [request.caption() for request, _ in others])
        area = roc_auc_score([1] * count + [0] * count, torch.cat([good, bad]))
        shares = {}
        for mistake in ("kind", "colour", "relation", "exchanged"):
            places = [place for place, (_, made) in enumerate(others) if made == mistake]
            shares[mistake] = f"{(good[places] > bad[places]).float().mean():.2f} of {len(places)}"
        print(f"{name:25} area {area:.3f}   higher for the right one: {shares}")


if __name__ == "__main__":
    main()
