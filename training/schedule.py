"""The steps of a run: how many there are, when the model is validated, and the learning rate of each.

The number of steps is given (`steps`, or `epochs`), or it is found: the learning rate then stays constant after it
has risen, the weights are averaged over the last share of the steps so far, and training goes on until validation
has not become better for a while. Then all videos, those of the validation included, are trained on anew for as long,
with a learning rate that falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import TrainingConfig

WARM_UP_SHARE = 0.05
"""Share of a given number of steps in which the learning rate rises."""

WARM_UP_STEPS = 10
"""Steps in which it rises where the number is to be found."""

DEFAULT_STEPS, DEFAULT_EPOCHS = 100, 10
"""Without validation, so many steps are made, but no fewer epochs."""

MOST_STEPS, MOST_EPOCHS = 1000, 50
"""A search ends after as many steps and epochs."""

PATIENCE_SHARE, PATIENCE_ROUNDS = 0.5, 3
"""A search ends when this share of the best number of steps, and so many rounds, brought nothing better."""

REFIT_STRETCH = 1.5
"""Steps with a falling learning rate that do as much as one with a constant one."""

VALIDATION_SHARE = 0.05
"""A round is as long as makes the validation after it cost this share."""

FORWARD_SHARE = 1 / 3
"""Cost of embedding without gradients, beside that of a step."""


@dataclass(frozen=True)
class Schedule:
    """The plan of a run.

    Attributes:
        steps: the last step.
        steps_per_epoch: steps that pass once over the training videos.
        epochs_per_round: epochs between two validations.
        found: True where validation finds the number of steps, and `steps` is only the limit.
        falls: True where the learning rate falls to 0 at the last step, False where it stays.
        patience: rounds without a better validation after which training stops; 0 never stops, None is a share of
            the best number of steps.
    """

    steps: int
    steps_per_epoch: int
    epochs_per_round: int
    found: bool
    falls: bool
    patience: int | None

    def learning_rate(self, highest: float, step: int) -> float:
        """The rate of a step, counted from 0."""
        if not self.falls:
            return highest * min(1.0, (step + 1) / WARM_UP_STEPS)
        warm_up = min(1.0, (step + 1) / max(1.0, WARM_UP_SHARE * self.steps))
        return highest * warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def is_over(self, step: int, best_step: int) -> bool:
        """True after the last step, or when patience with validation is over; `best_step` is the best one's."""
        if step >= self.steps:
            return True
        rounds = (step - best_step) / (self.steps_per_epoch * self.epochs_per_round)
        if self.patience is None:
            return rounds >= PATIENCE_ROUNDS and step - best_step >= PATIENCE_SHARE * best_step
        return 0 < self.patience <= rounds


def plan(settings: TrainingConfig, videos: int, validated: tuple[int, int] | None) -> Schedule:
    """The schedule for a number of training videos.

    Args:
        settings: with a batch size (`fit_settings`).
        validated: the numbers of videos and captions of the validation set; None without one.
    """
    batch = settings.batch_size
    per_epoch = math.ceil(videos / batch)
    given = settings.steps or (settings.epochs and settings.epochs * per_epoch)
    if given:
        return Schedule(given, per_epoch, 1, found=False, falls=True, patience=settings.patience or 0)
    if validated is None:
        return Schedule(max(DEFAULT_STEPS, DEFAULT_EPOCHS * per_epoch), per_epoch, 1, False, False, 0)
    work = FORWARD_SHARE * sum(validated) / 2  # of one caption with its video each
    steps_per_round = work / (VALIDATION_SHARE * batch)
    most = max(MOST_STEPS, MOST_EPOCHS * per_epoch)
    return Schedule(most, per_epoch, math.ceil(steps_per_round / per_epoch), True, False, settings.patience)


def repeat(steps: int, videos: int, batch: int) -> Schedule:
    """The schedule that learns for as long as the found number of steps, without validation.

    Its learning rate falls, which is better than a constant one, and it has more steps in return.
    """
    return Schedule(round(REFIT_STRETCH * steps), math.ceil(videos / batch), 1, found=False, falls=True, patience=0)
