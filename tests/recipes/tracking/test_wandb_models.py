"""Models as artifacts of Weights & Biases: what is uploaded and deleted, and how a checkpoint is fetched."""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.trainer.states import TrainerFn
from tiny_runs import column, recipe, tiny
from wandb_runs import own_environment

from rnn_blocks.recipes.run.folder import RunFolder, find_checkpoint
from rnn_blocks.recipes.run.weights_and_biases import fetch
from rnn_blocks.recipes.run.weights_and_biases.logger import WandbRun
from rnn_blocks.recipes.run.weights_and_biases.models import LoggedModels, delete_replaced

PLACE = "me/clouds/model-abc"


class Version:
    """A version of an artifact on a server."""

    def __init__(self, step: int, *aliases: str) -> None:
        self.metadata = {"step": step}
        self.aliases = list(aliases)
        self.deleted = False

    def delete(self, delete_aliases: bool = False) -> None:
        assert delete_aliases or not self.aliases, "as the server says"
        self.deleted = True


class Server:
    """What is kept of W&B's API and of a run that is online."""

    def __init__(self, run_dir: Path) -> None:
        self.id, self.entity, self.project, self.dir = "abc", "me", "clouds", str(run_dir / "files")
        self.versions: list[Version] = []
        self.logged: list[tuple[str, list[str], int]] = []  # artifact, aliases, step in the file
        self.waited = 0

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> SimpleNamespace:
        [entry] = artifact.manifest.entries.values()
        assert entry.local_path is not None
        step = torch.load(entry.local_path, weights_only=True)["global_step"]
        assert step == artifact.metadata["step"]
        self.logged.append((artifact.name, aliases, step))
        for version in self.versions:  # aliases go over to the new one
            version.aliases = [alias for alias in version.aliases if alias not in (*aliases, "latest")]
        self.versions.append(Version(step, *aliases, "latest"))
        return SimpleNamespace(wait=self._wait)

    def _wait(self) -> None:
        self.waited += 1

    def artifacts(self, type_name: str, name: str) -> Iterator[Version]:
        assert (type_name, name) == ("model", PLACE)
        return iter(self.versions)

    def kept(self) -> list[list[str]]:
        return [sorted(version.aliases) for version in self.versions if not version.deleted]


