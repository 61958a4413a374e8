"""The published settings of the methods since Flow-GRPO, on Stable Diffusion 3.5 medium and FLUX.1-dev.

GenEval is no reward of this package, so that the settings are those for PickScore and for text in images. The source of
every value is in docs/methods/paper-presets.md and tests/data/paper_presets_flow.yaml.
"""

from __future__ import annotations

from dataclasses import replace

from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.selection import All, NonZero
from tastemaker.algorithms.windows import Random, Whole
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.config.presets.preset import Preset
from tastemaker.config.schema import Advantage, Checkpoints, Config, Evaluation, Optimizer, Sampling, Speed
from tastemaker.models.tuning import Tuning

SD35, FLUX = "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SD35_TARGETS = tuple(f"attn.{name}" for name in _ATTENTION)
"""Without the second attention of SD 3.5's dual blocks."""
FLUX_TARGETS = (*SD35_TARGETS, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

FLOW_GRPO = Config(
    model=SD35,
    prompts="",
    reward="pick-score",
    rounds=2000,
    algorithm=GRPO(clip=1e-4, kl=0.01),
    advantage=Advantage(normalise="group", spread="round"),
    selection=NonZero(),
    sampling=Sampling(
        steps=10, eta=0.7, sde_type="flow-sde", guidance=4.5, samples=48 * 24, per_prompt=24, batch=9, height=512,
        width=512,
    ),
    optimizer=Optimizer(lr=3e-4, updates=2, rows=9, first_share=0.9, ema=0.987),
    tuning=Tuning(rank=32, alpha=64.0, targets=SD35_TARGETS),
    evaluation=Evaluation(every=60),
    precision="fp16",
    speed=Speed(tf32=True),
    checkpoint=Checkpoints(every=60),
)  # fmt: skip
"""9 of 10 steps are trained: the code takes int(0.99 x 10). Its average of the weights moves by 0.1 each 8 updates."""

FLOW_GRPO_FLUX = replace(
    FLOW_GRPO,
    model=FLUX,
    algorithm=GRPO(clip=1e-4, kl=0.0),
    sampling=replace(FLOW_GRPO.sampling, steps=6, eta=0.9, guidance=1.0, embedded_guidance=3.5, batch=3),
    optimizer=replace(FLOW_GRPO.optimizer, rows=3, first_share=0.83),
    tuning=Tuning(rank=64, alpha=128.0, targets=FLUX_TARGETS),
    precision="bf16",
    evaluation=Evaluation(every=30),
    checkpoint=Checkpoints(every=30),
)
"""5 of 6 steps."""

FAST = replace(
    FLOW_GRPO,
    algorithm=GRPO(clip=1e-5, kl=0.0),
    window=Random(3),
    sampling=replace(
        FLOW_GRPO.sampling, eta=0.8, sde_type="cps", guidance=1.0, samples=64 * 18, per_prompt=18, noise_outside=False
    ),
    optimizer=replace(FLOW_GRPO.optimizer, first_share=0.5),
)

FAST_FLUX = replace(
    FLOW_GRPO_FLUX,
    algorithm=GRPO(clip=1e-5, kl=0.0),
    advantage=replace(FLOW_GRPO.advantage, spread="group"),
    window=Random(3),
    sampling=replace(FLOW_GRPO_FLUX.sampling, eta=0.8, sde_type="cps", noise_outside=False),
    optimizer=replace(FLOW_GRPO_FLUX.optimizer, first_share=0.5),
)

TEMPFLOW = replace(
    FLOW_GRPO,
    rounds=9000,
    algorithm=GRPO(clip=1e-4, kl=0.001),
    advantage=Advantage(normalise="group", step_weights="noise"),
    window=Random(1),
    sampling=replace(FLOW_GRPO.sampling, branches=6, batch=24, noise_outside=False),
    optimizer=replace(FLOW_GRPO.optimizer, rows=6),
    evaluation=Evaluation(every=180),
    checkpoint=Checkpoints(every=100),
)
"""One branching point a round, where the code has nine; 4 roots of a prompt with 6 branches each."""

GUARD = replace(
    FLOW_GRPO,
    algorithm=GRPO(clip=4e-6, kl=0.0, ratio="normalised"),
    advantage=Advantage(normalise="group", step_weights="inverse-dt"),
    optimizer=replace(FLOW_GRPO.optimizer, lr=1e-4),
    evaluation=Evaluation(every=30),
    checkpoint=Checkpoints(every=30),
)

DPPO_PICKSCORE = replace(
    FLOW_GRPO,
    rounds=10000,
    algorithm=DPPO(max_divergence=1e-5, kl=0.0),
    selection=All(),
    window=Random(3),
    sampling=replace(
        FLOW_GRPO.sampling, guidance=1.0, samples=48 * 16, per_prompt=16, batch=8, noise_outside=False
    ),
    optimizer=replace(FLOW_GRPO.optimizer, weight_decay=0.0, rows=8, first_share=0.5, ema=0.0),
    speed=Speed(),
    precision="bf16",
)  # fmt: skip

AWM_PICKSCORE = replace(
    FLOW_GRPO,
    algorithm=AWM(clip=1.0, weighting="ghuber", ghuber_power=0.25, kl=0.0001, noises=6),
    selection=All(),
    window=Whole(),
    sampling=replace(
        FLOW_GRPO.sampling, steps=14, eta=0.0, sde_type="auto", guidance=1.0, samples=24 * 24, batch=6
    ),
    optimizer=replace(FLOW_GRPO.optimizer, updates=1, rows=12, first_share=0.86, ema=0.99),
    evaluation=Evaluation(every=50),
    checkpoint=Checkpoints(every=50),
)  # fmt: skip
"""12 of 14 steps' times: int(0.9 x 14). 6 times each of 2 images in a forward pass."""

AWM_OCR = replace(
    AWM_PICKSCORE,
    reward="ocr",
    algorithm=replace(AWM_PICKSCORE.algorithm, kl=0.003),
    sampling=replace(AWM_PICKSCORE.sampling, samples=72 * 24),
    optimizer=replace(AWM_PICKSCORE.optimizer, rows=18),
    evaluation=Evaluation(every=20),
    checkpoint=Checkpoints(every=20),
)

DGPO_OCR = replace(
    FLOW_GRPO,
    reward="ocr",
    algorithm=DGPO(beta=100.0, clip=0.01, kl=0.02, noises=4, guided=False),
    selection=All(),
    sampling=replace(
        FLOW_GRPO.sampling, eta=0.0, sde_type="auto", samples=8 * 16, per_prompt=16, batch=16
    ),
    optimizer=replace(FLOW_GRPO.optimizer, updates=1, rows=16, first_share=0.7),
    tuning=replace(FLOW_GRPO.tuning, rank=64, alpha=128.0),
    precision="bf16",
)  # fmt: skip
"""7 of 10 steps' times: those up to `trunc_steps`."""

NFT_PICKSCORE = replace(
    FLOW_GRPO,
    algorithm=NFT(beta=1.0, kl=0.0001, noises=9, sampling_decay=0.5),
    selection=All(),
    sampling=replace(FLOW_GRPO.sampling, eta=0.0, sde_type="auto", guidance=1.0),
    optimizer=replace(FLOW_GRPO.optimizer, updates=1, ema=0.9, first_share=1.0),
    evaluation=Evaluation(every=10),
    checkpoint=Checkpoints(every=30),
)

NFT_OCR = replace(
    NFT_PICKSCORE,
    reward="ocr",
    algorithm=replace(
        NFT_PICKSCORE.algorithm, beta=0.1, sampling_decay=0.999, sampling_decay_rate=0.0075, sampling_decay_after=75
    ),
    optimizer=replace(NFT_PICKSCORE.optimizer, updates=2),
)

_OURS = "the number of rounds (the code runs until it is stopped)"
_AVERAGE = "an average of the weights that moves at each update, and not by 0.1 at each eighth"
_FLOW_GRPO = (
    "Flow-GRPO's public code (yifan123/flow_grpo), config/grpo.py: {} over config/base.py. "
    f"Ours: {_OURS}, {_AVERAGE}{{}}"
)
_GUARD = (
    "GRPO-Guard's public code (in yifan123/flow_grpo, as a fork keeps it), config/grpo_guard.py: {} over "
    f"config/base.py. Ours: {_OURS}, {_AVERAGE}; and weights 1 / dt with the mean 1, to which the limit of the "
    "gradient's norm is relative"
)
_AWM = (
    "AWM's public code (scxue/advantage_weighted_matching), config/dgx_awm.py: {} over base_awm.py. "
    f"Ours: {_OURS}, Euler steps of the ODE where the code has SA-Solver, times drawn uniformly, no divergence from a "
    "moving average of the weights, and advantages that are not divided by 5"
)
_NFT = (
    "DiffusionNFT's public code (NVlabs/DiffusionNFT, as forks keep it), config/nft.py: {} over config/base.py. "
    f"Ours: {_OURS}, Euler steps where the code's solver has the order 2, and times drawn uniformly"
)
_FAST = (
    ", one window a round where the code draws one for each batch, and the Gaussians' own log-probabilities, where the "
    "code leaves out 1 / (2 std^2), a factor of 0.6 to 1 at these steps"
)
_PICK = "give --prompts (the code: its dataset/pickscore/train.txt)"
_OCR = "give --prompts (the code: its dataset/ocr/train.txt)"

_CONFIGS: dict[str, tuple[Config, str, str]] = {
    "flow-grpo-pickscore-sd35": (
        FLOW_GRPO, f"Stable Diffusion 3.5 medium, Flow-GRPO on PickScore; {_PICK}",
        _FLOW_GRPO.format("pickscore_sd3", ""),
    ),
    "flow-grpo-ocr-sd35": (
        replace(FLOW_GRPO, reward="ocr", algorithm=replace(FLOW_GRPO.algorithm, kl=0.04)),
        f"Stable Diffusion 3.5 medium, Flow-GRPO on text in images; {_OCR}", _FLOW_GRPO.format("general_ocr_sd3", ""),
    ),
    "flow-grpo-pickscore-flux": (
        FLOW_GRPO_FLUX, f"FLUX.1-dev, Flow-GRPO on PickScore; {_PICK}", _FLOW_GRPO.format("pickscore_flux", ""),
    ),
    "flow-grpo-fast-pickscore-sd35": (
        FAST, f"Stable Diffusion 3.5 medium, Flow-GRPO-Fast on PickScore, without guidance; {_PICK}",
        _FLOW_GRPO.format("pickscore_sd3_fast_nocfg", _FAST),
    ),
    "flow-grpo-fast-pickscore-flux": (
        FAST_FLUX, f"FLUX.1-dev, Flow-GRPO-Fast on PickScore; {_PICK}", _FLOW_GRPO.format("pickscore_flux_fast", _FAST),
    ),
    "tempflow-grpo-pickscore-sd35": (
        TEMPFLOW,
        f"Stable Diffusion 3.5 medium, TempFlow-GRPO on PickScore, one branching point a round; {_PICK}",
        "TempFlow-GRPO's public code (Shredded-Pork/TempFlow-GRPO), config/dgx.py: pickscore_sd3_pr, and "
        "scripts/train_sd3_pr.py. Ours: one branching point a round, where the code has nine, and nine times its 1,000 "
        "rounds; advantages of a root's 6 branches, where the code takes those of a prompt's 4 roots together; weights "
        "with the mean 1; and what its base.py, which was not seen, has as Flow-GRPO's code",
    ),
    "grpo-guard-pickscore-sd35": (
        GUARD, f"Stable Diffusion 3.5 medium, GRPO-Guard on PickScore; {_PICK}",
        _GUARD.format("pickscore_hps_sd3_ratio_norm"),
    ),
    "grpo-guard-ocr-sd35": (
        replace(GUARD, reward="ocr", algorithm=replace(GUARD.algorithm, clip=2e-6)),
        f"Stable Diffusion 3.5 medium, GRPO-Guard on text in images; {_OCR}",
        _GUARD.format("general_ocr_sd3_rationorm"),
    ),
    "flow-dppo-pickscore-sd35": (
        DPPO_PICKSCORE, f"Stable Diffusion 3.5 medium, Flow-DPPO on PickScore, without guidance; {_PICK}",
        "Flow-DPPO's public code (Tencent-Hunyuan/UniRL), examples/diffusion/sd3/sd3_flowdppo.yaml. Ours: three steps "
        "in a row, where the code draws three of the first half, and intervals of checkpoints and evaluations",
    ),
    "awm-pickscore-sd35": (
        AWM_PICKSCORE, f"Stable Diffusion 3.5 medium, AWM on PickScore, without guidance; {_PICK}",
        _AWM.format("pickscore_sd3_no_cfg_1node"),
    ),
    "awm-ocr-sd35": (
        AWM_OCR, f"Stable Diffusion 3.5 medium, AWM on text in images, without guidance; {_OCR}",
        _AWM.format("ocr_sd3_no_cfg_1node"),
    ),
    "dgpo-ocr-sd35": (
        DGPO_OCR, f"Stable Diffusion 3.5 medium, DGPO on text in images; {_OCR}",
        "DGPO's public code (Luo-Yihong/DGPO), config/dgpo.py: general_ocr_sd3_4gpu over config/base.py. Ours: "
        f"{_OURS}, Euler steps where the code has DPM-Solver++, times drawn uniformly, images of the trained weights, "
        f"where the code takes a moving average of them from the 200th update on, and {_AVERAGE}",
    ),
    "nft-pickscore-sd35": (
        NFT_PICKSCORE, f"Stable Diffusion 3.5 medium, DiffusionNFT on PickScore, without guidance; {_PICK}",
        _NFT.format("sd3_pickscore"),
    ),
    "nft-ocr-sd35": (
        NFT_OCR, f"Stable Diffusion 3.5 medium, DiffusionNFT on text in images, without guidance; {_OCR}",
        _NFT.format("sd3_ocr"),
    ),
}  # fmt: skip

PRESETS = {name: Preset(*made, evidence=EVIDENCE[name]) for name, made in _CONFIGS.items()}
