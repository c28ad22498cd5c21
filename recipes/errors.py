"""Bad input, told to the user in one line."""


class InputError(ValueError):
    """What the user gave cannot be used: the message names the value, the place and the valid choices.

    The command line prints it without a traceback and ends with exit code 2.

    >>> raise InputError("corpus.txt: no such file")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.errors.InputError: corpus.txt: no such file
    """
