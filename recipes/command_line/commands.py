"""What can be said on the command line: recipes, their commands, and tools, each with the module that serves it."""

RECIPES = {
    "language-model": "train a recurrent language model on text, and let it write",
    "translation": "train an encoder and a decoder with attention on pairs of lines, and let them translate",
    "cloze": "train a model that fills in blanks from both sides, and let it fill them in",
    "long-range": "put cells to the test on tasks that only a long memory solves",
}
# Each has a CLI for fit, validate and test, and a function for every other command of its own.
RECIPE_MODULES = {recipe: f"rnn_blocks.recipes.{recipe.replace('-', '_')}.recipe" for recipe in RECIPES}
TOOLS = {
    "export": "write a checkpoint's model for use without training: safetensors, torch.export or ONNX",
    "sweep": "search over a recipe's options: a grid, at random, or by TPE; --list names the shipped ones",
}
# For every recipe; each has a FUNCTION, whose required parameters are given without a name.
TOOL_MODULES = {tool: f"rnn_blocks.recipes.tools.{tool}.command" for tool in TOOLS}
SHARED_COMMANDS = {"average": "one checkpoint of the mean weights of several"}
SHARED_COMMAND_MODULES = {"average": "rnn_blocks.recipes.tools.average"}  # a FUNCTION each
COMMANDS = {
    "language-model": {
        "fit": "train; resumes by --ckpt_path last",
        "validate": "loss, perplexity and bits per byte on the validation split",
        "test": "the same on the test split",
        "generate": "continue a prompt",
        **SHARED_COMMANDS,
    },
    "translation": {
        "fit": "train; resumes by --ckpt_path last",
        "validate": "loss, perplexity, BLEU, chrF and exact matches on the validation split",
        "test": "the same on the test split, by beam search",
        "translate": "translate a file or standard input, line by line",
        "interactive": "translate what is typed",
        **SHARED_COMMANDS,
    },
    "cloze": {
        "fit": "train; resumes by --ckpt_path last",
        "validate": "loss, perplexity and accuracy of the blanks of the validation split",
        "test": "the same on the test split",
        "predict": 'fill in the blanks of a text: "the clouds are in the ___"',
        **SHARED_COMMANDS,
    },
    "long-range": {
        "fit": "train one cell on the adding problem or the copy memory; resumes by --ckpt_path last",
        "validate": "loss, as a multiple of a guess's too, on the validation set",
        "test": "the same on the test set",
        "compare": "train many cells over many lengths, into one table and one picture; goes on where it stopped",
        "cells": "list the cells by name",
        **SHARED_COMMANDS,
    },
}
