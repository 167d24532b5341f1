"""Models joined to one, against the mean of their scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts import CEConfig
from collaborative_experts.model.cenet import initial_state, model_of
from collaborative_experts.training.losses import batch_scores
from collaborative_experts.training.members import can_join, join
from collaborative_experts.training.objective import fixed_parameters
from helpers import JOINABLE


def member(seed):
    state = initial_state(JOINABLE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, x in state.items():
        if name in fixed_parameters(JOINABLE):
            x.zero_()
        elif name.endswith("running_mean"):
            x.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            x.uniform_(0.5, 1.5, generator=generator)
    return state


def scores(state, config):
    model = model_of(state, config)
    generator = torch.Generator().manual_seed(9)
    available = torch.rand(30, 2, generator=generator) < 0.7
    features = {
        "motion": torch.randn(30, 12, generator=generator),
        "sound": torch.randn(30, 4, 6, generator=generator),
    }
    with torch.no_grad():
        video = torch.stack(list(model.encode_video(features, available).values()), 1)
        text, weights = model.encode_text(torch.randn(40, 5, 10, generator=generator))
    return batch_scores(torch.stack(list(text.values()), 1), weights, video, available).numpy()


def test_one_model_joined_with_itself_is_the_same():
    joined, config = join([member(0)] * 3, JOINABLE)
    assert config == replace(JOINABLE, shared_dim=768)
    np.testing.assert_allclose(scores(joined, config), scores(member(0), JOINABLE), atol=1e-6)


def test_scores_are_close_to_the_mean_of_the_members():
    members = [member(seed) for seed in range(3)]
    mean = np.mean([scores(state, JOINABLE) for state in members], axis=0)
    joined = scores(*join(members, JOINABLE))
    assert np.abs(joined - mean).max() < 0.2 * np.abs(mean).max()
    others = [scores(state, JOINABLE) for state in members]
    assert np.abs(joined - mean).max() < 0.3 * min(np.abs(other - mean).max() for other in others)


def test_a_single_member_stays_as_it_is():
    state = member(0)
    joined, config = join([state], JOINABLE)
    assert config == JOINABLE
    assert all(joined[name] is x for name, x in state.items())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"use_ce": "pairwise"}, False),
        ({"mimic_ce_dims": False}, False),
        ({"text": {"dim": 10, "clusters": 2, "ghost_clusters": 0}}, False),
        ({"text": {"dim": 10, "clusters": 1, "ghost_clusters": 1}}, False),
        ({"experts": {"motion": 12, "sound": {"dim": 6, "clusters": 8}}}, False),
    ],
)
def test_what_can_be_joined(change, expected):
    assert can_join(CEConfig.from_dict(JOINABLE.to_dict() | change)) == expected
