"""Whether a family of models keeps the contract of `diffusion.model.Model`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tastemaker.diffusion.model import Model, image_size
from tastemaker.diffusion.sampler import sample
from tastemaker.diffusion.sde import Sde, make_sde
from tastemaker.models.tuning import Tuning
from tastemaker.types import Cond, Draw

STEPS, GUIDANCE = 4, 3.0


def check_model(make: Callable[[], Model], prompts: Sequence[str], *, guided: bool = True) -> list[str]:
    """What a model of a family does wrong, a sentence each; nothing where it keeps the contract.

    `make` gives a new model each time, without adapters; `prompts` are two different prompts that it knows, and
    `guided` says whether it takes classifier-free guidance. The model should be small: it is sampled some times.
    """
    model, wrong = make(), []
    guidance = GUIDANCE if guided else 1.0
    draw = Draw(0, 1, tuple(prompts[:2]), (0, 1), (0, 0))
    cond = model.encode(draw.prompts, guidance, pooled=True)
    if len(cond) != 2 or "text" not in cond.states or "pooled" not in cond.states:
        wrong.append("encode: expected 2 rows with the states `text` and `pooled`")
        return wrong
    if len({len(states) for states in cond.states.values()}) != 1:
        wrong.append("encode: the states have different numbers of prompts")
    twice = model.encode([prompts[0], prompts[1], prompts[0]], guidance)
    if len(twice.states["text"]) != 3 or not twice["text"][0].equal(twice["text"][2]):
        wrong.append("encode: expected one state for each different prompt and one for the empty one")
    sde = make_sde(model, STEPS, 1.0)
    if len(sde) != STEPS:
        wrong.append(f"process.grid({STEPS}) has {len(sde)} steps")
    x = draw.noise(0, model.latent_shape, model.device)
    t = sde.grid.times[0].to(model.device).expand(2)
    with torch.no_grad():
        x0 = model.denoise(x, t, cond)
        alone = model.denoise(x[:1], t[:1], cond.select(slice(0, 1)))
        unguided = model.denoise(x, t, cond.unguided())
    if x0.shape != x.shape or x0.dtype != torch.float64:
        wrong.append(f"denoise: expected {list(x.shape)} in float64, given {list(x0.shape)} in {x0.dtype}")
    if not _close(alone, x0[:1]):
        wrong.append("denoise: a row alone has another result than beside others")
    if guided and unguided.equal(x0):
        wrong.append("denoise: guidance changes nothing")
    if guided:
        model.negative_prompt = prompts[1]
        with torch.no_grad():
            away = model.denoise(x, t, model.encode(prompts[:2], guidance))
        model.negative_prompt = ""
        if away[:1].equal(x0[:1]):
            wrong.append("encode: the negative prompt changes nothing")
    if (weight := model.embedded_guidance) is not None:
        model.embedded_guidance = weight + 3
        with torch.no_grad():
            other = model.denoise(x, t, cond)
        model.embedded_guidance = None
        if model.embedded_guidance != weight:
            wrong.append("embedded_guidance: None does not set the model's own weight")
            model.embedded_guidance = weight
        if other.equal(x0):
            wrong.append("predict: the embedded guidance changes nothing")
    wrong += _trained(make, model, draw, sde, guidance, x0)
    images = model.decode(x0.float())
    if images.shape[:2] != (2, 3) or images.min() < 0 or images.max() > 1:
        wrong.append(f"decode: expected [2,3,H,W] in [0,1], given {list(images.shape)}")
    elif tuple(images.shape[-2:]) != image_size(model):
        wrong.append("decode: the images' height and width are not scale times the latents'")
    latents = model.encode_images(images)
    if latents.shape != x.shape:
        wrong.append(f"encode_images: expected {list(x.shape)}, given {list(latents.shape)}")
    leaf = x0.float().requires_grad_()
    if torch.autograd.grad(model.decode(leaf).sum(), leaf)[0].abs().max() == 0:
        wrong.append("decode: no gradient reaches the latents")
    return wrong


def _trained(make: Callable[[], Model], model: Model, draw: Draw, sde: Sde, guidance: float, base: Tensor) -> list[str]:
    """New adapters change nothing; changed ones do; the reference is without them; files bring them back."""
    wrong: list[str] = []
    x, t = draw.noise(0, model.latent_shape, model.device), sde.grid.times[0].to(model.device).expand(2)
    ask = lambda of: of.denoise(x, t, of.encode(draw.prompts, guidance))  # noqa: E731
    model.tune(Tuning(rank=2), 0)
    trained = model.weights.trainable()
    with torch.no_grad():
        if not _close(ask(model), base):
            wrong.append("tune: new adapters change the model")
        for number, (_, parameter) in enumerate(sorted(trained.items())):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)).to(
                parameter
            )
        changed = ask(model)
        if _close(changed, base):
            wrong.append("tune: the trainable parameters change nothing")
        with model.weights.reference():
            if not _close(ask(model), base):
                wrong.append("weights.reference: the reference is not the model that training started from")
        if not _close(ask(model), changed):
            wrong.append("weights.reference: afterwards the model is another than before")
        with tempfile.TemporaryDirectory() as folder:
            model.weights.save(Path(folder))
            again = make()
            again.weights.load(Path(folder))
            if not _close(ask(again), changed):
                wrong.append("weights.load: what weights.save wrote gives another model")
    own = _own_gradients(model, x, t, model.encode(draw.prompts, guidance))
    if not all(_close(together, alone) for together, alone in own):
        wrong.append("weights.per_image: a row's own gradient is another than when it is alone")
    rollout = sample(model, model.encode(draw.prompts, guidance), draw, sde, sde.stochastic())
    if not rollout.x0.isfinite().all() or not rollout.logp.isfinite().all():
        wrong.append("sampling: latents or log-probabilities are not finite")
    return wrong


def _own_gradients(model: Model, x: Tensor, t: Tensor, cond: Cond) -> list[tuple[Tensor, Tensor]]:
    """For each row the gradient of its estimate's mean square, from a pass of all rows and from one of its own."""
    estimate = lambda rows: model.denoise(x[rows], t[rows], cond.select(rows))  # noqa: E731
    loss = lambda rows: estimate(rows).square().flatten(1).mean(dim=1).sum()  # noqa: E731
    flat = lambda found: torch.cat([gradient.flatten() for gradient in found])  # noqa: E731
    with model.weights.per_image(len(x)) as copies:
        together = torch.autograd.grad(loss(slice(None)), list(copies.values()))
    parameters, pairs = list(model.weights.trainable().values()), []
    for row in range(len(x)):
        alone = flat(torch.autograd.grad(loss(slice(row, row + 1)), parameters))
        pairs.append((flat([gradient[row] for gradient in together]) / alone.norm(), alone / alone.norm()))
    return pairs


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4)
