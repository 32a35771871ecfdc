"""Bundles and photos that several modules of sweeps share."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_bundle import make_fake_bundle
from harness_support import make_dataset

from livemoments.bundle import Bundle


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("exact") / "exact", precision="fp32", step_counts=(1, 3, 6))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("half") / "half"
    return make_fake_bundle(place, dtype="float16", precision="fp16", step_counts=(1, 3, 6))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    make_dataset(folder, 2)
    return folder
