"""The options by which a language model adapts to the text it is tested on, and the passes that they ask for."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from rnn_blocks.modules import (
    DynamicEvaluation,
    LanguageModel,
    NeuralCache,
    TextBatch,
    evaluate_adaptively,
    mean_squared_gradients,
    tune_cache,
    tune_dynamic_evaluation,
)
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.progress import progress_bar
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.language_model.lanes import Lanes

TUNED_ON = 30_000  # tokens of validation text, as Krause et al.'s quick search has
TUNED_ON_WITH_DYNAMIC = 5_000  # where weights learn from each segment of it, in up to fifteen passes
STATISTICS_LANES = 100  # as Krause et al. have


@dataclass(frozen=True)
class Adaptation:
    """What ``--cache.…``, ``--dynamic.…`` and ``--tune`` ask for.

    Args:
        cache: the neural cache, if asked for.
        dynamic: dynamic evaluation, if asked for.
        train_batches: of training text at most for the gradients' statistics.
        tuned: the options that are chosen on validation text, such as ``"cache.theta"``.

    >>> Adaptation(NeuralCache(), DynamicEvaluation("sgd")).describe()
    'dynamic evaluation (sgd, lr 0.1, decay 0.002, 5 steps) and cache (window 500, theta 1, weight 0.1)'
    """

    cache: NeuralCache | None
    dynamic: DynamicEvaluation | None
    train_batches: int = 2000
    tuned: frozenset[str] = frozenset()

    def describe(self) -> str:
        """In words."""
        parts = []
        if self.dynamic is not None:
            d = self.dynamic
            parts.append(f"dynamic evaluation ({d.method}, lr {d.lr:g}, decay {d.decay:g}, {d.steps} steps)")
        if self.cache is not None:
            c = self.cache
            parts.append(f"cache (window {c.window}, theta {c.theta:g}, weight {c.weight:g})")
        return " and ".join(parts)


def add_adaptation_options(parser: LightningArgumentParser) -> None:
    """``--cache.…``, ``--dynamic.…`` and ``--tune``."""
    group = parser.add_argument_group(
        "cache", "Neural cache (Grave et al. 2017): recent words mixed in. Any of these options turns it on"
    )
    group.add_argument("--cache.window", type=int | None, default=None, help="Steps that are remembered [500]")
    group.add_argument(
        "--cache.theta", type=float | None, default=None, help="How much more similar states count than others [1.0]"
    )
    group.add_argument("--cache.weight", type=float | None, default=None, help="The cache's share, below 1 [0.1]")
    group = parser.add_argument_group(
        "dynamic",
        "Dynamic evaluation (Krause et al. 2018): the weights go on learning from the text once it is scored. "
        "Any of these options turns it on",
    )
    group.add_argument(
        "--dynamic.method",
        type=Literal["rms", "sgd"] | None,
        default=None,
        help="rms (rates scaled by the gradients on training text) or sgd [rms]",
    )
    group.add_argument("--dynamic.lr", type=float | None, default=None, help="Learning rate [rms 5e-5, sgd 0.1]")
    group.add_argument(
        "--dynamic.decay", type=float | None, default=None, help="Part of the way back to the trained weights [0.002]"
    )
    group.add_argument("--dynamic.epsilon", type=float | None, default=None, help="Bounds the steps of rms [2e-5]")
    group.add_argument("--dynamic.steps", type=int | None, default=None, help="Tokens of a lane between updates [5]")
    group.add_argument(
        "--dynamic.train_batches",
        type=int | None,
        default=None,
        help="Batches of training text for rms, at most; each of 100 lanes of as many tokens as --dynamic.steps [2000]",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="Choose theta and weight of the cache, lr and decay of dynamic evaluation, as far as they are not given, "
        f"on the first {TUNED_ON:,} tokens of the validation split, or with dynamic evaluation on the first "
        f"{TUNED_ON_WITH_DYNAMIC:,}, before anything is tested",
    )


def adaptation_of(options: Namespace) -> Adaptation | None:
    """What the options ask for; ``None`` for nothing.

    Raises:
        InputError: for a value out of its range, or ``--tune`` with nothing to tune.
    """
    given: dict[str, dict[str, Any]] = {
        name: {key: value for key, value in vars(options[name]).items() if value is not None}
        for name in ("cache", "dynamic")
    }
    train_batches = given["dynamic"].pop("train_batches", None)
    dynamic_asked = bool(given["dynamic"]) or train_batches is not None
    if train_batches is not None and train_batches < 1:
        raise InputError(f"--dynamic.train_batches must be at least 1, got {train_batches}")
    cache = _made("cache", NeuralCache, given["cache"]) if given["cache"] else None
    dynamic = _made("dynamic", DynamicEvaluation, given["dynamic"]) if dynamic_asked else None
    if cache is None and dynamic is None:
        if options["tune"]:
            raise InputError("--tune: nothing to tune; turn on the cache (--cache.window 500) or --dynamic.method rms")
        return None
    tunable = {"cache": ("theta", "weight"), "dynamic": ("lr", "decay")}
    tuned = {f"{name}.{key}" for name, keys in tunable.items() for key in keys if key not in given[name]}
    return Adaptation(cache, dynamic, train_batches or 2000, frozenset(tuned) if options["tune"] else frozenset())


def _made(option: str, kind: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except ValueError as error:
        raise InputError(f"--{option}.{error}") from error


def measure_adaptively(
    model: LanguageModel, data: TextDataModule, trainer: pl.Trainer, split: Literal["val", "test"], wanted: Adaptation
) -> dict[str, dict[str, Tensor]]:
    """Measure the split that the trainer has just gone through, once more for each way of adapting.

    What is found goes among the trainer's metrics too, as ``test/cache/perplexity`` and its like.

    Returns:
        By what it was measured with, in words: ``loss``, ``perplexity`` and ``bits_per_byte``.
    """
    hidden = trainer.progress_bar_callback is None
    model.to(trainer.strategy.root_device)  # after a test Lightning puts it back to the CPU
    squares = None
    if wanted.dynamic is not None and wanted.dynamic.method == "rms":
        lanes = _training_lanes(data, wanted.dynamic.steps)
        count = min(len(lanes), wanted.train_batches)
        squares = mean_squared_gradients(model, _shown(lanes, "gradients of training text", count, hidden))
    wanted = _tuned(model, data, wanted, squares, hidden)
    batches = trainer.num_test_batches if split == "test" else trainer.num_val_batches
    length = int(sum(batches))
    loader = data.test_dataloader if split == "test" else data.val_dataloader
    both = wanted.cache is not None and wanted.dynamic is not None
    ways = [Adaptation(wanted.cache, None)] if both else []  # what the cache does without the other
    results: dict[str, dict[str, Tensor]] = {}
    for way in [*ways, wanted]:
        description = f"{split}, {'dynamic evaluation' if way.dynamic else 'cache'}"
        losses = evaluate_adaptively(
            model,
            _shown(loader(), description, length, hidden),
            cache=way.cache,
            dynamic=way.dynamic,
            mean_squares=squares,
        )
        for name, loss in losses.items():
            if name == "model" and way.dynamic is None:
                continue  # what the trainer has measured
            measured = Adaptation(way.cache if name == "cache" else None, way.dynamic)
            results[measured.describe()] = loss.compute()
            prefix = "_".join(n for n, on in (("dynamic", measured.dynamic), ("cache", measured.cache)) if on)
            trainer.callback_metrics.update(
                {f"{split}/{prefix}/{key}": value.float() for key, value in loss.compute().items()}
            )
    return results


def _tuned(
    model: LanguageModel, data: TextDataModule, wanted: Adaptation, squares: dict[str, Tensor] | None, hidden: bool
) -> Adaptation:
    cache, dynamic = wanted.cache, wanted.dynamic

    passes = itertools.count(1)

    def text() -> Iterator[TextBatch]:
        batches = data.val_dataloader()
        lanes, steps = data.eval_shape
        tokens = TUNED_ON if dynamic is None else TUNED_ON_WITH_DYNAMIC
        number = min(len(batches), -(-tokens // (lanes * steps)))
        return _shown(batches, f"choosing on validation text, pass {next(passes)}", number, hidden)

    if dynamic is not None and wanted.tuned & {"dynamic.lr", "dynamic.decay"}:
        dynamic = tune_dynamic_evaluation(
            model,
            text,
            dynamic,
            mean_squares=squares,
            tune_lr="dynamic.lr" in wanted.tuned,
            tune_decay="dynamic.decay" in wanted.tuned,
        )
    if cache is not None and wanted.tuned & {"cache.theta", "cache.weight"}:
        fixed: dict[str, Any] = {}
        if "cache.theta" not in wanted.tuned:
            fixed["thetas"] = [cache.theta]
        if "cache.weight" not in wanted.tuned:
            fixed["weights"] = [cache.weight]
        cache = tune_cache(model, text(), cache=cache, **fixed, dynamic=dynamic, mean_squares=squares)
    return Adaptation(cache, dynamic, wanted.train_batches)


def _training_lanes(data: TextDataModule, steps: int) -> Lanes:
    tokens = data.splits["train"]
    lanes = min(STATISTICS_LANES, (tokens.num_tokens - 1) // steps)
    if lanes == 0:
        raise InputError(f"--dynamic.steps {steps}: the train split has only {tokens.num_tokens} tokens")
    return Lanes(tokens, lanes, steps)


def _shown(batches: Iterable[TextBatch], description: str, number: int, hidden: bool) -> Iterator[TextBatch]:
    """The first so many batches, with a bar."""
    with progress_bar(description, number, " batches", hidden=hidden) as bar:
        for batch in itertools.islice(batches, number):
            yield batch
            bar.update()
