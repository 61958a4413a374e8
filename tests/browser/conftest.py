"""A browser, closed before the tests of other files: while it is open, this thread cannot run another event loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browsing import chromium


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """Reports have their figures here, since a browser looks at them."""
