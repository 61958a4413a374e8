"""Config files: what they say is what is run, and every mistake in them is one sentence."""

from __future__ import annotations

import codecs
import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.algorithms.ddpo import DDPO
from tastemaker.algorithms.registry import ALGORITHMS, summary
from tastemaker.config.presets import PRESETS
from tastemaker.config.reflection import dataclass_members, field_types, require_finite
from tastemaker.config.schema import Advantage, Config, Evaluation, Optimizer, Sampling
from tastemaker.config.yaml_file import dump_config, load_config, parse_config
from tastemaker.errors import ConfigError
from tastemaker.models.tuning import Tuning

COUNTS = st.integers(1, 1000)
POSITIVE = st.floats(1e-30, 1e30)
# Words that YAML 1.1 or 1.2 reads as something else than text, and text of every kind.
TEXTS = st.sampled_from(["yes", "off", "null", "~", "", "1e-5", "1", ".nan", "0x1f", "2026-01-01", "<<", "=", "a: b"])
TEXTS |= st.text(st.characters(codec="utf-8"))

CONFIGS = st.builds(
    Config,
    model=TEXTS,
    prompts=TEXTS,
    reward=TEXTS,
    rounds=COUNTS,
    seed=st.integers(),
    algorithm=st.builds(DDPO, estimator=st.sampled_from(["is", "sf"]), clip=POSITIVE),
    advantage=st.builds(Advantage, normalise=st.sampled_from(["per-prompt", "round"]), buffer=COUNTS, clip=POSITIVE),
    sampling=st.builds(
        Sampling,
        steps=COUNTS,
        eta=POSITIVE,
        guidance=st.floats(allow_nan=False, allow_infinity=False),
        samples=st.just(48),
        per_prompt=st.sampled_from([1, 2, 3, 48]),
        height=st.none() | COUNTS,
        width=st.none() | COUNTS,
    ),
    optimizer=st.builds(Optimizer, lr=POSITIVE, betas=st.tuples(POSITIVE, POSITIVE), updates=st.sampled_from([1, 6])),
    tuning=st.builds(
        Tuning,
        mode=st.sampled_from(["lora", "full"]),
        alpha=st.none() | POSITIVE,
        targets=st.lists(TEXTS.filter(bool), min_size=1).map(tuple),
        gradient_checkpointing=st.booleans(),
    ),
    evaluation=st.builds(Evaluation, every=COUNTS),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    trackers=st.lists(TEXTS).map(tuple),
)


def read(text: str, base: Config | None = None) -> Config:
    return parse_config(text, base or Config(), "run.yaml")


@given(CONFIGS)
def test_dumped_config_loads_as_equal(config: Config):
    text = dump_config(config)
    assert read(text) == config
    # Anything else that reads YAML sees the same: here PyYAML, whose rules are YAML 1.1's.
    seen = yaml.safe_load(text)
    assert seen["model"] == config.model
    assert seen["optimizer"]["lr"] == config.optimizer.lr
    assert tuple(seen["trackers"]) == config.trackers


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name: str, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(PRESETS[name].config), encoding="utf-8")
    assert load_config(file, Config()) == PRESETS[name].config
    assert read(f"preset: {name}") == PRESETS[name].config


def test_file_changes_only_what_it_says():
    base = PRESETS["ddpo-compressibility"].config
    config = read("rounds: 7\nsampling: {guidance: 3}\ntuning:\n", base)
    expected = dataclasses.replace(base, rounds=7, sampling=dataclasses.replace(base.sampling, guidance=3.0))
    assert config == expected
    assert isinstance(config.sampling.guidance, float)


def test_preset_in_a_file_takes_the_place_of_the_base():
    config = read("rounds: 3\npreset: ddpo-compressibility-sd14-lora", PRESETS["ddpo-incompressibility"].config)
    assert config == dataclasses.replace(PRESETS["ddpo-compressibility-sd14-lora"].config, rounds=3)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1E5", 1e5), ("1", 1.0), ("+.5", 0.5), ("5.", 5.0), ("1.0e-05", 1e-5)]
)
def test_numbers_that_yaml_1_1_would_read_otherwise(text: str, value: float):
    assert read(f"optimizer: {{lr: {text}}}").optimizer.lr == value


def test_text_that_yaml_1_1_would_read_otherwise():
    assert read("model: 2026-01-01").model == "2026-01-01"
    assert read("trackers: [yes, off, 1_000]").trackers == ("yes", "off", "1_000")


