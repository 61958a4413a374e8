"""Trains and measures the bundled CLIP and its aesthetic head (src/tastemaker/assets/clip) on drawings.

    python scripts/bundled/clip.py train [--work build/clip]
    python scripts/bundled/clip.py taste
    python scripts/bundled/clip.py measure

`train` makes a transformers CLIPModel and CLIPProcessor; a build that was interrupted goes on from its last checkpoint.
`taste` fits the aesthetic head on it. `measure` writes docs/results/clip.json. Times: docs/results/bundled-clip.md.

Half of the drawings pass through the bundled VAE first, so that the model's images are in distribution. Beside each
caption stands one that is false of the drawing by a single change. A head that is thrown away afterwards has to find
the objects in the patches, and the image's layout in the embedding.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from skimage.color import rgb2lab
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from build import DRAWINGS, SIZE
from tastemaker.data.prompts import load_prompts
from tastemaker.diffusion.sde import ddim
from tastemaker.drawings import Request, Scene, render, sample_scene
from tastemaker.drawings.judge import compare, judge, see
from tastemaker.drawings.scene import COLOURS, KINDS, PATTERNS, RELATIONS, TEXTURES, Wanted, relation_of, request_for
from tastemaker.evaluation.images import fixed_draw, images
from tastemaker.models import load_model
from tastemaker.rewards.base import score
from tastemaker.rewards.learned.aesthetic import FILE as HEAD
from tastemaker.rewards.learned.aesthetic import apply, head
from tastemaker.rewards.learned.clip_model import Clip, load_clip
from tastemaker.rewards.registry import load_reward

ASSETS = Path(__file__).parents[2] / "src/tastemaker/assets"
BUNDLED, FOLDER = ASSETS / "bundled", ASSETS / "clip"

SCENES, HELD_OUT = 50_000, 4_000
START = DRAWINGS + 400_000
"""Seeds of drawings from here on are seen by neither the model, the judge nor the JPEG surrogate."""
WIDTH, LAYERS, HEADS, PATCH, EMBEDDING = 128, 4, 4, 4, 128
STEPS, BATCH, LR, WEIGHT_DECAY, WARMUP = 1_800, 128, 1.5e-3, 0.05, 150
HEAD_STEPS, HEAD_BATCH, HEAD_LR = 1_500, 256, 1e-3
LISTS = ("bundled-single", "bundled-attributes", "bundled-count", "bundled-pair")
SAMPLED, GUIDANCES = 64, (5.0, 1.0)
"""Prompts of each list, and guidance: as the bundled model is used, and where it goes wrong more often."""
CELLS = SIZE // PATCH
COLOUR_NAMES, SIZES = tuple(COLOURS), ("small", "medium", "big")


# ---------------------------------------------------------------- drawings


def _drawn(seed: int) -> tuple[np.ndarray, Scene]:
    rng = random.Random(seed)
    scene, _ = sample_scene(rng)
    return np.asarray(render(scene, SIZE, rng)), scene


def drawings(count: int, start: int) -> tuple[Tensor, list[Scene]]:
    """uint8 [N,3,32,32] and their truth."""
    with Pool(1) as pool:
        drawn = pool.map(_drawn, range(start, start + count), chunksize=500)
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), [scene for _, scene in drawn]


@torch.no_grad()
def through_vae(images: Tensor) -> Tensor:
    """uint8 [N,3,32,32] as the bundled VAE gives them back."""
    vae, parts = AutoencoderKL.from_pretrained(BUNDLED / "vae", torch_dtype=torch.float32), []
    for part in images.split(200):
        decoded = vae.decode(vae.encode(part.float() / 127.5 - 1).latent_dist.sample()).sample
        parts.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(parts)


def training_set(work: Path) -> tuple[Tensor, list[Scene]]:
    """The images, every second one through the VAE, kept in the work folder."""
    file, scenes = work / "images.npy", [sample_scene(random.Random(START + n))[0] for n in range(SCENES)]
    if not file.is_file():
        torch.manual_seed(0)
        images, _ = drawings(SCENES, START)
        images[::2] = through_vae(images[::2])
        np.save(file, images.numpy())
    return torch.from_numpy(np.load(file)), scenes


# ---------------------------------------------------------------- captions


def altered(rng: random.Random, request: Request, scene: Scene) -> Request:
    """A request that differs from `request` in one thing, and which `scene` does not fulfil."""
    while True:
        changed = _change(rng, request)
        if changed != request and not compare(changed, scene).correct:
            return changed


def _change(rng: random.Random, request: Request) -> Request:
    place = rng.randrange(len(request.things))
    thing = request.things[place]

    def with_thing(new: Wanted) -> Request:
        return replace(request, things=(*request.things[:place], new, *request.things[place + 1 :]))

    ways: list[Callable[[], Request]] = [
        lambda: with_thing(replace(thing, kind=rng.choice(KINDS))),
        lambda: with_thing(replace(thing, colour=rng.choice(COLOUR_NAMES))),
    ]
    if request.ground:
        ways.append(lambda: replace(request, ground=rng.choice(COLOUR_NAMES)))
    if request.pattern:
        ways.append(lambda: replace(request, pattern=rng.choice(PATTERNS)))
    if request.template == "single":
        if thing.texture:
            ways.append(lambda: with_thing(replace(thing, texture=None if thing.texture == "striped" else "striped")))
        ways.append(lambda: with_thing(replace(thing, size=rng.choice(("small", "big")))))
    if request.template == "count":
        ways += [lambda: replace(request, count=rng.choice((2, 3, 4)))] * 2
    if request.template == "pair":
        first, second = request.things
        ways.append(
            lambda: replace(
                request, things=(replace(first, colour=second.colour), replace(second, colour=first.colour))
            )
        )
        if request.relation:
            ways += [lambda: replace(request, relation=rng.choice(RELATIONS))] * 2
            ways.append(lambda: replace(request, things=(second, first)))
    return rng.choice(ways)()


def _index(value: str | None, names: Sequence[str]) -> int:
    return -1 if value is None else names.index(value)


def asked(requests: Sequence[Request]) -> Tensor:
    """[N,12] numbers of what each asks for, -1 where open: count, two things of four, relation, ground, pattern."""
    rows = []
    for request in requests:
        things = request.things if len(request.things) == 2 else request.things * 2
        row = [len(request.things) * request.count]
        for t in things:
            row += [
                KINDS.index(t.kind),
                _index(t.colour, COLOUR_NAMES),
                _index(t.texture, TEXTURES),
                _index(t.size, SIZES),
            ]
        rows.append(
            [*row, _index(request.relation, RELATIONS), _index(request.ground, COLOUR_NAMES),
             _index(request.pattern, PATTERNS)]
        )  # fmt: skip
    return torch.tensor(rows)


def shown(scenes: Sequence[Scene]) -> Tensor:
    """[N,13] numbers of what each shows, as `asked`, with the relation seen from both of two things."""
    rows = []
    for scene in scenes:
        things, row = (scene.things * 2)[:2], [len(scene.things)]
        for t in things:
            row += [KINDS.index(t.kind), COLOUR_NAMES.index(t.colour), TEXTURES.index(t.texture), SIZES.index(t.size)]
        both = [relation_of(*pair) for pair in (things, things[::-1])]
        rows.append(
            [*row, *(RELATIONS.index(r) for r in both), COLOUR_NAMES.index(scene.ground), PATTERNS.index(scene.pattern)]
        )
    return torch.tensor(rows)


def fulfils(scenes: Tensor, requests: Tensor) -> Tensor:
    """[S,R] whether a scene (rows of `shown`) is what a request asks for (rows of `asked`); the judge's `compare`."""
    s, r = scenes[:, None], requests[None]
    same = lambda a, b: ((b == -1) | (a == b)).all(-1)  # noqa: E731
    straight = same(s[..., 1:9], r[..., 1:9]) & same(s[..., 9:10], r[..., 9:10])
    crossed = same(s[..., [5, 6, 7, 8, 1, 2, 3, 4]], r[..., 1:9]) & same(s[..., 10:11], r[..., 9:10])
    return (s[..., 0] == r[..., 0]) & (straight | crossed) & same(s[..., 11:13], r[..., 10:12])


