"""Every number of the presets, written by hand from its source."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from tastemaker.algorithms.advantage import percentile
from tastemaker.api.presets import preset
from tastemaker.config.presets import PRESETS
from tastemaker.config.presets.evidence import EVIDENCE
from tastemaker.data.prompts import BUILTIN as PROMPTS
from tastemaker.data.prompts import load_prompts
from tastemaker.rewards.registry import BUILTIN as REWARDS
from tastemaker.training.draws import planned_updates
from tastemaker.training.lr_schedule import multiple
from tastemaker.training.setup import run_window

ROOT = Path(__file__).parents[2]
TASKS = ("compressibility", "incompressibility")


ON_FLOWS = {"pickscore": "pick-score", "ocr": "ocr"}
MODELS = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd35": "stabilityai/stable-diffusion-3.5-medium",
    "flux": "black-forest-labs/FLUX.1-dev",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "bundled-flow": "bundled-flow",
}
BACKPROP = ("alignprop", "draft", "draft-lv", "refl", "direct-align")
METHODS = ("pg", "dpok", "grpo", "grpo-fast", "dpo", "ppo", "b2", "nft", "rwr", "rwr-sparse")


def test_names_of_all_presets():
    kinds = ("", "-sf", "-sd14", "-sd14-sf", "-sd14-lora")
    ddpo = {f"ddpo-{task}{kind}" for task in TASKS for kind in kinds}
    ddpo |= {f"ddpo-{task}{kind}" for task in ("aesthetic", "alignment") for kind in kinds[2:]}
    bundled = {f"{method}-compressibility" for method in METHODS} | {"ddpo-clip", "ddpo-relations", "b2-relations"}
    rwr = {f"rwr{kind}-{task}-sd14" for task in TASKS for kind in ("", "-sparse")}
    templates = {f"{method}-sd14-template{number}" for method in ("b2", "ddpo") for number in (1, 2, 3)}
    thesis = {f"thesis-{name}" for name in ("target", "colour", "aesthetic", "macaw", "pink", "pickscore")}
    gradient = {f"{method}-compressibility" for method in BACKPROP}
    gradient |= {"alignprop-incompressibility", "alignprop-removal", "alignprop-clip"}
    gradient |= {f"alignprop-{name}-sd15" for name in ("aesthetic", "hps", "compressibility", "removal")}
    gradient |= {"alignprop-sd15-gaussian", "draft-1-sd15", "draft-lv-sd15", "draft-50-sd15", "refl-sd14"}
    thesis |= {"thesis-backprop"}
    others = {"dpok-sd15", "dpok-multi-sd15", "d3po-sd15"}
    flows = {f"{method}-sd35" for method in ("flow-grpo-fast-pickscore", "tempflow-grpo-pickscore", "dgpo-ocr")}
    flows |= {f"{method}-{task}-sd35" for method in ("flow-grpo", "grpo-guard", "awm", "nft") for task in ON_FLOWS}
    flows |= {"flow-dppo-pickscore-sd35", "flow-grpo-pickscore-flux", "flow-grpo-fast-pickscore-flux"}
    flows |= {f"{method}-bundled-flow" for method in ("flow-grpo-fast", "flow-dppo")}
    pairs = {"mapo-sdxl", "mapo-sdxl-lora", "diffusion-kto-sd15"}
    assert set(PRESETS) == ddpo | bundled | rwr | templates | thesis | gradient | others | flows | pairs


@pytest.mark.parametrize("name", PRESETS)
def test_name_says_reward_and_model(name: str):
    config = PRESETS[name].config
    if "compress" in name:
        kind = "jpeg-surrogate" if config.pathwise else "jpeg"
        assert config.reward == (f"{kind}-incompressibility" if "incompress" in name else f"{kind}-compressibility")
    if name.endswith(("sd35", "flux")):
        assert config.reward == next(reward for task, reward in ON_FLOWS.items() if f"-{task}-" in name)
    named = [model for word, model in MODELS.items() if word in name]
    if named or not name.startswith("thesis"):
        assert config.model == (named or ["bundled"])[0]
    assert config.reward.partition(":")[0] in REWARDS or "give" in PRESETS[name].summary
    asked = config.prompts in PROMPTS or "--prompts" in PRESETS[name].summary
    assert asked or config.prompts.startswith("dataset:")
    assert PRESETS[name].summary
    assert PRESETS[name].source


def test_every_preset_has_a_level_of_evidence():
    assert set(EVIDENCE) == set(PRESETS)
    assert {preset.evidence.level for preset in PRESETS.values()} == {"verified", "proxy", "not verified"}


def command_exists(command: str) -> bool:
    """Whether a target of the Makefile, a script of benchmarks/ or a preset has this name."""
    program, *words = command.split()
    if program == "make":
        return re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    return program == "python" and (ROOT / words[0]).is_file()


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_verified_has_its_page_its_command_its_seeds_and_its_figure(name: str):
    evidence = PRESETS[name].evidence
    assert (evidence.run is None) == (evidence.level == "not verified")
    assert evidence.note
    if evidence.run is not None:
        run = evidence.run
        page = (ROOT / run.page).read_text()
        assert run.page.startswith("docs/results/")
        assert (ROOT / run.figure).is_file()
        assert Path(run.figure).stem in page or run.figure.startswith("docs/results/before-after")
        assert command_exists(run.command)
        assert run.command in " ".join(page.split())
        assert run.seeds >= 1
        assert str(evidence).startswith(evidence.level)
    if evidence.level == "verified":
        assert PRESETS[name].config.model in ("bundled", "bundled-flow")  # nothing else has been trained here


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "epochs", "normalise"), [("rwr", 5, "softmax"), ("rwr-sparse", 50, "percentile")])
def test_rwr(task: str, kind: str, epochs: int, normalise: str):
    """DDPO A.6: 10k samples, batches of 128, 400 updates: 5 passes over 10,240 or 50 over the best 1,024."""
    config = PRESETS[f"{kind}-{task}-sd14"].config
    assert (config.algorithm.name, config.algorithm.guided, config.algorithm.latents) == ("rwr", True, "sampler")
    assert config.optimizer.inner_epochs == epochs
    selected = torch.ones(config.sampling.samples, dtype=torch.bool)
    if kind == "rwr-sparse":  # a tenth of each prompt's images
        each = config.sampling.per_prompt
        rewards = torch.randperm(10240, generator=torch.Generator().manual_seed(0)).double()
        prompts = [place // each for place in range(10240)]
        selected = config.selection.chosen(percentile(rewards, prompts, config.advantage.percentile), prompts)
        assert int(selected.sum()) == 1024
    updates = planned_updates(config.optimizer, selected)
    assert updates == 400
    assert epochs * int(selected.sum()) // updates == 128
    assert (config.sampling.samples, config.rounds) == (10240, 10)
    assert (config.advantage.normalise, config.advantage.across) == (normalise, "prompt")
    assert (config.advantage.beta, config.advantage.percentile) == (0.2, 0.9)
    assert config.selection.name == ("nonzero" if kind == "rwr-sparse" else "all")
    assert (config.optimizer.lr, config.tuning.mode) == (1e-5, "full")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_b2(number: int):
    """B2-DiffuRL Table 6, with what its code adds."""
    b2, ddpo = (PRESETS[f"{method}-sd14-template{number}"].config for method in ("b2", "ddpo"))
    for config in (b2, ddpo):
        assert config.prompts == f"b2-template{number}-train"
        assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (20, 1.0, 5.0)
        o = config.optimizer
        assert (o.lr, o.weight_decay, o.betas, o.eps, o.clip_norm) == (1e-4, 1e-4, (0.9, 0.999), 1e-8, 1.0)
        assert (config.algorithm.name, config.algorithm.clip) == ("ddpo", 1e-4)
        assert (config.tuning.mode, config.tuning.rank) == ("lora", 4)
        assert (config.advantage.normalise, config.advantage.history, config.advantage.clip) == ("windowed", 8, 5.0)
    assert b2.sampling.samples // b2.sampling.branches == ddpo.sampling.samples == 8 * 32
    assert (b2.sampling.branches, b2.selection.name, b2.selection.threshold) == (3, "best-worst", 0.5)
    assert (b2.window.name, b2.window.initial) == ("backward", 14)
    # 25.6k reward queries: 100 rounds of 256, or 33 of 768, over which the window grows.
    assert ddpo.rounds * ddpo.sampling.samples == 25600
    assert b2.rounds == b2.window.rounds == round(25600 / 768)
    assert ddpo.optimizer.updates == 1  # batch 2, accumulation 128: 256 samples an update
    assert (b2.optimizer.images_per_update, b2.optimizer.inner_epochs) == (64, 2)  # batch 2, accumulation 32
    # The code goes on from pass to pass: of 300 selected images it makes 9 updates, and 24 are left over.
    assert planned_updates(b2.optimizer, torch.arange(768) < 300) == 600 // 64


# Table 6.2, columns 1, 2, 3, 4, 6, 7: steps, environments, KL, epochs, states of a minibatch on one
# device, learning rate, warm-up, eps, weight decay, norm, value coefficient, value's rate, guidance, updates an epoch.
THESIS = {
    # 32 environments x 25 steps = 800 states = 32 minibatches of 25, and so on.
    "target": (25, 32, 0, 3000, 25, 1e-7, 4096, 1e-5, 0.01, 0.5, 0.5, 1e-5, 1.0, 32),
    "colour": (32, 32, 0.02, 400, 32, 1e-6, 8192, 1e-8, 0, 0.5, 0.5, 1e-5, 1.0, 32),
    "aesthetic": (50, 32, 0.03, 500, 25, 5e-7, 8192, 1e-8, 0, 0.5, 0.5, 1e-5, 1.0, 64),
    "macaw": (25, 32, 0.02, 250, 25, 1e-6, 8192, 1e-8, 0, 0.5, 0.5, 1e-5, 1.0, 32),
    # Ten GPUs, each 8 environments x 16 steps = 128 states = 8 minibatches of 16, accumulated in twos: 4 updates.
    "pink": (16, 80, 0, 25500, 16, 1e-7, 4096, 1e-8, 0.01, 1.0, 0.1, 1e-6, 7.5, 4),
    # 8 x 50 = 400 states on each = 40 minibatches of 10, accumulated in fours: 10 updates.
    "pickscore": (50, 80, 0, 20850, 10, 5e-7, 4096, 1e-8, 0.01, 1.0, 0.1, 1e-6, 7.5, 10),
}


@pytest.mark.parametrize("name", THESIS)
def test_thesis(name: str):
    config = PRESETS[f"thesis-{name}"].config
    s, o, a = config.sampling, config.optimizer, config.algorithm
    found = (
        s.steps, s.samples, a.kl, config.rounds, o.rows, o.lr, o.warmup, o.eps, o.weight_decay, o.clip_norm,
        a.value_weight, a.value_lr, s.guidance, o.updates,
    )  # fmt: skip
    assert found == THESIS[name]
    assert (a.name, a.clip, a.value_clip, a.discount, a.smoothing) == ("ppo", 0.2, 0.2, 1.0, 0.95)
    assert (a.value_warmup, a.kl_estimator, a.kl_target) == (1024, "exact", None)
    assert (s.eta, s.log_prob, o.minibatch, config.tuning.mode) == (1.0, "sum", "states", "full")
    assert (config.advantage.normalise, config.advantage.clip) == ("base" if s.samples == 80 else "none", None)
    assert (config.precision, config.speed.tf32) == (("fp16", True) if s.samples == 80 else ("fp32", False))
    assert a.value == ("cnn" if name == "target" else "unet")


def test_the_thesis_third_experiment_learns_at_2e_7_for_100_epochs():
    """§6.6.1; the table's warm-up of 8192 updates, 64 an epoch, goes on beside it."""
    config = PRESETS["thesis-aesthetic"].config
    rate = lambda update: config.optimizer.lr * multiple(config, update)  # noqa: E731
    assert rate(6399) == pytest.approx(2e-7 * 6400 / 8193)
    assert rate(6400) == pytest.approx(5e-7 * 6401 / 8193)
    assert rate(8192) == rate(31999) == 5e-7