def test_values_of_every_type():
    text = "sampling: {height: ~}\ntuning: {alpha: 2, gradient_checkpointing: true, targets: [a, b]}\nprecision: bf16\n"
    config = read(text, dataclasses.replace(Config(), sampling=Sampling(height=64)))
    assert config.sampling.height is None
    assert config.tuning == Tuning(alpha=2.0, gradient_checkpointing=True, targets=("a", "b"))
    assert config.precision == "bf16"
    assert read("algorithm: {name: ddpo, clip: 0.5}").algorithm == DDPO(clip=0.5)


MISTAKES = [
    (
        "rounds: 1\n\nsampling:\n  guidence: 3",
        "run.yaml:4: unknown key 'guidence' under sampling; did you mean 'guidance'?",
    ),
    ("samplin: {steps: 3}", "run.yaml:1: unknown key 'samplin'; did you mean 'sampling'?"),
    ("anchor: {weight: 3}", "run.yaml:1: unknown key 'anchor'; it is called prior_preservation now"),
    (
        "evaluation: {watch: diversity}",
        "run.yaml:1: unknown key 'watch' under evaluation; it is called early_stop.metric now",
    ),
    ("<<: {rounds: 3}", "run.yaml:1: unknown key '<<'; known:"),
    ("a: &a [*a]", "run.yaml:1: unknown key 'a'; known:"),
    ("name: x", "run.yaml:1: unknown key 'name'; known:"),
    ("sampling:\n  steps: abc", "run.yaml:2: sampling.steps is 'abc' (text), expected a whole number"),
    ("rounds: 2.0", "run.yaml:1: rounds is 2.0 (a number), expected a whole number"),
    ("rounds: true", "run.yaml:1: rounds is true, expected a whole number"),
    ("rounds:", "run.yaml:1: rounds is empty, expected a whole number"),
    ("rounds: [1]", "run.yaml:1: rounds is a list, expected a whole number"),
    ("rounds: {a: 1}", "run.yaml:1: rounds is a section of keys, expected a whole number"),
    ("rounds: !!int abc", "run.yaml:1: rounds is abc, which cannot be read as a whole number"),
    ("rounds: " + "9" * 5000, "which cannot be read as a whole number"),
    ("sampling: {width: x}", "run.yaml:1: sampling.width is 'x' (text), expected a whole number or null"),
    ("sampling: 3", "run.yaml:1: sampling is 3, expected keys and values (`key: value`)"),
    ("model: 12", "run.yaml:1: model is 12 (a whole number), expected text; put it in quotes"),
    ("tuning: {gradient_checkpointing: yes}", "gradient_checkpointing is 'yes' (text), expected true or false"),
    ("trackers: wandb", "run.yaml:1: trackers is 'wandb' (text), expected a list, like [a, b]"),
    ("trackers:\n  - a\n  - 1", "run.yaml:3: trackers[1] is 1 (a whole number), expected text; put it in quotes"),
    ("optimizer: {betas: [0.9]}", "run.yaml:1: optimizer.betas needs 2 entries, given 1"),
    ("optimizer: {lr: .nan}", "run.yaml:1: optimizer.lr is .nan, but must be finite"),
    ("optimizer: {lr: 1e999}", "run.yaml:1: optimizer.lr is 1e999, but must be finite"),
    ("precision: fp31", "run.yaml:1: precision cannot be 'fp31'; did you mean 'fp32'?"),
    ("precision: [a]", "run.yaml:1: precision cannot be a list; known: bf16, fp16, fp32"),
    ("algorithm: {name: ddpoo}", "run.yaml:1: algorithm.name cannot be 'ddpoo'; did you mean 'ddpo'?"),
    ("preset: ddpo-compresibility", "run.yaml:1: preset cannot be 'ddpo-compresibility'; did you mean"),
    ("preset:", "run.yaml:1: preset cannot be empty; known:"),
    ("rounds: 1\nseed: 2\nrounds: 3", "run.yaml:3: key 'rounds' is given twice (first on line 1)"),
    ("optimizer:\n  lr: 1\n  lr: 1", "run.yaml:3: key 'lr' is given twice (first on line 2)"),
    (
        "model: !!python/object/apply:os.system [x]",
        "run.yaml:1: the tag !!python/object/apply:os.system is not allowed",
    ),
    ("!!python/object:a.b {}", "run.yaml:1: the tag !!python/object:a.b is not allowed"),
    ("model: !mine x", "run.yaml:1: the tag !mine is not allowed: write a plain value"),
    ("trackers: !!set {a}", "run.yaml:1: the tag !!set is not allowed: write a plain value"),
    ("? [a]\n: 3", "run.yaml:1: a key must be a plain name"),
    ("- a", "run.yaml:1: the file is a list, expected keys and values"),
    ("word", "run.yaml:1: the file is 'word', expected keys and values"),
    ("", "run.yaml is empty: expected settings such as `preset: ddpo-compressibility`"),
    ("# nothing but a comment", "run.yaml is empty"),
    ("a: [1", "run.yaml:1: not valid YAML: expected ',' or ']'"),
    ("rounds: 1\n\t- x", "run.yaml:2: not valid YAML:"),
    ("a: 1\n---\nb: 1", "run.yaml:2: not valid YAML: but found another document"),
    ("a: *b", "run.yaml:1: not valid YAML: found undefined alias"),
    ("a: \x00", "run.yaml: not valid YAML: unacceptable character"),
    ("[" * 2000, "run.yaml: not a config: nested too deeply"),
    ("rounds: 0", "rounds is 0, but must be greater than 0"),
    ("algorithm: {clip: 0}", "algorithm.clip is 0.0, but must be greater than 0"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_one_sentence_with_their_line(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        load_config(tmp_path / "none.yaml", Config())
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, Config())
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"rounds: 1\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"is not a text file in UTF-8 \(byte 10 is wrong\)"):
        load_config(binary, Config())


def test_byte_order_mark_and_windows_lines(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xef\xbb\xbfrounds: 3\r\nseed: 4\r\n")
    assert (load_config(file, Config()).rounds, load_config(file, Config()).seed) == (3, 4)


@dataclass(frozen=True)
class First:
    name: ClassVar[str] = "first"
    size: int = 1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Second:
    name: ClassVar[str] = "second"
    weight: float | None = 0.5


@dataclass(frozen=True)
class Run:
    part: First | Second = field(default_factory=First)


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("part: {name: second}", Run(), Run(Second())),
        ("part: {name: second, weight: 1}", Run(First(size=3)), Run(Second(1.0))),
        ("part: {size: 4}", Run(First(kind="b")), Run(First(4, "b"))),
        ("part: {name: first, size: 4}", Run(First(kind="b")), Run(First(4, "b"))),
        ("part: {name: first}", Run(Second()), Run(First())),
    ],
)
def test_a_section_picks_its_class_by_name(text: str, base: Run, expected: Run):
    assert parse_config(text, base) == expected
    assert parse_config(dump_config(expected), base) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {name: secnd}", "part.name cannot be 'secnd'; did you mean 'second'?"),
        ("part: {name: second, size: 1}", "unknown key 'size' under part"),
        ("part: {weight: 1}", "unknown key 'weight' under part"),
    ],
)
def test_mistakes_in_a_section_with_a_name(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(text, Run())


def test_registry_is_what_a_config_accepts():
    members = dataclass_members(field_types(Config)["algorithm"])
    assert set(ALGORITHMS.values()) == set(members)
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert summary(algorithm)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_infinite_numbers_are_found_however_deep(value: float):
    with pytest.raises(ConfigError, match=r"optimizer\.betas is (nan|inf), but must be finite"):
        require_finite(Config(optimizer=Optimizer(betas=(0.9, value))))
    require_finite(Config())


# ---------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_are_read_by_their_byte_order_marks(tmp_path, encoding):
    file = tmp_path / "run.yaml"
    file.write_bytes("prompts: 'a [größe|\u2b50]'\n".encode(encoding))
    assert load_config(file, Config()).prompts == "a [größe|\u2b50]"


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("width", [16, 32])
def test_both_byte_orders_are_read(tmp_path, width, order):
    mark = getattr(codecs, f"BOM_UTF{width}_{order.upper()}")
    (tmp_path / "run.yaml").write_bytes(mark + "rounds: 7\n".encode(f"utf-{width}-{order}"))
    assert load_config(tmp_path / "run.yaml", Config()).rounds == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("prompts: größe".encode("latin-1"), "is not a text file in UTF-8 (byte 11 is wrong): save it as UTF-8"),
        ("rounds: 7\n".encode("utf-16")[:-1], "is not a text file in utf-16, as its first bytes say (byte"),
        ("rounds: 7\n".encode("utf-16-le"), "not valid YAML"),
    ],
)
def test_other_encodings_are_refused(tmp_path, data, message):
    (tmp_path / "run.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(tmp_path / "run.yaml", Config())


def test_values_with_bytes_that_are_no_text_are_read_as_written():
    config = Config(model=os.fsdecode(b"mod\xe8le"))
    text = dump_config(config)
    assert text.isascii()
    assert parse_config(text, Config()) == config
