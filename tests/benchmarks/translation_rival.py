"""JoeyNMT 2.3.0's side of `translation_race.py`, which starts it in the Python that JoeyNMT is installed in.

It trains by JoeyNMT's own `TrainManager` and translates by its own `predict`. One thing is changed, at run time: torch
2.13 has no `verbose` in `ReduceLROnPlateau`.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import joeynmt.builders
import joeynmt.config
import joeynmt.prediction
import joeynmt.training
import torch
from translation_contestant import (
    ALPHA,
    BATCH,
    BEAM,
    CLIP,
    DROPOUT,
    HIDDEN,
    LEARNING_RATE,
    Contestant,
    EpochLog,
    options_of,
    serve,
)
from translation_text import read_references, read_vocabulary
from translation_weights import joey_weights


def configuration(text: Path, folder: Path, epochs: int, validation_freq: int) -> dict:
    """The race's model and training in JoeyNMT's own words; what is not named is as JoeyNMT has it."""
    embeddings = {"embedding_dim": HIDDEN, "dropout": DROPOUT}
    side = {"level": "word", "voc_file": str(text / "vocabulary.txt")}
    return {
        "name": "race",
        "model_dir": str(folder),
        "use_cuda": False,
        "random_seed": 42,
        "data": {
            "train": str(text / "train"),
            "dev": str(text / "val"),
            "dataset_type": "plain",
            "src": {"lang": "en", **side},
            "trg": {"lang": "de", **side},
            "special_symbols": {"bos_token": "<bos>", "eos_token": "<eos>"},  # as the other side has it; not in order
        },
        "model": {
            # as in the recurrent configurations that JoeyNMT ships: by its default it learns more slowly
            "embed_initializer": "normal",
            "embed_init_weight": 0.1,
            "encoder": {
                "type": "recurrent",
                "rnn_type": "gru",
                "bidirectional": True,
                "num_layers": 1,
                "hidden_size": HIDDEN,
                "dropout": DROPOUT,
                "embeddings": dict(embeddings),
            },
            "decoder": {
                "type": "recurrent",
                "rnn_type": "gru",
                "num_layers": 1,
                "hidden_size": HIDDEN,
                "attention": "bahdanau",
                "input_feeding": True,
                "init_hidden": "bridge",
                "dropout": DROPOUT,
                "hidden_dropout": DROPOUT,
                "embeddings": dict(embeddings),
            },
        },
        "training": {
            "optimizer": "adamw",
            "learning_rate": LEARNING_RATE,
            "clip_grad_norm": CLIP,
            "normalization": "tokens",  # the mean of all tokens, as the other side has it
            "scheduling": "plateau",
            "batch_size": BATCH,
            "batch_type": "sentence",
            "epochs": epochs,
            "validation_freq": validation_freq,
            "logging_freq": validation_freq,
            "keep_best_ckpts": 1,
            "print_valid_sents": [0],
        },
        "testing": {"beam_size": BEAM, "beam_alpha": ALPHA, "eval_metrics": []},
    }


def patch_scheduler() -> None:
    original = joeynmt.builders.ReduceLROnPlateau

    def without_verbose(*args, verbose=None, **kwargs):
        return original(*args, **kwargs)

    joeynmt.builders.ReduceLROnPlateau = without_verbose


class TimedManager(joeynmt.training.TrainManager):
    """JoeyNMT's training, with each epoch's CPU time and BLEU written down."""

    log: EpochLog

    def train_and_validate(self, *args, **kwargs):
        self.began = time.process_time()
        super().train_and_validate(*args, **kwargs)

    def _validate(self, valid_data):
        trained = time.process_time()
        super()._validate(valid_data)
        validated = time.process_time()
        hypotheses = (self.model_dir / f"{self.stats.steps}.hyps").read_text().splitlines()
        self.log.write(self.stats.steps, hypotheses, trained - self.began, validated - trained)
        self.began = time.process_time()


def train(options: argparse.Namespace) -> None:
    """As `joeynmt train` does. The last model is `latest.ckpt`, the one of the lowest perplexity `best.ckpt`."""
    sentences = len((options.text / "train.en").read_text().splitlines())
    TimedManager.log = EpochLog(options.save, read_references(options.text))
    joeynmt.training.TrainManager = TimedManager
    config = configuration(options.text, options.save, options.epochs, -(-sentences // BATCH))
    joeynmt.training.train(rank=0, world_size=1, cfg=config, skip_test=True)


def endless_batches(model, dataset, batches: list[list[int]] | None):
    """JoeyNMT's own iterator over and over, or its collation of these lines."""
    own = dataset.make_iter(
        batch_size=BATCH, shuffle=True, seed=42, pad_index=model.pad_index, eos_index=model.eos_index
    )
    if batches is not None:
        own = torch.utils.data.DataLoader(dataset, batch_sampler=batches, collate_fn=own.collate_fn)
    for _ in itertools.count():
        yield from own