# ---------------------------------------------------------------- the model


def new_clip() -> CLIPModel:
    """A CLIPModel for 32x32 images, whose text half begins as the bundled model's text encoder."""
    text = CLIPTextModel.from_pretrained(BUNDLED / "text_encoder", torch_dtype=torch.float32)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=EMBEDDING, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    config = CLIPConfig(
        text_config={k: v for k, v in text.config.to_dict().items() if k not in ("_name_or_path", "dtype")},
        vision_config=vision.to_dict(), projection_dim=EMBEDDING,
    )  # fmt: skip
    model = CLIPModel(config)
    start = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}
    model.text_model.load_state_dict(start)
    return model


def new_processor() -> CLIPProcessor:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer")
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return CLIPProcessor(images, tokenizer)


class Finder(nn.Module):
    """What has to be read from the patches (what is centred where) and from the embedding (the layout)."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = (len(KINDS), len(COLOURS), len(TEXTURES), 1)
        self.cells = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(self.parts)))
        self.scene = nn.Linear(EMBEDDING, len(COLOURS) + len(PATTERNS) + 4 + 2)

    def forward(self, patches: Tensor, embedding: Tensor, truth: dict[str, Tensor]) -> Tensor:
        kind, colour, texture, there = self.cells(patches.float()).split(self.parts, dim=-1)
        cell, scene = truth["cells"], self.scene(embedding)
        full = cell[..., 0] >= 0
        loss = F.binary_cross_entropy_with_logits(there.squeeze(-1), full.float(), pos_weight=torch.tensor(10.0))
        for logits, values in zip((kind, colour, texture), cell.unbind(-1), strict=True):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), values.flatten(), ignore_index=-1)
        ground, pattern, count, layout = scene.split([len(COLOURS), len(PATTERNS), 4, 2], dim=-1)
        for logits, values in zip((ground, pattern, count), truth["scene"].unbind(-1), strict=True):
            loss = loss + 0.5 * F.cross_entropy(logits, values)
        return loss + F.mse_loss(layout, truth["layout"])


def layout(scene: Scene) -> tuple[float, float]:
    """How large the objects are together, and how far from the middle, both about 0 with a spread of 1."""
    x, y = (sum(getattr(t, axis) for t in scene.things) / len(scene.things) for axis in "xy")
    radius = math.sqrt(sum(t.radius**2 for t in scene.things))
    return (radius - 0.29) / 0.06, (math.hypot(x - 0.5, y - 0.5) - 0.10) / 0.07


def truth_of(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """cells [N,64,3] (kind, colour, texture; -1 where no centre is), scene [N,3], layout [N,2]."""
    cells = torch.full((len(scenes), CELLS * CELLS, 3), -1)
    for n, scene in enumerate(scenes):
        for t in scene.things:
            place = int(t.y * CELLS) * CELLS + int(t.x * CELLS)
            cells[n, place] = torch.tensor(
                [KINDS.index(t.kind), COLOUR_NAMES.index(t.colour), TEXTURES.index(t.texture)]
            )
    scene = [[COLOUR_NAMES.index(s.ground), PATTERNS.index(s.pattern), len(s.things) - 1] for s in scenes]
    return {"cells": cells, "scene": torch.tensor(scene), "layout": torch.tensor([layout(s) for s in scenes])}


# ---------------------------------------------------------------- training


def contrast(images: Tensor, texts: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    """CLIP's loss of B images and their B captions, which `texts` [2B,D] follows with B false ones.

    `right` [B,2B] says which captions are true of which images: true ones of other images count for nothing.
    """
    n, diagonal = len(images), torch.arange(len(images))
    logits = scale * images @ texts.T
    excused = right.clone()
    excused[diagonal, diagonal] = False
    logits = logits.masked_fill(excused, float("-inf"))
    # Each image against all captions; each against its own false one, alone; each caption against all images.
    pair = torch.stack([logits[diagonal, diagonal], logits[diagonal, diagonal + n]], dim=1)
    return (
        F.cross_entropy(logits, diagonal)
        + F.cross_entropy(pair, torch.zeros_like(diagonal))
        + F.cross_entropy(logits[:, :n].T, diagonal)
    ) / 2


def train(work: Path) -> None:
    torch.manual_seed(5)
    work.mkdir(parents=True, exist_ok=True)
    images, scenes = training_set(work)
    model, processor, finder = new_clip(), new_processor(), Finder()
    # In bfloat16 on a CPU, torch's fused attention takes several times as long on its way back.
    model.set_attn_implementation("eager")
    numbers, truth = shown(scenes), truth_of(scenes)
    image_list = processor.image_processor
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (image_list.image_mean, image_list.image_std))
    parameters = [*model.parameters(), *finder.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LR, betas=(0.9, 0.98))
    checkpoint, step, started = work / "clip.pt", 0, time.time()
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        finder.load_state_dict(state["finder"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    first, seen = step, []
    model.train()
    while step < STEPS:
        torch.manual_seed(10_000 + step)
        rng = random.Random(10_000 + step)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS)) + 1e-6
        rows = torch.randint(0, SCENES, (BATCH,))
        requests = [request_for(rng, scenes[n]) for n in rows]
        requests += [altered(rng, request, scenes[n]) for request, n in zip(requests, rows.tolist(), strict=True)]
        right = fulfils(numbers[rows], asked(requests))
        x = images[rows].float() / 255
        noise = 0.03 * torch.randn(BATCH, 1, 1, 1) + 0.02 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(x)
        x = ((x + noise).clamp(0, 1) - mean) / std
        tokens = processor.tokenizer([r.caption() for r in requests], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            seen_image = model.vision_model(pixel_values=x)
            image = model.visual_projection(seen_image.pooler_output).float()
            text = model.text_projection(model.text_model(**tokens).pooler_output).float()
        image_features, text_features = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        part = {name: values[rows] for name, values in truth.items()}
        contrastive = contrast(image_features, text_features, model.logit_scale.exp(), right)
        loss = contrastive + finder(seen_image.last_hidden_state[:, 1:], image_features * EMBEDDING**0.5, part)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            gap = ((image_features * (text_features[:BATCH] - text_features[BATCH:])).sum(-1) > 0).float().mean()
        seen.append((loss.item(), contrastive.item(), gap.item()))
        step += 1
        if step % 25 == 0:
            left = (STEPS - step) * (time.time() - started) / (step - first) / 60
            figures = np.mean(seen[-25:], axis=0)
            print(f"clip {step}/{STEPS} loss {figures[0]:.3f} contrast {figures[1]:.3f} above false {figures[2]:.3f} "
                  f"scale {model.logit_scale.exp():.1f}, {left:.1f} min left", flush=True)  # fmt: skip
        if step % 100 == 0 or step == STEPS:
            torch.save({"model": model.state_dict(), "finder": finder.state_dict(),
                        "optimizer": optimizer.state_dict(), "step": step}, checkpoint)  # fmt: skip
    export(model, processor, FOLDER)


def export(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    """Weights in float16, loadable by transformers alone."""
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


# ---------------------------------------------------------------- a made-up taste


def taste(scene: Scene) -> float:
    """How much a drawing is to this taste, 0 to 10: a third each for contrast, size and a place in the middle.

    Contrast is the distance in CIELAB of the objects' colour from the ground's, full at 100; size is the radius of one
    object of the same area, from 0.16 to 0.43 of the side; the middle is left by 0.25 of the side. Several objects
    count by their mean colour distance, their joint area and their mean place.
    """
    contrast = float(np.mean([_DISTANCE[thing.colour, scene.ground] for thing in scene.things])) / 100
    size = (math.sqrt(sum(thing.radius**2 for thing in scene.things)) - 0.16) / (0.43 - 0.16)
    x, y = (float(np.mean([getattr(thing, axis) for thing in scene.things])) for axis in "xy")
    middle = 1 - math.hypot(x - 0.5, y - 0.5) / 0.25
    return 10 * sum(min(1.0, max(0.0, part)) for part in (contrast, size, middle)) / 3


_LAB = dict(zip(COLOURS, rgb2lab(np.array([list(COLOURS.values())]) / 255)[0], strict=True))
_DISTANCE = {(a, b): float(np.linalg.norm(_LAB[a] - _LAB[b])) for a in COLOURS for b in COLOURS}


@torch.no_grad()
def features(clip: Clip, images: Tensor) -> Tensor:
    """[N,D] of uint8 images [N,3,32,32], or of those in [0,1]."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return torch.cat([clip.images(part) for part in x.split(250)])


