"""The trainings of the bench, by name."""

from trainings.below_zero import BELOW_ZERO
from trainings.later import LATER
from trainings.objectives import GAN, VAE, PolicyGradient
from trainings.pictures import (
    Adapter,
    BatchOfNaN,
    ConvolutionsBatchNorm,
    ConvolutionsMomentum,
    CorruptBatch,
    Digits,
    FineTuning,
    HashGrid,
    LossScale,
    SoftmaxRegression,
)
from trainings.sequences import AddingProblem, SpeltNumbers
from trainings.tables import Ratings, RatingsAdagrad, RatingsSGD, RatingsSparseAdam
from trainings.text import Characters, CharactersGPT, CharactersRMSprop, CharactersTransformer, PennTreebankWords
from trainings.training import Training
from trainings.unseen import UNSEEN

TRAININGS: dict[str, type[Training]] = {
    "words-lstm-sgd": PennTreebankWords,
    "characters-lstm-adam": Characters,
    "characters-lstm-rmsprop": CharactersRMSprop,
    "characters-transformer-adamw": CharactersTransformer,
    "characters-gpt-adamw": CharactersGPT,
    "numbers-gru-adam": SpeltNumbers,
    "adding-elman-momentum": AddingProblem,
    "ratings-sgd": RatingsSGD,
    "ratings-adam": Ratings,
    "ratings-sparseadam": RatingsSparseAdam,
    "ratings-adagrad": RatingsAdagrad,
    "hashgrid-adam": HashGrid,
    "digits-sgd": Digits,
    "softmax-momentum": SoftmaxRegression,
    "cnn-momentum": ConvolutionsMomentum,
    "cnn-batchnorm-nesterov": ConvolutionsBatchNorm,
    "adapter-momentum": Adapter,
    "finetuning-adamw": FineTuning,
    "corrupt-batch-momentum": CorruptBatch,
    "batch-of-nan-adam": BatchOfNaN,
    "loss-scale-sgd": LossScale,
    "gan-adam": GAN,
    "vae-adam": VAE,
    "policy-gradient-sgd": PolicyGradient,
    **LATER,
    **UNSEEN,
    **BELOW_ZERO,
}
