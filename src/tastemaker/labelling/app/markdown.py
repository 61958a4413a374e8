"""Instructions for labelers, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from markdown_it import MarkdownIt


@lru_cache(maxsize=16)
def to_html(text: str) -> str:
    """Markdown as HTML. HTML in it is shown as text, and images are not shown: nothing is fetched from anywhere."""
    return _parser().render(text)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["image"])
    parser.add_render_rule("link_open", _open_link)
    for cell in ("th_open", "td_open"):
        parser.add_render_rule(cell, _open_cell)
    return parser


def _open_link(renderer: Any, tokens: Sequence[Any], index: int, options: Any, _: Any) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer")
    tokens[index].attrSet("target", "_blank")
    return renderer.renderToken(tokens, index, options, {})


def _open_cell(renderer: Any, tokens: Sequence[Any], index: int, options: Any, _: Any) -> str:
    # The alignment would be a style within the page, which its policy forbids.
    tokens[index].attrs.pop("style", None)
    return renderer.renderToken(tokens, index, options, {})
