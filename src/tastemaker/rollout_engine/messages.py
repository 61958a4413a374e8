"""The messages of SGLang Diffusion's rollout contract, as its public code has them; no code of it is used here.

What was read is the repository sgl-project/sglang as of September 2026, below python/sglang/multimodal_gen/runtime:

- `POST /rollout/generate` takes JSON and answers with a list of one object for each image. Names and types of both:
  entrypoints/post_training/io_struct.py (`RolloutRequest`, `RolloutResponse`), from pull request 22604;
  `rollout_sde_step_indices` and `rollout_return_step_indices` from 23151.
- The body is msgpack whose tensors are safetensors in `data`, with one tensor `t`, beside `shape` and `dtype`
  (31565; post_training/utils.py). Before that it was JSON with the same in base64. Both are read.
- `dit_trajectory.latents` [K,*D]: x before each step, and after the last one, without the axis of the batch, since
  responses are one for each image. K is T + 1, or the number of indices that were asked for; where
  `latent_step_indices` is there (36994) it says which they are. `sigmas` is [T+1].
- `rollout_log_probs` [T]: for each step the mean over the elements of a latent, with all constants where
  `rollout_log_prob_no_const` is false (post_training/scheduler_rl_mixin.py, from 21204). The formulas of `cps` and
  `sde` there are those of `diffusion.sde.cps` and `diffusion.sde.flow_sde`, the noise level is eta.
- Noise is drawn by the engine's own generator, from `seed`.

Not verified, since no SGLang server has been run against this: the shapes of latents of each family (those of FLUX and
Qwen-Image are packed into tokens and are refused), and that `guidance_scale` is classifier-free guidance for every
family without embedded guidance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

JSON, MSGPACK = "application/json", "application/msgpack"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class RolloutRequest:
    """One image, by the names of the contract."""

    prompt: str
    negative_prompt: str
    seed: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    num_inference_steps: int
    guidance_scale: float
    rollout_sde_type: str
    rollout_noise_level: float
    """eta"""
    rollout_sde_step_indices: list[int] | None
    """The steps that have noise; all of them where it is None."""
    rollout_return_step_indices: list[int]
    """Of the latents that are returned: i is the one before step i, T the final one."""
    num_outputs_per_prompt: int = 1
    rollout: bool = True
    rollout_log_prob_no_const: bool = False
    rollout_debug_mode: bool = False
    rollout_return_denoising_env: bool = False
    rollout_return_dit_trajectory: bool = True
    suppress_logs: bool = True

    def body(self) -> bytes:
        """The request as JSON."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True)
class RolloutAnswer:
    """What an engine says of one image."""

    latents: Tensor
    """[K,*D] float32: those of the request's `rollout_return_step_indices`, in their order."""
    logp: Tensor
    """[T] float64: the mean log-probability of each step over a latent's elements; of steps without noise anything."""
    sigmas: Tensor | None
    """[T+1] the engine's noise levels; None where it does not say."""


class PackedTensor(msgspec.Struct):
    """A tensor as safetensors."""

    data: bytes


class DitTrajectory(msgspec.Struct):
    """The part of a response with latents."""

    latents: PackedTensor | None = None
    sigmas: PackedTensor | None = None
    latent_step_indices: PackedTensor | None = None


class RolloutResponse(msgspec.Struct):
    """One image of a response; what else there is in it is skipped."""

    prompt: str
    seed: int
    rollout_log_probs: PackedTensor | None = None
    dit_trajectory: DitTrajectory | None = None


def longest_answer(request: RolloutRequest, shape: Sequence[int]) -> int:
    """Most bytes of the response to a request for latents of `shape`: all steps and the image in float64 in base64."""
    numbers = (request.num_inference_steps + 1) * prod(shape) + 3 * request.width * request.height
    return 2**20 + 11 * numbers


def read_answer(body: bytes, request: RolloutRequest, shape: Sequence[int]) -> RolloutAnswer:
    """The image of a response in msgpack or JSON, with latents of `shape`.

    Raises ValueError for anything else than one image as it was asked for, with finite latents.
    """
    # JSON's list begins with a bracket, and msgpack's with its length.
    decode = msgspec.json.decode if body[:1] == b"[" else msgspec.msgpack.decode
    try:
        found = decode(body, type=list[RolloutResponse])
    except (msgspec.DecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise ValueError(f"it is not the contract's: {error}") from error
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} images, but one was asked for")
    made = found[0]
    if (made.prompt, made.seed) != (request.prompt, request.seed):
        raise ValueError(f"it is of the prompt {made.prompt[:50]!r} and seed {made.seed}, not of those asked for")
    if made.dit_trajectory is None or made.dit_trajectory.latents is None:
        raise ValueError("it has no latents (dit_trajectory)")
    if made.rollout_log_probs is None:
        raise ValueError("it has no log-probabilities (rollout_log_probs)")
    logp = _tensor(made.rollout_log_probs, "log-probabilities").double()
    if tuple(logp.shape) != (request.num_inference_steps,):
        raise ValueError(f"it has log-probabilities {list(logp.shape)} for {request.num_inference_steps} steps")
    sigmas = made.dit_trajectory.sigmas
    return RolloutAnswer(
        _latents(made.dit_trajectory, request, shape),
        logp,
        None if sigmas is None else _tensor(sigmas, "sigmas").double(),
    )


def read_status(body: bytes) -> dict[str, Any]:
    """The JSON object that the other addresses answer with. Raises ValueError where it is none."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"it is no JSON object: {error}") from error


def _latents(trajectory: DitTrajectory, request: RolloutRequest, shape: Sequence[int]) -> Tensor:
    """[K,*D] the latents that were asked for."""
    assert trajectory.latents is not None
    latents = _tensor(trajectory.latents, "latents")
    asked, whole = request.rollout_return_step_indices, request.num_inference_steps + 1
    # Families whose engine counts frames have one of them: [C,1,H,W].
    if latents.ndim < 2 or [size for size in latents.shape[1:] if size > 1] != [size for size in shape if size > 1]:
        raise ValueError(
            f"it has latents {list(latents.shape)}, but expected were [K,{','.join(map(str, shape))}]: latents of "
            "another size or model, or packed into tokens"
        )
    if trajectory.latent_step_indices is not None:
        given = _tensor(trajectory.latent_step_indices, "latent_step_indices", floats=False).tolist()
    else:
        given = list(range(whole)) if len(latents) == whole else asked
    if len(given) != len(latents) or not set(asked) <= set(given):
        raise ValueError(f"it has {len(latents)} latents, of {len(given)} steps, but those of {asked} were asked for")
    latents = latents[[given.index(step) for step in asked]].reshape(len(asked), *shape).float()
    if not latents.isfinite().all():
        raise ValueError("it has latents that are not finite")
    return latents


def _tensor(packed: PackedTensor, what: str, floats: bool = True) -> Tensor:
    try:
        named = parse(packed.data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"its {what} are not safetensors: {error}") from error
    if list(named) != ["t"]:
        raise ValueError(f"its {what} are {len(named)} tensors, but must be one of the name t")
    if (named["t"].dtype in _FLOATS) != floats:
        raise ValueError(f"its {what} are of the type {named['t'].dtype}")
    return named["t"]
