"""Every error that livemoments raises on purpose.

The tree (everything outside it that escapes is a bug and keeps its traceback)::

    LiveMomentsError                 exit code 2
    ├── UsageError                   an option or argument that cannot be used
    ├── MissingExtraError            a feature whose extra is not installed
    ├── FileError                    names a path
    │   ├── ImageError               an image that cannot be read, or does not fit the others
    │   ├── CheckpointError          weights or configuration that do not fit the layout
    │   ├── BundleError              a bundle that cannot be trusted or does not fit the request
    │   └── OutputError              a place that cannot be written
    ├── DownloadError                published weights that cannot be had, or are not what they should be
    ├── ResourceError                memory or disk ran out
    ├── EngineError                  an engine that cannot be built, loaded or fed; dead or non-finite outputs
    └── CheckFailedError             exit code 1: the work was done and a limit was missed
        └── ParityError              an exported stage is further from the reference than its limit
"""

from __future__ import annotations

import os


class LiveMomentsError(Exception):
    """A problem that the user can mend: one sentence that names the thing, and the fix where one is known.

    Args:
        message: what is wrong, naming the file, option or tensor.
        fix: what to do about it, an imperative sentence; shown on a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class UsageError(LiveMomentsError):
    """An option or argument that cannot be used."""


class MissingExtraError(LiveMomentsError):
    """A feature whose optional dependencies are not installed.

    Args:
        feature: the feature that was asked for, e.g. ``"export to ONNX"``.
        extra: the extra that brings it, e.g. ``"export"``.
    """

    def __init__(self, feature: str, extra: str, *, missing: str | None = None) -> None:
        what = f" (no module named '{missing}')" if missing else ""
        super().__init__(
            f"{feature} needs the extra '{extra}', which is not installed{what}",
            fix=f"pip install 'livemoments-deploy[{extra}]'",
        )
        self.extra = extra


class FileError(LiveMomentsError):
    """A problem with one file or folder; the path leads the message.

    Args:
        path: the file or folder.
        message: what is wrong with the file.
    """

    def __init__(self, path: str | os.PathLike[str], message: str, *, fix: str | None = None) -> None:
        super().__init__(f"{os.fspath(path)}: {message}", fix=fix)
        self.path = os.fspath(path)


class ImageError(FileError):
    """An image that cannot be read, or does not fit the others."""


class CheckpointError(FileError):
    """Weights or configuration that do not fit upstream's layout."""


class BundleError(FileError):
    """A bundle that cannot be trusted, or does not fit what is asked of it."""


class OutputError(FileError):
    """A place that cannot be written."""


class DownloadError(LiveMomentsError):
    """Published weights that cannot be had from where they are, or are not what they should be."""


class ResourceError(LiveMomentsError):
    """Memory or disk ran out.

    Args:
        message: what is wrong.
        fix: what to do about it.
        of_memory: it was memory, of the machine or of an accelerator: work that takes less of it may go on.
    """

    def __init__(self, message: str, *, fix: str | None = None, of_memory: bool = False) -> None:
        super().__init__(message, fix=fix)
        self.of_memory = of_memory


class EngineError(LiveMomentsError):
    """An engine that cannot be built, loaded or fed, or whose outputs are dead or not finite."""


class CheckFailedError(LiveMomentsError):
    """The work was done, and a limit was missed."""

    exit_code = 1


class ParityError(CheckFailedError):
    """An exported stage is further from the reference than its limit."""
