"""``--profile``: a device profile's values as the defaults of a command's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def profile_option(function: Function) -> Function:
    """``--profile NAME|FILE``: replaces the defaults of the command's other options; the command does not see it."""

    def read(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is None or context.resilient_parsing:
            return
        from livemoments.profiles.apply import find_profile, option_defaults

        assert context.command.name is not None
        context.default_map = dict(option_defaults(find_profile(value), context.command.name))

    return click.option(
        "--profile",
        metavar="NAME",
        is_eager=True,  # before the options whose defaults it gives
        expose_value=False,
        callback=read,
        help="Take the defaults of the other options from a device profile: a name that 'livemoments devices' lists, "
        "auto for this machine's, or a .toml file of your own.",
    )(function)
