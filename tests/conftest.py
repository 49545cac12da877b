"""What all tests share: where real data may lie, and small images made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three classes of 12 images, 40x40 RGB, that a tiny network can tell apart by their colour."""
    root = tmp_path / "images"
    noise = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = noise.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 140
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root