def test_the_thesis_seventh_experiment_does_not_train_on_what_it_is_evaluated_on():
    config = PRESETS["thesis-pickscore"].config
    assert config.prompts == "dataset:yuvalkirstain/pickapic_v1_no_images"
    assert (config.evaluation.unseen, config.evaluation.prompts, config.evaluation.hold_out) == (
        "thesis-diverse", 24, True
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "samples", "states", "weight", "kl", "rounds"),
    # batch 4 or 2, accumulation 12, 5 updates a round; 10,000 and 100,000 updates
    [("dpok-sd15", 10, 48, 10.0, 0.01, 2000), ("dpok-multi-sd15", 6, 24, 1000.0, 0.1, 20000)],
)
def test_dpok(name: str, samples: int, states: int, weight: float, kl: float, rounds: int):
    """The public code's README.md: for a single prompt, and for multiple prompts on one of its GPUs."""
    config = PRESETS[name].config
    a, o = config.algorithm, config.optimizer
    assert (a.clip, a.clamp, a.reward_weight, a.kl, a.divergence) == (1e-4, "direct", weight, kl, "noise")
    assert (a.value, a.value_lr, config.advantage.normalise) == ("mlp", 1e-4, "none")
    assert (a.value_batch, a.value_updates, a.value_clip_norm, a.value_text) == (5 * 256, 1, None, "pooled")
    assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (50, 1.0, 7.5)
    assert (o.lr, o.weight_decay, o.clip_norm, o.updates, config.rounds) == (1e-5, 0.0, 0.1, 5, rounds)
    assert (o.minibatch, config.sampling.samples) == ("states", samples)
    assert o.timestep_fraction * samples * 50 / o.updates == pytest.approx(states)
    if name == "dpok-sd15":
        assert load_prompts(config.prompts).prompts == ("A green colored rabbit.",)


