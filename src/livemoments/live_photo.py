"""One Live Photo: the images that a restoration takes, in whatever form they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class LivePhoto(Generic[T]):
    """The images of one Live Photo: as paths, as photos with their metadata, or as arrays.

    Attributes:
        frame: the reselected video frame, which is restored (upstream's ``lr``).
        photo: the key photo (``ref``).
        photo_frame: the video frame at the photo's instant, if there is one (``ref_lr``).
        truth: the reselected instant in full quality, of the photo's size, where it is known (``gt``).
        name: how it is called in reports and recordings.
        sha256: the hash of each file's contents, where the files were read.
    """

    frame: T
    photo: T
    photo_frame: T | None = None
    truth: T | None = None
    name: str = "photo"
    sha256: str = ""

    def parts(self) -> dict[str, T]:
        """The images that there are, by attribute, in this order."""
        images = {"frame": self.frame, "photo": self.photo, "photo_frame": self.photo_frame, "truth": self.truth}
        return {part: image for part, image in images.items() if image is not None}

    def map(self, function: Callable[[T], U]) -> LivePhoto[U]:
        """The same with every image in another form."""
        made = {part: function(image) for part, image in self.parts().items()}
        return LivePhoto(**made, name=self.name, sha256=self.sha256)
