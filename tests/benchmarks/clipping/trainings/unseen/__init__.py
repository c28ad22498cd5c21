"""Trainings that nobody had seen, by name.

They were written by someone who had not seen how the clipping rule was made, after it had been chosen, to test it. None
of its settings was chosen on them.
"""

from trainings.training import Training
from trainings.unseen.digits import Autoencoder, Distillation, PermutedDigits, Triplets, TurnedDigits
from trainings.unseen.feedforward import Friedman, Oscillator, Pulses
from trainings.unseen.sequences import Counts, Dates, Quantiles, Tags, TiedWords

UNSEEN: dict[str, type[Training]] = {
    "permuted-digits-gru-momentum": PermutedDigits,
    "words-lstm-tied-sgd": TiedWords,
    "quantiles-lstm-momentum": Quantiles,
    "dates-attention-nesterov": Dates,
    "counts-gru-momentum": Counts,
    "tags-bilstm-momentum": Tags,
    "distillation-elman-sgd": Distillation,
    "finetuning-gru-momentum": TurnedDigits,
    "triplets-groupnorm-momentum": Triplets,
    "autoencoder-momentum": Autoencoder,
    "oscillator-momentum": Oscillator,
    "focal-cnn-momentum": Pulses,
    "friedman-dropout-sgd": Friedman,
}
