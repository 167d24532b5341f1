"""Models joined to one, against the mean of their scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from collaborative_experts import CEConfig
from collaborative_experts.model.cenet import initial_state, model_of
from collaborative_experts.training.losses import batch_scores
from collaborative_experts.training.members import Linear, can_join, join
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


def test_gates_see_members_at_their_own_length():
    """A joined vector has the length 1, and theirs had it."""
    members = [member(seed) for seed in range(2)]
    linears = [Linear(member(2), 256, 1.5, summed=True), Linear(member(3), 256, 0.5)]
    joined, config = join(members, JOINABLE, linears)
    assert config == replace(JOINABLE, shared_dim=4 * 256, summed_dim=256)
    for part, state in enumerate((*members, member(3), member(2))):  # sums stand last
        rows = slice(part * 256, (part + 1) * 256)
        for side, scale in (("video", math.sqrt(2 + 1.5**2 + 0.5**2)), ("text", 1)):
            name = f"ce.{side}_GU.1.cg.fc.weight"
            torch.testing.assert_close(joined[name][rows, rows], scale * state[name])
            assert joined[name][rows].count_nonzero() == state[name].count_nonzero()
        torch.testing.assert_close(joined["ce.text_GU.0.fc.bias"][rows], state["ce.text_GU.0.fc.bias"])


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
        ({"summed_dim": 2}, False),
        ({"text": {"dim": 10, "clusters": 2, "ghost_clusters": 0}}, False),
        ({"text": {"dim": 10, "clusters": 1, "ghost_clusters": 1}}, False),
        ({"experts": {"motion": 12, "sound": {"dim": 6, "clusters": 8}}}, False),
    ],
)
def test_what_can_be_joined(change, expected):
    assert can_join(CEConfig.from_dict(JOINABLE.to_dict() | change)) == expected
