"""A published model as a weights file: download, conversion to safetensors, strict check.

A download and its conversion lie in a temporary folder until the converted file has been read back and checked.
Only then it is renamed to `NAME.safetensors`. `lock.json` beside it keeps the address and the SHA-256 of both
source files from the first time on (trust on first use).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ..base.config import CEConfig
from ..base.dependencies import extra
from ..base.files import naming, replacing
from ..model.cenet import meta_model
from ..model.checkpoint import check_weights, read_config, read_weights, write_weights
from .published import CHECKPOINT, CONFIG, FetchError, Model, find_model, is_secure, model_at, table
from .weights_folder import WEIGHTS_DIR

if TYPE_CHECKING:
    from requests import Response

RETRIES = 3
"""Tries after the first one of the long download; pooch waits 1, 2, 3 seconds between them."""
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two bytes."""


def fetch(model: Model, folder: Path = WEIGHTS_DIR, force: bool = False) -> Path:
    """Download, convert and check a model; returns `folder/NAME.safetensors`.

    A file that is there and loads is left as it is, unless `force`. After an error the folder is as it was before.

    Raises:
        FileNotFoundError: there is no such folder.
        FetchError: no connection, an answer that is not the model, or not the file that was first fetched.
        OSError: there is no room for it.
        ImportError: the extra `weights` is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    target = folder / f"{model.name}.safetensors"
    lock = Lock(target)
    lock.check("url", model.url, target)
    if not force and is_complete(target):
        return target
    with naming(target), TemporaryDirectory(dir=folder, prefix=f".{model.name}.", suffix=".part") as name:
        config_url, checkpoint_url = f"{model.url}/{CONFIG}", f"{model.url}/{CHECKPOINT}"
        config_file = download(config_url, Path(name), retries=0)
        lock.check("config_sha256", sha256(config_file), config_url)
        config = parse_config(config_file, config_url)
        checkpoint = download(checkpoint_url, Path(name), RETRIES)
        lock.check("sha256", sha256(checkpoint), checkpoint_url)
        converted = convert(checkpoint, config, checkpoint_url)
        lock.write()
        converted.replace(target)
    return target


class Lock:
    """The entry of one weights file in lock.json: the address and the hashes of what was fetched first."""

    def __init__(self, target: Path) -> None:
        self.path, self.name = target.with_name("lock.json"), target.name
        self.facts: dict[str, str] = {}
        self.pinned = dict(self._read().get(self.name, {}))

    def check(self, key: str, value: str, source: str | Path) -> None:
        """Note a fact of `source`. Raises FetchError where it is not the pinned one."""
        if self.pinned.get(key, value) != value:
            raise FetchError(
                f"{source}: its {key} is {value}, but {self.path} pins {self.pinned[key]}. Nothing was installed; "
                f"fetch it into another folder (--to), or delete {self.name!r} from that file in order to trust it"
            )
        self.facts[key] = value

    def write(self) -> None:
        """Pin the noted facts."""
        entries = self._read() | {self.name: self.facts}  # read again: another model may have come meanwhile
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

    def _read(self) -> dict[str, dict[str, str]]:
        """The facts of all files of the folder."""
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
            return {name: dict(facts) for name, facts in entries.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise FetchError(f"{self.path}: not a lock file; mend it or move it away: {error}") from None


def download(url: str, folder: Path, retries: int) -> Path:
    """The file of that address in `folder`. Raises FetchError; its message names the address and the reason."""
    import requests

    pooch = extra("pooch", "weights")
    name = url.rpartition("/")[2]
    bar = sys.stderr.isatty() and name == CHECKPOINT
    downloader = pooch.HTTPDownloader(bar, 2**16, timeout=TIMEOUT, hooks={"response": check_response})
    pooch.get_logger().setLevel("WARNING")  # of a retry, not of every file
    try:
        # No known hash: pooch would download a file again that is not the pinned one.
        registry = pooch.create(folder, "", registry={name: None}, urls={name: url}, retry_if_failed=retries)
        return Path(registry.fetch(name, downloader=downloader))
    except requests.RequestException as error:
        raise FetchError(f"{url}: {_reason(error)}") from None


def check_response(response: Response, **_: Any) -> None:
    """Raise FetchError before a redirect to an address without HTTPS is followed, and for an error of the request.

    A server's own errors (5xx, and 429: too many requests) are left to the caller, who may try again.
    """
    target = urljoin(response.url, response.headers.get("Location", ""))
    if response.is_redirect and not is_secure(target):
        raise FetchError(f"{response.url}: the server redirects to an address without HTTPS, {target}")
    if 400 <= response.status_code < 500 and response.status_code != 429:
        raise FetchError(f"{response.url}: the server answers {response.status_code} {response.reason}")


def _reason(error: OSError) -> str:
    """A failed request in a few words; the library's own text spans lines of nested objects."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answers {response.status_code} {response.reason}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "the server's certificate is not trusted"
    return f"no connection, or it broke ({type(error).__name__})"


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_config(path: Path, url: str) -> CEConfig:
    """The config in a downloaded file. Raises FetchError that names its address."""
    try:
        return CEConfig.from_json(path)
    except (ValueError, TypeError) as error:
        raise FetchError(f"{url}: {str(error).replace(f'config: {path} is', 'it is')}") from None


