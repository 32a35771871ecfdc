"""Checking engines against the reference. The package can be called: ``livemoments.validate(bundle, checkpoint)``.

The function and the package share their name by design (``livemoments.validate`` is the public function, ``validate/``
the folder); once a module of the package is imported, Python binds the package to that name, so it must be callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livemoments.validate.report_data import ValidationReport


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> ValidationReport:
        """See :func:`livemoments.validate.run.validate`."""
        from livemoments.validate.run import validate

        return validate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
