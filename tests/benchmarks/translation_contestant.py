"""What the sides of `translation_race.py` share: each is a process of its own, in a Python of its own.

`serve` answers requests, a line of JSON each; `train` trains for some epochs and writes, after each, what it cost and
what the greedy translations of the validation set are worth to `epochs.jsonl`.
"""

import argparse
import importlib.util
import json
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from translation_text import bleu, read_references

HIDDEN, DROPOUT, BATCH, LEARNING_RATE, CLIP, BEAM, ALPHA = 256, 0.2, 80, 1e-3, 1.0, 5, 1.0


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Contestant(ABC):
    """A model in training."""

    text: Path
    parameters: int

    @abstractmethod
    def train(self, updates: int) -> dict:
        """Make this many updates: `seconds` of CPU time, target `tokens` (no padding), the last batch's `loss`."""

    @abstractmethod
    def score(self, sentences: int) -> dict[str, list[list[list[float]]]]:
        """Of each of the first sentences of the validation set, at each step of its reference: `log_probs` of all
        pieces, in the order of `read_vocabulary`.
        """

    @abstractmethod
    def search(self, sentences: int, beam_size: int) -> list[str]:
        """Translate the first sentences of the validation set, into lines of pieces."""

    def translate(self, sentences: int) -> dict:
        began = time.process_time()
        hypotheses = self.search(sentences, BEAM)
        seconds = time.process_time() - began
        pieces = sum(len(line.split()) for line in hypotheses)
        score = bleu(hypotheses, read_references(self.text)[:sentences])
        return {"seconds": seconds, "sentences": len(hypotheses), "pieces": pieces, "bleu": score}


def serve(contestant: Callable[[], Contestant]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is not an answer
    side = contestant()
    print(json.dumps({"parameters": side.parameters}), file=answers, flush=True)
    for line in sys.stdin:
        request, number = json.loads(line)
        answer = {"train": side.train, "score": side.score, "translate": side.translate}[request](number)
        print(json.dumps({**answer, "peak_mb": peak_mb()}), file=answers, flush=True)


class EpochLog:
    """Adds a line an epoch to `epochs.jsonl`; validation is not counted as training."""

    def __init__(self, folder: Path, references: list[str]):
        self.folder, self.references = folder, references
        self.trained = self.validated = 0.0

    def write(self, updates: int, hypotheses: list[str], trained: float, validated: float) -> None:
        """After an epoch of `trained` and `validated` seconds of CPU time."""
        self.trained += trained
        self.validated += validated
        line = {
            "updates": updates,
            "training_cpu_seconds": round(self.trained, 1),
            "validation_cpu_seconds": round(self.validated, 1),
            "greedy_bleu": round(bleu(hypotheses, self.references), 2),
            "peak_mb": peak_mb(),
        }
        with (self.folder / "epochs.jsonl").open("a") as file:
            print(json.dumps(line), file=file)
        print(json.dumps(line), flush=True)


def options_of(description: str | None) -> argparse.Namespace:
    """The command line of a side, its process prepared as it says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("mode", choices=["train", "serve"])
    parser.add_argument("--text", type=Path, required=True, help="the folder of pieces that the race wrote")
    parser.add_argument("--save", type=Path, required=True, help="a folder for what the training leaves")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, help="a model to begin with")
    parser.add_argument("--batches", type=Path, help="a JSON file: the line numbers of each batch")
    parser.add_argument("--host", type=Path, help="a Python file whose `tune_host` is called first")
    options = parser.parse_args()
    options.save.mkdir(parents=True, exist_ok=True)
    if options.host is not None:
        spec = importlib.util.spec_from_file_location("host", options.host)
        host = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(host)
        host.tune_host()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return options
