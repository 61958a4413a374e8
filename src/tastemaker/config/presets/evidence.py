"""What has been measured of each preset. Nothing here imports torch.

A preset that is not in EVIDENCE, or whose settings change, has to be given a level again: it is about these settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["verified", "proxy", "not verified"]


@dataclass(frozen=True)
class Run:
    """Runs whose figures are in the repository."""

    page: str
    """Path of the page with the figures."""
    command: str
    """That makes them again."""
    seeds: int
    figure: str
    """Path of the curve, or of the images before and after."""


@dataclass(frozen=True)
class Evidence:
    """How far a preset is known to work.

    `verified`: runs with these very settings. `proxy`: runs of the same method on a reward of the same kind, with other
    settings or on a smaller model of the same kind. `not verified`: no run that would say anything.
    """

    level: Level
    note: str
    """What the runs showed; how the proxy's differ; or what is missing."""
    run: Run | None = None

    def __str__(self) -> str:
        if self.run is None:
            return self.level
        return f"{self.level}, {self.run.seeds} seed{'' if self.run.seeds == 1 else 's'}"


def _verified(run: Run, note: str) -> Evidence:
    return Evidence("verified", note, run)


def _proxy(run: Run, note: str) -> Evidence:
    return Evidence("proxy", note, run)


def _none(note: str) -> Evidence:
    return Evidence("not verified", note)


_RESULTS = "docs/results"
_DEMO = Run(f"{_RESULTS}/ddpo.md", "make demo-compressibility", 1, f"{_RESULTS}/before-after.png")
_BUSY_DEMO = Run(
    f"{_RESULTS}/ddpo.md", "make demo-incompressibility", 1, f"{_RESULTS}/before-after-incompressibility.png"
)
_CURVES = Run(f"{_RESULTS}/ddpo.md", "python benchmarks/curves.py --rounds 6", 3, f"{_RESULTS}/ddpo-curves.png")
_METHODS = Run(f"{_RESULTS}/methods.md", "python benchmarks/methods.py", 3, f"{_RESULTS}/methods.png")
_ALIGNPROP = Run(f"{_RESULTS}/alignprop.md", "python benchmarks/alignprop.py", 5, f"{_RESULTS}/alignprop.png")
_CLIP = Run(f"{_RESULTS}/bundled-clip.md", "python benchmarks/clip_score.py", 3, f"{_RESULTS}/clip-score.png")
_RELATIONS = Run(f"{_RESULTS}/b2.md", "python benchmarks/relations.py", 1, f"{_RESULTS}/relations.png")
_REMOVAL = Run(
    f"{_RESULTS}/concept-removal.md", "python benchmarks/concept_removal.py", 3, f"{_RESULTS}/concept-removal.png"
)
_THESIS = Run(f"{_RESULTS}/thesis.md", "python benchmarks/thesis.py --only 1,2", 1, f"{_RESULTS}/thesis.png")
_THESIS_MODELS = Run(
    f"{_RESULTS}/thesis.md", f"python benchmarks/thesis.py --only 3,4,5,6,7 --out {_RESULTS}/thesis-3-to-7", 1,
    f"{_RESULTS}/thesis-3-to-7.png",
)  # fmt: skip

_NEW = Run(
    f"{_RESULTS}/new-methods.md", "python benchmarks/new_methods.py --seeds 3 --only flow-grpo-fast,flow-dppo", 3,
    f"{_RESULTS}/new-methods.png",
)  # fmt: skip

_HALF = "measured with 64 images a round, half of the preset's"
_SMALL = "measured on the bundled model with its own settings; Stable Diffusion itself has not been trained here"
_REWARD = "no run with a reward of this kind, and none on Stable Diffusion"
_LIKELIHOOD = {
    "pg": f"+1.40 base deviations, judge 87 %: {_HALF}",
    "dpok": f"+1.11 base deviations, judge 81 %: {_HALF}",
    "grpo": f"+1.35 base deviations, judge 86 %: {_HALF}",
    "dpo": f"+0.44 base deviations, judge 97 %: {_HALF}",
    "ppo": f"+0.77 base deviations, judge 91 %: {_HALF}",
    "b2": f"+0.59 base deviations, judge 78 %: {_HALF}, and in 6 rounds of the preset's 8",
    "nft": f"+0.69 base deviations, judge 93 %: {_HALF}",
    "rwr": f"+0.52 base deviations, judge 93 %: {_HALF}",
    "rwr-sparse": f"+0.41 base deviations, judge 94 %: {_HALF}",
}

_FLOWS = {
    "sd35": (
        "flow-grpo-pickscore", "flow-grpo-ocr", "flow-grpo-fast-pickscore", "tempflow-grpo-pickscore",
        "grpo-guard-pickscore", "grpo-guard-ocr", "flow-dppo-pickscore", "awm-pickscore", "awm-ocr", "dgpo-ocr",
        "nft-pickscore", "nft-ocr",
    ),
    "flux": ("flow-grpo-pickscore", "flow-grpo-fast-pickscore"),
}  # fmt: skip
_FROM_PAIRS = ("mapo-sdxl", "mapo-sdxl-lora", "diffusion-kto-sd15")

