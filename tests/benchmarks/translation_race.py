"""Training and translating: `Seq2Seq` against JoeyNMT 2.3.0, on Multi30k, English to German.

Both get the same lowercased text in the same 8,000 pieces, and the same model: a GRU of 256 in both directions, a GRU
of 256 that is fed the attentional vector, additive attention, embeddings of 256, dropout 0.2; AdamW at 0.001, clipping
by a norm of 1. JoeyNMT takes 80 random sentences a batch; "bucketed" batches are of like lengths, with as many target
tokens as 80 sentences have. The host settings are those of the recipes. Each variant is a process of its own, so that
each has its allocator's settings and its peak of memory to itself; they take turns, one thread each, and CPU time is
counted.

JoeyNMT needs a Python of its own, with the torch of this one:

    python3.11 -m venv joey
    joey/bin/pip install torch==2.13.0
    joey/bin/pip install --no-deps joeynmt==2.3.0
    joey/bin/pip install importlib_metadata matplotlib packaging pandas plotly pyyaml sacrebleu sacremoses \
        sentencepiece subword-nmt tensorboard tqdm

    python tests/benchmarks/translation_race.py --data multi30k --joey-python joey/bin/python [--work build/race]

It times training alone. To time translating as well, by one and the same trained model on both sides (which is
checked: it fails where they give pieces of references other log-probabilities), and to see what training costs up to a
BLEU, train first (JoeyNMT for its BLEU alone):

    python tests/benchmarks/translation_race.py … --train ours --epochs 7
    python tests/benchmarks/translation_race.py … --train joey --epochs 7
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from machine import described
from translation_text import bucketed_batches, random_batches, read_ids, write_text

HERE = Path(__file__).resolve().parent
HOST = HERE.parent.parent / "recipes" / "run" / "host" / "process.py"
BATCH = 80
TRAINED = "ours/latest.ckpt"  # what both sides translate with: only names and the numbers of special pieces differ
SCORED, TOLERANCE = 3, 1e-4  # sentences that show it, and how far their log-probabilities may be apart

# side, batches (None: the side's own), host settings
TRAINING = {
    "JoeyNMT, as it ships": ("joey", None, False),
    "JoeyNMT, host settings": ("joey", None, True),
    "JoeyNMT, host settings, bucketed": ("joey", "bucketed", True),
    "Seq2Seq, as it ships": ("ours", "bucketed", True),
    "Seq2Seq, random batches": ("ours", "random", True),
    "Seq2Seq, no host settings": ("ours", "bucketed", False),
}
TRANSLATING = {
    "JoeyNMT, as it ships": ("joey", None, False),
    "JoeyNMT, host settings": ("joey", None, True),
    "Seq2Seq, as it ships": ("ours", "bucketed", True),
    "Seq2Seq, no host settings": ("ours", "bucketed", False),
}


class Process:
    """A side at work."""

    def __init__(self, options: argparse.Namespace, variant: tuple[str, str | None, bool], trained: bool):
        side, batches, tuned = variant
        command = [*side_command(options, side), "serve", "--text", str(options.work / "text")]
        command += ["--save", str(options.work / "serving")]
        if trained:
            command += ["--checkpoint", str(options.work / TRAINED)]
        if batches is not None:
            command += ["--batches", str(options.work / f"{batches}.json")]
        if tuned:
            command += ["--host", str(HOST)]
        errors = (options.work / "serving.log").open("a")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=one_thread()
        )
        self.parameters = self.answer()["parameters"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[1]} ended: see serving.log in the race's folder")
        return json.loads(line)

    def ask(self, request: str, number: int) -> dict:
        print(json.dumps([request, number]), file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def side_command(options: argparse.Namespace, side: str) -> list[str]:
    if side == "joey":
        return [options.joey_python, str(HERE / "translation_rival.py")]
    return [sys.executable, str(HERE / "translation_ours.py")]


def check_same_model(processes: dict[str, Process]) -> None:
    """Raise RuntimeError where a variant does not give the references the log-probabilities that the first gives."""
    (first, expected), *others = [
        (name, process.ask("score", SCORED)["log_probs"]) for name, process in processes.items()
    ]
    for name, found in others:
        for number, sentences in enumerate(zip(expected, found, strict=True), 1):
            one, other = map(torch.tensor, sentences)
            apart = (one - other).abs().max().item() if one.shape == other.shape else float("inf")
            if not apart <= TOLERANCE:
                raise RuntimeError(
                    f"'{name}' and '{first}' do not translate with the same model: their log-probabilities at the "
                    f"reference of sentence {number} of the validation set are up to {apart:.2g} apart"
                )


def race(
    options: argparse.Namespace, variants: dict, request: str, number: int, trained: bool
) -> dict[str, list[dict]]:
    """What each variant answered, round by round."""
    chosen = {name: variant for name, variant in variants.items() if variant[0] in options.only}
    processes = {name: Process(options, variant, trained) for name, variant in chosen.items()}
    if trained:
        check_same_model(processes)
    for name, process in processes.items():
        process.ask(request, number)  # a round to warm up
        print(f"{name}: {process.parameters:,} parameters", file=sys.stderr)
    answers: dict[str, list[dict]] = {name: [] for name in chosen}
    for turn in range(options.rounds):
        print(f"{request}: round {turn + 1}/{options.rounds}", file=sys.stderr)
        for name, process in processes.items():
            answers[name].append(process.ask(request, number))
    for process in processes.values():
        process.end()
    return answers


def rates(answers: dict[str, list[dict]], unit: str) -> dict[str, float]:
    return {name: statistics.median(turn[unit] / turn["seconds"] for turn in turns) for name, turns in answers.items()}


def ratios(speeds: dict[str, float], name: str, references: list[str]) -> str:
    """This variant's speed in proportion to each reference's, the row's last columns."""
    return "".join(f"{speeds[name] / speeds[other]:11.2f}" if other in speeds else f"{'':11}" for other in references)


