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

    Attributes:
        clipped: number of steps that were clipped.
        bounded: number of steps whose learning rate was shortened.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, longest_update: float = 0.05) -> None:
        self.optimizer = optimizer
        self.longest_update = longest_update
        self.parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.weight_norm = norm_of([p.detach() for p in self.parameters])
        self.log_norms: list[float] = []
        self.quartile = math.inf
        self.highest_rate = 0.0
        matrices = [p for p in self.parameters if p.ndim > 1 and norm_of([p.detach()])]
        self.matrices = matrices or self.parameters
        self.matrix_norms = [norm_of([p.detach()]) for p in self.matrices]
        self.ratio = self.middle([math.sqrt(p.numel()) for p in self.matrices])
        self.measured = 0.0
        self.steps = self.clipped = self.bounded = 0

    def step(self) -> None:
        """Clip the gradients, and make the update."""
        self.highest_rate = max(self.highest_rate, self.optimizer.param_groups[0]["lr"])
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            norm = norm_of(gradients)
            threshold, target = self.threshold(norm)
            if norm > threshold:
                self.clipped += 1
                for gradient in gradients:
                    gradient.mul_(target / norm)
            self.observe(norm)
        if isinstance(self.optimizer, torch.optim.SGD):
            self.optimizer.step()
        else:
            self.bounded_update()

    def middle(self, lengths: list[float]) -> float:
        """The median over the matrices of a length over the matrix's first norm."""
        return statistics.median_high(length / norm for length, norm in zip(lengths, self.matrix_norms, strict=True))

    def threshold(self, norm: float) -> tuple[float, float]:
        threshold = target = math.inf
        if self.log_norms:
            window = self.log_norms[-64:]
            median = statistics.median_low(window)
            deviation = 1.4826 * statistics.median_low([abs(value - median) for value in window])
            count = len(window)
            sigma = math.sqrt((count * deviation**2 + 8 * 0.5**2) / (count + 8))
            z = max((math.log(norm) - median) / sigma, 2.5)
            threshold, target = math.exp(median + 2.5 * sigma), math.exp(median + 2.5**2 * sigma / z)
        if isinstance(self.optimizer, torch.optim.SGD):
            bound = min(0.08 * self.unit(), max(math.exp(self.quartile), self.unit() / 500))
            threshold, target = min(threshold, bound), min(target, bound)
        return threshold, target

    def unit(self) -> float:
        momentum = self.optimizer.param_groups[0]["momentum"]
        return self.weight_norm * (1 - momentum) / self.highest_rate

    def observe(self, norm: float) -> None:
        self.log_norms.append(math.log(norm))
        if isinstance(self.optimizer, torch.optim.SGD):
            counted = math.log(min(norm, 0.08 * self.unit()))
            self.quartile = counted if len(self.log_norms) == 1 else self.quartile
            gain = max(1 / len(self.log_norms), 0.05)
            self.quartile += gain * (0.25 if counted > self.quartile else -0.75)

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