def fit_taste(work: Path) -> None:
    """LAION's five linear layers on the feature of length 1, by Adam on the squared error, as LAION's were."""
    torch.manual_seed(6)
    images, scenes = training_set(work)
    x, y = features(load_clip(str(FOLDER), "taste"), images), torch.tensor([taste(scene) for scene in scenes])
    wide = (EMBEDDING, 1024, 128, 64, 16, 1)
    layers = nn.ModuleDict({
        str(number): nn.Linear(wide[place], wide[place + 1]) for place, number in enumerate((0, 2, 4, 6, 7))
    })  # fmt: skip
    optimizer = torch.optim.Adam(layers.parameters(), HEAD_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HEAD_LR, total_steps=HEAD_STEPS)
    for step in range(HEAD_STEPS):
        rows = torch.randint(0, len(x), (HEAD_BATCH,))
        found = x[rows]
        for layer in layers.values():
            found = layer(found)
        loss = F.mse_loss(found.squeeze(-1), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"taste {step}/{HEAD_STEPS} loss {loss.item():.3f} of {y.var():.3f}", flush=True)
    state = {f"layers.{name}": value.half().contiguous() for name, value in layers.state_dict().items()}
    save_file(state, FOLDER / HEAD)
    (FOLDER / HEAD).chmod(0o644)


