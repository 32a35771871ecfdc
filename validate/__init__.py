"""Checking engines against the reference: :func:`livemoments.validate_bundle`.

Until 0.2 the package can still be called as the function that it once shared its name with,
``livemoments.validate(bundle, checkpoint)``; every call warns.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livemoments.validate.report_data import ValidationReport


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **keywords: Any) -> ValidationReport:
        """:func:`livemoments.validate_bundle` with every option as a keyword of its own."""
        from livemoments.validate.options import ValidateOptions
        from livemoments.validate.run import validate_bundle

        warnings.warn(
            "livemoments.validate() is livemoments.validate_bundle() now, and takes its options as ValidateOptions",
            DeprecationWarning,
            stacklevel=2,
        )
        for old, new in (("clip", "live_photo"), ("settings", "restore")):
            if keywords.get(old) is not None:
                keywords[new] = keywords[old]
            keywords.pop(old, None)
        names = {option.name for option in fields(ValidateOptions)}
        options = ValidateOptions(**{name: keywords.pop(name) for name in names & keywords.keys()})
        return validate_bundle(*args, options=options, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
