"""The networks that contract tests go over."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def imagenet() -> Path:
    """The folder with real weights."""
    folder = SHARED / "weights"
    if not folder.is_dir():
        pytest.skip("no folder with real weights beside the checkout")
    return folder