# ---------------------------------------------------------------- measuring


def retrieval(clip: Clip, images: Tensor, scenes: Sequence[Scene], seed: int) -> dict[str, float]:
    """WeightCopy-out drawings against 100 different captions each, their own among them, and against one that is false.

    `own` is the share whose own caption scores highest; `true` that of those where a true one does, since captions of
    other drawings may be true as well; `false below` the share whose caption is above the one with a single change.
    """
    rng = random.Random(seed)
    requests = [request_for(rng, scene) for scene in scenes]
    captions = [request.caption() for request in requests]
    false = [altered(rng, request, scene) for request, scene in zip(requests, scenes, strict=True)]
    texts = torch.cat([clip.texts(captions[n : n + 500]) for n in range(0, len(captions), 500)])
    wrong = torch.cat([clip.texts([f.caption() for f in false[n : n + 500]]) for n in range(0, len(false), 500)])
    cosines, matches = images @ texts.T, fulfils(shown(scenes), asked(requests))
    own, true = [], []
    for n, caption in enumerate(captions):
        others: dict[str, int] = {}
        while len(others) < 99:
            other = rng.randrange(len(captions))
            if captions[other] != caption:
                others[captions[other]] = other
        places = [n, *others.values()]
        best = places[int(cosines[n, places].argmax())]
        own.append(best == n)
        true.append(bool(matches[n, best]))
    above = (images * texts).sum(1) > (images * wrong).sum(1)
    kinds: dict[str, list[bool]] = {}
    for request, other, right in zip(requests, false, above.tolist(), strict=True):
        kinds.setdefault(changed_in(request, other), []).append(right)
    return {
        "drawings": len(scenes), "own": share(own), "true": share(true), "false below": share(above.tolist()),
        **{f"false below: {kind}": share(values) for kind, values in sorted(kinds.items())},
    }  # fmt: skip


