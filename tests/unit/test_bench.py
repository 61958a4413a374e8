"""`tastemaker bench`: what the floor counts, where traced seconds go, and what is printed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tastemaker import types
from tastemaker.algorithms.alignprop import AlignProp
from tastemaker.algorithms.awm import AWM
from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.dgpo import DGPO
from tastemaker.algorithms.direct_align import DirectAlign
from tastemaker.algorithms.dpo import DPO
from tastemaker.algorithms.dpok import DPOK
from tastemaker.algorithms.dppo import DPPO
from tastemaker.algorithms.draft import DRaFT
from tastemaker.algorithms.grpo import GRPO
from tastemaker.algorithms.nft import NFT
from tastemaker.algorithms.online_diffusion_dpo import OnlineDiffusionDPO
from tastemaker.algorithms.ppo import PPO
from tastemaker.algorithms.refl import ReFL
from tastemaker.algorithms.rwr import RWR
from tastemaker.algorithms.windows import Backward, Whole
from tastemaker.benchmarking import bench, floor, trace
from tastemaker.benchmarking.trace import FORWARD, PARTS, TRAIN
from tastemaker.cli import bench as verb
from tastemaker.cli.main import main
from tastemaker.config.presets import PRESETS
from tastemaker.diffusion import losses, sampler, sde
from tastemaker.evaluation import metrics, scoring
from tastemaker.models.compiling import StaticRows, in_full_calls
from tastemaker.rewards.base import as_reward
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup
from tastemaker.training.plan import Calls
from tastemaker.training.session import Session
from tastemaker.training.setup import start

PRESET = "ddpo-compressibility"
# Batches that do not divide: 6 images by 4, and 3 of each update with 3 of 4 steps trained, 9 rows by 4.
SMALL = (
    "sampling.samples=6", "sampling.per_prompt=3", "sampling.batch=4", "sampling.steps=4", "optimizer.updates=2",
    "optimizer.rows=4", "optimizer.first_share=0.75", "optimizer.lr=1e-4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    return [PRESET, "--model", str(checkpoint), *SMALL]


@pytest.fixture
def session(words: list[str], tmp_path: Path) -> Session:
    return start(verb.read(verb.BenchArgs, words, "bench")[0].settings, tmp_path, State())


class Clock:
    """Goes on when it is told to, and not by itself: how busy the machine is changes no figure."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


