"""Token embeddings that are computed once.

A sentence encoder takes longer than everything after it. Its output is therefore kept, sentence by sentence, in the
user's cache, where all runs find it: a run whose captions overlap with another's encodes the others alone. Sentences
that are encoded together lie in one file, which is written once and never changed, so that several processes may read
and write, and be killed, at any time. Files can be deleted at any time, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..base.dependencies import extra
from ..base.files import naming, replacing
from ..base.slices import slices
from .encoder import LARGEST_VALUE, Encoder, EncoderIdentity, identify, token_arrays

SENTENCES_AT_ONCE = 256
"""Sentences that are encoded together, and lie in one file."""

PROBE_DECIMALS_OF_KEY = 3
"""Rounding that the same encoder with another number of threads does not cross."""

DIGEST_BYTES = 16


def user_cache() -> Path:
    """The folder for token embeddings: `$XDG_CACHE_HOME/collaborative_experts/tokens`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "collaborative_experts" / "tokens"


def embed_tokens(sentences: Sequence[str], encoder: Encoder, folder: str | Path | None, max_tokens: int) -> np.ndarray:
    """Token embeddings (T, max_tokens, dim) float16, zero-padded or cut, mapped from a file without a name.

    Sentences that this encoder, told by its identity, embedded before are read. Half precision costs 0.05% of a value
    at most; which sentences are encoded together changes its last digit here and there.

    Args:
        folder: the folder of the cache; None takes `user_cache()`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the encoder gives anything but finite arrays (W, dim) with W >= 1.
    """
    if folder is None:
        folder = user_cache()
        folder.mkdir(parents=True, exist_ok=True)
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"tokens: there is no folder {folder}")
    kept = Path(folder) / f"tokens-{_key(identify(encoder))}"
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, sentence in enumerate(sentences):
        rows[_digest(sentence)].append(row)
    with naming(kept), TemporaryFile(dir=folder) as file:  # lives as long as it is mapped
        for _ in sentences:  # a full disk would end a process that writes to a map of what is not there
            file.write(bytes(2 * max_tokens * encoder.dim))
        tokens = np.memmap(file, np.float16, "w+", shape=(len(sentences), max_tokens, encoder.dim))
    found = set()
    for digest, x in _read(kept, rows.keys()):
        tokens[rows[digest], : len(x)] = x[:max_tokens]
        found.add(digest)
    new = [sentences[places[0]] for digest, places in rows.items() if digest not in found]
    for sentence, x in _encode(new, encoder, kept):
        tokens[rows[_digest(sentence)], : len(x)] = x[:max_tokens]
    return tokens


def _key(encoder: EncoderIdentity) -> str:
    probe = [round(x, PROBE_DECIMALS_OF_KEY) for x in encoder.probe]
    return hashlib.sha256(json.dumps([encoder.name, encoder.dim, probe]).encode()).hexdigest()[:16]


def _digest(sentence: str) -> bytes:
    return hashlib.sha256(sentence.encode(errors="surrogatepass")).digest()[:DIGEST_BYTES]


def _read(folder: Path, wanted: Set[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
    """Digests and token embeddings (W, dim) of the wanted sentences that are kept."""
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="np") as file:
                digests = [row.tobytes() for row in file.get_tensor("digests")]
                if wanted.isdisjoint(digests):
                    continue
                embedded = np.split(file.get_tensor("tokens"), file.get_tensor("ends")[:-1])
        except (OSError, SafetensorError):  # deleted just now, or damaged: written anew
            continue
        yield from ((digest, x) for digest, x in zip(digests, embedded, strict=True) if digest in wanted)


def _encode(sentences: list[str], encoder: Encoder, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Sentences, those of a length together, and their token embeddings (W, dim) float16, which are kept."""
    if not sentences:
        return
    sentences = sorted(sentences, key=len)
    with extra("tqdm", "training").tqdm(total=len(sentences), unit=" sentences", desc=encoder.name) as progress:
        for rows in slices(len(sentences), SENTENCES_AT_ONCE):
            batch = sentences[rows]
            embedded = [x.astype(np.float16) for x in token_arrays(batch, encoder, LARGEST_VALUE)]
            _write(folder, batch, embedded)
            yield from zip(batch, embedded, strict=True)
            progress.update(len(batch))


def _write(folder: Path, sentences: list[str], embedded: list[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    digests = b"".join(map(_digest, sentences))
    content = {
        "digests": np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
        "ends": np.cumsum([len(x) for x in embedded]),
        "tokens": np.concatenate(embedded),
    }
    path = folder / f"{hashlib.sha256(digests).hexdigest()[:16]}.safetensors"
    with replacing(path, SafetensorError) as temporary:
        save_file(content, temporary)
