import fsspec
import pytest
from lightnings import CSVLogger, TensorBoardLogger
from small_trainings import Remember, make_trainer

from rnn_blocks.callbacks.figures import new_figure, write_out_logs
from rnn_blocks.callbacks.gradient_flow.history import FlowHistory
from rnn_blocks.callbacks.gradient_flow.plot import flow_figure
from rnn_blocks.callbacks.trainer import log_figure

PNG = b"\x89PNG\r\n\x1a\n"


class TakesImages(Remember):
    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))


def a_figure():
    figure, axes = new_figure("Title", "step", "norm")
    axes.plot([1, 2], [3, 4])
    return figure


def test_a_figure_is_written_below_the_first_loggers_folder_and_handed_to_loggers_that_take_images(tmp_path):
    takes_images = TakesImages()
    trainer = make_trainer(logger=[CSVLogger(tmp_path, name="run", version=3), Remember(), takes_images])
    path = log_figure(trainer, "grad_norm/histogram", a_figure())
    assert path == tmp_path / "run" / "version_3" / "plots" / "grad_norm" / "histogram.png"
    assert path.read_bytes().startswith(PNG)
    assert takes_images.images == [("grad_norm/histogram", [str(path)], 0)]
    assert [p.name for p in path.parent.iterdir()] == ["histogram.png"]


def test_tensorboard_gets_the_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    path = log_figure(make_trainer(logger=logger), "flow", a_figure())
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Images("flow")[0].encoded_image_string.startswith(PNG)
    assert path.parent.parent.samefile(logger.log_dir)


def test_weights_and_biases_gets_the_figure(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightnings import WandbLogger

    run = type("Run", (wandb.sdk.wandb_run.Run,), {"__init__": lambda self: setattr(self, "logged", [])})
    run.log, run.__del__ = (lambda self, row: self.logged.append(row)), (lambda self: None)
    run.define_metric = lambda *args, **kwargs: None
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monkeypatch.setattr(WandbLogger, "experiment", run())
    path = log_figure(make_trainer(logger=logger), "flow", a_figure())
    [row] = logger.experiment.logged
    assert path.parent.parent.samefile(tmp_path)
    assert isinstance(row["flow"][0], wandb.Image)


def test_without_a_logger_it_lies_in_the_root_folder_and_is_replaced_as_a_whole(tmp_path):
    trainer = make_trainer(default_root_dir=tmp_path)
    path = log_figure(trainer, "flow", a_figure())
    path.write_bytes(b"an older one")
    assert log_figure(trainer, "flow", a_figure()) == path == tmp_path / "plots" / "flow.png"
    assert path.read_bytes().startswith(PNG)


def test_without_a_logger_what_lies_in_the_root_folder_stays_and_the_place_is_told(tmp_path, caplog):
    trainers = [make_trainer(default_root_dir=tmp_path) for _ in range(2)]
    (tmp_path / "plots").mkdir()
    with caplog.at_level("INFO"):
        paths = [log_figure(trainer, "flow", a_figure()) for trainer in (*trainers, trainers[0])]
    first, second = tmp_path / "plots-1" / "flow.png", tmp_path / "plots-2" / "flow.png"
    assert paths == [first, second, first]
    assert not list((tmp_path / "plots").iterdir())
    told = [record.getMessage() for record in caplog.records if "There is no logger" in record.getMessage()]
    assert told == [f"There is no logger: figures are written to {path.parent}" for path in (first, second)]


def test_a_figure_that_cannot_be_written_does_not_end_the_training(tmp_path):
    (tmp_path / "plots").write_text("in the way")
    trainer = make_trainer(logger=TakesImages(), default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="'flow' could not be written"):
        assert log_figure(trainer, "flow", a_figure()) is None


def test_a_logger_that_does_not_take_the_figure_does_not_end_the_training_nor_keeps_it_from_others(tmp_path):
    class OfItsOwn(Remember):
        def log_image(self, name, image):
            raise AssertionError("not to be reached by these arguments")

    other = TakesImages()
    with pytest.warns(UserWarning, match="OfItsOwn did not take the figure 'flow': .* unexpected keyword argument"):
        log_figure(make_trainer(logger=[OfItsOwn(), other], default_root_dir=tmp_path), "flow", a_figure())
    assert [key for key, _, _ in other.images] == ["flow"]


def test_a_log_folder_elsewhere_gets_the_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    takes_images = TakesImages()
    trainer = make_trainer(logger=[CSVLogger("memory://bucket/logs", name="run", version=3), takes_images])
    assert log_figure(trainer, "grad_norm/histogram", a_figure()) is None
    files = fsspec.filesystem("memory")
    assert files.cat("/bucket/logs/run/version_3/plots/grad_norm/histogram.png").startswith(PNG)
    assert len(takes_images.images) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fast_dev_run_writes_no_figures(tmp_path):
    assert log_figure(make_trainer(default_root_dir=tmp_path, fast_dev_run=True), "flow", a_figure()) is None
    assert list(tmp_path.iterdir()) == []


def test_the_first_rank_alone_writes(tmp_path):
    trainer = make_trainer(default_root_dir=tmp_path)
    trainer.strategy.__class__ = type("Other", (type(trainer.strategy),), {"is_global_zero": False})
    assert log_figure(trainer, "flow", a_figure()) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("high", "labels"), [(5.0, {"0.2", "0.5", "1", "2", "5"}), (1e3, set())])
def test_a_logarithmic_axis_of_less_than_two_decades_has_plain_numbers(high, labels):
    figure, axes = new_figure("Title", "step", "norm")
    axes.plot([1, 2], [0.2, high])
    axes.set_yscale("log")
    axes.set_ylim(0.15, 1.1 * high)
    write_out_logs(axes)
    figure.canvas.draw()
    texts = {label.get_text() for label in axes.get_yticklabels(which="both")}
    assert labels <= texts
    assert ("$" in "".join(texts)) == (not labels)


def test_dark_means_that_next_to_nothing_is_left_in_every_picture_of_a_gradient_flow():
    for left, darkest in ((0.5, -6.0), (1e-8, -8.0), (1e-20, -12.0)):
        history = FlowHistory()
        history.add(0, [1.0, left])
        history.add(1, [1.0, left])
        assert flow_figure("net", history).axes[0].collections[0].get_clim() == pytest.approx((darkest, 0.0))