class Online:
    """A training whose run is online, told by hand what happens."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = RunFolder(folder)
        self.server = Server(folder / "wandb" / "run-1-abc")
        logger = WandbRun("online", project="clouds")
        logger._experiment = self.server  # type: ignore[assignment]
        monkeypatch.setattr(wandb, "Api", lambda: self.server)
        best, last = self.folder.checkpoint("best"), self.folder.checkpoint("last")
        self.models = LoggedModels(best, last, {"monitor": "val/loss"}, lambda step: {"val/loss": 2.0})
        self.trainer: Any = SimpleNamespace(
            sanity_checking=False,
            is_global_zero=True,
            loggers=[logger],
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        self.happened = dict.fromkeys(("best", "last"), 0)

    def write(self, name: str, step: int) -> None:
        path = self.folder.checkpoint(name)
        path.parent.mkdir(exist_ok=True, parents=True)
        partial = path.with_suffix(".tmp")
        torch.save({"global_step": step, "epoch": 0}, partial)
        os.utime(partial, ns=(step, step))
        os.replace(partial, path)

    def validated(self) -> None:
        self.models.on_validation_end(self.trainer, None)  # type: ignore[arg-type]

    def ended(self) -> None:
        self.models.on_train_end(self.trainer, None)  # type: ignore[arg-type]


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Online:
    return Online(tmp_path, monkeypatch)


def test_the_best_is_uploaded_when_there_is_a_new_one_and_the_last_at_the_end(online: Online) -> None:
    for step, best in ((10, 10), (20, 20), (30, 20)):
        if step == best:
            online.write("best", step)
        online.write("last", step)
        online.validated()
    assert online.server.logged == [
        ("model-abc", ["best", "step-10"], 10),
        ("model-abc", ["best", "step-20"], 20),
    ]
    assert online.server.waited == 0
    online.ended()
    assert online.server.logged[2:] == [("model-abc", ["last", "step-30"], 30)]
    assert online.server.waited == 3


def test_at_the_end_versions_that_were_replaced_are_deleted_and_others_stay(online: Online) -> None:
    online.server.versions = [Version(1, "step-1"), Version(2, "step-2", "for the paper"), Version(3, "last", "latest")]
    for step in (10, 20):
        online.write("best", step)
        online.validated()
    online.write("last", 30)
    online.ended()
    assert online.server.kept() == [["for the paper", "step-2"], ["best", "step-20"], ["last", "latest", "step-30"]]


def test_a_version_that_is_best_and_last_is_not_deleted() -> None:
    versions = [Version(5, "best", "last", "latest", "step-5"), Version(4, "best"), Version(3, "v-of-mine"), Version(2)]
    delete_replaced(iter(versions))
    assert [version.deleted for version in versions] == [False, False, False, True]


def test_what_waited_to_be_uploaded_goes_when_it_is_there_but_an_offline_part_keeps_its_own(online: Online) -> None:
    offline = online.folder.path / "wandb" / "offline-run-0-abc" / "models"
    offline.mkdir(parents=True)
    (offline / "last-000005.ckpt").touch()
    online.write("best", 10)
    online.validated()
    waiting = online.folder.path / "wandb" / "run-1-abc" / "models"
    assert [path.name for path in waiting.iterdir()] == ["best-000010.ckpt"]
    assert (waiting / "best-000010.ckpt").samefile(online.folder.checkpoint("best"))  # it takes no room
    online.ended()
    assert not waiting.exists()
    assert (offline / "last-000005.ckpt").is_file()


def test_where_links_cannot_be_made_what_is_to_be_uploaded_is_copied(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    online.write("best", 10)
    online.validated()
    online.write("best", 20)
    kept = online.folder.path / "wandb" / "run-1-abc" / "models" / "best-000010.ckpt"
    assert torch.load(kept, weights_only=True)["global_step"] == 10


def test_a_training_that_is_broken_off_uploads_its_models_and_does_not_wait(online: Online) -> None:
    online.write("best", 10)
    online.write("last", 13)
    online.models.on_exception(online.trainer, None, KeyboardInterrupt())  # type: ignore[arg-type]
    assert [aliases for _, aliases, _ in online.server.logged] == [["best", "step-10"], ["last", "step-13"]]
    assert online.server.waited == 0


def test_other_ranks_and_the_sanity_check_upload_nothing(online: Online) -> None:
    online.write("best", 10)
    online.trainer.sanity_checking = True
    online.validated()
    online.trainer.sanity_checking, online.trainer.is_global_zero = False, False
    online.ended()
    assert online.server.logged == []


def test_a_server_that_fails_stops_no_training_and_one_line_tells(
    online: Online, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise wandb.errors.CommError("storage is full\nmore of it")

    monkeypatch.setattr(online.server, "artifacts", fail)
    online.write("best", 10)
    online.ended()
    assert capsys.readouterr().err == (
        "Weights & Biases: models that were replaced could not be deleted: storage is full\n"
    )
    monkeypatch.setattr(online.server, "log_artifact", fail)
    online.write("best", 20)
    online.validated()
    assert capsys.readouterr().err == "Weights & Biases: the model could not be logged: storage is full\n"


class Entry:
    """A file of an artifact on a server."""

    def __init__(self, source: Path) -> None:
        content = source.read_bytes()
        self._source = source
        self.size = len(content)
        self.digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.downloads = 0

    def download(self, root: str, skip_cache: bool) -> str:
        self.downloads += 1
        return str(shutil.copy(self._source, Path(root) / "model.ckpt"))


class Api:
    """W&B's, with one artifact."""

    def __init__(self, name: str, **files: Path) -> None:
        self._name = name
        self.files = {f"{file}.ckpt": Entry(path) for file, path in files.items()}

    def artifact(self, name: str) -> SimpleNamespace:
        if name != self._name:
            raise wandb.errors.CommError(f"artifact {name!r} not found in {name.rpartition('/')[0]!r}\nmore of it")
        return SimpleNamespace(version="v3", manifest=SimpleNamespace(entries=self.files))


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setattr(fetch, "why_no_server", lambda: "")


def _serve(monkeypatch: pytest.MonkeyPatch, name: str, **files: Path) -> Api:
    api = Api(name, **files)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    return api