def test_d3po():
    """The public code: 2 batches of 10 pairs an epoch, an update for each pair, 400 epochs: 8,000 updates."""
    config = PRESETS["d3po-sd15"].config
    assert (config.algorithm.beta, config.algorithm.clip, config.algorithm.reference) == (0.1, 0.1, "base")
    assert (config.optimizer.lr, config.rounds) == (3e-5, 400)
    assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (20, 1.0, 5.0)
    assert (config.sampling.per_prompt, config.sampling.branches, config.window.name) == (2, 2, "whole")  # one x_T
    assert (config.sampling.samples, config.optimizer.updates) == (2 * 20, 20)
    assert config.rounds * config.optimizer.updates * config.optimizer.inner_epochs == 8000


@pytest.mark.parametrize("task", TASKS)
def test_paper(task: str):
    config = PRESETS[f"ddpo-{task}-sd14"].config
    assert config.prompts == "imagenet-animals"  # DDPO §6.1: all 398 animals of ImageNet-1000
    assert config.rounds == 200  # JAX num_train_epochs; A.5's 50k samples are 195 rounds of 256
    assert config.tuning.mode == "full"  # official results are of the full U-Net
    assert config.tuning.gradient_checkpointing
    # DDPO A.6, column DDPO_IS
    assert config.sampling.steps == 50
    assert config.sampling.eta == 1.0  # "Ancestral" (DDPO A.6) is DDIM with eta = 1
    assert config.sampling.guidance == 5.0
    assert config.sampling.samples == 256
    assert config.sampling.per_prompt == 1  # DDPO §6.1: prompts drawn uniformly
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.weight_decay == 1e-4
    assert config.optimizer.clip_norm == 1.0
    assert config.optimizer.updates == 4  # minibatches of 64 out of 256
    assert config.optimizer.inner_epochs == 1  # PT and JAX configs
    assert config.optimizer.timestep_fraction == 1.0  # A.1: gradients accumulate over all timesteps of a sample
    assert config.algorithm.estimator == "is"
    assert config.algorithm.clip == 1e-4
    # ddpo-pytorch's config/dgx.py
    assert config.advantage.normalise == "per-prompt"
    assert config.advantage.buffer == 16
    assert config.advantage.min_count == 16
    assert config.advantage.clip == 5.0


