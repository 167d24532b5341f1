"""Several models of different seeds, joined to one whose scores are close to the mean of theirs.

On few videos the mean of several narrow models is better than one wide model that costs as much. The joined model has
the members' layers side by side: an embedding is the members' embeddings one after another, brought to length 1. The
gates' matrices are block-diagonal, and the experts' weights are those of the mean logits.

It is exact but for lengths: a member counts a little more for a video or a text that its layers make longer than the
others' do. All members learn the same way, so that their lengths are alike; a linear model's are made so (`linear`), in
the mean over videos: sums over experts count more for a video that has many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base.config import CEConfig, ExpertConfig, TextConfig

SHARED = ("standardise.", "text_pooling.", "pooling.")
"""Parameters that are the same in all members: they follow from the data, or are fixed."""

EXPERT_WEIGHTS = "ce.moe_fc."
"""Parameters that give the logits of the experts' weights."""


@dataclass(frozen=True)
class Linear:
    """A linear model, or a part of one, that is joined to members (`linear`).

    Attributes:
        state: its layers under the members' names.
        dim: the size of its embeddings.
        length: the length of its vectors beside a member's.
        summed: a video's vectors are the sum of its experts' (`CEConfig.summed_dim`).
    """

    state: Mapping[str, Tensor]
    dim: int
    length: float
    summed: bool = False


def has_fixed_centre(side: ExpertConfig | TextConfig) -> bool:
    """True for NetVLAD with one cluster and no ghost: the sum of the tokens, less a multiple of the centre.

    The multiple is the number of tokens with the padding, so that a centre would only get in the way of the sum. It
    is 0 from the start and not trained.
    """
    return side.clusters == 1 and not getattr(side, "ghost_clusters", 0)


def can_join(config: CEConfig) -> bool:
    """True for mixtures of experts with reduced dimensions, whose sequences and texts are pooled by one cluster."""
    pooled = [expert for expert in config.experts if expert.variable] + [config.text]
    return not config.use_ce and config.mimic_ce_dims and not config.summed_dim and all(map(has_fixed_centre, pooled))


def join(
    members: Sequence[Mapping[str, Tensor]], config: CEConfig, linears: Sequence[Linear] = ()
) -> tuple[dict[str, Tensor], CEConfig]:
    """Weights and config of the joined model, `shared_dim` as many times as large as there are members.

    Args:
        members: state dicts of models of `config`, for which `can_join` is true.
        linears: are joined to them, and add their own sizes.
    """
    if len(members) == 1 and not linears:
        return dict(members[0]), config
    linears = sorted(linears, key=lambda linear: linear.summed)  # sums stand last
    size = len(members) * config.shared_dim + sum(linear.dim for linear in linears)
    # A video's vector has the length 1 before the gate, and a member's part of it is so much shorter.
    gate_scale = math.sqrt(len(members) + sum(linear.length**2 for linear in linears))
    joined = {}
    for name, x in members[0].items():
        parts = [member[name] for member in members]
        if name.startswith(SHARED) or not x.ndim:
            joined[name] = x
        elif name.startswith(EXPERT_WEIGHTS):
            joined[name] = torch.stack(parts).mean(0)
        else:
            parts += [linear.state[name].to(x.device) for linear in linears]
            joined[name] = _join_one(name, parts, gate_scale)
    return joined, replace(config, shared_dim=size, summed_dim=sum(linear.dim for linear in linears if linear.summed))


def _join_one(name: str, parts: list[Tensor], gate_scale: float) -> Tensor:
    if not name.endswith(".cg.fc.weight"):
        return torch.cat(parts)
    return torch.block_diag(*parts) * (gate_scale if name.startswith("ce.video_GU.") else 1.0)
