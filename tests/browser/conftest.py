"""A browser for the session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browsing import chromium


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium."""
    with chromium() as running:
        yield running