def convert(checkpoint: Path, config: CEConfig, url: str) -> Path:
    """The downloaded checkpoint as safetensors beside it, read back and checked.

    Raises:
        FetchError: it is damaged, would run code when loaded, or is not of this config's model.
        OSError: the new file cannot be written.
    """
    try:
        state = read_weights(checkpoint)
        check_weights(state, meta_model(config).state_dict(), config, checkpoint)
        converted = write_weights(checkpoint.with_suffix(".safetensors"), state, config, {"source": url})
        check_loads(converted)
    except ValueError as error:
        raise FetchError(f"{url}: {str(error).removeprefix(f'{checkpoint}: ')}") from None
    return converted


def check_loads(path: Path) -> None:
    """Raise ValueError unless the file carries a config and exactly the tensors of its model."""
    config = read_config(path)
    if config is None:
        raise ValueError(f"{path}: there is no config inside")
    check_weights(read_weights(path), meta_model(config).state_dict(), config, path)


def is_complete(target: Path) -> bool:
    """True if the converted model is there and loads."""
    try:
        check_loads(target)
    except (FileNotFoundError, ValueError):
        return False
    return True


# --- the command --------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    # The name stands outside of the group: argparse parses no intermixed arguments with a positional one in it.
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model of --list; left out, the default one")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", help=f"a folder that holds {CONFIG} and {CHECKPOINT}, or one of them")
    source.add_argument("--list", nargs="?", const="", metavar="WORD", help="show the models (with this word)")
    parser.add_argument("--to", type=Path, default=WEIGHTS_DIR, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="fetch it even if it is already there")


def run_command(options: argparse.Namespace) -> int:
    """Run the command and return its exit status. Raises as `fetch`."""
    if options.name is not None and (options.url is not None or options.list is not None):
        raise FetchError(f"fetch: expected a name, --url or --list, got {options.name!r} beside another")
    if options.list is not None:
        print(table(options.list))
        return 0
    model = model_at(options.url) if options.url else find_model(options.name)
    print(f"{model.name} from {model.url}")
    target = fetch(model, options.to, options.force)
    print(f"{target} is complete ({target.stat().st_size / 1e6:,.1f} MB); weights_path={str(target)!r} loads it")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command of `weights/fetch.py`; returns the exit status. An error is one line on stderr."""
    parser = argparse.ArgumentParser("fetch", description="Get a published Collaborative Experts model.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        return run_command(options)
    except KeyboardInterrupt:
        print("interrupted; nothing was installed", file=sys.stderr)
        return 130
    except (OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
