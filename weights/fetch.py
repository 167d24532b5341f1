"""Get a published Collaborative Experts model and convert it for the operator.

    python weights/fetch.py                  the default model, into this folder
    python weights/fetch.py --list [WORD]    the models that models.toml knows (with this word)
    python weights/fetch.py NAME             another one of them
    python weights/fetch.py --url URL        any folder on the web with a config.json and a trained_model.pth
    python weights/fetch.py --to FOLDER      into another folder

What lies in the folder is always whole. A download grows in `.NAME.pth.part/`, is converted and checked there, and only
then moved to `NAME.safetensors`. A broken or stopped download is all that may stay behind: the same command
resumes it. `lock.json`, beside the weights, pins the SHA-256 of what was fetched first (trust on first use).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

try:
    import tomllib

    import requests
    from tqdm import tqdm
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
except ImportError as error:
    sys.exit(f"fetch.py: {error}; it needs Python 3.11 or newer and: pip install -r requirements.txt")

if TYPE_CHECKING:
    from collaborative_experts import CEConfig

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models.toml"
CONFIG, CHECKPOINT = "config.json", "trained_model.pth"
CONFIG_LIMIT = 2**20
"""Bytes; no config.json is larger, and a server that sends more of one is left."""
CHUNK = 2**14
"""Bytes read at a time; of a chunk that the connection breaks off, nothing is kept."""
GETS_ON = 2**20
"""Bytes after which a download counts as one that gets on, so that the tries are counted anew."""


class FetchError(ValueError):
    """Why a model could not be fetched, in one line."""


class UnusableError(FetchError):
    """The bytes that came are not what they should be: they are thrown away, not resumed."""


class TransientError(Exception):
    """A failure that another try may mend; `wait` is how many seconds the server asks for."""

    def __init__(self, message: str, wait: float = 0) -> None:
        super().__init__(message)
        self.wait = wait


class UnreachableError(TransientError):
    """No connection came about at all."""


@dataclass(frozen=True)
class Patience:
    """How often and how long to try: waits double from `wait` to `longest_wait`, in seconds."""

    tries: int = 5
    wait: float = 1.0
    longest_wait: float = 60.0
    timeout: tuple[float, float] = (10.0, 60.0)  # to connect, and between two bytes


PATIENCE = Patience()


# --- the story ----------------------------------------------------------------------------------------


def main(argv: list[str] | None = None, patience: Patience = PATIENCE) -> int:
    """Run the command line; returns the exit status."""
    arguments = parse(argv)
    try:
        models = read_models()
        if arguments.list is not None:
            print(table(matching(models, arguments.list)))
            return 0
        model = model_at(arguments.url, models) if arguments.url else named(arguments.name, models)
        fetch(model, arguments.to, arguments.force, patience)
    except KeyboardInterrupt:
        note("stopped; the same command resumes what was downloaded")
        return 130
    except (FetchError, OSError) as error:
        note(f"error: {error}")
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("fetch.py", description="Get a published Collaborative Experts model.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("name", nargs="?", metavar="NAME", help="a model of --list; left out, the default one")
    source.add_argument("--url", help=f"a folder that holds {CONFIG} and {CHECKPOINT}, or the latter itself")
    source.add_argument(
        "--list", nargs="?", const="", metavar="WORD", help="show the published models (with this word)"
    )
    parser.add_argument("--to", type=Path, default=HERE, metavar="FOLDER", help="where it goes; left out, %(default)s")
    parser.add_argument("--force", action="store_true", help="fetch it even if it is already there")
    return parser.parse_args(argv)


def fetch(model: Model, folder: Path, force: bool = False, patience: Patience = PATIENCE) -> None:
    """Put `model` into `folder` as `NAME.safetensors`, or raise FetchError and leave what was there."""
    if not folder.is_dir():
        raise FetchError(f"{folder}: there is no such folder")
    load_package()
    target = folder / f"{model.name}.safetensors"
    with alone_in(folder):
        lock = Lock(folder / "lock.json", target.name)
        if not force and is_complete(target):
            lock.check_source(model.url)
            print(f"{target} is already here and complete; nothing to do (--force fetches it anew)")
            return
        print(f"{model.name} from {shown(model.url)}")
        client = Client(patience)
        config, config_hash = get_config(client, file_at(model.url, CONFIG))
        lock.check("config_sha256", config_hash, file_at(model.url, CONFIG))
        part = Part(folder / f".{model.name}.pth.part")
        try:
            digest = download(client, file_at(model.url, CHECKPOINT), part, lock, size_of(config))
            converted = convert(part, config, target.name, file_at(model.url, CHECKPOINT))
            lock.pin(model.url, bytes=part.size, sha256=digest, config_sha256=config_hash)
            converted.replace(target)
            part.discard()
        except UnusableError:
            part.discard()
            raise
        finally:
            part.tidy()
    print(f"{target} is complete ({megabytes(target.stat().st_size)}); weights_path={str(target)!r} loads it")


# --- which model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A published model; `url` is the folder that holds its two files. What is not known is empty."""

    name: str
    url: str
    folder: str = ""
    dataset: str = ""
    split: str = ""
    method: str = ""
    experts: str = ""
    parameters: str = ""
    t2v: Mapping[str, float] = field(default_factory=dict)


