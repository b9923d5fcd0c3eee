"""Folders from the Hugging Face hub: an earlier download that is whole, else a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .records import ModelError

TIMEOUT_S = 5.0


def fetch(name: str, patterns: Sequence[str], is_whole: Callable[[Path], bool], otherwise: str) -> Path:
    """The folder of a hub repository; the network is asked only where no earlier download will do.

    Args:
        name: the repository, "owner/name".
        patterns: which of its files are wanted.
        is_whole: whether a folder holds all that is needed.
        otherwise: what the user can do without the hub; ends the error's sentence.

    Raises:
        ModelError: it cannot be had.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = {"repo_id": name, "allow_patterns": list(patterns), "etag_timeout": TIMEOUT_S}
    try:
        earlier = Path(snapshot_download(**wanted, local_files_only=True))
        if is_whole(earlier):
            return earlier
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # never downloaded; an impossible name is told by the hub below
    try:
        return Path(snapshot_download(**wanted))
    except (HTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"{name} is no folder here and could not be had from the hub ({type(error).__name__}); {otherwise}"
        ) from error
