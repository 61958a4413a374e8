"""`tastemaker label serve`: the labelling app of a project."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tastemaker.cli.arguments import flag_types, parse, split_assignments
from tastemaker.errors import ConfigError
from tastemaker.printing import print_lines
from tastemaker.web.hosts import check_port, checked_public_url, is_loopback


@dataclass(frozen=True)
class ServeArgs:
    """Serves a project to labelers' browsers (docs/guides/labelling-server.md). Stops with Ctrl-C.

    Who opens the address that is printed is logged in as administrator, may label, and may invite others.
    """

    project: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PROJECT", help_behavior_hint="")] = (
        None
    )
    """Folder of the project."""
    host: str = "127.0.0.1"
    """Address to listen at: by default this machine only; 0.0.0.0 for all that reach it."""
    port: int = 8001
    """Port to listen at; 0 takes a free one."""
    public_url: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """Where a reverse proxy shows the app, as https://labels.example.org."""
    proxies: Annotated[str, tyro.conf.arg(metavar="ADDRESSES")] = "127.0.0.1,::1"
    """Addresses of the reverse proxy, whose word on the visitors' addresses is taken; only with --public-url."""
    without_link: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not print the link with the administrator's token, which the file admin-token has too."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    args = parse(ServeArgs, split_assignments(argv, flag_types(ServeArgs)), "label serve")
    if args.project is None:
        raise ConfigError("give the folder of a project, as in `tastemaker label serve labels/animals`")
    return serve(args.project, args)


def serve(folder: Path, args: ServeArgs) -> int:
    """Serves a project until it is stopped. Raises ConfigError, StorageError."""
    check_port(args.port)
    public = None if args.public_url is None else checked_public_url(args.public_url)
    from tastemaker.labelling.accounts import admin_token
    from tastemaker.labelling.project import open_project
    from tastemaker.labelling.serving import Serving, address_of, announced, login_link, server_of
    from tastemaker.web.listening import listen

    serving = Serving(args.host, public, args.proxies)
    with open_project(folder) as project:
        token = admin_token(project.folder)
        with listen(args.host, args.port) as listener:
            address = address_of(serving, listener)
            with announced(project, address):
                server = server_of(project, token, serving)
                shown = public or address
                print(f"serving {folder}; Ctrl-C stops it", flush=True)
                print_lines(_spread(args, public))
                print(shown if args.without_link else login_link(shown, token), flush=True)
                server.run(sockets=[listener])
    print("tastemaker: the server has stopped", file=sys.stderr)
    return 0


def _spread(args: ServeArgs, public: str | None) -> str:
    """What it means to listen at this address."""
    if is_loopback(args.host):
        return "only this machine reaches it" if public is None else f"other machines reach it at {public}"
    text = f"every machine that reaches {args.host} port {args.port} can open the log-in page"
    if public is None:
        return (
            f"{text}, and who listens on the network can read passwords: over networks that are not your own, put a "
            "proxy with https before it, and give --public-url"
        )
    return f"{text}, also past the proxy at {public}: let it listen at 127.0.0.1 where both are on one machine"
