"""Weights & Biases as its environment has it: variables, settings, and a server that cannot be had."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from tiny_runs import metrics, only_run, recipe, tiny
from wandb_runs import of_kind, own_environment, records, run_files

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.run.metrics_csv import MetricsCSV
from rnn_blocks.recipes.run.weights_and_biases import mode as module
from rnn_blocks.recipes.run.weights_and_biases.mode import wandb_mode

pytestmark = pytest.mark.processes

KEY = "0123456789" * 4
VIEWER = {"data": {"viewer": {"id": "VXNlcjox"}}}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with own_environment(tmp_path / "wandb-config") as patch:
        yield patch


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on this machine, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        def do_CONNECT(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def says(status: int, body: object = "") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def closed_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_with_a_key_that_the_server_takes_a_run_is_online(environment: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        says(200, VIEWER)(handler)

    with server(answer) as address:
        environment.setenv("WANDB_BASE_URL", address)
        environment.setenv("WANDB_API_KEY", KEY)
        assert wandb_mode() == "online"
        assert seen[0].startswith("Basic ")


ANSWERS = {
    "a key that has expired": (401, "", "does not accept the API key (HTTP 401); log in with: wandb login --relogin"),
    "a key without rights": (403, "", "does not accept the API key (HTTP 403); log in with: wandb login --relogin"),
    "nobody's key": (
        200,
        {"data": {"viewer": None}},
        "does not accept the API key; log in with: wandb login --relogin",
    ),
    "a server that is down": (503, "", "answers with HTTP 503"),
    "a page to log in to the network": (200, "<html>", "gives an answer that is not of Weights & Biases"),
    "another API": (200, {"data": []}, "gives an answer that is not of Weights & Biases"),
    "no API": (404, "", "answers with HTTP 404"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_server_that_does_not_serve_makes_a_run_offline_and_one_line_says_why(
    kind: str, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, body, told = ANSWERS[kind]
    with server(says(status, body)) as address:
        environment.setenv("WANDB_BASE_URL", address)
        environment.setenv("WANDB_API_KEY", KEY)
        assert wandb_mode() == "offline"
    assert capfd.readouterr().err == f"Weights & Biases is offline: {address} {told}\n"


UNREACHABLE = {
    "refused": ({"WANDB_BASE_URL": closed_port}, "cannot be reached (connection refused)"),
    "unknown host": ({"WANDB_BASE_URL": "http://no-such-host.invalid"}, "cannot be reached (unknown host)"),
    "unknown host, by TLS": ({"WANDB_BASE_URL": "https://no-such-host.invalid"}, "cannot be reached (unknown host)"),
    "closed proxy": (
        {"WANDB_BASE_URL": "https://wandb.example", "HTTPS_PROXY": "http://me:secret@127.0.0.1:9"},
        "is not to be had through the proxy http://127.0.0.1:9 (connection refused)",
    ),
    "unknown proxy": (
        {"WANDB_BASE_URL": "http://wandb.example", "http_proxy": "http://no-such-host.invalid:3128"},
        "is not to be had through the proxy http://no-such-host.invalid:3128 (unknown host)",
    ),
}


@pytest.mark.parametrize("kind", UNREACHABLE)
@pytest.mark.parametrize("mode", [None, "online"])
def test_a_server_that_cannot_be_reached_makes_a_run_offline_and_one_line_says_why(
    kind: str, mode: str | None, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    variables, told = UNREACHABLE[kind]
    for name, value in variables.items():
        environment.setenv(name, value() if callable(value) else value)
    environment.setenv("WANDB_API_KEY", KEY)
    if mode is not None:
        environment.setenv("WANDB_MODE", mode)
    began = time.monotonic()
    assert wandb_mode() == "offline"
    assert time.monotonic() - began < 6
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"Weights & Biases is offline: {os.environ['WANDB_BASE_URL']} {told}"
    assert "secret" not in line


@pytest.mark.parametrize(("status", "told"), [(403, "Forbidden"), (407, "Proxy Authentication Required")])
def test_a_proxy_that_refuses_is_told_with_its_reason(
    status: int, told: str, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with server(says(status)) as proxy:
        environment.setenv("WANDB_BASE_URL", "https://wandb.example")
        environment.setenv("HTTPS_PROXY", proxy)
        environment.setenv("WANDB_API_KEY", KEY)
        assert wandb_mode() == "offline"
    said = capfd.readouterr().err
    assert said.startswith(
        f"Weights & Biases is offline: https://wandb.example is not to be had through the proxy {proxy}"
    )
    assert told in said
    assert len(said.splitlines()) == 1


def test_a_server_that_does_not_answer_is_waited_for_some_seconds_and_no_more(
    environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert module.ANSWER_WITHIN <= 5
    environment.setattr(module, "ANSWER_WITHIN", 0.3)
    over = threading.Event()
    with server(lambda handler: over.wait(20) and None) as address:
        environment.setenv("WANDB_BASE_URL", address)
        environment.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        assert wandb_mode() == "offline"
        assert time.monotonic() - began < 3
        over.set()
    assert capfd.readouterr().err == f"Weights & Biases is offline: {address} did not answer within 0.3 s\n"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."),
        ({"WANDB_MODE": "online"}, "there is no API key; log in with: wandb login"),
        ({"WANDB_API_KEY": KEY, "WANDB_IDENTITY_TOKEN_FILE": "token"}, "Both WANDB_API_KEY and WANDB_IDENTITY"),
    ],
)
def test_a_login_that_cannot_be_is_told_in_one_line(
    variables: dict[str, str], told: str, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert wandb_mode() == "offline"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Weights & Biases is offline: {told}")


def test_without_a_login_nothing_is_said(environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert wandb_mode() == "offline"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("variable", "file", "mode"), [
    ("disabled", None, "disabled"),
    ("offline", None, "offline"),
    ("dryrun", None, "offline"),
    (None, "disabled", "disabled"),
    (None, "offline", "offline"),
    ("offline", "disabled", "offline"),
    ("disabled", "offline", "disabled"),
])  # fmt: skip
def test_the_mode_is_that_of_the_environment_or_else_of_the_settings_file_and_no_server_is_asked(
    variable: str | None, file: str | None, mode: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("WANDB_API_KEY", KEY)
    environment.setattr(module, "_trouble_with", lambda settings: pytest.fail("the server was asked"))
    if variable is not None:
        environment.setenv("WANDB_MODE", variable)
    if file is not None:  # as `wandb disabled` and `wandb offline` write it
        (tmp_path / "wandb-config" / "settings").write_text(f"[default]\nmode = {file}\n")
    assert wandb_mode() == mode


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("WANDB_MODE", "of", "WANDB_MODE of: choose online, offline or disabled"),
        ("WANDB_BASE_URL", "no address", "settings of Weights & Biases: .*valid URL"),
    ],
)
def test_a_variable_that_cannot_be_is_bad_input(
    name: str, value: str, told: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(name, value)
    with pytest.raises(InputError, match=told):
        wandb_mode()


def _tracked(text: Path, tmp_path: Path, **settings: object) -> list[dict[str, Any]]:
    assert recipe("fit", *tiny(text, tmp_path, **({"logger": "wandb", "trainer.max_steps": 2} | settings))) == 0
    wandb.finish()
    return records(run_files(only_run(tmp_path))[0])


def test_project_name_entity_group_and_tags_of_the_environment_are_the_runs(
    text: Path, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PROJECT": "clouds",
        "NAME": "first try",
        "ENTITY": "weather",
        "RUN_GROUP": "june",
        "TAGS": "wet, cold",
        "NOTES": "of the test",
        "JOB_TYPE": "night",
        "RUN_ID": "cafe0001",
    }.items():
        environment.setenv(f"WANDB_{name}", value)
    (run,) = of_kind(_tracked(text, tmp_path), "run")
    told = {name: run.get(name) for name in ("project", "display_name", "entity", "run_group", "notes", "job_type")}
    assert told == {
        "project": "clouds",
        "display_name": "first try",
        "entity": "weather",
        "run_group": "june",
        "notes": "of the test",
        "job_type": "night",
    }
    assert run["run_id"] == "cafe0001"
    assert sorted(run["tags"]) == ["cold", "language-model", "wet"]
    assert "project: clouds" in only_run(tmp_path).config.read_text()


def test_an_option_wins_over_the_environment(text: Path, tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WANDB_PROJECT", "clouds")
    environment.setenv("WANDB_NAME", "first try")
    (run,) = of_kind(_tracked(text, tmp_path, project="sun", name="bright"), "run")
    assert run["project"] == "sun"
    assert run["display_name"] == only_run(tmp_path).path.name
    assert run["display_name"].endswith("-bright")


def test_a_training_that_is_logged_in_without_a_network_is_made_offline(
    text: Path, tmp_path: Path, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("WANDB_BASE_URL", closed_port())
    environment.setenv("WANDB_API_KEY", KEY)
    (run,) = of_kind(_tracked(text, tmp_path), "run")
    assert run["project"] == "rnn-blocks"
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if "Weights" in line]
    assert lines == [
        f"Weights & Biases is offline: {os.environ['WANDB_BASE_URL']} cannot be reached (connection refused)"
    ]
    assert "Traceback" not in shown.err
    assert "wandb sync" in shown.out


def test_a_run_that_the_server_will_not_have_is_made_offline(
    text: Path, tmp_path: Path, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setattr("rnn_blocks.recipes.run.tracking.wandb_mode", lambda: "online")
    opened = wandb.init

    def init(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("permission denied (HTTP 403)\nmore of it")
        return opened(**settings)

    environment.setattr(wandb, "init", init)
    assert of_kind(_tracked(text, tmp_path), "run")
    assert "Weights & Biases is offline: permission denied (HTTP 403)\n" in capfd.readouterr().err


def test_what_belongs_to_one_step_is_one_row(text: Path, tmp_path: Path) -> None:
    settings = {"trainer.max_steps": 60, "trainer.val_check_interval": 12, "trainer.log_every_n_steps": 5}
    rows = of_kind(_tracked(text, tmp_path, **settings, **{"samples.prompts": '["def "]'}), "history")
    items = [row["item"] for row in rows]
    steps = [item["trainer/global_step"] for item in items]
    assert steps == [4, 9, 11, 14, 19, 23, 24, 29, 34, 35, 39, 44, 47, 49, 54, 59]
    assert steps == [int(row["step"]) for row in metrics(only_run(tmp_path))]
    for step, item in zip(steps, items, strict=True):
        of_training = {"train/loss", "grad_norm/total", "grad_clip/coefficient", "throughput/tokens_per_second"}
        assert of_training & item.keys() == (of_training if step % 5 == 4 else set()), step
        of_validation = {"val/loss", "val/samples.nrows"}
        assert of_validation & item.keys() == (of_validation if step % 12 == 11 else set()), step
    assert "plots.count" in items[-1]


def test_a_row_of_the_metrics_file_is_written_again_with_what_is_added_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    logger.log_metrics({"a": 1.0}, step=3)
    logger.save()
    assert read_metrics(path) == [{"step": "3", "a": "1.0"}]
    logger.log_metrics({"a": 1.5}, step=3)
    logger.save()
    logger.log_metrics({"b": 2.0}, step=3)
    logger.save()
    logger.log_metrics({"a": 3.0}, step=4)
    logger.finalize("success")
    assert path.read_text() == "step,a,b\n3,1.5,2.0\n4,3.0,\n"
    resumed = MetricsCSV(path, resume_step=4)
    resumed.log_metrics({"b": 2.5}, step=3)  # of a validation that was broken off
    resumed.log_metrics({"a": 4.0, "c": 5.0}, step=4)
    resumed.save()
    assert path.read_text() == "step,a,b,c\n3,1.5,2.5,\n4,4.0,,5.0\n"


def test_an_artifact_that_is_not_on_the_server_is_bad_input(
    environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    viewer = {"id": "VXNlcjox", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
    with server(says(200, {"data": {"viewer": viewer, "serverInfo": None, "project": None}})) as address:
        environment.setenv("WANDB_BASE_URL", address)
        environment.setenv("WANDB_API_KEY", KEY)
        assert recipe("generate", "--prompt", "def", "--ckpt_path", "artifact:model-abc:best") == 2
    told = "no artifact rnn-blocks/model-abc:best is to be had: project 'rnn-blocks' not found under entity 'me'"
    assert capfd.readouterr().err == f"error: --ckpt_path artifact:model-abc:best: {told}\n"
