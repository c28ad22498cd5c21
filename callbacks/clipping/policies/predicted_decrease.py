"""How much a step predicts to lower the loss, and how much of that is to be believed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, History, Step
from rnn_blocks.callbacks.measuring.numbers import (
    Number,
    clamped,
    divided,
    maximum,
    minimum,
    root,
    where,
)

FALL, RISE = 0.99, 1.05  # by how much the followed loss may change in a step
NEW_LOW = 1.03  # what the share is multiplied by with every new low of the recent loss,
PROGRESS, LOWER = 1.01, 0.96  # and else where the recent loss is below so much of the usual one,
CLIMB, HIGHER = 0.985, 1.05  # where it is above so much of it,
STANDSTILL = 0.997  # and in between
WIDE = 200.0  # shares wider than the narrowest one so often,
WIDEST, NEAR = 1e4, 0.1  # and with steps that promise at least so much of what they may so often
RECENT = 16  # mean over one in so many of the steps so far, and over two at least: lows of one batch are luck
USUAL = 4  # the same of a longer mean, what the loss used to be
CEILING = 10.0  # first losses, above which the loss is not followed
FAR = 4.0  # thresholds; a norm further out is brought down below the threshold
FIRST = 16  # norms, while fewer are known that begins at one threshold
RUNAWAY = 2.0  # followed losses; a loss above them is one that a velocity carries away, which has to be turned
TRUSTED, OVER = 1.0, 0.0  # a momentum; in between it is neither yet
OPENED = 1.5  # narrowest shares; one as wide has earned trust in the momentum
BETRAYAL = 1.5  # followed losses; a loss above them ends it for good
LOWERED = 1.2  # narrowest shares; one as wide where the loss comes to 0 shows that it has been lowered on purpose
IN_VAIN = 1.25  # lowest recent losses; one above them after the share has closed shows that nothing is gained by it


class PredictedDecrease(NamedTuple):
    """`Auto`'s bound on the decrease of the loss that a step predicts; see there.

    Attributes:
        share: c₀, of the loss.
    """

    share: float

    def initial_history(self, norm: Tensor) -> History:
        """No loss seen, which stands there as 0."""
        return {
            "loss": torch.zeros_like(norm),
            "share": torch.full_like(norm, self.share),
            "smoothed": torch.zeros_like(norm),
            "usual": torch.zeros_like(norm),
            "lowest": torch.full_like(norm, math.inf),
            "ceiling": torch.zeros_like(norm),
            "highest_rate": torch.zeros_like(norm),
            "trust": torch.full_like(norm, 0.5),
            "floor": torch.zeros_like(norm),
        }

    def clip(self, history: History, step: Step, loss: Number) -> Clip:
        """Where a step begins to predict too much, S; infinite without a learning rate or a loss to be trusted.

        Of ``history`` the norms' ``count`` is used as well.
        """
        loss = loss - floor_so_far(history)
        followed = where(history["loss"] == 0, loss, history["loss"])
        share, before, trust = history["share"], trust_so_far(history), self._trust(history, step, loss)
        share = where(trust == TRUSTED, share / (1 - trusted_momentum(step)), share)
        threshold = root(divided(share * followed, highest_rate(history, step)))
        threshold = where(threshold > 0, threshold, math.inf)  # NaN too, as of a loss below 0
        sensitive = sensitive_norm(step)
        far = (history["count"] >= FIRST) * (FAR - 1) + 1
        short = minimum(threshold, divided(far * (threshold * threshold), sensitive))
        target = where(loss > RUNAWAY * followed, threshold, short)
        restart = (before == TRUSTED) & (trust == OVER)
        if step.sensitive_norm is None:
            return Clip(threshold, target, restart=restart)
        whole = where(step.sensitive_norm > 0, divided(step.norm, step.sensitive_norm), math.inf)
        return Clip(whole * threshold, whole * target, restart=restart)

    def _trust(self, history: History, step: Step, loss: Number) -> Number:
        """Whether the momentum is trusted: `TRUSTED`, `OVER`, or neither yet; of the loss above the floor."""
        followed = where(history["loss"] == 0, loss, history["loss"])
        before, share, rate = trust_so_far(history), history["share"], highest_rate(history, step)
        sensitive, momentum = sensitive_norm(step), trusted_momentum(step)
        promises_too_much = sensitive * sensitive * rate > (1 + momentum) / (1 - momentum) * followed
        too_fast = promises_too_much | (loss > BETRAYAL * followed)
        over = (before == OVER) | too_fast | ((before == TRUSTED) & (share <= self.share))
        now = where(over, OVER, where(share >= OPENED * self.share, TRUSTED, before))
        tells = (sensitive < math.inf) & (loss > 0) & (loss < math.inf) & (followed < math.inf) & (rate > 0)
        return where(tells, now, before)  # else the rule rests

    def observe(self, history: History, step: Step, loss: Number) -> History:
        """Follow the loss, unless it is not finite; widen the share as it falls, and narrow it as it rises.

        All of it above the floor, which a loss that reaches it moves further down.

        Of ``history`` the norms' ``count``, before this step's, is used as well.
        """
        before = {"usual": history["smoothed"], "trust": trust_so_far(history), "floor": floor_so_far(history)}
        history = before | history  # which older ones do not have
        loss = loss - history["floor"]
        trust = self._trust(history, step, loss)
        known, followed = abs(loss) < math.inf, history["loss"]  # in half of the operations of `isfinite`
        first, share, deep = followed == 0, history["share"], history["floor"] < 0
        ceiling = where(first, CEILING * loss, history["ceiling"])
        gained = ceiling / CEILING - history["lowest"]
        reached = (loss <= 0) & (gained > 0) & (deep | (share >= LOWERED * self.share))
        loss = where(reached, maximum(loss, -gained), loss)  # one batch changes little
        moved = minimum(followed * clamped(divided(loss, followed), FALL, RISE), ceiling)
        recent, usual = (
            where(first, loss, before + clamped(span / (span + history["count"]), high=0.5) * (loss - before))
            for before, span in ((history["smoothed"], RECENT), (history["usual"], USUAL))
        )
        is_new_low = recent < history["lowest"]
        lowest = where(is_new_low, recent, history["lowest"])
        deeper = where(reached, ceiling / CEILING - lowest, 0.0)
        closed = where(recent < HIGHER * usual, share * STANDSTILL, share * CLIMB)
        changed = where(is_new_low, share * NEW_LOW, where(recent < LOWER * usual, share * PROGRESS, closed))
        rate = highest_rate(history, step)
        sensitive = sensitive_norm(step)
        in_vain = deep & (share <= self.share) & (recent > IN_VAIN * lowest)
        goes_on = (reached | (loss > 0)) & (followed < math.inf) & (in_vain ^ True)
        promised = sensitive * sensitive * rate
        near = promised > NEAR * share * history["loss"]
        widest = near * ((WIDEST - WIDE) * self.share) + WIDE * self.share
        after = {
            "loss": where(goes_on, where(first, loss, moved) + deeper, math.inf),
            "share": minimum(clamped(changed, low=self.share), maximum(widest, share)),
            "smoothed": recent + deeper,
            "usual": usual + deeper,
            "lowest": lowest + deeper,
            "ceiling": ceiling + CEILING * deeper,
            "trust": trust,
            "floor": history["floor"] - deeper,
        }
        return {
            **{name: where(known, value, history[name]) for name, value in after.items()},
            "highest_rate": rate,
        }


def sensitive_norm(step: Step) -> Number:
    """The norm that promises: without scale-invariant weights, where they are told apart."""
    return step.norm if step.sensitive_norm is None else step.sensitive_norm


def trust_so_far(history: History) -> Number:
    """Whether the momentum was trusted; over in histories of before there was any."""
    return history.get("trust", history["share"] * 0)


def floor_so_far(history: History) -> Number:
    """What the loss is supposed not to fall below; 0 in histories of before there was any."""
    return history.get("floor", history["share"] * 0)


def trusted_momentum(step: Step) -> float:
    """SGD's momentum, as far as it is trusted: at 1 nothing is known of what a step promises."""
    return step.momentum if step.momentum < 1 else 0.0


def highest_rate(history: History, step: Step) -> Number:
    """The highest learning rate so far, with this step's."""
    highest, rate = history["highest_rate"], step.learning_rate
    if rate is None:
        return highest
    if isinstance(rate, Tensor):
        rate = rate.to(highest)
        return torch.maximum(highest, rate.masked_fill(rate.isnan(), 0.0))  # NaN: it was weighted by gradients of 0
    return clamped(highest, low=0.0 if math.isnan(rate) else float(rate))
