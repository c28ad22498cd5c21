"""From a fixed vector to attention: BLEU over the length of the source, of small models that differ in one thing each.

Each model trains on the same pairs of Multi30k in the same order for as many steps, at the same widths, and translates
the test set once, at a beam of 5; nothing is chosen by the test set. Translations are added to a file as each model
ends; models that are in it are not trained again. Prints a table and draws a picture of what such files hold, of
several that were measured side by side too: means over the seeds, and between which values 95 of 100 lie if sentences
and seeds are drawn anew.

    python tests/benchmarks/translation_comparison.py --data FOLDER [--seeds 3] [--file comparison.json] [--to PICTURE]
    python tests/benchmarks/translation_comparison.py --report comparison.json … [--to PICTURE]

FOLDER holds `train`, `val` and `test_2016_flickr`, line-aligned, `.en` and `.de`, plain or gzip.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import rnn_blocks
from rnn_blocks.recipes.run.host.process import tune_host
from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule

# One way: the encoder's width is WIDTH. Both ways: WIDTH / 2 each, so that what the decoder reads is as wide.
ONE_WAY, BOTH_WAYS = {"bidirectional": False}, {"bidirectional": True}
FIXED = {"attention": None, "bridge": "last-state"}
ATTENTION = {"attention": "additive", "bridge": "last-state"}
MODELS = {
    "fixed vector": (ONE_WAY, FIXED),
    "fixed vector, source reversed": (ONE_WAY, FIXED | {"reverse_source": True}),
    "fixed vector, both directions": (BOTH_WAYS, FIXED),
    "fixed vector at every step": (ONE_WAY, {"attention": None, "bridge": "projected"}),
    "attention, one direction": (ONE_WAY, ATTENTION),
    "attention, both directions": (BOTH_WAYS, ATTENTION),
    "attention, both, input feeding": (BOTH_WAYS, ATTENTION | {"input_feeding": True}),
}
BUCKETS = ((1, 9), (10, 12), (13, 15), (16, 19), (20, 99))  # words of the source
LEARNING_RATE, CLIP, DROPOUT, BEAM = 3e-3, 1.0, 0.2, 5
COLOURS = ("#9aa5b1", "#e07b39", "#c99a2e", "#a0522d", "#7fb3d5", "#3b6fb6", "#1b3a6b")


def model_of(name: str, vocab_size: int, width: int, seed: int) -> rnn_blocks.Seq2Seq:
    torch.manual_seed(seed)
    layer, options = MODELS[name]
    encoder = rnn_blocks.GRU(width, width // 2 if layer["bidirectional"] else width, **layer)
    besides = 1 + bool(options.get("input_feeding")) + (options["bridge"] == "projected")  # parts of the input
    return rnn_blocks.Seq2Seq(
        encoder,
        rnn_blocks.GRU(width * besides, width),
        vocab_size,
        vocab_size,
        **({"input_feeding": False} | options),
        tie_weights="three-way",
        dropout=DROPOUT,
    )


def train(model: rnn_blocks.Seq2Seq, batches: Iterable, steps: int) -> None:
    """A plain loop: the rate rises over a tenth of the steps and falls to nothing."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1, cycle_momentum=False)
    model.train()
    done, total = 0, 0.0
    while done < steps:
        for batch in batches:
            optimizer.zero_grad()
            state, memory = model.encode(batch.source, batch.source_lengths)
            loss, _, _ = model._loss(batch, batch.target_inputs, state, memory)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            done, total = done + 1, total + loss.item()
            if done % 100 == 0:
                print(f"  step {done} of {steps}: loss {total / 100:.2f}", file=sys.stderr, flush=True)
                total = 0.0
            if done == steps:
                break


def translations(model: rnn_blocks.Seq2Seq, data: ParallelDataModule, split: str, beam_size: int) -> list[list]:
    """Of each sentence in order: the words of its source, its reference, its translation."""
    model.eval()
    found = {}
    for batch in data.test_dataloader() if split == "test" else data.val_dataloader():
        hypotheses = model.translate(batch.source, batch.source_lengths, beam_size=beam_size)
        texts = data.detokenize([best.tokens for best, *_ in hypotheses])
        sources = data.detokenize(batch.source.tolist())  # the vocabulary is joint
        for place, *row in zip(batch.indices.tolist(), sources, batch.references, texts, strict=True):
            found[place] = [len(row[0].split()), *row[1:]]
    return [found[place] for place in sorted(found)]