@pytest.mark.parametrize("task", TASKS)
def test_paper_score_function(task: str):
    config = PRESETS[f"ddpo-{task}-sd14-sf"].config
    # DDPO A.6, column DDPO_SF: batch 256 of 256 samples, one update
    assert config.algorithm.estimator == "sf"
    assert config.optimizer.updates == 1
    assert config.sampling.samples == 256
    assert config.optimizer.lr == 1e-5
    assert config.rounds == 200


@pytest.mark.parametrize(
    ("task", "prompts", "reward", "samples"),
    [
        ("aesthetic", "ddpo-animals", "", 256),
        ("alignment", "ddpo-activities", "vlm-bertscore:llava-hf/llava-1.5-7b-hf", 288),
    ],
)
def test_the_papers_other_tasks(task: str, prompts: str, reward: str, samples: int):
    """DDPO §6.1 and A.6; ddpo-pytorch, config/dgx.py."""
    paper, sf, code = (PRESETS[f"ddpo-{task}-sd14{kind}"].config for kind in ("", "-sf", "-lora"))
    for config in (paper, sf, code):
        assert (config.prompts, config.reward) == (prompts, reward)
        assert (config.advantage.buffer, config.advantage.min_count) == (32, 16)
    compressibility = PRESETS["ddpo-compressibility-sd14"].config
    assert (paper.optimizer, paper.sampling) == (compressibility.optimizer, compressibility.sampling)
    assert (sf.optimizer.updates, sf.algorithm.estimator) == (1, "sf")
    # 8 GPUs x 8 x 4 and (8 x 4) / (4 x 4); 6 GPUs x 8 x 6 and (8 x 6) / (4 x 6)
    assert (code.sampling.samples, code.optimizer.updates, code.optimizer.rows) == (samples, 2, 4)
    assert (code.rounds, code.optimizer.lr, code.tuning.mode) == (200, 3e-4, "lora")


