"""What a bundle's Core AI packages are called; their tensors' names are those of :mod:`livemoments.coreml.names`."""

from __future__ import annotations

TARGET = "coreai"
"""What a bundle's manifest says of its packages."""
PACKAGE = ".aimodel"
ENTRY = "metadata.json"
"""The file of a package that a bundle's manifest names in the package's place; it lies at its top."""
FUNCTION = "main"
"""A package's only function."""