def show_training(answers: dict[str, list[dict]]) -> None:
    speeds = rates(answers, "tokens")
    references = list(TRAINING)[:3]
    print(described())
    print("Training, target tokens per second of CPU time, in proportion to JoeyNMT (as it ships, host settings, and")
    print("bucketed as well)")
    print(f"{'':34}{'tokens/s':>10}{'÷ ships':>11}{'÷ settings':>11}{'÷ bucketed':>11}{'peak MB':>9}")
    for name, turns in answers.items():
        peak = turns[-1]["peak_mb"]
        print(f"{name:34}{speeds[name]:10,.0f}{ratios(speeds, name, references)}{peak:9,}")


def show_translating(answers: dict[str, list[dict]]) -> None:
    speeds = rates(answers, "sentences")
    references = list(TRANSLATING)[:2]
    print("\nTranslating, beam of 5, sentences per second of CPU time")
    print(f"{'':34}{'sent./s':>10}{'÷ ships':>11}{'÷ settings':>11}{'peak MB':>9}{'BLEU':>8}{'pieces':>8}")
    for name, turns in answers.items():
        last = turns[-1]
        length = last["pieces"] / last["sentences"]
        print(
            f"{name:34}{speeds[name]:10.1f}{ratios(speeds, name, references)}{last['peak_mb']:9,}{last['bleu']:8.2f}"
            f"{length:8.1f}"
        )


def show_learning(options: argparse.Namespace) -> None:
    """The trainings of `--train`: CPU time of the updates alone, up to each epoch's end."""
    for side, name in (("joey", "JoeyNMT"), ("ours", "Seq2Seq")):
        path = options.work / side / "epochs.jsonl"
        if not path.exists():
            continue
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        print(f"\n{name}: BLEU of greedy translations after so many seconds of training")
        print("  ".join(f"{epoch['greedy_bleu']:.1f} ({epoch['training_cpu_seconds']:,.0f} s)" for epoch in epochs))
        reached = [epoch["training_cpu_seconds"] for epoch in epochs if epoch["greedy_bleu"] >= 30]
        print(f"BLEU 30 after {reached[0]:,.0f} s" if reached else "BLEU 30 was not reached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.en.gz, train.de.gz, val.en.gz, …")
    parser.add_argument("--joey-python", help="the Python that JoeyNMT is installed in")
    parser.add_argument("--work", type=Path, default=Path("build/race"), help="a folder for text, models and logs")
    parser.add_argument("--train", choices=["joey", "ours"], help="train this side rather than race")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--only", choices=["joey", "ours"], help="race this side alone")
    parser.add_argument("--updates", type=int, default=12, help="of a round of training")
    parser.add_argument("--sentences", type=int, default=320, help="of a round of translating")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.only = [options.only] if options.only else ["joey", "ours"]
    if options.joey_python is None and "joey" in ([options.train] if options.train else options.only):
        parser.error("JoeyNMT needs --joey-python")
    text = options.work / "text"
    write_text(options.data, text)
    sources, targets = (read_ids(text, "train", language) for language in ("en", "de"))
    batches = {"random": random_batches(len(targets), BATCH), "bucketed": bucketed_batches(targets, sources, BATCH)}
    for name, lines in batches.items():
        # the same ones in each round: what shapes cost when first met is left to the warm-up, and to `--train`
        (options.work / f"{name}.json").write_text(json.dumps(lines[: options.updates]))
    if options.train is not None:
        command = [*side_command(options, options.train), "train", "--text", str(text)]
        command += ["--save", str(options.work / options.train), "--epochs", str(options.epochs)]
        if options.train == "ours":
            command += ["--host", str(HOST)]
        raise SystemExit(subprocess.call(command, env=one_thread()))
    show_training(race(options, TRAINING, "train", options.updates, trained=False))
    if (options.work / TRAINED).exists():
        show_translating(race(options, TRANSLATING, "translate", options.sentences, trained=True))
    else:
        print("\nTranslating is not timed: train a model first, see --train")
    show_learning(options)


if __name__ == "__main__":
    main()