def measure(options: argparse.Namespace) -> None:
    tune_host()
    data = ParallelDataModule(
        **{name: str(options.data / stem) for name, stem in options.stems.items()},
        source_lang="en",
        target_lang="de",
        vocab_size=options.vocab_size,
        batch_tokens=options.batch_tokens,
        eval_batch_tokens=4000,
    )
    data.prepare()
    settings = {name: getattr(options, name) for name in ("width", "steps", "vocab_size", "batch_tokens")}
    settings |= {"learning_rate": LEARNING_RATE, "dropout": DROPOUT}
    print(f"an epoch has {len(data.train_dataloader())} steps", file=sys.stderr)
    file = json.loads(options.file.read_text()) if options.file.exists() else {"settings": settings, "models": {}}
    if file["settings"] != settings:
        raise SystemExit(f"{options.file} holds models of other settings, {file['settings']}, than {settings}")
    for seed, name in itertools.product(range(1, options.seeds + 1), options.only or MODELS):
        own = file["models"].setdefault(name, {})
        if str(seed) in own:
            continue
        print(f"{name}, seed {seed}", file=sys.stderr)
        model = model_of(name, data.source_vocab_size, options.width, seed)
        began = time.process_time()
        train(model, data.train_dataloader(), settings["steps"])  # a loader of its own: the same order for each
        seconds = time.process_time() - began
        validated = translations(model, data, "val", 1)
        own[str(seed)] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "cpu_seconds": seconds,
            "val_bleu_greedy": bleu(counts(validated).sum(0)),
            "test": translations(model, data, "test", BEAM),
        }
        options.file.write_text(json.dumps(file, ensure_ascii=False, indent=0))
        print(f"  {seconds:.0f} s, greedy BLEU on val {own[str(seed)]['val_bleu_greedy']:.1f}", file=sys.stderr)


def counts(rows: list[list]) -> Tensor:
    """What BLEU adds up, of each sentence: matches and n-grams of 1 to 4 words, words written, words of the reference.

    Returns:
        ``(sentences, 10)``.
    """
    metric = rnn_blocks.TranslationScores().bleu
    found = []
    for _, reference, hypothesis in rows:
        metric.reset()
        metric.update([hypothesis], [[reference]])
        parts = (metric.numerator, metric.denominator, metric.preds_len.view(1), metric.target_len.view(1))
        found.append(torch.cat(parts).double())
    return torch.stack(found)


def bleu(sums: Tensor) -> float:
    """BLEU of the sums over sentences of :func:`counts`, in percent."""
    matches, ngrams, written, reference = sums.split([4, 4, 1, 1])
    if matches.min() == 0:
        return 0.0
    brevity = min(0.0, 1 - (reference / written).item())
    return 100 * ((matches / ngrams).log().mean() + brevity).exp().item()


def mean_bleu(rows: Tensor) -> float:
    """Mean over the seeds, of ``(seeds, sentences, 10)``."""
    return statistics.fmean(bleu(own.sum(0)) for own in rows)


def draws(rows: Tensor, samples: int = 1000) -> Tensor:
    """The same of as many sentences, and as many seeds, drawn from these (Koehn 2004), ``(samples,)``.

    The sentences drawn are the same whatever the rows, so that two models can be compared on them.
    """
    seeds, sentences, _ = rows.shape
    of_sentences, of_seeds = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    found = []
    for _ in range(samples):
        places = torch.randint(sentences, (sentences,), generator=of_sentences)
        chosen = torch.randint(seeds, (seeds,), generator=of_seeds)
        found.append(mean_bleu(rows[:, places][chosen]))
    return torch.tensor(found)


def within(drawn: Tensor) -> tuple[float, float]:
    """Between which values 95 of 100 lie."""
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def merged(files: list[dict]) -> dict:
    """The models and seeds of all files, which have the same settings."""
    if any(file["settings"] != files[0]["settings"] for file in files):
        raise SystemExit("the files hold models of different settings")
    models: dict[str, dict] = {}
    for file in files:
        for name, seeds in file["models"].items():
            models.setdefault(name, {}).update(seeds)
    return {"settings": files[0]["settings"], "models": models}


