"""The mathematics of the losses: small pure functions, unreduced, float32 or better."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

Reduction = Literal["mean", "sum"]
KLEstimator = Literal["exact", "k1", "k3", "thesis"]


def gaussian_logp(x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Log-density [N] of x [N,*D] under a Gaussian; std broadcasts and must be greater than 0.

    `mean` averages over the elements of a latent, as DDPO and nearly all public code do, and `sum` is the joint
    log-probability (thesis §5.3). Clip ranges belong to one of them: a ratio within 1e-4 under `mean` is a joint
    ratio within exp(1e-4 D), for SD at 512 pixels (D = 16384) about [0.19, 5.2].
    """
    per_element = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    flat = per_element.flatten(1)
    return flat.mean(dim=1) if reduction == "mean" else flat.sum(dim=1)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective as a loss [N]: max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) (DDPO A.1)."""
    return (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))


def normalised_log_ratio(log_ratio: Tensor, divergence: Tensor, std: Tensor) -> Tensor:
    """(log r + KL) std, [N]: RatioNorm (GRPO-Guard, §4.1).

    `divergence` [N] is |mean - mean_old|^2 / (2 std^2), by which the log-ratio's mean lies below 0 at any step, and
    `std` [N] the deviation of the step's noise, by which its spread grows as the noise falls. What is left is linear in
    the move of the mean: the mean over elements of (mean - mean_old) eps, eps being the noise that was sampled.
    """
    return (log_ratio + divergence) * std


def divergence_mask(ratio: Tensor, advantage: Tensor, divergence: Tensor, limit: float) -> Tensor:
    """-A rho, [N], and 0 without a gradient for rows whose policy has left the trust region and still moves away.

    That is where the divergence from the sampling policy [N] is above the limit, and the ratio above 1 with A > 0, or
    below 1 with A < 0 (Flow-DPPO). There is no clip, and rows that would bring the policy back are kept.
    """
    leaves = (divergence > limit) & ((ratio - 1) * advantage > 0)
    return (-advantage * ratio).masked_fill(leaves, 0.0)


def score_function(logp: Tensor, advantage: Tensor) -> Tensor:
    """-A log p [N], whose gradient is the score-function estimator (DDPO Eq. 3)."""
    return -advantage * logp


def gaussian_kl(mean: Tensor, mean_ref: Tensor, std: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Exact KL [N] between two Gaussians [N,*D] of the same std: |mean difference|^2 / (2 std^2)."""
    per_element = (mean - mean_ref) ** 2 / (2 * std**2)
    flat = per_element.flatten(1)
    return flat.mean(dim=1) if reduction == "mean" else flat.sum(dim=1)


def kl_estimate(
    kind: KLEstimator, logp: Tensor, logp_ref: Tensor, mean: Tensor, mean_ref: Tensor, std: Tensor, reduction: Reduction
) -> Tensor:
    """Divergence [N] of the policy from the reference at sampled transitions (thesis Eq. 5.3; Schulman 2020).

    `exact` is the Gaussians' own. `k1` = log p - log q, unbiased, and `k3` = q/p - 1 - log(q/p), unbiased and never
    negative, need the sampled transition only, whose log-probabilities are `logp` [N] under the policy and `logp_ref`
    under the reference; `thesis` = p/q - 1 - log(p/q), as the thesis prints it, grows like exp(delta^2) for a shift of
    delta standard deviations where the divergence is delta^2 / 2. Under the reduction `mean` all of them are per
    element of a latent, k3 and thesis only to first order.

    Where they are part of a reward, a policy gradient makes of them for their own step, where the divergence has the
    slope delta: delta of k1, 0 of exact and of k3, and delta (exp(delta^2) - 1) of thesis.
    """
    if kind == "exact":
        return gaussian_kl(mean, mean_ref, std, reduction)
    log_ratio = logp - logp_ref
    if kind == "k1":
        return log_ratio
    difference = -log_ratio if kind == "k3" else log_ratio
    return difference.exp() - 1 - difference


def adaptive_kl(weight: float, measured: float, target: float, episodes: int, horizon: int) -> float:
    """The next weight of the divergence, from the one measured [nats an episode] (Ziegler et al. 2019, code).

    weight * (1 + clip(measured / target - 1, -0.2, 0.2) * episodes / horizon)
    """
    return weight * (1 + min(0.2, max(-0.2, measured / target - 1)) * episodes / horizon)


def clipped_value(value: Tensor, before: Tensor, target: Tensor, clip: float) -> Tensor:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2), [N] (thesis §5.3, after CleanRL)."""
    near = before + (value - before).clamp(-clip, clip)
    return 0.5 * (value - target).square().maximum((near - target).square())


def direct_clamp(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-A clip(rho, 1 - c, 1 + c), [N]: no gradient outside the range, whatever the sign of A (DPOK's code)."""
    return -advantage * ratio.clamp(1 - clip, 1 + clip)


