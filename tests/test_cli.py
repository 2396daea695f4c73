import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["train", "--help"], ["study", "--help"], ["prepare", "--help"]),
        *(["show"], ["show", "--help"]),
    ],
)
def test_verbs_that_do_not_compute_never_import_torch(argv: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['hybridnorm', *{argv!r}]\n"
        "from hybridnorm.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 100


def test_help_shows_every_field_with_meaning_and_default() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", "train", "demo", "--help"],
        capture_output=True,
        text=True,
    )
    for word in ("--model.placement", "--optimizer.lr", "0.003", "Peak learning rate"):
        assert word in result.stdout
