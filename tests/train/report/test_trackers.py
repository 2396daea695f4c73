"""The mirrors, each in a process of its own, read back from what it left on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.report import trackers
from hybridnorm.train.report.trackers import open_trackers
from hybridnorm.train.run import train

SESSION = """
import sys
from pathlib import Path
from hybridnorm.train.report.trackers import open_trackers
name, run_dir, *steps = sys.argv[1:]
[tracker] = open_trackers([name], Path(run_dir), {"model": {"d_model": 64}}, sys.exit)
for step in map(int, steps):
    tracker.log(step, {"loss": 8 / step, "lr": 0.5})
tracker.finish()
"""


def session(name: str, run_dir: Path, *steps: int, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SESSION, name, str(run_dir), *map(str, steps)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    return path


def test_tensorboard_shows_every_step_of_a_killed_and_resumed_run_once(run_dir: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    session("tensorboard", run_dir, 1, 2, 4)
    session("tensorboard", run_dir, 3, 4, 5)
    shown = event_accumulator.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    scalars = [(event.step, event.value) for event in shown.Scalars("loss")]
    assert scalars == [(s, pytest.approx(8 / s)) for s in (1, 2, 3, 4, 5)]
    assert len(shown.Scalars("lr")) == 5


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    data, at, parts = path.read_bytes(), 7, []
    while at < len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb_offline_keeps_history_and_configuration_under_one_id(run_dir: Path) -> None:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    session("wandb", run_dir, 1, 2, WANDB_MODE="offline")
    session("wandb", run_dir, 4, WANDB_MODE="offline")
    history, configuration, ids = [], {}, set()
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path):
            record = protocol.Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                history.append((row["_step"], row["loss"], row["lr"]))
            elif record.HasField("run"):
                ids.add(record.run.run_id)
                assert (record.run.project, record.run.display_name) == ("hybridnorm", "mine")
                configuration |= {i.key: i.value_json for i in record.run.config.update}
    assert history == [(1, 8.0, 0.5), (2, 4.0, 0.5), (4, 2.0, 0.5)]
    assert json.loads(configuration["model"]) == {"d_model": 64}
    assert len(ids) == 1


def test_trackio_continues_its_run(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the trackio extra is not installed")
    home = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    session("trackio", run_dir, 1, 2, **home)
    session("trackio", run_dir, 4, **home)

    def ask(*words: str) -> dict[str, list[dict[str, float]]]:
        command = [sys.executable, "-m", "trackio.cli", *words, "--project", "hybridnorm", "--json"]
        environment = {**os.environ, **home}
        answer = subprocess.run(command, capture_output=True, text=True, env=environment)
        found: dict[str, list[dict[str, float]]] = json.loads(answer.stdout)
        return found

    [run] = ask("list", "runs")["runs"]
    values = ask("get", "metric", "--run", str(run), "--metric", "loss")["values"]
    assert [(v["step"], v["value"]) for v in values] == [(1, 8.0), (2, 4.0), (4, 2.0)]


def test_a_missing_package_is_one_line_before_the_run_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    recipe = load_recipe("demo", {"train.trackers": ["wandb"]})
    with pytest.raises(HybridNormError, match=r"^train\.trackers: wandb is not installed; pip ins"):
        train(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


class Broken:
    """Fails when opened, when it logs, or when it ends."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.calls = 0
        self._at("open")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._at("log")

    def finish(self) -> None:
        self._at("finish")

    def _at(self, moment: str) -> None:
        self.calls += 1
        if moment == self.moment:
            raise ConnectionError("no route\nto host")


@pytest.mark.parametrize(("moment", "calls"), [("open", 1), ("log", 2), ("finish", 4)])
def test_a_tracker_that_fails_is_one_warning_and_left_alone(
    moment: str, calls: int, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Broken] = []

    class Mine(Broken):
        def __init__(self, run_dir: Path, config_table: Mapping[str, object]) -> None:
            built.append(self)
            super().__init__(moment)

    monkeypatch.setitem(trackers._KINDS, "wandb", Mine)
    warnings: list[str] = []
    for tracker in open_trackers(["wandb"], run_dir, {}, warnings.append):
        tracker.log(1, {"loss": 1.0})
        tracker.log(2, {"loss": 1.0})
        tracker.finish()
    assert len(warnings) == 1 and warnings[0].startswith("wandb: no route to host; the run goes on")
    assert built[0].calls == calls
