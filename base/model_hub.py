"""Models that are named by a folder or by their name on the Hugging Face hub.

The libraries that load them try for minutes to reach a hub that is not to be reached, for each file anew. What is on
this machine is therefore taken without a look at the hub, and the hub is asked only where it answers at once.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .dependencies import extra

TIMEOUT_SECONDS = 5


def load_model(load: Callable[..., Any], model: str, where: str, extra_name: str, trusted: bool = True) -> Any:
    """A model out of a folder, else out of the cache, else from the hub if it answers within seconds.

    Args:
        load: called as `load(model, local_files_only=True)`, and without the second for the hub.
        where: the beginning of messages.
        extra_name: the extra that brings the packages.
        trusted: False for a name that a file states, which is not asked of the hub.

    Raises:
        FileNotFoundError: there is no such folder, or the model is not to be had; the message says what to do.
        ValueError: `load` cannot read the folder.
    """
    is_path = Path(model).is_absolute() or model.startswith((".", "~")) or len(Path(model).parts) > 2
    folder = Path(model).expanduser()
    if is_path and not folder.is_dir():
        raise FileNotFoundError(f"{where}: there is no folder {folder}")
    try:
        return load(str(folder) if is_path else model, local_files_only=True)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"{where}: {folder}: cannot be loaded: {_first_line(error)}") from None
    hub = extra("huggingface_hub.constants", extra_name)
    if not trusted:
        reason = "a name that a file states is not downloaded without your word (--trust)"
    elif hub.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE forbids to download it"
    elif not _answers(hub.ENDPOINT):
        reason = f"{hub.ENDPOINT} cannot be reached"
    else:
        try:
            return load(model)
        except (OSError, ValueError) as error:
            reason = f"it cannot be downloaded ({_first_line(error)})"
    raise FileNotFoundError(
        f"{where}: {model!r} is neither a folder nor in the cache {hub.HF_HUB_CACHE}, and {reason}; "
        "download it where there is a network, and name its folder"
    )


def _answers(url: str) -> bool:
    """True if a server answers at once, with whatever status."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310, the user's own endpoint
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
