"""`tastemaker reward`: commands for rewards outside of a run: `serve` and `train`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.cli.text import as_source
from tastemaker.errors import ConfigError, nearest
from tastemaker.rewards.expression import parse as parse_reward
from tastemaker.rewards.expression import parts
from tastemaker.rewards.labelers.settings import is_label
from tastemaker.rewards.serving.settings import TOKEN_ENV, check_variable, is_remote, read_token
from tastemaker.rewards.vlm.settings import Vlm
from tastemaker.web.hosts import check_port, is_loopback, known_hosts

_HELP = """usage: tastemaker reward COMMAND ...

Commands for rewards outside of a run.

  serve    offer a reward to training runs on other machines, over HTTP
  train    train a reward model on people's comparisons of images

`tastemaker reward COMMAND --help` shows its options."""


@dataclass(frozen=True)
class ServeArgs:
    """Offers a reward over HTTP; a run uses it as `--reward http://HOST:PORT` (docs/guides/remote-rewards.md).

    Stops with Ctrl-C. Requests that are waiting at the same time are joined into one call of the reward.
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """A reward as `--reward` takes it: built in, an entry point's, or `module:function`."""
    host: str = "127.0.0.1"
    """Address to listen at: by default this machine only; 0.0.0.0 for all that reach it, which needs a token."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    token_env: str = TOKEN_ENV
    """Name of the environment variable with a token that clients must have too."""
    without_token: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Listen to other machines without a token: whoever reaches the port may use it."""
    max_batch: int = 32
    """Most images in one call of the reward."""
    join_ms: float = 5.0
    """Milliseconds that a request waits for others to be joined with it; 0 joins none, for rewards that depend on their
    batch."""
    max_images: int = 64
    """Most images in a request."""
    max_megapixels: float = 16.8
    """Most millions of pixels in a request, its images together."""
    max_body_mib: float = 64.0
    """Largest body of a request."""
    vlm: Vlm = field(default_factory=Vlm)
    """How a vision-language model is called."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if argv[0] == "train":
        from tastemaker.cli.reward_train import run as train

        return train(argv[1:])
    if argv[0] != "serve":
        raise ConfigError(f"unknown `tastemaker reward {argv[0]}`; {nearest(argv[0], ['serve', 'train'])}")
    return _serve(parse(ServeArgs, split_assignments(argv[1:], flag_types(ServeArgs)), "reward serve"))


def _serve(args: ServeArgs) -> int:
    if args.name is None:
        raise ConfigError("give a reward, as in `tastemaker reward serve jpeg-compressibility`")
    name = as_source(args.name, "the reward")
    for part in parts(parse_reward(name)):
        if is_label(part):
            raise ConfigError(f"{part} is already on a server, the labelling app: name it in the run itself")
        if is_remote(part):
            raise ConfigError(f"{part} is already on a server: name a reward of this machine")
    _check(args)
    token = read_token(args.token_env)
    from tastemaker.rewards.identity import identify
    from tastemaker.rewards.registry import load_reward
    from tastemaker.rewards.serving.protocol import Limits
    from tastemaker.rewards.serving.server import Service, server
    from tastemaker.web.listening import listen, shown_host

    if token is None and not is_loopback(args.host) and not args.without_token:
        raise ConfigError(
            f"--host {args.host} is reached from other machines: put a token into ${args.token_env}, or give "
            "--without-token where everybody who reaches it may use it"
        )
    reward = load_reward(name, vlm=args.vlm)
    if unmeasured := reward.unmeasured:
        raise ConfigError(
            f"{unmeasured[0]} is measured on a run's base model, which a server does not have: serve what is in the "
            f"brackets, and let the run standardise it: --reward 'standardise(http://{args.host}:{args.port})'"
        )
    if reward.space != "image":  # a request has images
        from tastemaker.rewards.combination import of_images

        reward = of_images(reward)
    limits = Limits(int(args.max_body_mib * 2**20), args.max_images, int(args.max_megapixels * 1e6))
    service = Service(
        reward, identify(name, reward), token, known_hosts(args.host), args.max_batch, args.join_ms / 1000, limits
    )
    with listen(args.host, args.port) as listener:
        port = listener.getsockname()[1]
        access = f"with the token in ${args.token_env}" if token else "without a token"
        address = f"http://{shown_host(args.host)}:{port}"
        print(f"serving {service.identity} at {address}, {access}; Ctrl-C stops it", flush=True)
        server(service).run(sockets=[listener])
    print("tastemaker: the server has stopped", file=sys.stderr)
    return 0


def _check(args: ServeArgs) -> None:
    check_variable("--token-env", args.token_env)
    check_port(args.port)
    if not 0 <= args.join_ms <= 10_000:
        raise ConfigError(f"--join-ms is {args.join_ms}, but must lie in [0, 10000]")
    sizes = {
        "max-batch": args.max_batch, "max-images": args.max_images, "max-megapixels": args.max_megapixels,
        "max-body-mib": args.max_body_mib,
    }  # fmt: skip
    for name, value in sizes.items():
        if not 0 < value < 1e6:
            raise ConfigError(f"--{name} is {value}, but must be greater than 0, and less than a million")