def report(file: dict, to: Path | None) -> None:
    models = {name: list(file["models"][name].values()) for name in MODELS if file["models"].get(name)}
    by_model = {name: torch.stack([counts(own["test"]) for own in seeds]) for name, seeds in models.items()}
    words = torch.tensor([row[0] for row in next(iter(models.values()))[0]["test"]])
    buckets = [(words >= low) & (words <= high) for low, high in BUCKETS]
    titles = [f"{low}–{high}" if high < 99 else f"{low}+" for low, high in BUCKETS]
    print("settings: " + ", ".join(f"{name} {value}" for name, value in file["settings"].items()))
    heads = [f"{title} words" for title in titles]
    print("| model | seeds | parameters | val, greedy | test | 95 % | " + " | ".join(heads) + " |")
    print("| --- " * (6 + len(BUCKETS)) + "|")
    print(f"| sentences | | | | {len(words)} | | " + " | ".join(str(int(bucket.sum())) for bucket in buckets) + " |")
    drawn = {name: draws(rows) for name, rows in by_model.items()}
    for name, rows in by_model.items():
        low, high = within(drawn[name])
        parameters = models[name][0]["parameters"] / 1e6
        validated = statistics.fmean(own["val_bleu_greedy"] for own in models[name])
        cells = [
            f"{len(rows)}",
            f"{parameters:.2f} M",
            f"{validated:.1f}",
            f"{mean_bleu(rows):.1f}",
            f"{low:.1f}–{high:.1f}",
        ]
        cells += [f"{mean_bleu(rows[:, bucket]):.1f}" for bucket in buckets]
        print(f"| {name} | {' | '.join(cells)} |")
    print("differences in BLEU, by the same sentences drawn for both (95 %):")
    for worse, better in (
        ("fixed vector", "fixed vector, source reversed"),
        ("fixed vector", "fixed vector, both directions"),
        ("fixed vector", "fixed vector at every step"),
        ("fixed vector", "attention, one direction"),
        ("attention, one direction", "attention, both directions"),
        ("attention, both directions", "attention, both, input feeding"),
    ):
        if worse in by_model and better in by_model:
            low, high = within(drawn[better] - drawn[worse])
            gain = mean_bleu(by_model[better]) - mean_bleu(by_model[worse])
            print(f"  {better} − {worse}: {gain:+.1f} ({low:+.1f} to {high:+.1f})")
    if to is not None:
        draw(by_model, buckets, titles, to)


def draw(by_model: dict[str, Tensor], buckets: list[Tensor], titles: list[str], to: Path) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(by_model.items()):
        scores = [mean_bleu(rows[:, bucket]) for bucket in buckets]
        ranges = [within(draws(rows[:, bucket])) for bucket in buckets]
        # Sampling with replacement can leave the score itself just outside.
        bars = [(max(0, y - low), max(0, high - y)) for y, (low, high) in zip(scores, ranges, strict=True)]
        axes.errorbar(
            [place + 0.05 * (number - len(by_model) / 2) for place in range(len(buckets))],
            scores,
            list(zip(*bars, strict=True)),
            fmt="o-" if name.startswith("attention") else "s--",
            color=COLOURS[list(MODELS).index(name)],
            label=name,
            markersize=5,
            elinewidth=0.8,
        )
    axes.set_xticks(range(len(buckets)), [f"{t}\n{int(b.sum())}" for t, b in zip(titles, buckets, strict=True)])
    axes.set_xlabel("words of the source, and how many sentences have them")
    axes.set_ylabel("BLEU, beam of 5; bars: 95 % of drawn test sets")
    axes.set_ylim(bottom=0)
    axes.set_title("Multi30k, English to German: BLEU over the length of the source", loc="left")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.25)
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the corpus")
    parser.add_argument("--test", default="test_2016_flickr", help="stem of the test set")
    parser.add_argument("--file", type=Path, default=Path("comparison.json"), help="where results go")
    parser.add_argument("--report", type=Path, nargs="+", help="such files: print and draw them, train nothing")
    parser.add_argument("--to", type=Path, help="the picture")
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", help="some of the models, in this order")
    parser.add_argument("--width", type=int, default=128, help="of embeddings, encoder's outputs, decoder")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1, help="models of each kind")
    parser.add_argument("--vocab-size", type=int, default=2500)
    parser.add_argument("--batch-tokens", type=int, default=1200)
    options = parser.parse_args()
    if (options.data is None) == (options.report is None):
        parser.error("give --data to measure, or --report to show what was measured")
    if options.data is not None:
        options.stems = {"train": "train", "val": "val", "test": options.test}
        measure(options)
    files = [json.loads(path.read_text()) for path in options.report or [options.file]]
    report(merged(files), options.to)


if __name__ == "__main__":
    main()