@pytest.mark.usefixtures("reachable")
def test_an_artifact_is_fetched_into_the_output_folder_once(
    finished_run: RunFolder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = _serve(monkeypatch, "rnn-blocks/model-abc:best", model=finished_run.checkpoint("best"))
    given = ["--ckpt_path", "artifact:model-abc:best", "--output_dir", str(tmp_path)]
    assert recipe("generate", "--prompt", "def", "--max_tokens", "2", *given) == 0
    assert recipe("validate", "--data.val", str(text), "--trainer.accelerator", "cpu", *given) == 0
    place = tmp_path / "language-model" / "artifacts" / "model-abc-v3" / "model.ckpt"
    assert place.read_bytes() == finished_run.checkpoint("best").read_bytes()
    assert api.files["model.ckpt"].downloads == 1
    place.write_bytes(b"cut off")
    assert find_checkpoint("artifact:model-abc:best", tmp_path / "language-model") == place
    assert api.files["model.ckpt"].downloads == 2


@pytest.mark.usefixtures("reachable")
def test_an_artifact_that_a_run_here_made_is_not_fetched(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished_run.path, tmp_path / "language-model" / "run"))
    api = _serve(monkeypatch, "me/clouds/model-abc:best", model=finished_run.checkpoint("best"))
    for parent in (tmp_path / "language-model", tmp_path):  # of a recipe, and of all
        assert find_checkpoint(f"artifact:{PLACE}:best", parent) == RunFolder(run).checkpoint("best")
    assert api.files["model.ckpt"].downloads == 0


@pytest.mark.usefixtures("reachable")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_training_goes_on_from_an_artifact_in_a_run_of_its_own(
    finished_run: RunFolder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(monkeypatch, "clouds/model-abc:last", model=finished_run.checkpoint("last"))
    args = ["--ckpt_path", "artifact:model-abc:last", "--output_dir", str(tmp_path), "--project", "clouds"]
    assert recipe("fit", *args, "--trainer.max_steps", "24") == 0
    [run] = (tmp_path / "language-model").glob("*/checkpoints")
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 24
    assert column(RunFolder(run.parent), "train/loss").keys() == {23}


MISTAKES = {
    "artifact:model-abc": "give artifact:NAME:ALIAS, as in artifact:model-1a2b3c4d:best",
    "artifact:a/b/c/d:best": "give artifact:NAME:ALIAS, as in artifact:model-1a2b3c4d:best",
    "artifact:": "give artifact:NAME:ALIAS, as in artifact:model-1a2b3c4d:best",
    "artifact:model-abc:worst": "no artifact rnn-blocks/model-abc:worst is to be had: artifact 'rnn-blocks/model-abc:w",
    "artifact:model-two:best": "the artifact is to hold one checkpoint, a file *.ckpt, and holds a.ckpt, b.ckpt",
}


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize("given", MISTAKES)
def test_an_artifact_that_cannot_be_had_is_bad_input(
    given: str,
    finished_run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best = finished_run.checkpoint("best")
    _serve(monkeypatch, "rnn-blocks/model-two:best", a=best, b=best)
    assert recipe("test", "--ckpt_path", given, "--output_dir", str(tmp_path)) == 2
    assert f"--ckpt_path {given}: {MISTAKES[given]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reachable")
def test_an_artifact_that_cannot_be_written_here_is_bad_input(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _serve(monkeypatch, "rnn-blocks/model-abc:best", model=finished_run.checkpoint("best"))
    (tmp_path / "language-model").write_text("in the way")
    assert recipe("test", "--ckpt_path", "artifact:model-abc:best", "--output_dir", str(tmp_path)) == 2
    assert "--ckpt_path artifact:model-abc:best: could not be fetched to " in capsys.readouterr().err


OFFLINE = {
    "no key": ({}, "there is no API key; log in with: wandb login"),
    "set offline": ({"WANDB_MODE": "offline"}, "it is set to offline (WANDB_MODE, or wandb offline)"),
    "no server": (
        {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "http://no-such-host.invalid"},
        "http://no-such-host.invalid cannot be reached (unknown host)",
    ),
}


@pytest.mark.parametrize("kind", OFFLINE)
def test_offline_an_artifact_is_bad_input_that_says_why(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variables, why = OFFLINE[kind]
    with own_environment(tmp_path / "wandb-config") as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        assert recipe("generate", "--prompt", "def", "--ckpt_path", "artifact:model-abc:best") == 2
    told = "a checkpoint here is given by its path"
    assert capsys.readouterr().err == (
        f"error: --ckpt_path artifact:model-abc:best: Weights & Biases is offline: {why}; {told}\n"
    )


NEED_WANDB = {
    "log_model": ("true", "--log_model is of Weights & Biases: give --logger wandb with it, not csv"),
    "watch": ("gradients", "--watch is of Weights & Biases: give --logger wandb with it, not csv"),
    "watch_every_n_steps": (0, "--watch_every_n_steps must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", NEED_WANDB)
def test_what_needs_wandb_is_refused_without_it(
    name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, message = NEED_WANDB[name]
    assert recipe("fit", *tiny(text, tmp_path, **{name: value})) == 2
    assert message in capsys.readouterr().err
    assert not RunFolder(tmp_path / "language-model").path.exists()
