"""The little world of the bundled model: what its prompts ask for, and drawings of it with known truth."""

from tastemaker.drawings.draw import render
from tastemaker.drawings.scene import Request, Scene, Thing, parse, sample_scene

__all__ = ["Request", "Scene", "Thing", "parse", "render", "sample_scene"]
