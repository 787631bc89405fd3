"""Weights from huggingface.co: out of the local cache without a network, else downloaded, else one line that helps.

Nothing is asked of the network while the files are in the cache. Where they are not, one request with a short limit
finds out whether the hub can be reached and lets them be read, so that a machine without internet is told so at once.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2d.errors import ConfigError, ModelError, one_line
from wsi2d.features.encoders.packages import import_package
from wsi2d.files import unwritable

_LIMIT_S = 10.0
_SITE = "https://huggingface.co"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class HubFiles:
    """What an encoder needs of a repository.

    Attributes:
        encoder: its name, for errors.
        repository: on the hub, as ``owner/name``.
        weights: names of which one is needed, in the order in which they are looked for.
        others: files that are needed besides.
        use: what to give `--encoder` where the files were downloaded by hand, with FOLDER for their folder.
        gated: whether terms must be accepted first; None where this is not known.
        also: other spellings of the repository that may be in the cache.
        whole: whether more of it may be needed than is named here, so that by hand all of it is downloaded.
    """

    encoder: str
    repository: str
    weights: tuple[str, ...]
    others: tuple[str, ...]
    use: str
    gated: bool | None = False
    also: tuple[str, ...] = ()
    whole: bool = False

    @property
    def remedy(self) -> str:
        """How to get the files by hand, and use them here."""
        accept = self._terms()
        return f"{accept}, {self._by_hand()}" if accept else self._by_hand()

    @property
    def advice(self) -> str:
        """How to get them at all."""
        accept = self._terms()
        first = f"{accept} and `hf auth login`, then they are" if accept else "they are"
        return f"no weights here yet: {first} downloaded at first use; or {self._by_hand()}"

    def _terms(self) -> str:
        if self.gated is False:
            return ""
        return f"accept the terms on {_SITE}/{self.repository}" + ("" if self.gated else " if it asks")

    def _by_hand(self) -> str:
        folder = self.repository.rpartition("/")[2].lower()
        files = () if self.whole else (*self.others, self.weights[0])
        command = f"`{' '.join(('hf download', self.repository, *files))} --local-dir {folder}`"
        return f"{command} where there is internet, then {self.use.replace('FOLDER', folder)}"

    def cached(self) -> Path | None:
        """The weights in the local cache, if all that is needed is there; no network is used."""
        for repository in (self.repository, *self.also):
            if all(_cached(repository, name) for name in self.others):
                for name in self.weights:
                    if found := _cached(repository, name):
                        return found
        return None

    def fetch(self) -> Path:
        """The weights, downloaded if they are not in the cache; the other files lie beside them.

        Raises:
            ConfigError: huggingface_hub is not installed, or the name can be no repository's.
            ModelError: the hub cannot be reached, or refuses.
            StorageError: the disk does not take the files.
        """
        if found := self.cached():
            return found
        for name in self.others:
            if self._download(name) is None:
                raise self.absent(name)
        for name in self.weights:
            if found := self._download(name):
                return found
        raise self.absent(" or ".join(self.weights))

    def fetch_beside(self, name: str) -> Path | None:
        """Another file of the repository, from the cache or downloaded; None where it has none.

        Raises:
            ModelError: the hub cannot be reached, or refuses.
        """
        return _cached(self.repository, name) or self._download(name)

    def absent(self, name: str) -> ModelError:
        """The error for a file that the repository does not have."""
        return ModelError(f"encoder '{self.encoder}': {_SITE}/{self.repository} has no {name}; check the name")

    def _download(self, name: str) -> Path | None:
        hub = import_package("huggingface_hub")
        status, code = self._ask(hub, name)
        page = f"{_SITE}/{self.repository}"
        if code == "RepoNotFound":
            raise ModelError(
                f"encoder '{self.encoder}': {page} is not there, or is private; check the name, or `hf auth login`"
            )
        if status == 404:
            return None
        if status in (401, 403):
            raise ModelError(
                f"encoder '{self.encoder}': {page} refuses its files ({status}); accept the terms there and "
                f"`hf auth login` with a token that may read them, or {self.remedy}"
            )
        if status >= 400:
            raise self._out_of_reach(f"it answers {status}")
        try:
            return Path(hub.hf_hub_download(self.repository, name))
        except (OSError, _http_error()) as error:
            if getattr(error, "errno", None) in _NO_ROOM:
                raise unwritable(Path(hub.constants.HF_HUB_CACHE), error) from error
            raise self._out_of_reach(one_line(str(error))[:200]) from error

    def _ask(self, hub: Any, name: str) -> tuple[int, str]:
        """The hub's answer to whether a file may be read, as HTTP status and error code; asked once, not repeated."""
        if hub.is_offline_mode():
            raise self._out_of_reach("HF_HUB_OFFLINE is set")
        from huggingface_hub.utils import build_hf_headers

        url, headers = hub.hf_hub_url(self.repository, name), build_hf_headers()
        try:
            # A redirection leads to where the file is stored, which does not answer such a question.
            answer = hub.get_session().head(url, headers=headers, timeout=_LIMIT_S, follow_redirects=False)
        except (OSError, _http_error()) as error:
            raise self._out_of_reach(one_line(str(error))[:200] or type(error).__name__) from error
        return int(answer.status_code), str(answer.headers.get("X-Error-Code", ""))

    def _out_of_reach(self, reason: str) -> ModelError:
        return ModelError(
            f"encoder '{self.encoder}': its weights are not on this machine, and the hub is out of reach ({reason}); "
            f"{self.remedy}"
        )


def check_repository(encoder: str, repository: str) -> None:
    """Refuse what can be no repository's name.

    Raises:
        ConfigError: it is none, or huggingface_hub is not installed.
    """
    import_package("huggingface_hub", f"encoder '{encoder}': ")
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ConfigError(f"encoder '{encoder}': '{repository}' is no repository; give hf:OWNER/NAME") from error
    if "/" not in repository:
        raise ConfigError(f"encoder '{encoder}': '{repository}' has no owner; give hf:OWNER/NAME")


def _http_error() -> type[Exception]:
    """What the hub's client raises of the network besides OSError; it depends on its version."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _cached(repository: str, name: str) -> Path | None:
    hub = import_package("huggingface_hub")
    found = hub.try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


def cached_here(files: Sequence[HubFiles]) -> list[bool]:
    """Whether each encoder's files are in the local cache; none are where huggingface_hub is missing."""
    try:
        return [f.cached() is not None for f in files]
    except ConfigError:
        return [False] * len(files)
