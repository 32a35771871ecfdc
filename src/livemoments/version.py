"""The package's version, in a file of its own so that the build reads it without importing anything else."""

from __future__ import annotations

__version__ = "0.1.0"


def version_of(package: str) -> str | None:
    """The version of an installed distribution; ``None`` where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
