"""Profiles by name or from a user's file, checked; an error names the file, the line and the key."""

from __future__ import annotations

import os
import re
from importlib import resources

import msgspec

from livemoments.errors import FileError, UsageError
from livemoments.profiles.lines import line_of
from livemoments.profiles.schema import BASES, TRANSFORMERS, Profile
from livemoments.recipe_names import RECIPES
from livemoments.store.files import read_file
from livemoments.types import ReferencePolicy, Size, Stage

NAMES = (
    "h20",
    "h100",
    "h200",
    "a100",
    "l40s",
    "rtx-5090",
    "rtx-4090",
    "rtx-4060-8gb",
    "rtx-3060-12gb",
    "m2-16gb",
    "m4-max",
    "iphone-pro",
    "cpu-avx2",
    "cpu-amx",
)
"""The profiles that ship, in the order in which they are listed."""
_SEE = "see docs/profiles.md"
_AT = re.compile(r"\s*- at `(?:key in )?(\$[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")
_TOML_PLACE = re.compile(r"\s*\(at line (\d+), column \d+\)$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")


class _WrongError(Exception):
    """A value that the types allow and the profile does not: the key's path, and what is wrong."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(what)
        self.path = path


def load_profile(profile: str | os.PathLike[str]) -> Profile:
    """A profile by the name of a shipped one, or from a TOML file.

    Raises:
        UsageError: there is no such name.
        FileError: the file is missing, is no TOML, or has a key or value that a profile cannot have; the message names
            the line and the key.
    """
    name = os.fspath(profile)
    if name in NAMES:
        return parse_profile(_shipped(name), f"profiles/{name}.toml")
    if not name.endswith(".toml"):
        raise UsageError(f"there is no profile '{name}'", fix=f"use {', '.join(NAMES)}, or name a .toml file")
    try:
        text = read_file(name)
    except OSError as error:
        raise FileError(name, f"cannot be read ({error.strerror})") from None
    return parse_profile(text, name)


def parse_profile(text: bytes, name: str) -> Profile:
    """A profile from TOML, for :func:`load_profile` and tests.

    Args:
        text: UTF-8.
        name: of the file, for messages.

    Raises:
        FileError: see :func:`load_profile`.
    """
    try:
        words = text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise FileError(name, f"line {line}: not UTF-8", fix="save it as UTF-8") from None
    try:
        profile = msgspec.toml.decode(words, type=Profile)
        _check(profile)
    except _WrongError as wrong:
        raise _error(name, words, wrong.path, str(wrong)) from None
    except msgspec.ValidationError as error:
        raise _of_msgspec(name, words, str(error)) from None
    except msgspec.DecodeError as error:  # tomllib's words
        what = str(error)
        place = _TOML_PLACE.search(what)
        line_text = f"line {place[1]}: " if place else ""
        raise FileError(name, f"{line_text}not TOML: {_TOML_PLACE.sub('', what)}", fix=_SEE) from None
    return profile


def _shipped(name: str) -> bytes:
    return (resources.files("livemoments.profiles") / f"{name}.toml").read_bytes()


def _of_msgspec(name: str, text: str, message: str) -> FileError:
    place = _AT.search(message)
    path, what = (place[1] if place else "$"), _AT.sub("", message)
    if unknown := _UNKNOWN.match(what):
        return _error(name, text, f"{path}.{unknown[1]}", "there is no such key")
    if missing := _MISSING.match(what):
        return _error(name, text, f"{path}.{missing[1]}", "it is missing")
    return _error(name, text, path, what[:1].lower() + what[1:])


def _error(name: str, text: str, path: str, what: str) -> FileError:
    key = path.removeprefix("$").removeprefix(".")
    where = f"line {line_of(text, path)}, {key}" if key else f"line {line_of(text, path)}"
    return FileError(name, f"{where}: {what}", fix=_SEE)


def _check(profile: Profile) -> None:
    """What the types do not say.

    Raises:
        _WrongError: naming the key.
    """
    _check_precision(profile)
    sizes = {f"$.tiles.sizes[{number}]": size for number, size in enumerate(profile.tiles.sizes)}
    for key in ("tile", "vae_tile"):
        if (size := getattr(profile.restore, key)) is not None:
            sizes[f"$.restore.{key}"] = size
    for path, size in sizes.items():
        try:
            Size.parse(size)
        except UsageError as error:
            raise _WrongError(path, f"{error.message}; {error.fix}") from None
    try:
        ReferencePolicy.parse(profile.restore.reference)
    except UsageError as error:
        raise _WrongError("$.restore.reference", f"{error.message}; {error.fix}") from None
    memory = profile.memory
    if memory.capacity_gb is not None and memory.budget_gb is not None and memory.budget_gb > memory.capacity_gb:
        raise _WrongError("$.memory.budget_gb", f"more than the {memory.capacity_gb} GB that the device has")
    if memory.unified and profile.chip.link_gb_s is not None:
        raise _WrongError("$.chip.link_gb_s", "unified memory is not copied over a link")
    _check_sources(profile)
    for number, entry in enumerate(profile.measured):
        for key in entry.of:
            if value_at(profile, key) is None:
                raise _WrongError(f"$.measured[{number}].of", f"the profile has no value '{key}'")


def _check_precision(profile: Profile) -> None:
    precision = profile.precision
    base = precision.vae_encoder
    for stage in (Stage.MOTION, Stage.VAE_DECODER):
        if getattr(precision, stage) != base:
            raise _WrongError(f"$.precision.{stage}", f"a bundle has one precision, and vae_encoder is {base}")
    for name in TRANSFORMERS:
        value = getattr(precision, name)
        if value in BASES and value != base:
            raise _WrongError(f"$.precision.{name}", f"a bundle has one precision, and vae_encoder is {base}")
        if value not in BASES and value not in RECIPES and not value.endswith(".toml"):
            known = ", ".join(("fp32", *RECIPES))
            raise _WrongError(f"$.precision.{name}", f"there is no recipe '{value}'; use {known}, or name a .toml file")
    if precision.reference != precision.restoration:
        raise _WrongError("$.precision.reference", "a recipe is for both transformers: restoration has another")


def _check_sources(profile: Profile) -> None:
    """Every public number has a source, and every source gives a number that is there."""
    chip = profile.chip
    numbers = {name: value for name in chip.__struct_fields__ if isinstance(value := getattr(chip, name), float)}
    for number, source in enumerate(chip.sources):
        for key in source.of:
            if key not in numbers and key != "capacity_gb":
                raise _WrongError(f"$.chip.sources[{number}].of", f"the chip has no number '{key}'")
    named = {key for source in chip.sources for key in source.of}
    for key in numbers:
        if key not in named:
            raise _WrongError(
                f"$.chip.{key}", "no source gives it: name one in [[chip.sources]], or leave the number out"
            )


def value_at(profile: Profile, key: str) -> object:
    """A value by its dotted key (``restore.reference``); ``None`` where there is none."""
    found: object = profile
    for part in key.split("."):
        found = getattr(found, part, None)
    return found