class Recorder:
    """Counts the network's calls by their rows, as the run really makes them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.forward: dict[int, int] = {}
        self.backward: dict[int, int] = {}
        network.register_forward_pre_hook(self._note)

    def _note(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        book = self.backward if torch.is_grad_enabled() else self.forward
        book[len(inputs[0])] = book.get(len(inputs[0]), 0) + 1


# ---------------------------------------------------------------- the floor


def test_the_floor_counts_the_calls_of_a_round_by_hand(session: Session):
    # Sampling: 4 steps x batches of 4 and 2 images. Training: 2 updates x (4, 4, 1) rows. Guidance doubles the rows.
    assert floor.calls_of_round(session).network == Calls({8: 4, 4: 4}, {8: 4, 2: 2})


@pytest.mark.parametrize(
    ("guidance", "fraction", "epochs", "images"),
    [(5.0, 1.0, 1, None), (1.0, 1.0, 2, None), (5.0, 0.5, 1, None), (1.0, 1.0, 2, 5)],
    ids=["demo", "plain", "part", "images"],
)
def test_a_round_makes_no_other_calls_than_the_floor_s(
    words: list[str], tmp_path: Path, guidance: float, fraction: float, epochs: int, images: int | None
):
    settings = verb.read(verb.BenchArgs, words, "bench")[0].settings
    settings = replace(
        settings,
        sampling=replace(settings.sampling, guidance=guidance),
        optimizer=replace(
            settings.optimizer, timestep_fraction=fraction, inner_epochs=epochs, images_per_update=images
        ),
    )
    session = start(settings, tmp_path, State())
    recorder = Recorder(session.model.network)
    rounds.one_round(session)
    assert floor.calls_of_round(session).network == Calls(recorder.forward, recorder.backward)


@dataclass(frozen=True)
class Case:
    """Settings whose rounds ask more than the network about the rows that learn."""

    algorithm: Any
    sampling: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    window: Any = field(default_factory=Whole)
    normalise: str = "round"


CASES = {
    "grpo": Case(GRPO()),
    "dppo": Case(DPPO(kl=0.1)),
    "dpok": Case(DPOK(value="none")),
    "dpok-value": Case(DPOK(value="mlp", value_batch=300, value_updates=2)),
    "dpok-joint": Case(DPOK(value="mlp", value_batch=None)),
    "ppo-exact": Case(PPO(kl=0.1, kl_estimator="exact", value="conv"), optimizer={"inner_epochs": 2}),
    "ppo-k1": Case(PPO(kl=0.1, kl_estimator="k1", value="conv")),
    "rwr": Case(RWR(noises=3), normalise="softmax"),
    "nft": Case(NFT(noises=3, kl=0.1)),
    "awm": Case(AWM(noises=2, kl=0.1, guided=False)),
    "dgpo": Case(DGPO(noises=2)),
    "dpo": Case(DPO()),
    "online": Case(OnlineDiffusionDPO(noises=2, pairs="best-worst")),
    "branches": Case(DDPO(), {"per_prompt": 3, "branches": 3, "batch": 3}, window=Backward()),
    "engine-like": Case(GRPO(), {"recompute_log_prob": True, "guidance": 1.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_floor_counts_references_branches_and_value_networks(words: list[str], tmp_path: Path, name: str):
    case, settings = CASES[name], verb.read(verb.BenchArgs, words, "bench")[0].settings
    settings = replace(
        settings, algorithm=case.algorithm, window=case.window,
        sampling=replace(settings.sampling, **case.sampling),
        optimizer=replace(settings.optimizer, **({"first_share": 1.0} | case.optimizer)),
        advantage=replace(settings.advantage, normalise=case.normalise), reward="soft-colourfulness",
    )  # fmt: skip
    session = start(settings, tmp_path, State())
    needed, network = floor.calls_of_round(session), Recorder(session.model.network)
    value = None if session.task.value is None else Recorder(session.task.value)
    rounds.one_round(session)
    assert needed.network == Calls(network.forward, network.backward)
    assert needed.value == (Calls({}, {}) if value is None else Calls(value.forward, value.backward))


def test_the_time_of_a_value_network_is_part_of_the_floor(words: list[str], tmp_path: Path, clock: Clock):
    """3 rows of estimates at 4, 4, .. and 2 updates' rows at 4, 4, ..: each call takes 100 ms."""
    settings = verb.read(verb.BenchArgs, words, "bench")[0].settings
    session = start(replace(settings, algorithm=PPO(kl=0.0, value="conv")), tmp_path, State())
    assert session.task.value is not None
    session.task.value.register_forward_pre_hook(lambda *_: clock.sleep(0.1))
    # 18 rows estimated in calls of 4, 4, 4, 4, 2; two updates of 9 rows in 4, 4, 1.
    assert floor.measure_floor(session, floor.calls_of_round(session)).value == pytest.approx((5 + 2 * 3) * 0.1)


def test_what_fills_a_compiled_call_up_is_no_part_of_the_floor(session: Session, clock: Clock):
    """A call of 2 rows that is made with 8 takes 0.8 s, of which a quarter is needed."""
    session.static = StaticRows((8,), (8,))
    session.model.predict = in_full_calls(session.model.predict, session.static)
    session.model.network.register_forward_pre_hook(lambda _, inputs: clock.sleep(0.1 * len(inputs[0])))
    found = floor.measure_floor(session, floor.Needed(Calls({8: 1}, {2: 3}), Calls({}, {})))
    assert found.forward == pytest.approx(0.8)
    assert found.backward == pytest.approx(3 * 0.2)


@pytest.mark.parametrize(
    "algorithm",
    [
        AlignProp(checkpointing="none"), AlignProp(checkpointing="none", kl=0.1),
        AlignProp(checkpointing="none", truncation="per-step"),
        AlignProp(checkpointing="none", images_per_draw=1),
        DRaFT(checkpointing="none", last=2), DRaFT(checkpointing="none", noises=2),
        DRaFT(checkpointing="none", noises=1, ordinary=True), ReFL(checkpointing="none"),
        DirectAlign(checkpointing="none", noises=2),
    ],
)  # fmt: skip
def test_the_floor_of_methods_that_follow_the_gradient(words: list[str], tmp_path: Path, algorithm: Any):
    settings = verb.read(verb.BenchArgs, words, "bench")[0].settings
    sampling = replace(settings.sampling, eta=0.0)
    settings = replace(settings, algorithm=algorithm, reward="soft-colourfulness", sampling=sampling)
    session = start(settings, tmp_path, State())
    needed, recorder = floor.calls_of_round(session).network, Recorder(session.model.network)
    rounds.one_round(session)
    assert needed.backward == recorder.backward
    assert {rows: count for rows, count in needed.forward.items() if count} == recorder.forward


