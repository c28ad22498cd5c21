"""How far back in time the gradient reaches through a model, measured once."""

import torch

from rnn_blocks.callbacks.gradient_flow.recorder import FlowRecorder, recurrences
from rnn_blocks.recipes.long_range.model import LongRangeModel
from rnn_blocks.recipes.long_range.tasks import Batch


def gradient_flow(model: LongRangeModel, batch: Batch) -> list[float]:
    """``‖∂L/∂h_t‖`` at every step, where ``L`` is the loss of the last step alone and ``h_t`` all layers' states.

    Its machinery is that of :class:`~rnn_blocks.callbacks.GradientFlowMonitor`: each recurrence is run again by a plain
    loop. The gradients that the parameters have, and the random numbers, stay as they are.

    Args:
        model: whose.
        batch: inputs, time first, and targets.

    Returns:
        The norms in order of time, from the first step to the last, over the whole batch.

    >>> model = LongRangeModel("adding", length=10, cell="elman", parameters=100)
    >>> norms = gradient_flow(model, model.task.batch(4, split="val", seed=0, index=0))
    >>> len(norms), norms[0] < norms[-1]
    (10, True)
    """
    found, _ = recurrences(model)
    recorder = FlowRecorder(found, {}, source="all")
    inputs, targets = (tensor.to(model.device) for tensor in batch)
    recorder.attach()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            loss = model.task.loss_at_the_end(model(inputs), targets)
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
            recorder.collect(1.0)
    finally:
        recorder.detach()
    squares = torch.zeros(len(inputs), dtype=torch.float64)
    for norms, _ in recorder.read().values():
        squares += torch.tensor(norms, dtype=torch.float64).square()
    return [float(norm) for norm in squares.sqrt().flip(0)]
