"""This library's side of `translation_race.py`, which starts it: `Seq2Seq` of the same sizes, in a bare loop."""

import argparse
import itertools
import json
import random
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from translation_contestant import (
    ALPHA,
    BATCH,
    CLIP,
    DROPOUT,
    HIDDEN,
    LEARNING_RATE,
    Contestant,
    EpochLog,
    options_of,
    serve,
)
from translation_text import bucketed_batches, read_ids, read_references, read_vocabulary

import rnn_blocks

BOS, IGNORED = 1, -100


def parallel_batch(sources: list[list[int]], targets: list[list[int]]) -> rnn_blocks.ParallelBatch:
    """Padded tensors of sentences that end with `<eos>`."""
    outputs = [torch.tensor(target) for target in targets]
    return rnn_blocks.ParallelBatch(
        source=pad_sequence([torch.tensor(source) for source in sources], batch_first=True),
        source_lengths=torch.tensor([len(source) for source in sources]),
        target_inputs=pad_sequence([torch.tensor([BOS, *target[:-1]]) for target in targets], batch_first=True),
        target_outputs=pad_sequence(outputs, batch_first=True, padding_value=IGNORED),
    )


class Ours(Contestant):
    def __init__(self, options: argparse.Namespace):
        self.text = options.text
        self.pieces = read_vocabulary(self.text)
        self.sources, self.targets = (read_ids(self.text, "train", language) for language in ("en", "de"))
        self.validation, self.references = (read_ids(self.text, "val", language) for language in ("en", "de"))
        vocab_size = len(self.pieces)
        self.model = rnn_blocks.Seq2Seq(
            rnn_blocks.GRU(HIDDEN, HIDDEN, bidirectional=True),
            rnn_blocks.GRU(2 * HIDDEN, HIDDEN),
            vocab_size,
            vocab_size,
            attention="concat",  # additive attention without a bias at the keys, as JoeyNMT has it
            input_feeding=True,
            dropout=DROPOUT,
        )
        nn.init.zeros_(self.model.decoder.output.bias).requires_grad_(False)  # JoeyNMT has none
        if options.checkpoint is not None:
            self.model.load_state_dict(torch.load(options.checkpoint))
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self.epoch = (
            bucketed_batches(self.targets, self.sources, BATCH)
            if options.batches is None
            else json.loads(options.batches.read_text())
        )
        self.batches = self.endless_batches()

    def endless_batches(self):
        shuffled = random.Random(0)
        for _ in itertools.count():
            yield from self.epoch
            shuffled.shuffle(self.epoch)

    def train(self, updates: int) -> dict:
        model, tokens = self.model, 0
        model.train()
        began = time.process_time()
        for lines in itertools.islice(self.batches, updates):
            batch = parallel_batch([self.sources[line] for line in lines], [self.targets[line] for line in lines])
            self.optimizer.zero_grad()
            state, memory = model.encode(batch.source, batch.source_lengths)
            loss, _, _ = model._loss(batch, batch.target_inputs, state, memory)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            self.optimizer.step()
            tokens += sum(len(self.targets[line]) for line in lines)
        seconds = time.process_time() - began
        return {"seconds": seconds, "tokens": tokens, "loss": loss.item()}

    def score(self, sentences: int) -> dict[str, list[list[list[float]]]]:
        targets = self.references[:sentences]
        batch = parallel_batch(self.validation[:sentences], targets)
        with torch.no_grad():
            logits = self.model.eval()(batch.source, batch.source_lengths, batch.target_inputs)
        steps = zip(logits.log_softmax(-1), targets, strict=True)
        return {"log_probs": [rows[: len(target)].tolist() for rows, target in steps]}

    def search(self, sentences: int, beam_size: int) -> list[str]:
        """In batches of 64 of like lengths, as JoeyNMT has it but for the lengths, back in order."""
        model = self.model.eval()
        order = sorted(range(sentences), key=lambda line: len(self.validation[line]))
        written = [""] * sentences
        for start in range(0, sentences, 64):
            lines = order[start : start + 64]
            sources = [torch.tensor(self.validation[line]) for line in lines]
            lengths = torch.tensor([len(source) for source in sources])
            found = model.translate(
                pad_sequence(sources, batch_first=True), lengths, beam_size=beam_size, length_penalty=ALPHA
            )
            for line, (best, *_) in zip(lines, found, strict=True):
                written[line] = " ".join(self.pieces[token] for token in best.tokens)
        return written


def train(options: argparse.Namespace) -> None:
    """The last model is `latest.ckpt`."""
    side = Ours(options)
    log = EpochLog(options.save, read_references(options.text))
    for epoch in range(options.epochs):
        began = time.process_time()
        side.train(len(side.epoch))
        trained = time.process_time()
        hypotheses = side.search(len(side.validation), 1)
        log.write((epoch + 1) * len(side.epoch), hypotheses, trained - began, time.process_time() - trained)
        torch.save(side.model.state_dict(), options.save / "latest.ckpt")


def main() -> None:
    options = options_of(__doc__)
    if options.mode == "train":
        train(options)
    else:
        serve(lambda: Ours(options))


if __name__ == "__main__":
    main()
