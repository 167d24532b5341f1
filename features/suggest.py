"""A model's config suggested by features: their names, dimensions and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ..base.checks import check_mapping, nearest
from ..base.config import CEConfig
from .features import Features

Rows = TypeVar("Rows", np.ndarray, list)

CLUSTERS = 8
MAX_TOKENS = 50

ROWS_LOOKED_AT = 5000
"""Videos, or tokens, by which features are told to be probabilities, at most."""

ROUNDING = 1e-5
"""What a probability is above 1 at most, and a class varies by that is always the same, of its size."""

MOST_ZEROS = 0.01
"""The share of probabilities that may be rounded to 0. Of features after a ReLU far more are."""

SKEWNESS = 2
"""Of most classes' probabilities at least; an even distribution has 0, an exponential one 2."""


def config_for(
    features: Features,
    text: Mapping[str, object],
    experts: Mapping[str, Mapping[str, object]] | None = None,
    **choices: object,
) -> CEConfig:
    """A config with every expert of these features and its dimension.

    A token sequence gets 8 clusters. It is padded and cut to the length of its longest video, and to 50 tokens at most.
    Of features that look like the probabilities of many classes, above 0, at most 1, and mostly small, the logarithm is
    standardised (`ExpertConfig.logarithm`).

    Args:
        text: the text side, as in the short form of a config: {"dim": 384, ...}.
        experts: {name: {...}}, settings of an expert that replace those made here.
        choices: the rest of the short form, such as `shared_dim=512`.

    Raises:
        TypeError, ValueError: as `CEConfig.from_dict`; also for an expert that no video has, or settings of an expert
            without features; or negative features of which the logarithm is to be taken.

    >>> import numpy as np
    >>> features = Features(("a", "b"), {"motion": np.ones((2, 512))}, {"motion": np.array([1, 1])})
    >>> config_for(features, {"dim": 384}, shared_dim=64).output_dims
    {'motion': 64}
    """
    given = dict(check_mapping({} if experts is None else experts, "config: experts"))
    settings = {}
    for name in features.experts:
        changes = check_mapping(given.pop(name, {}), f"config: experts[{name!r}]")
        settings[name] = _expert_settings(features, name, changes)
    if given:
        unknown = next(iter(given))
        raise ValueError(f"config: experts: there are no features of {unknown!r}{nearest(unknown, settings)}")
    if len(settings) == 1:
        choices = {"use_ce": ""} | choices  # a single expert has no other to collaborate with
    return CEConfig.from_dict({"experts": settings, "text": dict(text), **choices})


def _expert_settings(features: Features, name: str, changes: Mapping[str, object]) -> dict[str, object]:
    if not features.ind[name].any():
        raise ValueError(
            f"features: expert {name!r} is missing in each of {len(features.ids):,} videos; leave it out, or mend "
            "its ids"
        )
    x = features.experts[name]
    pooling: dict[str, int] = {}
    if isinstance(x, list):
        sequences = [tokens for tokens in x if tokens is not None]
        each = max(1, ROWS_LOOKED_AT // len(sequences))
        sample = np.concatenate([some[some.any(axis=1)][:each] for some in _some(sequences)])  # without padding
        pooling = {"clusters": CLUSTERS, "max_tokens": min(max(map(len, sequences)), MAX_TOKENS)}
    else:
        sample = x[_some(np.flatnonzero(features.ind[name]))]
    if changes.get("logarithm") is True and (sample < 0).any():
        raise ValueError(
            f"config: experts[{name!r}], logarithm: expected features from 0 to 1, which are probabilities, got "
            f"{np.nanmin(sample):g}"
        )
    return {"dim": sample.shape[1], **pooling, "logarithm": _are_probabilities(sample), **changes}


def _some(rows: Rows) -> Rows:
    """At most `ROWS_LOOKED_AT` of one row or more, evenly."""
    return rows[:: -(-len(rows) // ROWS_LOOKED_AT)]


def _are_probabilities(x: np.ndarray) -> bool:
    """True for features (n, dim) above 0 and at most 1, most of which are small beside a few; rows with NaN or infinity
    do not count, nor do a few zeros, which small ones are rounded to."""
    x = x[np.isfinite(x).all(axis=1)]
    if not len(x) or x.min() < 0 or x.max() > 1 + ROUNDING or np.mean(x == 0) > MOST_ZEROS:
        return False
    deviations = (x - x.mean(axis=0, dtype=np.float64)).astype(np.float32)
    spread = deviations.std(axis=0)
    varies = spread > ROUNDING * x.max(axis=0)
    scaled = deviations[:, varies] / spread[varies]
    return bool(varies.any() and np.median((scaled * scaled * scaled).mean(axis=0)) > SKEWNESS)
