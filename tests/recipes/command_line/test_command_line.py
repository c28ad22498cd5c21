"""`rnn-blocks`: help, configurations by name, and what a command reads."""

import locale
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import assert_refused, load, only_run, options, recipe, tiny

from rnn_blocks.recipes.__main__ import COMMANDS, RECIPES, main
from rnn_blocks.recipes.command_line.arguments import spelled_out
from rnn_blocks.recipes.command_line.shipped_configs import shipped_configs
from rnn_blocks.recipes.command_line.summary import places
from rnn_blocks.recipes.run.folder import RunFolder, new_run_folder, runs

CONFIGS = shipped_configs("language-model")


def resolved(folder: RunFolder) -> dict:
    return yaml.safe_load(folder.config.read_text())


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["language-model"], ["language-model", "--help"]])
def test_help_names_every_recipe_command_and_shipped_configuration(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 0
    shown = capsys.readouterr().out
    for recipe_name in RECIPES:
        assert recipe_name in shown
        assert all(command in shown for command in COMMANDS[recipe_name])
    assert all(name in shown for name in CONFIGS)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "fit",
            ["--data.bptt BPTT", "--model.dropout", "--logger", "--ckpt_path", "--output_dir", "--trainer"],
        ),
        ("validate", ["--data.eval_bptt", "--ckpt_path"]),
        ("test", ["--data.test", "--ckpt_path"]),
        ("generate", ["--prompt", "--temperature", "--top_p", "--seed"]),
    ],
)
def test_a_commands_help_names_its_options_and_what_they_mean(
    command: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(command, "--help") == 0
    text = capsys.readouterr().out
    assert all(option in text for option in shown)
    options_told = re.findall(r"^  --(?:data|samples)\.[\w.]+ \S+\n? +(\S.*)", text, re.MULTILINE)
    assert command == "generate" or len(options_told) > 10


def test_the_installed_command_is_this_program_and_hands_on_its_exit_code() -> None:
    script = Path(sys.executable).with_name("rnn-blocks")
    wrong = subprocess.run([script, "language-modle"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: 'language-modle' is no recipe; did you mean language-model?\n"


def test_the_later_of_two_configurations_wins_and_an_option_wins_over_both(text: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("model: {dropout: 0.1}\ndata: {bptt: 9}\nseed_everything: 7\n")
    two.write_text("model: {dropout: 0.2}\ndata: {bptt: 10}\n")
    args = tiny(text, tmp_path, **{"trainer.max_steps": 2, "data.bptt": 11})
    assert recipe("fit", "--config", str(one), f"--config={two}", *args) == 0
    config = resolved(only_run(tmp_path))
    assert (config["model"]["dropout"], config["data"]["bptt"], config["seed_everything"]) == (0.2, 11, 7)
    assert config["model"]["layer"]["class_path"] == "rnn_blocks.LSTM", "the default configuration is still below"


@pytest.fixture
def ascii_locale() -> Iterator[None]:
    """A machine whose files are ASCII where nobody says more."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.processes
def test_a_configuration_is_utf_8_in_any_locale(text: Path, tmp_path: Path, ascii_locale: None) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("samples: {prompts: [the sea — blue]}\n", encoding="utf-8")
    args = tiny(text, tmp_path, **{"trainer.max_steps": 2, "trainer.val_check_interval": 2})
    assert recipe("fit", "--config", str(config), *args) == 0
    assert recipe("test", "--output_dir", str(tmp_path)) == 0
    assert "  - the sea — blue\n" in only_run(tmp_path).config.read_text(encoding="utf-8")
    assert locale.setlocale(locale.LC_CTYPE) == "C", "left as it was"


def test_a_configuration_in_another_encoding_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "latin.yaml"
    config.write_text("samples: {prompts: [the sea: blé]}\n", encoding="latin-1")
    assert_refused(["language-model", "fit", "--config", str(config)], f"{config}: not text in UTF-8: ", capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "{config}: holds nothing; it must hold options, such as"),
        ("# model:\n", "{config}: holds nothing"),
        ("- 1\n- 2\n", "{config}: holds list '[1, 2]'"),
        ("data: {bptt: 9\n", "{config}: not YAML: "),
    ],
)
def test_a_configuration_without_options_is_refused_by_name(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    assert_refused(["language-model", "fit", "--config", str(config)], message.format(config=config), capsys)


@pytest.mark.parametrize(
    ("content", "near"),
    [
        ("model: {droput: 0.1}\n", "--model.dropout"),
        ("model: {layer: {class_path: rnn_blocks.LSTM, init_args: {hiden_size: 3}}}\n", "hidden_size"),
    ],
)
def test_an_option_of_a_configuration_that_does_not_exist_is_answered_by_what_is_near_and_the_file(
    content: str, near: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["language-model", "fit", "--config", "ptb-small", f"--config={config}"])
    error = capsys.readouterr().err
    assert f"Did you mean {near}" in error
    assert f"(among the options are those of {config})\n" in error


def test_a_layer_of_another_kind_is_chosen_by_an_option(text: Path, tmp_path: Path) -> None:
    args = tiny(text, tmp_path, **{"trainer.max_steps": 2})
    assert recipe("fit", "--model.layer", "rnn_blocks.GRU", *args) == 0
    hyper_parameters = load(only_run(tmp_path))["hyper_parameters"]
    assert hyper_parameters["layer"]["class_path"] == "rnn_blocks.GRU"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["langage-model", "fit"], "'langage-model' is no recipe; did you mean language-model?"),
        (["zzz"], "'zzz' is no recipe; valid are language-model"),
        (["language-model", "fitt"], "'fitt' is no command of language-model; did you mean fit"),
        (["language-model", "fit", "--data.btpt", "3"], "--data.btpt 3\nDid you mean --data.bptt"),
        (["language-model", "fit", "--hidden_size", "3"], "--hidden_size"),
        (["language-model", "fit", "--trainer.max_step", "3"], "Did you mean --trainer.max_steps"),
        (["language-model", "fit", "--model.layer.init_args.hiden_size", "3"], "Did you mean hidden_size"),
        (["language-model", "fit", "--model.layer", "rnn_blocks.GRUU"], "Did you mean GRU"),
        (["language-model", "fit", "--model.layer", "lstmm"], "Did you mean LSTM"),
        (["language-model", "fit", "--data.bpt", "3"], "See rnn-blocks language-model fit --help"),
        (["language-model", "fit", "--data.bptt", "three"], 'key "data.bptt":\n  Expected a <class \'int\'>'),
        (["language-model", "fit", "--logger", "wanb"], "['wandb', 'tensorboard', 'csv']. Got value: wanb"),
        (["language-model", "fit", "--config", "ptb-smal"], "--config ptb-smal: no such file or shipped configuration; "
         "did you mean 'ptb-small'"),
        (["language-model", "fit", "--config", "zzz"], "shipped are adaptive-clipping, "),
        (["language-model", "generate", "--prompt", "a", "--temprature", "1"], "Did you mean --temperature?"),
        (["language-model", "generate"], "the following arguments are required: --prompt"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_answered_by_what_is_near(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(args, message, capsys)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--dry-run", "mine.yaml"], ["--dry_run", "true", "mine.yaml"]),
        (["--dry-run", "false", "mine.yaml"], ["--dry_run", "false", "mine.yaml"]),
        (["mine.yaml", "--dry_run"], ["mine.yaml", "--dry_run", "true"]),
        (["--dry-run=True", "--count", "3"], ["--dry_run=True", "--count", "3"]),
        (["--text", "--drop-table users; -- x"], ["--text", "--drop-table users; -- x"]),
        (["--", "--dry-run ___", "--dry-run"], ["--", "--dry-run ___", "--dry-run"]),
        (["--text=a--b-c", "--", "--x-y"], ["--text=a--b-c", "--", "--x-y"]),
        (["--the-files", "a-b", "c", "--dry-run"], ["--the_files", '["a-b", "c"]', "--dry_run", "true"]),
        (["--the-files", '["a-b"]', "--the-files=x-y"], ["--the_files", '["a-b"]', "--the_files=x-y"]),
        (["--the-files", "a", "--", "b"], ["--the_files", '["a"]', "--", "b"]),
        (["--drry-run"], ["--drry-run"]),
    ],
)
def test_options_are_spelled_as_one_likes_and_words_stay_as_they_are(given: list[str], read: list[str]) -> None:
    types = {"dry_run": bool, "text": str, "the_files": list[str], "count": int}
    assert spelled_out(given, types) == read


def test_a_switch_may_stand_before_what_has_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--dry-run", "language-model-default", "--output-dir", str(tmp_path), "--count", "1"]) == 0
    assert "1 points, in " in capsys.readouterr().out


def test_a_progress_bar_and_a_checkpoint_of_the_users_are_used(text: Path, tmp_path: Path) -> None:
    bar, own = "lightning.pytorch.callbacks.TQDMProgressBar", "lightning.pytorch.callbacks.ModelCheckpoint"
    args = tiny(text, tmp_path, **{"trainer.max_steps": 2, "trainer.val_check_interval": 2})
    args += ["--trainer.enable_progress_bar", "true", "--trainer.callbacks+", bar, "--trainer.callbacks+", own]
    args += ["--trainer.callbacks.init_args.every_n_train_steps", "1", "--trainer.callbacks.init_args.save_top_k", "-1"]
    assert recipe("fit", *args) == 0
    folder = only_run(tmp_path)
    written = {path.name for path in folder.checkpoints.iterdir()}
    assert written == {"best.ckpt", "last.ckpt", "epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt"}
    assert recipe("validate", "--ckpt_path", str(folder.path)) == 0


def test_a_callback_that_copies_the_model_finds_it_copied(text: Path, tmp_path: Path) -> None:
    args = tiny(text, tmp_path, **{"trainer.max_steps": 4, "trainer.val_check_interval": 4})
    args += [
        "--trainer.callbacks+",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay",
        "0.5",
    ]
    assert recipe("fit", *args) == 0
    checkpoint = load(only_run(tmp_path))
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert averaged.keys() == current.keys()
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    with pytest.warns(UserWarning, match="loading a checkpoint outside the 'fit' stage"):  # Lightning's
        assert recipe("validate", "--output_dir", str(tmp_path)) == 0


def test_a_second_checkpoint_by_what_is_monitored_is_refused_with_the_option_to_use(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val/loss"}}'
    args = ["language-model", "fit", *tiny(text, tmp_path), f"--trainer.callbacks+={own}"]
    assert_refused(args, "--average_checkpoints N keeps the N best", capsys)
    assert runs(tmp_path / "language-model") == []


def test_a_command_that_is_told_bears_being_pasted_where_a_folder_has_a_space_in_its_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "my runs" / "one")
    offline = folder.path / "wandb" / "offline-run-1"
    offline.mkdir(parents=True)
    assert f"wandb sync '{offline}'" in places(folder)


def test_all_parts_of_a_resumed_run_are_uploaded_by_what_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for part in ("offline-run-20261130_1-a02d", "offline-run-20261130_2-a02d"):
        (folder.path / "wandb" / part).mkdir(parents=True)
    assert f"wandb sync {folder.path}/wandb/offline-run-*-a02d)" in places(folder)


@pytest.mark.parametrize(("given", "expected"), [("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)])
@pytest.mark.parametrize("way", ["option", "file"])
def test_a_whole_number_of_batches_is_one_and_no_share(
    way: str, given: str, expected: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")
    args = [part for name in names for part in (f"--trainer.{name}", given)]
    if way == "file":
        (tmp_path / "mine.yaml").write_text(f"trainer: {{{', '.join(f'{name}: {given}' for name in names)}}}\n")
        args = ["--config", str(tmp_path / "mine.yaml")]
    with pytest.raises(SystemExit):
        main(["language-model", "fit", *args, "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    found = [trainer[name] for name in names]
    assert found == [expected] * 4
    assert {type(number) for number in found} == {type(expected)}


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path, "same").path, range(32)))
    assert len(set(folders)) == 32
    assert all((path / "checkpoints").is_dir() for path in folders)
    assert len(runs(tmp_path)) == 32


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_second_process_is_kept_out_of_a_run_that_is_training(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path(shutil.copytree(finished_run.path, tmp_path / "language-model" / "run")))
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    args = ["language-model", "fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "22"]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert_refused(args, f"{folder.path}: another process is training in this folder", capsys)
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
        holder.communicate()
    assert recipe(*args[1:3], str(folder.checkpoint("last")), *args[4:]) == 0
    assert load(folder)["global_step"] == 22


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_reads_the_runs_own_configuration_and_prints_perplexity_and_bits_per_byte(
    command: str, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished_run.path.rglob("*"))
    assert recipe(command, "--ckpt_path", str(finished_run.path), "--trainer.limit_val_batches", "1.0") == 0
    shown = capsys.readouterr().out
    split = {"validate": "val", "test": "test"}[command]
    result = re.search(rf"{split}: perplexity ([\d.]+), bits per byte ([\d.]+)", shown)
    assert result, shown
    perplexity, bits = map(float, result.groups())
    assert 1 < perplexity < 300
    loss = float(re.findall(rf"{split}/loss\D+([\d.]+)", shown)[0])
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-3)
    assert 0.3 * loss / math.log(2) < bits < 1.0 * loss / math.log(2)
    assert sorted(finished_run.path.rglob("*")) == before


def test_an_evaluations_result_is_that_of_the_validation_in_training(
    finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe("validate", "--ckpt_path", str(finished_run.checkpoint("best"))) == 0
    loss = float(re.findall(r"val/loss\D+([\d.]+)", capsys.readouterr().out)[0])
    scores = load(finished_run, "best")["callbacks"]
    best = next(state["best_model_score"] for name, state in scores.items() if name.startswith("ModelCheckpoint"))
    assert loss == pytest.approx(float(best), rel=1e-5)


def test_generation_starts_with_the_prompt_and_repeats_with_its_seed(
    finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(**settings: object) -> str:
        given = {"prompt": "def value", "ckpt_path": finished_run.path, "max_tokens": 30} | settings
        assert recipe("generate", *options(**given)) == 0
        return capsys.readouterr().out

    one = written(seed=3, temperature=1.0)
    assert one.startswith("def value")
    assert len(one) > len("def value\n")
    assert written(seed=3, temperature=1.0) == one
    assert written(seed=4, temperature=1.0) != one
    assert written(seed=3, temperature=0) == written(seed=4, temperature=0) == written(seed=5, top_k=1)
    assert written(seed=3, ckpt_path="best", output_dir=finished_run.path.parents[1], temperature=1.0) == one