@pytest.mark.parametrize("task", TASKS)
def test_public_code(task: str):
    config = PRESETS[f"ddpo-{task}-sd14-lora"].config
    # ddpo-pytorch, config/dgx.py; its network_alpha of None is a scale of 1
    assert config.tuning.mode == "lora"
    assert config.tuning.rank == 4
    assert config.tuning.alpha is None
    assert config.tuning.targets == ("to_q", "to_k", "to_v", "to_out.0")
    assert config.optimizer.lr == 3e-4
    assert config.rounds == 100
    assert config.sampling.samples == 256  # 8 GPUs x 8 x 4
    assert config.sampling.batch == 8
    assert config.optimizer.updates == 4  # (8 x 4) / (4 x 2)
    assert config.optimizer.rows == 4
    assert config.algorithm.estimator == "is"
    assert config.algorithm.clip == 1e-4
    assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (50, 1.0, 5.0)
    assert (config.advantage.buffer, config.advantage.min_count, config.advantage.clip) == (16, 16, 5.0)


@pytest.mark.parametrize("task", TASKS)
def test_bundled(task: str):
    config = PRESETS[f"ddpo-{task}"].config
    score_function = PRESETS[f"ddpo-{task}-sf"].config
    # research/bundled-model.md, "First RL loops on it": 64 samples, 8 prompts, 20 steps, guidance 5, LoRA rank 4
    assert config.sampling.samples // config.sampling.per_prompt == 8
    assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (20, 1.0, 5.0)
    assert (config.tuning.mode, config.tuning.rank) == ("lora", 4)
    assert (config.algorithm.estimator, score_function.algorithm.estimator) == ("is", "sf")
    assert (config.optimizer.updates, score_function.optimizer.updates) == (4, 1)


def test_grpo_fast():
    """flow_grpo's README and geneval_sd3_fast_nocfg: a window of 2 steps among the first half, noise there alone, one
    root of each prompt, all images of a prompt from it."""
    config = PRESETS["grpo-fast-compressibility"].config
    assert (config.window.name, config.window.size, config.optimizer.first_share) == ("random", 2, 0.5)
    assert config.sampling.branches == config.sampling.per_prompt == 16
    assert not config.sampling.noise_outside
    assert (config.advantage.normalise, config.selection.name) == ("group", "nonzero")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_the_bundled_model_asks_for_as_many_rewards(method: str):
    base, config = PRESETS["ddpo-compressibility"].config, PRESETS[f"{method}-compressibility"].config
    assert config.algorithm.name == {"b2": "ddpo", "rwr-sparse": "rwr", "grpo-fast": "grpo"}.get(method, method)
    assert (config.sampling.samples, config.prompts, config.tuning) == (128, base.prompts, base.tuning)


