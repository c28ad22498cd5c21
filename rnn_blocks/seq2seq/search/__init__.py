"""Search: from a model of the next token to the sequences it finds most probable, or draws."""

from rnn_blocks.seq2seq.search.beam import beam_search
from rnn_blocks.seq2seq.search.sample import greedy_search, sample_search
from rnn_blocks.seq2seq.search.sampling import check_sampling, random_generator, sample_token
from rnn_blocks.seq2seq.search.step import Hypothesis, Step, StepFunction

__all__ = [
    "Hypothesis",
    "Step",
    "StepFunction",
    "beam_search",
    "check_sampling",
    "greedy_search",
    "random_generator",
    "sample_search",
    "sample_token",
]
