"""What the Hugging Face hub says of a repository's files, and where each is to be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers

from livemoments.errors import DownloadError
from livemoments.version import __version__
from livemoments.weights.download import Expected, network_errors
from livemoments.weights.sources import HubSource

_LIBRARY = "livemoments-deploy"
_NEWEST = "main"


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of a repository.

    Attributes:
        repository: ``owner/name``.
        revision: the commit.
        name: its path there.
        expected: what it must be.
    """

    repository: str
    revision: str
    name: str
    expected: Expected


class Hub:
    """The hub, asked with the token that its own login or ``HF_TOKEN`` gives, where there is one.

    The token is in no attribute: the hub's library looks it up for each request.

    Args:
        endpoint: the hub's address; ``None`` is the library's own, or what ``HF_ENDPOINT`` says.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT

    def files(self, source: HubSource, *, newest: bool) -> list[Listed]:
        """The files of a source, as the hub lists them.

        Args:
            source: the repository and the patterns.
            newest: take the newest revision instead of the one that is named.

        Raises:
            DownloadError: no such repository, revision or file, no access, or no network.
        """
        revision = _NEWEST if newest else source.revision
        api = HfApi(self.endpoint, library_name=_LIBRARY, library_version=__version__)
        with network_errors(f"{self.endpoint}/{source.repository}/tree/{revision}", self._remedy(source.repository)):
            found = api.model_info(source.repository, revision=revision, files_metadata=True)
        if not found.sha or (not newest and found.sha != source.revision):
            raise DownloadError(f"{source.repository}: the hub has no commit {revision}", fix="try --latest")
        siblings = {file.rfilename: file for file in found.siblings or []}
        listed = []
        for name in _wanted(source, list(siblings)):
            file = siblings[name]
            if file.lfs is not None:
                expected = Expected(file.lfs.sha256, "sha256", file.lfs.size)
            elif file.blob_id:
                expected = Expected(file.blob_id, "git", file.size)
            else:
                raise DownloadError(f"{source.repository}: the hub gives no hash of {name}", fix="try again later")
            listed.append(Listed(source.repository, found.sha, name, expected))
        return listed

    def locate(self, file: Listed) -> tuple[str, dict[str, str]]:
        """Where a file's bytes are, and the headers of the request for them: the token goes to the hub's own host only.

        Raises:
            DownloadError: no access, no such file, no network.
        """
        url = hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=self.endpoint)
        headers = build_hf_headers(library_name=_LIBRARY, library_version=__version__)
        with network_errors(url, self._remedy(file.repository)):
            found = get_hf_file_metadata(url, headers=headers, endpoint=self.endpoint)
        if urlsplit(found.location).netloc != urlsplit(self.endpoint).netloc:
            headers.pop("authorization", None)
        return found.location, headers

    def _remedy(self, repository: str) -> str:
        return (
            f"open {self.endpoint}/{repository}, log in and accept its conditions; then 'hf auth login', or set "
            "HF_TOKEN, with a token that may read gated repositories"
        )


def _wanted(source: HubSource, names: list[str]) -> Iterator[str]:
    chosen: dict[str, None] = {}
    for pattern in (*source.files, *source.optional):
        found = sorted(name for name in names if fnmatchcase(name, pattern))
        if not found and pattern in source.files:
            message = f"{source.repository} has no file {pattern} at {source.revision}"
            raise DownloadError(message, fix="--latest takes what is there now")
        chosen |= dict.fromkeys(found)
    for name in chosen:
        if ".." in name.split("/") or "\\" in name:  # a star matches these too
            raise DownloadError(f"{source.repository} lists '{name}', which leaves its folder", fix="do not use it")
        yield name