def test_the_floor_of_edict_has_both_calls_of_a_step_and_not_those_of_the_inversion(words: list[str], tmp_path: Path):
    settings = verb.read(verb.BenchArgs, words, "bench")[0].settings
    algorithm = AlignProp(checkpointing="edict", truncation="fixed", last=2)
    settings = replace(
        settings, algorithm=algorithm, reward="soft-colourfulness", sampling=replace(settings.sampling, eta=0.0)
    )
    session = start(settings, tmp_path, State())
    needed, recorder = floor.calls_of_round(session).network, Recorder(session.model.network)
    rounds.one_round(session)
    # Two updates of 3 images with guidance, 4 steps of which the second and third learn: 2 x 2 calls without graph in
    # each, and as many with one. The forward pass has no graph, and the inversion goes back over the last step too.
    assert needed == Calls({6: 8}, {6: 8})
    assert recorder.backward == {6: 8}
    assert recorder.forward == {6: 2 * (2 * 4 + 2)}


def test_the_floor_is_the_bare_call_times_its_count(session: Session, clock: Clock):
    """A network that takes 100 ms: 8 calls without gradient, 6 with."""
    recorder = Recorder(session.model.network)
    session.model.network.register_forward_pre_hook(lambda *_: clock.sleep(0.1))
    found = floor.measure_floor(session, floor.calls_of_round(session))
    assert found.forward == pytest.approx(8 * 0.1)
    assert found.backward == pytest.approx(6 * 0.1)
    assert found.total == found.forward + found.backward
    # Each shape several times, whatever its count, and one to warm up.
    assert recorder.forward == {8: floor.CALLS + 1, 4: floor.CALLS + 1}
    assert recorder.backward == {8: floor.CALLS + 1, 2: floor.CALLS + 1}


def test_the_floor_of_a_selection_is_that_of_its_rows(words: list[str], tmp_path: Path, clock: Clock):
    """A network that takes 100 ms: 8 calls that sample; 6 of the reference and 6 that learn, of half of the images."""
    settings = verb.read(verb.BenchArgs, words, "bench")[0].settings
    session = start(replace(settings, algorithm=GRPO(kl=0.1)), tmp_path, State())
    session.model.network.register_forward_pre_hook(lambda *_: clock.sleep(0.1))
    whole = floor.measure_floor(session, floor.calls_of_round(session))
    assert (whole.forward, whole.compared, whole.backward) == pytest.approx((1.4, 0.6, 0.6))
    half = whole.of_selected(0.5)
    assert (half.forward, half.compared, half.backward) == pytest.approx((1.1, 0.3, 0.3))
    assert half.total == pytest.approx(1.4)


def test_the_floor_leaves_weights_gradients_and_the_round_alone(session: Session):
    before = {name: p.detach().clone() for name, p in session.model.weights.trainable().items()}
    floor.measure_floor(session, floor.calls_of_round(session))
    for name, parameter in session.model.weights.trainable().items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert session.state.round == 0


# ---------------------------------------------------------------- where the time goes


def test_seconds_go_to_the_innermost_part_and_sum_to_the_whole(clock: Clock):
    clocked = trace.Trace(torch.device("cpu"))
    clock.sleep(7)
    with clocked.part("outer"):
        clock.sleep(2)
        with clocked.part("inner"):
            clock.sleep(3)
        clock.sleep(4)
        with clocked.part("outer again"):
            clock.sleep(5)
            clocked.become("renamed")
            clock.sleep(1)
        with clocked.part("inner"):
            clock.sleep(6)
    clock.sleep(7)
    assert clocked.seconds == {"outer": 2 + 4, "inner": 3 + 6, "outer again": 5, "renamed": 1}


