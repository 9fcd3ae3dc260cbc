"""Translation of the errors of huggingface_hub and the network into one-line errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx.errors import HubError, MagistralError, ModelNotFound, StorageError
from magistral_mlx.hub.client import PUBLIC_HUB, Hub, http_module, hub_cache
from magistral_mlx.hub.repository import RepoRef

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


@contextmanager
def hub_errors(hub: Hub, ref: RepoRef, *, writing: bool = False) -> Iterator[None]:
    """Translate every error of the block into `ModelNotFound`, `HubError` or `StorageError`.

    `writing` selects the messages of an upload.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    httpx = http_module()
    try:
        yield
    except MagistralError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(hub, ref, error, writing=writing) from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{ref} needs the hub and HF_HUB_OFFLINE is set. Unset it.") from error
    except HFValidationError as error:
        raise ModelNotFound(f"{ref} is not the name of a repository on the hub.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        begun = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL))
        what = (
            f"the connection to {hub.endpoint} broke" if begun else f"cannot reach {hub.endpoint}"
        )
        raise HubError(
            f"{what} for {ref} ({first_line(error)}). Check the connection and run the command "
            "again; what has arrived is kept."
        ) from error
    except ImportError as error:  # httpx's word on a SOCKS proxy
        raise HubError(
            f"the proxy cannot be used: {first_line(error)}. Or change ALL_PROXY and HTTPS_PROXY."
        ) from error
    except OSError as error:
        raise storage_error(error, hub.cache) from error


@contextmanager
def hub_responses(hub: Hub) -> Iterator[None]:
    """Raise `HubError` for answers that are not a hub's."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError):  # both are ValueErrors at times
        raise
    except (ValueError, KeyError, TypeError) as error:
        advice = "Check HF_ENDPOINT."
        if "proxy" in str(error).lower():
            advice = "Check ALL_PROXY and HTTPS_PROXY."
        raise HubError(
            f"{hub.endpoint} does not answer like a hub ({first_line(error)}). {advice}"
        ) from error


def storage_error(error: OSError, place: Path) -> StorageError:
    """Return the error for a failed write, with the path and what helps."""
    where = Path(os.fsdecode(error.filename)) if error.filename else place
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk is full at {where}. {free_space_advice(where)} What has arrived is kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"no permission to write {where}. Change that, or use another folder.")
    return StorageError(f"{where} could not be written: {error.strerror or error}.")


def free_space_advice(place: Path) -> str:
    """Return a sentence on freeing disk space at `place`."""
    if place.absolute().is_relative_to(hub_cache().absolute()):
        return "Free some space, or point HF_HOME to another disk."
    return "Free some space there, or choose a folder on another disk."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _refusal(hub: Hub, ref: RepoRef, error: HfHubHTTPError, *, writing: bool) -> MagistralError:
    """Return the error for an HTTP status of the hub."""
    from huggingface_hub import errors

    page = f"{hub.endpoint}/{ref.repo}"
    at = "the hub" if hub.endpoint == PUBLIC_HUB else f"the hub at {hub.endpoint}"
    response = error.response
    status = response.status_code
    # A hub answers strangers 401 for what does not exist, not to tell what is private.
    unknown = status == 401 and "authorization" not in response.request.headers
    if writing and status in (401, 403, 404):
        return HubError(
            f"{at} does not let this account write to {ref.repo}. Set HF_TOKEN to a token with "
            f"write access to {ref.repo.split('/')[0]} (from {hub.endpoint}/settings/tokens)."
        )
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{ref.repo} is gated. Ask for access at {page}, then set HF_TOKEN to a token of "
            "that account."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or unknown:
        return ModelNotFound(
            f"{at} has no repository {ref.repo}, or it is private. Check the spelling, or set "
            "HF_TOKEN to a token that may read it."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{ref.repo} has no revision {ref.revision!r}. See {page}/commits.")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return ModelNotFound(f"a file of {ref} is gone from {at} ({first_line(error)}).")
    if status in (401, 403):
        return HubError(
            f"{at} refused {ref} (status {status}). HF_TOKEN is not valid for it; see "
            f"{hub.endpoint}/settings/tokens."
        )
    if status == 429:
        return HubError(
            f"{at} limits this address for now (status 429). Wait some minutes and run the "
            "command again, or set HF_TOKEN for a higher limit."
        )
    return HubError(
        f"{at} failed on {ref} (status {status}). Run the command again later; what has "
        "arrived is kept."
    )