def changed_in(one: Request, other: Request) -> str:
    """In what two requests differ."""
    for part in ("count", "relation", "ground", "pattern"):
        if getattr(one, part) != getattr(other, part):
            return part
    if one.things == other.things[::-1]:
        return "objects exchanged"
    if [t.colour for t in one.things] == [t.colour for t in other.things[::-1]] and len(one.things) == 2:
        return "colours exchanged"
    first, second = next((a, b) for a, b in zip(one.things, other.things, strict=True) if a != b)
    return next(p for p in ("kind", "colour", "texture", "size") if getattr(first, p) != getattr(second, p))


def share(values: Sequence[bool]) -> float:
    return round(float(np.mean(values)), 4)


def rank(a: Any, b: Any) -> float:
    return round(float(spearmanr(np.asarray(a), np.asarray(b))[0]), 3)


def on_samples(clip: Clip) -> dict[str, dict[str, float]]:
    """The score against the judge's verdict, and the aesthetic score against the rule, on the bundled model's images.

    `correct` is the rank correlation with everything being right, `attributes` with the share of attributes that are;
    `right above wrong` the chance that a right image scores above a wrong one.
    """
    model, rng, result = load_model("bundled"), random.Random(7), {}
    prompts = [(name, prompt) for name in LISTS for prompt in rng.sample(load_prompts(name).prompts, SAMPLED)]
    aesthetic = load_reward("aesthetic")
    rows: list[dict[str, Any]] = []
    for seed, guidance in enumerate(GUIDANCES):
        chosen = fixed_draw([prompt for _, prompt in prompts], 1, seed)
        x = images(model, chosen, ddim(model.process.grid(20), 1.0), guidance, batch=64)
        cosines, beauty = clip_score(clip, x, chosen.prompts), score(aesthetic, x, chosen.prompts).total
        for n, (verdict, scene) in enumerate(zip(judge(x, chosen.prompts), see(x), strict=True)):
            assert verdict is not None
            rows.append({"list": prompts[n][0], "guidance": guidance, "clip": cosines[n].item(), "scene": scene,
                         "correct": verdict.correct, "attributes": np.mean([*verdict.attributes.values()]),
                         "aesthetic": beauty[n].item()})  # fmt: skip
    groups = {"all": rows} | {f"guidance {g:g}": [r for r in rows if r["guidance"] == g] for g in GUIDANCES}
    groups |= {name: [r for r in rows if r["list"] == name] for name in LISTS}
    for name, group in groups.items():
        right, wrong = ([r["clip"] for r in group if r["correct"] is value] for value in (True, False))
        judged = [r for r in group if r["scene"].things]
        result[name] = {
            "images": len(group), "right": share([r["correct"] for r in group]),
            "clip when right": round(float(np.mean(right)), 3), "clip when wrong": round(float(np.mean(wrong)), 3),
            "correct": rank([r["clip"] for r in group], [r["correct"] for r in group]),
            "attributes": rank([r["clip"] for r in group], [r["attributes"] for r in group]),
            "right above wrong": round(float(np.mean(np.subtract.outer(right, wrong) > 0)), 3),
            "aesthetic": rank([r["aesthetic"] for r in judged], [taste(r["scene"]) for r in judged]),
        }  # fmt: skip
    return result


