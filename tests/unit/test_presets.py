"""Every number of the presets, written by hand from its source."""

from __future__ import annotations

import pytest

from tastemaker.prompts import BUILTIN as PROMPTS
from tastemaker.rewards.registry import BUILTIN as REWARDS
from tastemaker.training.presets import PRESETS

TASKS = ("compressibility", "incompressibility")


def test_names_of_all_presets():
    kinds = ("", "-sf", "-sd14", "-sd14-sf", "-sd14-lora")
    assert set(PRESETS) == {f"ddpo-{task}{kind}" for task in TASKS for kind in kinds}


@pytest.mark.parametrize("name", PRESETS)
def test_name_says_reward_and_model(name: str):
    config = PRESETS[name].config
    assert config.reward == ("jpeg-incompressibility" if "incompress" in name else "jpeg-compressibility")
    assert config.model == ("CompVis/stable-diffusion-v1-4" if "sd14" in name else "bundled")
    assert config.reward in REWARDS
    assert config.prompts in PROMPTS
    assert PRESETS[name].summary
    assert PRESETS[name].source


@pytest.mark.parametrize("task", TASKS)
def test_paper(task: str):
    config = PRESETS[f"ddpo-{task}-sd14"].config
    assert config.prompts == "imagenet-animals"  # DDPO §6.1: all 398 animals of ImageNet-1000
    assert config.rounds == 200  # methods.md §2.2: JAX num_train_epochs; A.5's 50k samples are 195 rounds of 256
    assert config.tuning.mode == "full"  # methods.md §1.6: official results are of the full U-Net
    assert config.tuning.gradient_checkpointing
    # DDPO A.6, column DDPO_IS
    assert config.sampling.steps == 50
    assert config.sampling.eta == 1.0  # "Ancestral": methods.md §1.1
    assert config.sampling.guidance == 5.0
    assert config.sampling.samples == 256
    assert config.sampling.per_prompt == 1  # DDPO §6.1: prompts drawn uniformly
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.weight_decay == 1e-4
    assert config.optimizer.clip_norm == 1.0
    assert config.optimizer.updates == 4  # minibatches of 64 out of 256
    assert config.optimizer.inner_epochs == 1  # methods.md §2.2: PT and JAX configs
    assert config.optimizer.timestep_fraction == 1.0  # A.1: gradients accumulate over all timesteps of a sample
    assert config.algorithm.estimator == "is"
    assert config.algorithm.clip == 1e-4
    # methods.md §1.7 and §10 row 9: ddpo-pytorch's config/dgx.py
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


@pytest.mark.parametrize("task", TASKS)
def test_public_code(task: str):
    config = PRESETS[f"ddpo-{task}-sd14-lora"].config
    # methods.md §2.2, "PT dgx presets"; rank and alpha: §1.6 (network_alpha None is scale 1)
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
