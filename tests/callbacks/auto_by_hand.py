"""`AdaptiveGradientClipping()` as its documentation says it, one number after another: what Trainers are compared with.

Norms are of float64 copies, statistics are Python's; nothing of the library is used.
"""

import math
import statistics

import torch


class AutoByHand:
    """Makes the steps of one optimizer (SGD, or Adam and its kin) as `Auto` at its defaults would.

    Args:
        longest_update: `Auto`'s.
        deviations: `Auto`'s.

    Attributes:
        clipped: number of steps that were clipped.
        promised: number of these that were brought down because they promised too much.
        bounded: number of steps whose learning rate was shortened.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, longest_update: float | None = None, deviations: float = 2.5
    ) -> None:
        self.optimizer = optimizer
        self.deviations = deviations
        self.is_sgd = isinstance(optimizer, torch.optim.SGD)
        self.longest_update = longest_update
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.log_norms: list[float] = []
        self.highest_rate = 0.0
        self.followed = self.recent = self.usual = math.nan
        self.lowest = math.inf
        self.share, self.trust = 0.2, "not yet"
        self.stretch = 0.0
        matrices = [p for p in self.parameters if p.ndim > 1 and norm_of([p.detach()])]
        self.matrices = matrices or self.parameters
        self.matrix_norms = [norm_of([p.detach()]) for p in self.matrices]
        self.ratio = self.middle([math.sqrt(p.numel()) for p in self.matrices])
        self.measured = 0.0
        self.steps = self.clipped = self.promised = self.bounded = 0

    def step(self, loss: float | None = None) -> None:
        """Clip the gradients, and make the update."""
        self.highest_rate = max(self.highest_rate, self.rate())
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            norm = norm_of(gradients)
            outlier, promise = self.outlier(norm), self.promise(norm, loss)
            if outlier < math.inf:
                self.stretch += 0.99 * 0.25  # one step in a hundred may be an outlier for long
            else:
                self.stretch = max(self.stretch - 0.01 * 0.25, 0.0)
            self.clipped += min(outlier, promise) < norm
            self.promised += promise < min(outlier, norm)
            if min(outlier, promise) < norm:
                for gradient in gradients:
                    gradient.mul_(min(outlier, promise) / norm)
            self.log_norms.append(math.log(norm))
            if loss is not None and self.is_sgd:
                self.follow(loss)
        if self.is_sgd or self.longest_update is None:
            self.optimizer.step()
        else:
            self.bounded_update()

    def rate(self) -> float:
        """Of the update that a lasting gradient of 1 makes."""
        group = self.optimizer.param_groups[0]
        return group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"]) if self.is_sgd else group["lr"]

    def middle(self, lengths: list[float]) -> float:
        """The median over the matrices of a length over the matrix's first norm."""
        return statistics.median_high(length / norm for length, norm in zip(lengths, self.matrix_norms, strict=True))

    def outlier(self, norm: float) -> float:
        """What a norm that stands out is brought down to."""
        if not self.log_norms:
            return math.inf
        window = self.log_norms[-64:]
        count, median = len(window), statistics.median_low(window)
        deviation = 1.4826 * statistics.median_low([abs(value - median) for value in window])
        sigma = math.sqrt((count * deviation**2 + 8 * 0.5**2) / (count + 8))
        latest = statistics.median_low(window[-5:])
        usual = 3 if self.is_sgd else 10
        grown = latest + math.log(usual if count >= 5 else 1000)
        if math.log(norm) <= max(median + self.deviations * sigma, grown) + self.stretch:
            return math.inf
        z = (math.log(norm) - median) / sigma
        return math.exp(max(median + self.deviations**2 * sigma / z, latest))

    def promise(self, norm: float, loss: float | None) -> float:
        """What a norm that predicts too large a fall of the loss is brought down to."""
        if loss is None or not self.is_sgd:
            return math.inf
        followed = loss if math.isnan(self.followed) else self.followed
        momentum = self.optimizer.param_groups[0]["momentum"]
        most = (1 + momentum) / (1 - momentum) * followed
        too_fast = loss > 1.5 * followed or norm**2 * self.highest_rate > most
        if too_fast or (self.trust == "there" and self.share <= 0.2):
            if self.trust == "there" and momentum:
                for state in self.optimizer.state.values():
                    if state.get("momentum_buffer") is not None:
                        state["momentum_buffer"].zero_()
            self.trust = "over"
        elif self.trust == "not yet" and self.share >= 0.3:
            self.trust = "there"
        share = self.share / (1 - momentum) if self.trust == "there" else self.share
        threshold = math.sqrt(share * followed / self.highest_rate)
        if norm <= threshold:
            return math.inf
        far = 1 if len(self.log_norms) < 16 else 4
        return threshold if loss > 2 * followed else min(threshold, far * threshold**2 / norm)

    def follow(self, loss: float) -> None:
        """The loss by at most 1 % down and 5 % up, and to ten times the first; what it was lately opens the share."""
        beyond = math.exp(self.log_norms[-1]) ** 2 * self.highest_rate > 0.1 * self.share * self.followed
        widest = max((1e4 if beyond else 200) * 0.2, self.share)
        if math.isnan(self.followed):
            self.followed = self.recent = self.usual = self.first_loss = loss
        else:
            self.followed = min(max(loss, 0.99 * self.followed), 1.05 * self.followed, 10 * self.first_loss)
            before = len(self.log_norms) - 1
            self.recent += min(0.5, 16 / (16 + before)) * (loss - self.recent)
            self.usual += min(0.5, 4 / (4 + before)) * (loss - self.usual)
        if self.recent < self.lowest:
            self.lowest = self.recent
            self.share *= 1.03
        elif self.recent < 0.96 * self.usual:
            self.share *= 1.01
        else:
            self.share *= 0.997 if self.recent < 1.05 * self.usual else 0.985
        self.share = min(max(self.share, 0.2), widest)

    def bounded_update(self) -> None:
        """Adam's update at a learning rate at which it is not too long a share of the middle matrix as it was."""
        self.steps += 1
        measures = self.steps in (1, 2, 4, 8) or self.steps % 16 == 0
        if measures and self.measured:
            self.ratio = self.measured
        rates = [group["lr"] for group in self.optimizer.param_groups]
        coefficient = min(1.0, self.longest_update / (self.highest_rate * self.ratio))
        self.bounded += coefficient < 1
        before = [p.detach().clone() for p in self.matrices]
        for group in self.optimizer.param_groups:
            group["lr"] *= coefficient
        self.optimizer.step()
        if measures:
            moved = [norm_of([p.detach() - old]) for p, old in zip(self.matrices, before, strict=True)]
            self.measured = self.middle(moved) / (rates[0] * coefficient)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def norm_of(tensors: list[torch.Tensor]) -> float:
    dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in dense))