def test_alignprop():
    """AlignProp §4.1, A.1: 7 epochs of 256 images in batches of 128 (14 updates), 50 DDIM steps, w 7.5, lr 1e-3."""
    config = PRESETS["alignprop-aesthetic-sd15"].config
    assert (config.rounds, config.optimizer.updates, config.sampling.samples) == (7, 2, 256)
    assert (config.sampling.steps, config.sampling.eta, config.sampling.guidance) == (50, 0.0, 7.5)
    assert (config.optimizer.lr, config.tuning.rank, config.prompts) == (1e-3, 4, "alignprop-animals")
    assert (config.algorithm.truncation, config.algorithm.objective, config.algorithm.target) == (
        "uniform", "distance", 10.0,
    )  # fmt: skip
    # The limit of the norm is that of the public codes, of a loss that is multiplied by 0.01.
    for name in ("aesthetic", "hps", "compressibility", "removal"):
        own = PRESETS[f"alignprop-{name}-sd15"].config
        assert (own.algorithm.scale, own.optimizer.clip_norm, own.optimizer.weight_decay) == (0.01, 5.0, 0.1)
        assert own.algorithm.images_per_draw is None
        assert own.prompts == ("" if name in ("hps", "removal") else "alignprop-animals")
        assert ("--prompts" in PRESETS[f"alignprop-{name}-sd15"].summary) == (own.prompts == "")
    second = PRESETS["alignprop-sd15-gaussian"].config
    assert (second.algorithm.scale, second.algorithm.images_per_draw) == (0.01, 8)
    # Its first step that learns is 42 of 50 in the mean.
    assert (second.algorithm.last, second.algorithm.spread) == (50 - 42, 5.0)
    assert (second.sampling.eta, second.sampling.guidance, second.optimizer.clip_norm) == (1.0, 5.0, 1.0)


def test_draft_refl_and_the_thesis_fifth_experiment():
    draft = PRESETS["draft-lv-sd15"].config
    assert (draft.algorithm.last, draft.algorithm.noises, draft.tuning.rank) == (1, 2, 8)
    assert (draft.optimizer.lr, draft.optimizer.weight_decay, draft.sampling.samples, draft.rounds) == (
        4e-4,
        0.1,
        4,
        2000,
    )
    assert PRESETS["draft-50-sd15"].config.algorithm.last is None
    refl = PRESETS["refl-sd14"].config
    assert (refl.sampling.steps, refl.sampling.eta, refl.algorithm.guided) == (40, 1.0, False)
    assert int(refl.algorithm.earliest * 40) == 30
    assert (refl.algorithm.target, refl.algorithm.scale, refl.optimizer.lr) == (2.0, 1e-3, 1e-5)
    # 8 GPUs, 4 forward batches of 2 images on each: 32 draws of the step an update.
    assert refl.sampling.samples // refl.algorithm.images_per_draw == 32
    assert (refl.rounds * refl.optimizer.updates, refl.sampling.samples, refl.tuning.mode) == (100, 64, "full")
    thesis = PRESETS["thesis-backprop"].config
    assert (thesis.algorithm.truncation, thesis.algorithm.last, thesis.algorithm.kl) == ("fixed", None, 0.0)
    assert (thesis.sampling.steps, thesis.sampling.samples, thesis.optimizer.rows) == (25, 32, 4)
    assert (thesis.optimizer.lr, thesis.optimizer.warmup, thesis.optimizer.weight_decay) == (1e-6, 100, 0.01)
    assert (thesis.rounds, thesis.optimizer.updates, thesis.tuning.mode) == (750, 1, "full")


@pytest.mark.parametrize("method", ["flow-grpo-fast", "flow-dppo"])
def test_presets_on_the_flow_transformer_are_what_was_measured(method: str, monkeypatch: pytest.MonkeyPatch):
    """The settings of benchmarks/new_methods.py, whose figures their evidence names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    new_methods = importlib.import_module("new_methods")
    measured = preset(*new_methods.BASE, *new_methods.METHODS[method])
    assert measured == PRESETS[f"{method}-bundled-flow"].config


def test_the_flow_presets_train_as_many_steps_as_their_codes():
    """int(0.99 x 10) and int(0.99 x 6) steps of Flow-GRPO's, int(0.9 x 14) times of AWM's, the first 7 of DGPO's 10; of
    a window its size."""
    expected = {
        "flow-grpo-pickscore-sd35": 9, "flow-grpo-pickscore-flux": 5, "grpo-guard-ocr-sd35": 9,
        "flow-grpo-fast-pickscore-sd35": 3, "flow-grpo-fast-pickscore-flux": 3, "tempflow-grpo-pickscore-sd35": 1,
        "flow-dppo-pickscore-sd35": 3, "awm-pickscore-sd35": 12, "dgpo-ocr-sd35": 7, "nft-pickscore-sd35": 10,
    }  # fmt: skip
    for name, steps in expected.items():
        config = PRESETS[name].config
        assert len(run_window(config).steps(range(config.sampling.steps), 1)) == steps, name
