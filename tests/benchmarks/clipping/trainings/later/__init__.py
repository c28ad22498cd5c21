"""Trainings that were written after the clipping rule had been chosen, to check it, by name.

How `Auto` tells whether a training makes progress was afterwards, on 2026-11-29, chosen with a view on thirteen of
them: those have `chosen_on` set. The other eleven had no part in any choice.
"""

from trainings.later.objectives import Contrast, Flow, QLearning, ResNet
from trainings.later.regressions import (
    Diabetes,
    Hinge,
    LeastSquares,
    LogisticRegression,
    MeanAndVariance,
    Rare,
    RareAdam,
    Teacher,
    TeacherMomentum,
)
from trainings.later.sequences import Chains, ChainsSGD, Reversal, Sines, SinesClean, Tagger, Transcription, Waves
from trainings.later.text import ElmanCharacters, SkipGrams, TransformerMomentum
from trainings.training import Training

LATER: dict[str, type[Training]] = {
    "gru-waves-momentum": Waves,
    "lstm-sines-sgd": Sines,
    "lstm-sines-clean-mom": SinesClean,
    "rnn-chars-tbptt-sgd": ElmanCharacters,
    "bilstm-ctc-nesterov": Transcription,
    "attention-copy-sgd": Reversal,
    "tagger-online-sgd": Tagger,
    "lstm-heavy-adam": Chains,
    "lstm-heavy-sgd": ChainsSGD,
    "teacher-sgd": Teacher,
    "teacher-momentum": TeacherMomentum,
    "least-squares-sgd": LeastSquares,
    "diabetes-momentum": Diabetes,
    "logreg-l2-sgd": LogisticRegression,
    "gaussian-nll-mom": MeanAndVariance,
    "infonce-momentum": Contrast,
    "hinge-sgd": Hinge,
    "skipgram-sum-sgd": SkipGrams,
    "resnet-bn-nesterov": ResNet,
    "transformer-momentum": TransformerMomentum,
    "flow-momentum": Flow,
    "dqn-rmsprop": QLearning,
    "rare-momentum": Rare,
    "rare-adam": RareAdam,
}