class JoeyNMT(Contestant):
    def __init__(self, options: argparse.Namespace):
        config = configuration(options.text, options.save, 1, 10**6)
        arguments = joeynmt.config.parse_global_args(config, mode="train")
        self.model, self.training, self.validation, _ = joeynmt.prediction.prepare(arguments, rank=0, mode="train")
        self.text, self.test, self.autocast = options.text, arguments.test, arguments.autocast
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.numbers = [self.model.trg_vocab.lookup(piece) for piece in read_vocabulary(self.text)]
        if options.checkpoint is not None:
            checkpoint = torch.load(options.checkpoint)
            self.model.load_state_dict(joey_weights(checkpoint, self.numbers))
        self.manager = joeynmt.training.TrainManager(
            rank=0,
            model=self.model,
            model_dir=options.save,
            device=arguments.device,
            autocast=arguments.autocast,
            train_args=arguments.train,
            dev_args=arguments.test,
        )
        batches = None if options.batches is None else json.loads(options.batches.read_text())
        self.batches = endless_batches(self.model, self.training, batches)

    def train(self, updates: int) -> dict:
        """The body of `TrainManager.train_and_validate`, without its logging and checkpoints."""
        manager, model, tokens = self.manager, self.model, 0
        model.train()
        model.zero_grad()
        began = time.process_time()
        for batch in itertools.islice(self.batches, updates):
            loss, _ = manager._train_step(batch)
            manager.clip_grad_fun(parameters=model.parameters())
            manager.optimizer.step()
            model.zero_grad()
            tokens += batch.ntokens
        seconds = time.process_time() - began
        return {"seconds": seconds, "tokens": tokens, "loss": loss}

    def score(self, sentences: int) -> dict[str, list[list[list[float]]]]:
        model, data = self.model.eval(), self.validation
        batch = data.collate_fn([data[line] for line in range(sentences)], model.pad_index, model.eos_index)
        back = batch.sort_by_src_length()
        with torch.no_grad():
            _, log_probs, _, _ = model(return_type="loss", **vars(batch))
        lengths = batch.trg_mask.sum((1, 2))
        steps = zip(log_probs[back][..., self.numbers], lengths[back], strict=True)
        return {"log_probs": [rows[:length].tolist() for rows, length in steps]}

    def search(self, sentences: int, beam_size: int) -> list[str]:
        whole = self.validation.data
        self.validation.data = {language: lines[:sentences] for language, lines in whole.items()}
        self.validation.reset_indices()
        _, _, hypotheses, _, _, _ = joeynmt.prediction.predict(
            self.model,
            self.validation,
            torch.device("cpu"),
            n_gpu=0,
            args=self.test._replace(beam_size=beam_size),
            autocast=self.autocast,
        )
        self.validation.data = whole
        return hypotheses


def main() -> None:
    options = options_of(__doc__)
    patch_scheduler()
    if options.mode == "train":
        train(options)
    else:
        serve(lambda: JoeyNMT(options))


if __name__ == "__main__":
    main()