def read_models() -> dict[str, Model]:
    """The models of the list by name, the default one first."""
    content = tomllib.loads(MODELS.read_text(encoding="utf-8"))
    models = {}
    for entry in content["models"]:
        base = content[entry.pop("collection", "base")]
        models[entry["name"]] = Model(url=base + entry["folder"], **entry)
    return {content["default"]: models[content["default"]], **models}


def matching(models: Mapping[str, Model], word: str) -> dict[str, Model]:
    """The models that have this word, in any case, in their name, dataset, method or experts."""
    kept = {
        name: model
        for name, model in models.items()
        if word.lower() in f"{name} {model.dataset} {model.split} {model.method} {model.experts}".lower()
    }
    if not kept:
        raise FetchError(f"--list: no model of models.toml has {word!r} in its name, dataset, method or experts")
    return kept


def named(name: str | None, models: Mapping[str, Model]) -> Model:
    """The model of that name, the default one for None."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        close = difflib.get_close_matches(name, models, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "--list shows the known ones"
        raise FetchError(f"{name!r} is not in models.toml; {hint}")
    return models[name]


def model_at(url: str, models: Mapping[str, Model]) -> Model:
    """The model of a folder on the web; a copy of a published one's folder has its name."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FetchError(f"--url: {url!r} is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"--url: expected an address that starts with https:// or http://, got {url!r}")
    path = parts.path.rstrip("/")
    for file in (CHECKPOINT, CONFIG):
        path = path.removesuffix(f"/{file}")
    url = parts._replace(path=path, fragment="").geturl()
    for model in models.values():
        if path.endswith(f"/{model.folder}"):
            return replace(model, url=url)
    # The authors' folders are NAME/HASH/seed-N/DATE; of others the last one is the best name there is.
    published = re.search(r"([^/]+)/([0-9a-f]{8})/(seed-\d+)/[^/]+$", path)
    name = "-".join(published.groups()) if published else path.rpartition("/")[2] or parts.hostname
    return Model(re.sub(r"[^\w.-]+", "_", unquote(name)).lstrip(".") or "model", url)