EVIDENCE: dict[str, Evidence] = {
    "ddpo-compressibility": _verified(_DEMO, "+2.10 base deviations after 6 rounds; the judge's share falls to 77 %"),
    "ddpo-incompressibility": _verified(_BUSY_DEMO, "+2.71 base deviations after 8 rounds; the judge's share is 97 %"),
    "ddpo-compressibility-sf": _proxy(_CURVES, f"+1.34 base deviations, judge 60 %: {_HALF}, at a rate of 1e-2"),
    "ddpo-incompressibility-sf": _proxy(
        _CURVES, f"+1.17 base deviations, judge 79 %: {_HALF}, and in 6 rounds of the preset's 8"
    ),
    **{f"{method}-compressibility": _proxy(_METHODS, note) for method, note in _LIKELIHOOD.items()},
    "flow-grpo-fast-bundled-flow": _verified(_NEW, "+2.21 base deviations; the judge's share falls from 80 % to 21 %"),
    "flow-dppo-bundled-flow": _verified(_NEW, "+0.91 base deviations; the judge's share falls from 80 % to 60 %"),
    "grpo-fast-compressibility": _none("no curve of it is recorded"),
    "ddpo-clip": _verified(_CLIP, "right numbers 74 % -> 86 % on trained prompts, 70 % -> 82 % on unseen ones"),
    "ddpo-relations": _verified(_RELATIONS, "learns little: +0.17 base deviations, right relations 32 % -> 33 %"),
    "b2-relations": _verified(_RELATIONS, "learns little: +0.09 base deviations, right relations 32 % -> 34 %"),
    "alignprop-compressibility": _verified(
        _ALIGNPROP, "+2.01 base deviations where the judge's share is 80 %, at which the preset stops"
    ),
    "alignprop-incompressibility": _proxy(_ALIGNPROP, "measured on the opposite reward, alignprop-compressibility"),
    "alignprop-removal": _verified(_REMOVAL, "shows the circle 94 % -> 0 %, the other object 92 % -> 93 %"),
    "alignprop-clip": _verified(_CLIP, "right numbers 67 % -> 80 % on trained prompts, 55 % -> 74 % on unseen ones"),
    "draft-compressibility": _verified(
        _ALIGNPROP, "+1.31 base deviations where the judge's share is 80 % (K = 1, which is DRaFT-1 bit for bit)"
    ),
    **{
        name: _none("no curve of it is recorded; only alignprop and draft have one on this reward")
        for name in ("draft-lv-compressibility", "refl-compressibility", "direct-align-compressibility")
    },
    **{
        f"ddpo-{task}-sd14{kind}": _proxy(run, _SMALL)
        for task, run in (("compressibility", _DEMO), ("incompressibility", _BUSY_DEMO))
        for kind in ("", "-lora")
    },
    **{f"ddpo-{task}-sd14-sf": _proxy(_CURVES, _SMALL) for task in ("compressibility", "incompressibility")},
    **{
        f"ddpo-{task}-sd14{kind}": _none(_REWARD)
        for task in ("aesthetic", "alignment")
        for kind in ("", "-sf", "-lora")
    },
    **{
        f"rwr{kind}-{task}-sd14": _proxy(_METHODS, f"{_SMALL}{other}")
        for kind in ("", "-sparse")
        for task, other in (("compressibility", ""), ("incompressibility", ", and on the opposite reward"))
    },
    **{
        f"{method}-sd14-template{number}": _proxy(_RELATIONS, f"{_SMALL}, on prompts of the same three kinds")
        for method in ("b2", "ddpo")
        for number in (1, 2, 3)
    },
    "dpok-sd15": _none(_REWARD),
    "dpok-multi-sd15": _none(_REWARD),
    "d3po-sd15": _proxy(_METHODS, _SMALL),
    "thesis-target": _proxy(_THESIS, "a smaller pixel-space model and target, 96 rounds of the preset's 3,000"),
    "thesis-colour": _proxy(_THESIS, "a smaller pixel-space model, 40 rounds of the preset's 400"),
    "thesis-aesthetic": _proxy(
        _THESIS_MODELS, "a smaller pixel-space model and a made-up aesthetic score, 24 rounds of the preset's 500"
    ),
    "thesis-macaw": _proxy(
        _THESIS_MODELS, "a smaller pixel-space model and a simulated person, 24 rounds of the preset's 250"
    ),
    "thesis-backprop": _proxy(
        _THESIS_MODELS, "a smaller pixel-space model and a simulated person, 24 rounds of the preset's 750"
    ),
    "thesis-pink": _proxy(
        _THESIS_MODELS, "the bundled model and a simulated person's reward model, 16 rounds of the preset's 25,500"
    ),
    "thesis-pickscore": _none(
        "16 of its 20,850 rounds, on the bundled model and its CLIP, did not raise the reward (docs/results/thesis.md)"
    ),
    "alignprop-aesthetic-sd15": _none(_REWARD),
    "alignprop-hps-sd15": _none(_REWARD),
    "alignprop-sd15-gaussian": _none(_REWARD),
    "alignprop-compressibility-sd15": _proxy(_ALIGNPROP, _SMALL),
    "alignprop-removal-sd15": _proxy(_REMOVAL, f"{_SMALL}; there the judge takes OwlViT's place"),
    **{f"draft-{name}-sd15": _none(_REWARD) for name in ("1", "lv", "50")},
    "refl-sd14": _none(_REWARD),
    **{
        f"{method}-{model}": _none("no run with a reward of this kind, and none on this model")
        for model, methods in _FLOWS.items()
        for method in methods
    },
    **{name: _none("no run on this model, and none of the method") for name in _FROM_PAIRS},
}
