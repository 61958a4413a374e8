"""Diffusion-DPO on given pairs: its gradient by diffusers' own parts, resuming, micro-batches and processes."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
from one_update import double, first_gradients
from safetensors.torch import load_file
from test_accumulation import distance, two_processes

import given
from tastemaker import noise
from tastemaker.algorithms.diffusion_dpo import DiffusionDPO
from tastemaker.cli.main import main
from tastemaker.config.schema import Config, Evaluation, Optimizer, Pairs, Sampling
from tastemaker.runs.checkpoint import State
from tastemaker.training import rounds, setup, update
from tastemaker.types import Cond, Draw, Rollout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return given.pairs(tmp_path_factory.mktemp("pairs"), 7)


def config(checkpoint, folder, **options):
    optimizer = {"lr": 1e-3, "updates": 2, "rows": 40, "clip_norm": 1e9} | options
    return Config(
        model=str(checkpoint), prompts="ddpo-animals", rounds=1, pairs=Pairs((str(folder),)),
        algorithm=DiffusionDPO(beta=50.0, noises=2),
        sampling=Sampling(steps=5, samples=8, per_prompt=2, batch=3, guidance=5.0),
        optimizer=Optimizer(**optimizer),
        evaluation=Evaluation(prompts=1, per_prompt=2, kl_images=0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint, folder):
    return first_gradients(config(checkpoint, folder), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("rows", [1, 3])
def test_every_split_into_micro_batches_gives_the_same_gradient(tmp_path, checkpoint, folder, whole, rows):
    split, _ = first_gradients(config(checkpoint, folder, rows=rows), tmp_path)
    assert distance(whole[0], split) < 1e-6


def test_two_processes_give_the_same_gradient(tmp_path, checkpoint, folder, whole):
    two, record = two_processes(tmp_path, [config(checkpoint, folder)])[0]
    assert distance(whole[0], two) < 1e-6
    # The second update's loss is that of weights which Adam moved, and Adam makes much of small gradients.
    assert record["loss"] == pytest.approx(whole[1]["loss"], rel=1e-4)
    assert record["passes"] == whole[1]["passes"] == 8 / 7


def test_the_gradient_is_that_of_diffusers_parts_and_of_the_papers_equation(tmp_path, checkpoint, folder):
    settings = config(checkpoint, folder, updates=1)
    with mock.patch.object(setup, "load_model", double):
        session = setup.start(settings, tmp_path, State())
    random = torch.Generator().manual_seed(7)
    for name, parameter in sorted(session.model.weights.trainable().items()):
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    pipe = session.model.pipeline
    losses = []
    for number, row in enumerate(map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())):
        # Eight draws out of seven pairs: one of them comes twice, and its second time is not made again here.
        for place in (0, 1):
            time, eps = noise.diffused((4, 8, 8), range(1000), 0, 1, number, 0, place, 0)
            text = pipe.encode_prompt([row["prompt"]], "cpu", 1, False)[0].double()
            t = torch.tensor([time])

            def error(side, number=number, eps=eps, t=t, text=text):
                x = torch.tensor(list(given.image(2 * number + side).tobytes())).view(1, 32, 32, 3) / 255
                latent = (
                    pipe.vae.encode(2 * x.permute(0, 3, 1, 2) - 1).latent_dist.mean * pipe.vae.config.scaling_factor
                )
                noisy = pipe.scheduler.add_noise(latent, eps[None], t)
                return (pipe.unet(noisy.double(), t, text).sample - eps).square().mean()

            better = row["preferred"]
            policy = error(better) - error(1 - better)
            pipe.unet.disable_adapters()
            with torch.no_grad():
                reference = error(better) - error(1 - better)
            pipe.unet.enable_adapters()
            losses.append(-torch.nn.functional.logsigmoid(-0.5 * 50 * (policy - reference)))
    parameters = list(session.model.weights.trainable().values())
    wanted = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    session.optimizer.zero_grad()
    caught = {}

    def capture(session, rows, total, tally, *rest):
        keep = rows.image.new_tensor([rows.rollout.draw.sample_index[b] == 0 for b in rows.image.tolist()])
        assert (total, int(keep.sum())) == (16, 14)
        norm = update_accumulate(session, rows.select(keep.bool()), 14, tally, *rest)
        caught["gradients"] = [p.grad.clone() for p in parameters]
        caught["loss"] = float(tally.sums["loss"])
        return norm

    update_accumulate = update.accumulate
    with mock.patch.object(update, "accumulate", capture):
        rounds.one_round(session)
    assert caught["loss"] == pytest.approx(sum(loss.item() for loss in losses), rel=1e-6)
    for got, *parts in zip(caught["gradients"], *wanted, strict=True):
        torch.testing.assert_close(got, torch.stack(parts).mean(dim=0), rtol=1e-4, atol=1e-7)


def test_captions_are_dropped_for_both_images_of_a_pair_by_counters():
    count = 400
    draw = Draw(0, 3, ("cat",) * count, tuple(range(count)), (0,) * count)
    both = draw.select([*range(count), *range(count)])
    states = {"text": torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])}
    rollout = Rollout(Cond(states, torch.ones(2 * count, dtype=torch.int64), 1.0), both, torch.zeros(2 * count, 1))
    task = mock.Mock()
    kept = DiffusionDPO(drop_captions=0.2).prepare(task, rollout).rollout.cond["text"].amin(dim=(1, 2))
    assert kept[:count].equal(kept[count:])
    assert set(kept.tolist()) == {0.0, 1.0}
    assert 0.8 - 0.08 < kept.mean().item() < 0.8 + 0.08  # four standard errors
    assert DiffusionDPO(drop_captions=0.2).prepare(task, rollout).rollout.cond["text"].amin(dim=(1, 2)).equal(kept)
    assert DiffusionDPO().prepare(task, rollout).rollout is rollout


def words(checkpoint, folder, out, *more):
    return [
        "train", "ddpo-compressibility", "--algorithm", "diffusion-dpo", f"pairs.sources={folder}", "--model",
        str(checkpoint), "--prompts", "ddpo-animals", "--rounds", "3", "--out", str(out), "sampling.steps=4",
        "sampling.samples=8", "sampling.per_prompt=2", "sampling.batch=3", "optimizer.updates=2", "optimizer.lr=1e-3",
        "algorithm.drop_captions=0.3", "evaluation.every=2", "evaluation.prompts=2", "evaluation.per_prompt=2",
        "evaluation.kl_images=0", *more,
    ]  # fmt: skip


def metrics(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith("seconds/")} for record in records]


def test_a_run_on_pairs_resumes_bit_for_bit_and_tells_what_it_learned_from(checkpoint, folder, tmp_path, capsys):
    assert main(words(checkpoint, folder, tmp_path / "whole")) == 0
    said = capsys.readouterr().out
    assert f"{folder}: 7 pairs, and 0 rows without a preference" in said
    assert "pairs in order" in said
    assert main(words(checkpoint, folder, tmp_path / "cut", "--rounds", "1")) == 0
    assert main(["resume", str(tmp_path / "cut"), "--rounds", "3"]) == 0
    for name in ("weights", "optimizer"):
        one, two = (load_file(tmp_path / f"{r}/checkpoints/step-000003/{name}.safetensors") for r in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name
    rounds = [[r for r in metrics(tmp_path / run) if "round" in r] for run in ("whole", "cut")]
    assert rounds[0] == rounds[1]
    assert not any(name.startswith("reward") for name in rounds[0][0])
    assert [r["evaluation"] for r in metrics(tmp_path / "whole") if "evaluation" in r] == [0, 2, 3]
    assert f"trained on the preferences in {folder}" in (tmp_path / "whole/report.html").read_text()
    assert f"Preferences of {folder}" in (tmp_path / "whole/README.md").read_text()


def test_pairs_that_changed_meanwhile_are_noticed(checkpoint, tmp_path, capsys):
    folder = given.pairs(tmp_path / "pairs", 3)
    assert main(words(checkpoint, folder, tmp_path / "run", "--rounds", "1")) == 0
    table = folder / "pairs.jsonl"
    table.write_text(table.read_text().replace('"preferred": 1', '"preferred": 0'))
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run"), "--rounds", "2"]) == 2
    assert "(pairs " in capsys.readouterr().err


def test_unusable_pairs_leave_no_folder_behind(checkpoint, tmp_path, capsys):
    assert main(words(checkpoint, tmp_path / "nothing.jsonl", tmp_path / "run")) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bench_says_that_it_measures_other_rounds(folder, capsys):
    assert main(["bench", "ddpo-compressibility", "--algorithm", "diffusion-dpo", f"pairs.sources={folder}"]) == 2
    assert "bench measures rounds that sample" in capsys.readouterr().err