def test_another_thread_s_parts_are_not_the_round_s():
    clocked = trace.Trace(torch.device("cpu"))

    def work() -> None:
        with clocked.part("elsewhere"):
            time.sleep(0.01)

    with clocked.part("here"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert set(clocked.seconds) == {"here"}


SLOW = 0.02


def test_what_is_slow_is_found_in_its_part(session: Session, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    """What a round calls takes a known time, and all else none."""
    places = [
        ("VAE decode", session.model, "decode", 2),
        ("text encoding", session.model, "encode", 3),
        ("noise", types.Draw, "noise", 2 * 4 + 2),  # x_T and each step, for two batches
        ("log-prob and scheduler maths", sde.KeptCoefficients, "step", 2 * 4 + 2 * 3),
        ("log-prob and scheduler maths", losses, "clipped_surrogate", 2 * 3),
        ("optimizer step", session.optimizer, "step", 2),
        ("optimizer step", session.optimizer, "zero_grad", 2),
        ("scoring (waited for)", scoring.BackgroundScorer, "finish", 1),
        ("judge", metrics, "judge", 1),
        ("other", rounds, "advantages", 1),
    ]
    taken = dict.fromkeys(PARTS, 0.0)
    for part, owner, name, calls in places:
        monkeypatch.setattr(owner, name, slowed(getattr(owner, name), clock))
        taken[part] += calls * SLOW
    # The judge knows the bundled model alone.
    session.config = replace(session.config, model="bundled")
    found = trace.traced_round(session)
    assert list(found) == list(PARTS)
    assert found == pytest.approx(taken)


def slowed(function: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        clock.sleep(SLOW)
        return function(*args, **kwargs)

    return call


def test_a_network_s_forward_and_backward_are_told_apart_from_the_maths(session: Session, clock: Clock):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[override]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            clock.sleep(SLOW)
            return grad

    # Inside the network's call: its last layer has a slow backward pass, its first a slow forward one.
    session.model.network.conv_out.register_forward_hook(lambda _, inputs, out: Slow.apply(out))
    session.model.network.conv_in.register_forward_pre_hook(lambda *_: clock.sleep(SLOW))
    found = trace.traced_round(session)
    assert found == pytest.approx(dict.fromkeys(PARTS, 0.0) | {FORWARD: 8 * SLOW, TRAIN: 2 * 6 * SLOW})


def test_tracing_puts_everything_back(session: Session):
    owners: tuple[Any, ...] = (
        session.model, session.accelerator, session.optimizer, rounds, metrics, sampler, types.Draw,
        type(session.config.algorithm),
    )  # fmt: skip
    before = [dict(vars(owner)) for owner in owners]
    trace.traced_round(session)
    for owner, old in zip(owners, before, strict=True):
        changed = {key for key in vars(owner) | old if vars(owner).get(key) is not old.get(key)}
        names = {"sample", "judge", "decode", "encode", "predict", "step", "zero_grad", "backward", "noise", "loss"}
        assert not changed & names


# ---------------------------------------------------------------- the whole


def test_json_is_one_object_with_medians_of_what_it_lists(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def talkative(x: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        print("scoring!")
        return x.mean(dim=(1, 2, 3))

    monkeypatch.setattr(setup, "load_reward", lambda *_, **__: as_reward(talkative))
    monkeypatch.setattr(floor, "CALLS", 1)
    assert main(["bench", *words, "--json", "--repeats", "3"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "scoring!" in err
    assert "repeat 3 of 3" in err
    assert list(Path.cwd().iterdir()) == []

    name = found.pop("name")
    assert name == PRESET
    assert found["overheads"] == [w / f for w, f in zip(found["walls"], found["floors"], strict=True)]
    for key in ("wall", "floor", "overhead"):
        assert found[key] == sorted(found[f"{key}s"])[1]
    assert found["settings"]["trained_rows"] == 18
    assert found["images_per_second"] == pytest.approx(6 / found["phases"]["sample"])
    assert found["rows_per_second"] == pytest.approx(18 / found["phases"]["train"])
    assert 0.1 < found["peak_memory_gib"] < 8
    assert set(found["parts"]) == set(PARTS)
    assert all(value >= 0 for value in found["parts"].values())

    text = verb.text(name, bench.Bench(**found))
    for part in (*PARTS, "images/s", "rows/s", "GiB", "sample", "train"):
        assert part in text
    assert f"overhead     {found['overhead']:.3f} (median of 3" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["bench"], "give a preset (`tastemaker ls presets`) or --config FILE"),
        (["bench", PRESET, "--repeats", "0"], "--repeats is 0, but must be greater than 0"),
        (["bench", PRESET, "--out", "x"], "unknown flag --out"),
        (["bench", PRESET, "--optimizer.lr", "nan"], "optimizer.lr is nan, but must be finite"),
        (["bench", "ddpo-compresibility"], "did you mean 'ddpo-compressibility'?"),
        (["bench", PRESET, "--config", "x.yaml"], "give a preset or --config, not both"),
    ],
)
def test_mistakes(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(wrong) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["bench", PRESET]) == 2
    assert "bench measures one process" in capsys.readouterr().err


def test_flags_change_the_preset():
    args, name = verb.read(verb.BenchArgs, [PRESET, "optimizer.rows=8", "--repeats", "2", "--json"], "bench")
    base = PRESETS[PRESET].config
    assert (name, args.repeats, args.json) == (PRESET, 2, True)
    assert args.settings == replace(base, optimizer=replace(base.optimizer, rows=8))