def clip_score(clip: Clip, x: Tensor, prompts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return clip.cosine(x, prompts)


def measure(_: Path) -> None:
    """Everything that docs/results/bundled-clip.md says, into docs/results/clip.json."""
    torch.manual_seed(8)
    clip, (drawn, scenes) = load_clip(str(FOLDER), "measure"), drawings(HELD_OUT, START + SCENES)
    layers = head(load_file(FOLDER / HEAD)) if (FOLDER / HEAD).is_file() else None
    result: dict[str, Any] = {"weights": {f.name: f.stat().st_size for f in sorted(FOLDER.glob("*.safetensors"))}}
    for name, shown_images in {"drawings": drawn, "through the VAE": through_vae(drawn)}.items():
        images = features(clip, shown_images)
        result[name] = retrieval(clip, images, scenes, seed=9)
        if layers:
            found, wanted = apply(layers, images).numpy(), np.array([taste(scene) for scene in scenes])
            result[name] |= {
                "taste: pearson": round(float(np.corrcoef(found, wanted)[0, 1]), 3),
                "taste: spearman": rank(found, wanted),
                "taste: rms error": round(float(np.sqrt(np.mean((found - wanted) ** 2))), 3),
                "taste: spread": round(float(wanted.std()), 3),
            }  # fmt: skip
        print(name, json.dumps(result[name]), flush=True)
    result["samples"] = on_samples(clip)
    print(json.dumps(result["samples"], indent=1), flush=True)
    (ASSETS.parents[2] / "docs/results/clip.json").write_text(json.dumps(result, indent=1) + "\n")


STAGES = {"train": train, "taste": fit_taste, "measure": measure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES])
    parser.add_argument("--work", type=Path, default=Path("build/clip"))
    arguments, started = parser.parse_args(), time.time()
    STAGES[arguments.stage](arguments.work)
    print(f"{arguments.stage} took {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
