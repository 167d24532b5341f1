"""One training step: dropout, embeddings, scores, loss.

Beyond the paper: experts, features and words are dropped at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..base.config import CEConfig
from ..model.cenet import meta_model
from .losses import batch_scores, distillation, info_nce, max_margin
from .members import has_fixed_centre
from .settings import TrainingConfig


class Objective(nn.Module):
    """The loss of a batch. It holds the model and the learned temperature, and is called on every device."""

    def __init__(self, config: CEConfig, settings: TrainingConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = meta_model(config)
        # Not strict: load_state_dict trips over the names of experts with a dot. The names are our own.
        self.model.load_state_dict({name: x.clone() for name, x in state.items()}, strict=False, assign=True)
        # With one cluster, a token's share in it is 1 whatever the parameters: no gradient is to be computed for them.
        untrained = tuple(f"{name}." for name in _fixed_poolings(config))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(untrained))
        log_temperature = math.log(settings.temperature)
        self.log_temperature = nn.Parameter(torch.tensor(log_temperature, dtype=torch.float32, device="cpu"))
        self._settings = settings
        self.generator: torch.Generator | None = None
        """Draws what is dropped; None is PyTorch's own, which threads would share."""
        self.gather: Callable[[Tensor], Tensor] | None = None
        """Joins the rows of all devices, so that each sees the scores of the whole batch."""

    def forward(
        self, features: dict[str, Tensor], available: Tensor, tokens: Tensor, teacher: Tensor | None = None
    ) -> Tensor:
        """The loss of B videos and one caption each; arguments as from `VideoTensors.batch`.

        Args:
            teacher: scores (B, B) of the batch of all devices, one device's rows after another's.
        """
        settings = self._settings
        available = drop_experts(available, settings.expert_dropout, self.generator)
        tokens = _drop_words(tokens, settings.word_dropout, self.generator)
        features = {name: self.drop_features(name, x) for name, x in features.items()}
        video = torch.stack(list(self.model.encode_video(features, available).values()), dim=1)
        text, weights = self.model.encode_text(tokens)
        parts = torch.stack(list(text.values()), dim=1), weights, video, available
        if self.gather is not None:
            parts = tuple(self.gather(part) for part in parts)
        scores = batch_scores(*parts)
        temperature = self.log_temperature.exp()
        loss = max_margin(scores, settings.margin) if settings.loss == "max_margin" else info_nce(scores, temperature)
        return loss if teacher is None else loss + distillation(scores, teacher, temperature.detach())

    def drop_features(self, name: str, x: Tensor) -> Tensor:
        """Replace features by what is 0 once standardised, their mean. Nothing is scaled up in return."""
        rate = self._settings.feature_dropout
        if not rate or not self.training:
            return x
        dropped = _random(x.shape, x.device, self.generator) < rate
        if not self.model.config.standardise:
            return x.masked_fill(dropped, 0)
        if x.ndim > 2:
            dropped &= (x != 0).any(-1, keepdim=True)  # padding stays padding
        return torch.where(dropped, self.model.standardise._modules[name].typical, x)


def fixed_parameters(config: CEConfig) -> set[str]:
    """The names of parameters that stay 0: the centres of NetVLADs of one cluster (`has_fixed_centre`)."""
    return {f"{name}.clusters2" for name in _fixed_poolings(config)}


def _fixed_poolings(config: CEConfig) -> list[str]:
    sides = {f"pooling.{expert.name}": expert for expert in config.experts} | {"text_pooling": config.text}
    return [name for name, side in sides.items() if has_fixed_centre(side)]


def drop_experts(available: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Drop each available expert with this chance, but never all experts of a video."""
    if not rate:
        return available
    kept = available & (_random(available.shape, available.device, generator) >= rate)
    return torch.where(kept.any(1, keepdim=True), kept, available)


def _drop_words(tokens: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    if not rate:
        return tokens
    dropped = _random(tokens.shape[:2], tokens.device, generator) < rate
    return tokens.masked_fill(dropped.unsqueeze(2), 0)


def _random(size: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Numbers from 0 to 1, the same whatever the caller's default dtype."""
    return torch.rand(size, dtype=torch.float32, device=device, generator=generator)
