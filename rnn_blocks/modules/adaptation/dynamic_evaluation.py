"""Dynamic evaluation: a model that goes on learning from the text it has just been tested on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State, detach_state
from rnn_blocks.modules.adaptation.segments import IGNORED
from rnn_blocks.modules.language_model.model import LanguageModel
from rnn_blocks.modules.language_model.text_batch import TextBatch

METHODS = ("rms", "sgd")


@dataclass(frozen=True)
class DynamicEvaluation:
    """How the weights move while a text is tested.

    Krause, Kahembwe, Murray & Renals (2018), "Dynamic evaluation of neural sequence models". Each segment of the text
    is scored first, by weights that have not seen it; then the weights ``θ`` take a step against the gradient of its
    loss ``L`` (its mean over the segment's tokens), and back towards the trained ones, ``θ_g``::

        sgd:  θ ← θ - η ∇L             + λ (θ_g - θ)
        rms:  θ ← θ - η ∇L / (√MS + ε) + min(λ √MS / mean(√MS), 1) (θ_g - θ)

    ``MS`` is the mean square of each weight's gradient over the training text, by :func:`mean_squared_gradients`:
    weights that training moves much take shorter steps and return sooner. The mean of ``√MS`` is that of all weights.

    The best rates depend on the model and are chosen on validation text. The default ones of ``"rms"`` are those that
    Krause et al. published for the AWD-LSTM on the Penn Treebank, with 5 steps; they are for segments of one lane.

    Args:
        method: ``"rms"`` or ``"sgd"``.
        lr: the learning rate η; by default 5e-5 for ``"rms"``, 0.1 for ``"sgd"``.
        decay: λ, how much of the way back to the trained weights each step goes, 0 to 1.
        epsilon: ε, which bounds the steps of weights that training hardly moves (``"rms"``).
        steps: of time in a segment.

    Raises:
        ValueError: for another method, or a number out of its range.

    >>> DynamicEvaluation("sgd", decay=0.001)
    DynamicEvaluation(method='sgd', lr=0.1, decay=0.001, epsilon=2e-05, steps=5)
    """

    method: Literal["rms", "sgd"] = "rms"
    lr: float | None = None
    decay: float = 0.002
    epsilon: float = 2e-5
    steps: int = 5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.lr is None:
            object.__setattr__(self, "lr", 5e-5 if self.method == "rms" else 0.1)
        number("lr", self.lr)
        number("decay", self.decay, high=1, up_to=True)
        number("epsilon", self.epsilon, above=True)
        whole("steps", self.steps)

    @property
    def rate(self) -> float:
        """The learning rate η."""
        assert self.lr is not None
        return float(self.lr)

    @contextmanager
    def adapting(self, model: nn.Module, mean_squares: dict[str, Tensor] | None = None) -> Iterator["AdaptedWeights"]:
        """The model's weights, free to move; on leaving they are the trained ones again, bit for bit.

        Args:
            model: whose weights move; those that need no gradient stay.
            mean_squares: of the gradients, by parameter names, for ``"rms"``.

        Raises:
            ValueError: for ``"rms"`` without the mean squares, or with those of another model, and for a model whose
                weights are all frozen.
        """
        named = _learning(model)
        rates: list[Tensor] | float = self.rate
        decays: list[Tensor] | float = float(self.decay)
        if self.method == "rms":
            shapes = {name: weight.shape for name, weight in named.items()}
            if mean_squares is None or {name: each.shape for name, each in mean_squares.items()} != shapes:
                raise ValueError(
                    "method 'rms' needs the mean squares of all of the model's gradients on training text: "
                    "give what mean_squared_gradients(model, batches) returns"
                )
            roots = [mean_squares[name].to(weight).sqrt() for name, weight in named.items()]
            total = torch.stack([root.sum(dtype=torch.float64) for root in roots]).sum()
            mean = (total / sum(root.numel() for root in roots)).clamp_(min=torch.finfo(torch.float32).tiny)
            rates = [self.rate / (root + self.epsilon) for root in roots]
            decays = [(self.decay * root / mean).to(root).clamp_(max=1) for root in roots]
        adapted = AdaptedWeights(list(named.values()), rates, decays)
        try:
            yield adapted
        finally:
            adapted.restore()


class AdaptedWeights:
    """Weights on their way, and where they came from.

    Args:
        weights: the parameters.
        rates: what gradients are multiplied by, one for all or one for each number of each weight.
        decays: what part of the way back each step goes, likewise.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> adapted = AdaptedWeights([weight], rates=0.5, decays=0.0)
    >>> adapted.descend((weight**2).sum()); weight.tolist()
    [0.0, 0.0]
    >>> adapted.restore(); weight.tolist()
    [1.0, 2.0]
    """

    def __init__(self, weights: Sequence[Tensor], rates: list[Tensor] | float, decays: list[Tensor] | float) -> None:
        self._weights = list(weights)
        self._rates, self._decays = rates, decays
        self._trained = [weight.detach().clone() for weight in weights]

    def descend(self, loss: Tensor) -> None:
        """One step against the gradient of a loss, and back towards the trained weights."""
        gradients = torch.autograd.grad(loss, self._weights, materialize_grads=True)
        with torch.no_grad():
            lerp: Callable[..., None] = torch._foreach_lerp_  # by one number, or by tensors
            lerp(self._weights, self._trained, self._decays)
            if isinstance(self._rates, float):
                torch._foreach_add_(self._weights, gradients, alpha=-self._rates)
            else:
                torch._foreach_addcmul_(self._weights, gradients, self._rates, value=-1)

    @torch.no_grad()
    def restore(self) -> None:
        """The trained weights again."""
        torch._foreach_copy_(self._weights, self._trained)


def mean_squared_gradients(model: LanguageModel, batches: Iterable[TextBatch]) -> dict[str, Tensor]:
    """The mean square of each weight's gradient over chunks of training text, the model in evaluation mode.

    Krause et al. (2018) take the training text in 100 lanes and chunks of as many steps as a segment has; what matters
    is the same for all: the learning rate of :class:`DynamicEvaluation` is relative to it.

    Args:
        model: whose gradients; it is left as it was.
        batches: chunks in order; the state is carried from one to the next but where one is ``fresh``.

    Returns:
        By parameter name, in the parameter's shape; of those that need a gradient.

    Raises:
        ValueError: where there is no batch, or all of the model's weights are frozen.

    >>> import rnn_blocks
    >>> model = LanguageModel(rnn_blocks.LSTM(4, 4), vocab_size=9)
    >>> text = torch.randint(9, (2, 6))
    >>> squares = mean_squared_gradients(model, [TextBatch(text[:, :-1], text[:, 1:])])
    >>> squares["output.bias"].shape
    torch.Size([9])
    """
    named = _learning(model)
    state: State | None = None
    count = 0
    with differentiable_evaluation(model):
        sums = [torch.zeros_like(weight, requires_grad=False) for weight in named.values()]
        for batch in batches:
            if not bool((batch.targets != IGNORED).any()):
                continue
            inputs, targets = ids_for(model, batch.inputs), ids_for(model, batch.targets).t().flatten()
            hidden, state = model.hidden(inputs, None if batch.fresh else state)
            state = detach_state(state)
            loss = model.next_token_loss(hidden.flatten(0, 1), targets)
            gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
            torch._foreach_addcmul_(sums, gradients, gradients)
            count += 1
    if count == 0:
        raise ValueError("there is no training text to take gradients on: batches is empty")
    torch._foreach_div_(sums, count)
    return dict(zip(named, sums, strict=True))


def ids_for(model: LanguageModel, ids: Tensor) -> Tensor:
    """Ids where the model is; those made in inference mode as a copy, without which no gradient could be taken."""
    ids = ids.to(model.device)
    return ids.clone() if ids.is_inference() else ids


def _learning(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not named:
        raise ValueError(f"all weights of this {type(model).__name__} are frozen: there is none that could adapt")
    return named


@contextmanager
def differentiable_evaluation(model: LanguageModel) -> Iterator[None]:
    """In evaluation mode, where gradients can be taken on GPU as well; then as before.

    The blocks' own layers tell cuDNN to prepare for a backward pass wherever gradients are recorded. Torch's modules
    tell it to in training mode alone, so those that a user's layer may hold are put into it, without their dropout.
    """
    foreign = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    before = [(module.training, module.dropout) for module in foreign]
    with model.evaluating(), torch.inference_mode(False), torch.enable_grad():
        try:
            for module in foreign:
                module.training, module.dropout = True, 0.0
            yield
        finally:
            for module, (training, dropout) in zip(foreign, before, strict=True):
                module.training, module.dropout = training, dropout
