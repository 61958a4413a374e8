"""`tastemaker convert`: models in the forms of other libraries, as folders that --model takes."""

from __future__ import annotations

import importlib

from tastemaker.errors import ConfigError, nearest

FORMATS = {"guided-diffusion": "a checkpoint of OpenAI's guided-diffusion or improved-diffusion"}
"""The commands, each a module `convert_NAME` of this package with a function `run(argv) -> exit code`."""

_HELP = """usage: tastemaker convert FORMAT FILE OUT ...

Makes a folder of a diffusers pipeline, which --model takes, of a model in another form.

formats:
{formats}

`tastemaker convert FORMAT --help` shows its options."""


def run(argv: list[str]) -> int:
    """Runs the command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP.format(formats="\n".join(f"  {name}  {what}" for name, what in FORMATS.items())))
        return 0
    if argv[0] not in FORMATS:
        raise ConfigError(f"unknown `tastemaker convert {argv[0]}`; {nearest(argv[0], list(FORMATS))}")
    return importlib.import_module(f"tastemaker.cli.convert_{argv[0].replace('-', '_')}").run(argv[1:])
