"""The loss on held-out text: as a whole, of its halves, and window by window. No torch."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json, write_whole

WINDOWS_OF = {
    "val_loss": slice(None),
    "val_loss_choosing": slice(0, None, 2),
    "val_loss_comparing": slice(1, None, 2),
}
"""Which windows each loss is the mean of."""
HALVES = tuple(WINDOWS_OF)[1:]
"""One to choose settings by, one to compare what was chosen."""
_WINDOWS = "held_out.json"


def held_out_losses(windows: Sequence[float]) -> dict[str, float]:
    """Nats per token by the names of `WINDOWS_OF`; of a single window, one half is empty."""
    return {name: fmean(windows[part]) for name, part in WINDOWS_OF.items() if windows[part]}


def write_windows(run_dir: Path, step: int, windows: Sequence[float]) -> None:
    """Keep the loss of every held-out window in held_out.json.

    Raises:
        HybridNormError: it cannot be written.
    """
    # JSON has no word for what is not finite.
    losses = [loss if math.isfinite(loss) else None for loss in windows]
    write_whole(run_dir / _WINDOWS, json.dumps({"step": step, "losses": losses}) + "\n")


def read_windows(run_dir: Path) -> list[float]:
    """The loss of every held-out window after the last step; none where it was not kept.

    Raises:
        HybridNormError: the file is damaged.
    """
    path = run_dir / _WINDOWS
    if not path.exists():
        return []
    losses = read_json(path).get("losses")
    if not isinstance(losses, list) or not all(isinstance(x, float | None) for x in losses):
        raise HybridNormError(f"{path}: has no losses of windows; it is damaged")
    return [] if None in losses else losses
