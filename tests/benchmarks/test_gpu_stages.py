"""Every stage of benchmarks/gpu.sh runs whole at tiny size; `check` is tests/device itself."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def stage(name: str, out: Path) -> None:
    command = [str(ROOT / "benchmarks" / "gpu.sh"), name, str(out), "--tiny"]
    environment = os.environ | {"PYTHON": sys.executable, "TMPDIR": str(out)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_speed_and_profile(tmp_path: Path) -> None:
    stage("speed", tmp_path)
    stage("profile", tmp_path)
    for path in (*tmp_path.glob("speed-tiny*.json"), *tmp_path.glob("profile-tiny*.json")):
        arms = json.loads(path.read_text())
        arms = arms.get("arms", arms)
        assert "hybridnorm-star" in arms and len(arms) >= 4
        assert not [name for name, arm in arms.items() if "error" in arm]
    assert len(json.loads((tmp_path / "speed-generation.json").read_text())) == 2


def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    stage("study", tmp_path)
    with tarfile.open(tmp_path / "study.tar.gz") as archive:
        names = archive.getnames()
    assert "study/report.html" in names and not [name for name in names if "checkpoints" in name]
    results = (tmp_path / "study" / "results.csv").read_text()
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "study.tar.gz").rename(again / "study.tar.gz")
    stage("study", again)
    assert (again / "study" / "results.csv").read_text() == results


def test_the_page_is_made_of_what_was_measured(tmp_path: Path) -> None:
    found = ROOT / "docs" / "results" / "gpu"
    copied = tmp_path / "gpu"
    copied.mkdir()
    for path in found.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / "report.py"), str(copied)]
    subprocess.run(command, check=True)
    assert (tmp_path / "gpu.md").read_text() == found.with_suffix(".md").read_text()
