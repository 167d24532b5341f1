"""The models that others published, and where their files are: `weights/models.toml`, or an address."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from .weights_folder import WEIGHTS_DIR

MODELS = WEIGHTS_DIR / "models.toml"
CONFIG, CHECKPOINT = "config.json", "trained_model.pth"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class FetchError(OSError):
    """The model could not be fetched. The message is one line."""


@dataclass(frozen=True)
class Model:
    """A published model. `url` is the folder that holds its config.json and trained_model.pth."""

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


def find_model(name: str | None) -> Model:
    """The model of the list with that name; the default one for None. Raises FetchError with the nearest name."""
    models = read_models()
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        close = difflib.get_close_matches(name, models, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "--list shows the known ones"
        raise FetchError(f"{name!r} is not in models.toml; {hint}")
    return models[name]


def model_at(url: str) -> Model:
    """The model of a folder on the web, given by the folder's address or one of its two files'."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise FetchError(f"--url: {url!r} is not an address: {error}") from None
    path = parts.path.rstrip("/").removesuffix(f"/{CHECKPOINT}").removesuffix(f"/{CONFIG}")
    plain = parts._replace(path=path, query="", fragment="").geturl()
    if not is_secure(plain) or "@" in parts.netloc:
        raise FetchError(f"--url: expected https://host/folder, got {url!r}")
    # The authors' folders are NAME/HASH/seed-N/DATE. Elsewhere the last folder is the best name there is.
    authors = re.search(r"([^/]+)/([0-9a-f]{8})/(seed-\d+)/[^/]+$", path)
    name = "-".join(authors.groups()) if authors else path.rpartition("/")[2] or parts.netloc
    return Model(re.sub(r"[^\w.-]+", "_", unquote(name)).lstrip(".") or "model", plain)


def table(word: str = "") -> str:
    """The models that have `word`, in any case, in name, dataset, method or experts, as aligned text.

    Raises:
        FetchError: no model has it.
    """
    scores = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "MdR": "mdr"}
    rows = []
    for model in read_models().values():
        row = (model.name, f"{model.dataset} {model.split}".strip(), model.method, model.experts, model.parameters)
        if word.lower() in " ".join(row[:4]).lower():
            rows.append((*row, *(f"{model.t2v[key]:.1f}" for key in scores.values())))
    if not rows:
        raise FetchError(f"--list: no model of models.toml has {word!r} in its name, dataset, method or experts")
    rows.insert(0, ("name", "dataset", "method", "experts", "parameters", *scores))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if i > 3 else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    lines.append(
        "\nPublished text-to-video numbers, means over three runs. The first model of the list is the default."
    )
    lines.append("Without (-): CG collaborative gating, P projection to a common dimension, MW expert weights.")
    return "\n".join(line.rstrip() for line in lines)


def is_secure(url: str) -> bool:
    """True for an https address with a host, and for one of this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))