def preference(margin: Tensor) -> Tensor:
    """-log sigmoid(margin), [N] (Bradley-Terry)."""
    return -logsigmoid(margin)


def step_dpo(log_ratio: Tensor, log_ratio_other: Tensor, beta: float, clip: float | None) -> Tensor:
    """-log sigmoid(beta (h - h')) [N], h the log-ratio of policy to reference at one step (D3PO).

    `clip` bounds both ratios to [1 - clip, 1 + clip] before the logarithm.
    """
    if clip is not None:
        low, high = math.log(1 - clip), math.log(1 + clip)
        log_ratio, log_ratio_other = log_ratio.clamp(low, high), log_ratio_other.clamp(low, high)
    return preference(beta * (log_ratio - log_ratio_other))


def mean_square(values: Tensor) -> Tensor:
    """Mean square [N] over the elements of [N,*D]: of a residual, the denoising loss."""
    return values.square().flatten(1).mean(dim=1)


def generalised_huber(error: Tensor, power: float, eps: float = 1e-10) -> Tensor:
    """((e + eps)^p - eps^p) / p of mean square residuals e [N]: e for p = 1 (AWM's code)."""
    return ((error + eps) ** power - eps**power) / power


def diffusion_dpo(
    error: Tensor, error_other: Tensor, ref: Tensor, ref_other: Tensor, beta: float, label: Tensor | None = None
) -> Tensor:
    """-log sigmoid(-beta / 2 ((e_w - e_l) - (e_w_ref - e_l_ref))) [N], e mean square residuals (Diffusion-DPO).

    With probabilities `label` [N] that the first image is the better one, the expected loss under them:
    -p log sigmoid(m) - (1 - p) log sigmoid(-m) of the margin m.
    """
    margin = -beta / 2 * ((error - error_other) - (ref - ref_other))
    if label is None:
        return preference(margin)
    return label * preference(margin) + (1 - label) * preference(-margin)


def margin_aware(error: Tensor, error_other: Tensor, beta: float, snr: float, length: int) -> Tensor:
    """e_w - beta log sigmoid(T (s(e_w) - s(e_l))), [N], with s(e) = snr e / (exp(snr e) - 1) (MaPO, code).

    s falls from 1 at an error of 0; T is the number of the process' times, `length`.
    """

    def score(values: Tensor) -> Tensor:
        scaled = (snr * values).clamp(min=1e-12)
        return scaled / scaled.expm1()

    return error + beta * preference(length * (score(error) - score(error_other)))


def prospect(gain: Tensor, beta: float, *, good: bool) -> Tensor:
    """1 - sigmoid(+-beta gain), [N], + for good images: one minus KTO's utility (Diffusion-KTO, Eq. 8
    with the sigmoid of §4.2).

    `gain` is by how much the denoising loss fell against the reference's, less the level of all.
    """
    return 1 - (beta * gain if good else -beta * gain).sigmoid()


def negative_aware(moved: Tensor, residual_old: Tensor, good: Tensor, beta: float, adaptive: bool) -> Tensor:
    """g |v+ - v|^2 + (1 - g) |v- - v|^2, mean over elements [N] (DiffusionNFT, Eq. 5).

    v+ = v_old + beta (v_theta - v_old) and v- = v_old - beta (v_theta - v_old). `moved` is v_theta - v_old,
    `residual_old` v_old - v (both [N,*D]), `good` [N] in [0,1] the probability that an image is one to imitate.
    `adaptive` divides each square by its mean size, through which no gradient goes, as the public code does.
    """

    def error(residual: Tensor) -> Tensor:
        square = mean_square(residual)
        return square / residual.detach().abs().flatten(1).mean(dim=1).clamp(min=1e-5) if adaptive else square

    return good * error(residual_old + beta * moved) + (1 - good) * error(residual_old - beta * moved)


Objective = Literal["reward", "distance", "hinge"]
"""Losses of reward backpropagation."""


def reward_loss(reward: Tensor, objective: Objective, target: float = 0.0) -> Tensor:
    """What is minimised where the reward's own gradient is followed, for rewards of any shape.

    `reward`: -R. `distance`: |R - target| (AlignProp's code for the aesthetic score, whose target of 10 is out of
    reach). `hinge`: max(0, target - R), which lets images be that are good enough (ReFL, with a target of 2).
    """
    if objective == "reward":
        return -reward
    return (target - reward).clamp(min=0) if objective == "hinge" else (reward - target).abs()
