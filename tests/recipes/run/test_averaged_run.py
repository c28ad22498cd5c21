"""A recipe with averaged weights: what its checkpoints hold, and a run that goes on from them."""

from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same, column, load, only_run, recipe, tiny, trained

from rnn_blocks.recipes.language_model.recipe import load_language_model
from rnn_blocks.recipes.run.folder import RunFolder

AVERAGING = "--trainer.callbacks=[{class_path: rnn_blocks.callbacks.NonMonotonicAveraging, init_args: {n: 0}}]"
# So high a rate that validation gets worse; last.ckpt falls on validations, and between them.
SETTINGS = {"model.lr_scheduler.init_args.max_lr": 5.0, "trainer.val_check_interval": 4, "checkpoint_every_n_steps": 2}


def fit(text: Path, output_dir: Path, steps: int) -> RunFolder:
    assert recipe("fit", *tiny(text, output_dir, **SETTINGS, **{"trainer.max_steps": steps}), AVERAGING) == 0
    return only_run(output_dir)


@pytest.mark.processes
def test_checkpoints_hold_the_averages_and_a_run_resumed_is_the_undisturbed_one(text: Path, tmp_path: Path) -> None:
    whole = fit(text, tmp_path / "whole", 24)
    last, best = load(whole), load(whole, "best")
    state = last["callbacks"]["NonMonotonicAveraging"]
    assert state["started_at_step"] == 8
    [started] = column(whole, "averaging/started_at_step").values()
    assert started == state["started_at_step"]
    name = "layer.layers.0.cell.weight_hh"
    assert torch.equal(last["state_dict"][name], state["averages"][name])
    assert not torch.equal(last["state_dict"][name], state["last_weights"][name])
    model, _ = load_language_model(whole.checkpoint("last"))
    assert torch.equal(model.embedding.weight, state["averages"]["embedding.weight"])
    assert torch.equal(model.output.weight, model.embedding.weight)
    values = column(whole, "val/loss")
    assert best["global_step"] in (step + 1 for step, value in values.items() if value == min(values.values()))

    part = fit(text, tmp_path / "part", 8)
    for steps in ("14", "24"):
        args = ["--ckpt_path", "last", "--output_dir", str(tmp_path / "part"), "--trainer.max_steps", steps]
        assert recipe("fit", *args) == 0
    assert_same(trained(load(part)), trained(last))