def table(models: Mapping[str, Model]) -> str:
    """The models as aligned text."""
    scores = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "MdR": "mdr"}
    rows = [("name", "dataset", "method", "experts", "parameters", *scores)]
    for model in models.values():
        numbers = (f"{model.t2v[key]:.1f}" if key in model.t2v else "" for key in scores.values())
        dataset = f"{model.dataset} {model.split}".strip()
        rows.append((model.name, dataset, model.method, model.experts, model.parameters, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if i > 3 else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    lines.append("\nPublished text-to-video numbers, means over three runs. The first model is the default.")
    lines.append("Without (-): CG collaborative gating, P projection to a common dimension, MW expert weights.")
    return "\n".join(line.rstrip() for line in lines)


def file_at(folder: str, name: str) -> str:
    """The address of a file in a folder on the web; a query (`?token=...`) stays."""
    parts = urlsplit(folder)
    return parts._replace(path=f"{parts.path}/{name}").geturl()


def shown(url: str) -> str:
    """The address without what may be secret in it, for messages and for lock.json."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


# --- the operator's own modules, imported late because they import towhee ------------------------------


def load_package() -> None:
    """Make `collaborative_experts` importable: the installed one, else the folder above (Towhee's cache)."""
    with warnings.catch_warnings():
        # What towhee's imports warn of is not about this download.
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("collaborative_experts")
        except ImportError:
            try:
                _load_folder_above()
            except ImportError as error:
                raise FetchError(str(error)) from error


def _load_folder_above() -> None:
    name, folder = "collaborative_experts", HERE.parent
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise


def expected_state(config: CEConfig) -> dict[str, Any]:
    """The model's tensors without storage: names, shapes and types."""
    from collaborative_experts.model.cenet import meta_model

    return meta_model(config).state_dict()


def size_of(config: CEConfig) -> int:
    """Bytes of the model's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in expected_state(config).values())


def check_loads(path: Path) -> CEConfig:
    """Raise ValueError unless the file carries a config and exactly the tensors of its model; returns the config."""
    from collaborative_experts.model.checkpoint import check_weights, read_config, read_weights

    config = read_config(path)
    if config is None:
        raise ValueError(f"{path}: there is no config inside")
    check_weights(read_weights(path), expected_state(config), config, path)
    return config


def is_complete(target: Path) -> bool:
    """True if the converted model is there and loads."""
    if not target.is_file():
        return False
    try:
        check_loads(target)
    except ValueError as error:
        note(f"{error}; fetching it anew")
        return False
    return True


def convert(part: Path, config: CEConfig, name: str, url: str) -> Path:
    """Write the downloaded checkpoint as safetensors beside it, read it back and check it; returns the new file.

    Raises:
        UnusableError: it is damaged, would run code when loaded, or is not of this config's model.
        FetchError: the new file cannot be written.
    """
    from collaborative_experts.model.checkpoint import check_weights, read_weights, write_weights

    try:
        state = read_weights(part.file)
        check_weights(state, expected_state(config), config, part.file)
        converted = write_weights(part.folder / name, state, config, {"source": shown(url)})
        if check_loads(converted) != config:
            raise ValueError("its config does not survive being written and read")
    except OSError as error:
        raise FetchError(f"{part.folder.with_name(name)}: cannot be written: {error}") from error
    except ValueError as error:
        raise UnusableError(f"{shown(url)}: {str(error).removeprefix(f'{part.file}: ')}") from error
    return converted


# --- the download -------------------------------------------------------------------------------------


def get_config(client: Client, url: str) -> tuple[CEConfig, str]:
    """The model's config, and the SHA-256 of the file."""
    from collaborative_experts import CEConfig

    def attempt() -> bytes:
        content = b""
        try:
            with client.get(url) as response:
                for chunk in response.iter_content(CHUNK):
                    content += chunk
                    if len(content) > CONFIG_LIMIT:
                        raise FetchError(f"{shown(url)}: more than {megabytes(CONFIG_LIMIT)}, no {CONFIG}")
        except UnreachableError as error:
            # The first contact: without a network, waiting helps nobody.
            raise FetchError(f"{error}; nothing was fetched") from error
        return content

    content = persist(attempt, client.patience)
    try:
        return CEConfig.from_dict(json.loads(content)), hashlib.sha256(content).hexdigest()
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FetchError(f"{shown(url)}: not a JSON file: {error}") from error
    except (ValueError, TypeError) as error:
        raise FetchError(f"{shown(url)}: {error}") from error


def download(client: Client, url: str, part: Part, lock: Lock, converted_size: int) -> str:
    """Bring `part` to the file's full length, and check it against the lock; returns its SHA-256.

    Raises:
        FetchError: no space, an address that is not served, or a connection that keeps breaking.
        UnusableError: a file longer than announced, or not the pinned one.
    """

    def admit(length: int, missing: int) -> None:
        lock.check("bytes", length, url)
        free, needed = shutil.disk_usage(lock.path.parent).free, missing + converted_size
        if free < needed:
            raise FetchError(
                f"{lock.path.parent}: not enough space: {megabytes(missing)} to download and "
                f"{megabytes(converted_size)} to convert make {megabytes(needed)}, but {megabytes(free)} are free"
            )

    persist(lambda: receive(client, url, part, admit), client.patience, lambda: part.size)
    with part.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lock.check("sha256", digest, url)
    print(f"SHA-256 {digest} ({'as pinned' if lock.entry else 'to be pinned'} in {lock.path.name})")
    return digest


def receive(client: Client, url: str, part: Part, admit: Callable[[int, int], None]) -> None:
    """One try: ask for what `part` lacks and append what comes; TransientError if some is still missing."""
    known = part.version
    have = part.size if known is not None and known.url == shown(url) else 0
    if have and have == known.length:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": known.validator} if have and known.validator else {}
    with client.get(url, headers) as response:
        if response.status_code == 200:
            if headers:
                note(f"{shown(url)}: the file changed, or the server cannot resume; starting anew")
            known, have = Version.of(response, url), 0
            admit(known.length, known.length)
            part.begin(known)
        elif headers and known.continues_with(response, have):
            admit(known.length, known.length - have)
        else:
            part.discard()
            raise TransientError(f"{shown(url)}: answer {response.status_code} does not resume the download")
        part.append(response, known.length)
    if part.size < known.length:
        raise TransientError(f"{shown(url)}: the connection ended after {part.size} of {known.length} bytes")


def persist(attempt: Callable[[], T], patience: Patience, progress: Callable[[], int] = lambda: 0) -> T:
    """Repeat `attempt` on TransientError, waiting longer each time; FetchError after `patience.tries` in vain."""
    furthest, failures = progress(), 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            if progress() >= furthest + GETS_ON:
                furthest, failures = progress(), 0
            failures += 1
            if failures >= patience.tries:
                raise FetchError(f"{error}; gave up after {failures} tries") from error
            wait = min(max(patience.wait * 2 ** (failures - 1), error.wait), patience.longest_wait)
            note(f"{error}; trying again in {wait:.3g} s")
            time.sleep(wait)


class Client:
    """HTTP requests whose failures are either final (FetchError) or worth another try (TransientError)."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.session = requests.Session()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[requests.Response]:
        """The answer, its body still to be read; whatever goes wrong inside the block is translated too."""
        # Lengths and ranges count the file's own bytes, so it must not be compressed on the way.
        headers = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=self.patience.timeout) as response:
                check_answer(response, url)
                yield response
        except requests.RequestException as error:
            raise translated(error, shown(url)) from error


def check_answer(response: requests.Response, url: str) -> None:
    """Raise for an error status, and for an answer that a redirection took off HTTPS."""
    if url.startswith("https:") and not all(x.url.startswith("https:") for x in (*response.history, response)):
        raise FetchError(f"{shown(url)}: the server redirects to an address without HTTPS, {shown(response.url)}")
    status = response.status_code
    words = f"{shown(url)}: the server answers {status} {response.reason or ''}".rstrip()
    if status == 429 or status >= 500:
        asked_for = response.headers.get("Retry-After", "")
        raise TransientError(words, float(asked_for) if asked_for.isdecimal() else 0)
    if status not in (200, 206, 416):
        raise FetchError(words)


def translated(error: requests.RequestException, url: str) -> Exception:
    """What a failed request means here."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return FetchError(f"{url}: the server's certificate is not to be trusted ({reason})")
    if isinstance(error, requests.exceptions.ProxyError) or isinstance(
        reason, NewConnectionError | ConnectTimeoutError
    ):
        return UnreachableError(f"{url}: cannot connect ({str(reason).partition(': ')[2] or reason})")
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        return TransientError(f"{url}: the connection broke")
    return FetchError(f"{url}: {error}")


# --- what is on disk ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """Which file the bytes of a download are of: where, how long, and what tells a changed one (ETag or date)."""

    url: str
    length: int
    validator: str

    @classmethod
    def of(cls, response: requests.Response, url: str) -> Version:
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise FetchError(f"{shown(url)}: the server does not say how long the file is")
        return cls(shown(url), int(length), cls.validator_of(response))

    @staticmethod
    def validator_of(response: requests.Response) -> str:
        # A weak ETag (W/"...") may stand for files that differ, and HTTP forbids it in If-Range.
        etag = response.headers.get("ETag", "")
        return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")

    def continues_with(self, response: requests.Response, have: int) -> bool:
        """True if the answer is this very file from byte `have` on."""
        part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        return (
            response.status_code == 206
            and part is not None
            and (int(part[1]), int(part[3])) == (have, self.length)
            and self.validator_of(response) in ("", self.validator)
        )


class Part:
    """A download under way: a folder with the bytes so far and a note of what they are of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / CHECKPOINT
        self._note = folder / "version.json"

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    @property
    def version(self) -> Version | None:
        """What the bytes are of; None if nobody knows, so that they are worth nothing."""
        try:
            version = Version(**json.loads(self._note.read_text(encoding="utf-8")))
            return version if self.size <= version.length else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def begin(self, version: Version) -> None:
        self.discard()
        self.folder.mkdir()
        self._note.write_text(json.dumps(asdict(version)), encoding="utf-8")

    def append(self, response: requests.Response, length: int) -> None:
        look = {"unit": "B", "unit_scale": True, "desc": self.file.name, "disable": None}  # None: without a terminal
        with self.file.open("ab") as file, tqdm(total=length, initial=file.tell(), **look) as bar:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > length:
                    raise UnusableError(f"{shown(response.url)}: more bytes came than the {length} announced")

    def discard(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Keep nothing but what a later run can use."""
        version = self.version
        if not self.size or version is None or not (version.validator or self.size == version.length):
            self.discard()


class Lock:
    """One weights file's entry in lock.json: where it was first fetched from, and what its source files were."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            self._all = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self.entry = dict(self._all.get(name, {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise FetchError(f"{path}: not a lock file; mend it or move it away: {error}") from error

    def check(self, key: str, found: str | int, url: str) -> None:
        """Raise UnusableError if `found` is not what is pinned."""
        if self.entry.get(key, found) != found:
            what = "length" if key == "bytes" else "SHA-256"
            raise UnusableError(
                f"{shown(url)}: its {what} is {found}, but {self.path} pins {self.entry[key]}: it is not the file that "
                f"was first fetched. Nothing was installed; to trust it, delete {self.name!r} from that lock file"
            )

    def check_source(self, url: str) -> None:
        """Raise FetchError if the file that is there came from elsewhere."""
        if self.entry.get("url", shown(url)) != shown(url):
            raise FetchError(
                f"{self.path.with_name(self.name)} is there already, from {self.entry['url']}; put the one of "
                f"{shown(url)} into another folder (--to)"
            )

    def pin(self, url: str, **facts: str | int) -> None:
        """Note what was fetched; an entry that is there stays, having been checked."""
        if self.entry:
            return
        self.entry = {"url": shown(url), **facts}
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text(json.dumps(self._all | {self.name: self.entry}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, where the system can; the lock goes with the process."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(f"{folder}: another fetch.py is at work in this folder") from error
        yield
    finally:
        os.close(handle)


# --- words --------------------------------------------------------------------------------------------


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def note(message: str) -> None:
    print(f"fetch.py: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
