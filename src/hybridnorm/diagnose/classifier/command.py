"""`hybridnorm classify MODULE`."""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from hybridnorm.diagnose.classifier.capture import Inputs
from hybridnorm.diagnose.classifier.model import Report, classify
from hybridnorm.errors import HybridNormError
from hybridnorm.files import write_whole
from hybridnorm.foreign import load_model
from hybridnorm.placements.show import save_drawing
from hybridnorm.terminal import Screen


def classify_command(
    target: str, out: Path | None = None, *, trust_remote_code: bool = False
) -> Report:
    """Classify what `target` names, print the report, and draw it into `out`.

    Args:
        target: a folder that `transformers` saved a model in, or the import path of a module, or
            of a function without arguments that returns one, or one and its example inputs.
        trust_remote_code: run the code that a folder brings.

    Raises:
        HybridNormError: no such module or folder; untrusted code in it; or what `classify` raises.
    """
    if Path(target).is_dir():
        module, inputs = load_model(Path(target), trust_remote_code=trust_remote_code), None
    else:
        module, inputs = _imported(target)
    report = classify(module, inputs)
    console = Screen()
    console.print(str(report))
    if out is not None:
        write_whole(out / "found.toml", report.toml())
        svg, png = save_drawing(report.placement, out, report.n_layers)
        console.print(f"\ndrawn in {svg} and {png}; {out / 'found.toml'} for --model.placement")
    return report


def _imported(path: str) -> tuple[nn.Module, Inputs]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise HybridNormError(
            f"{path}: no folder and no import path, such as mypkg.blocks.make_block"
        )
    if "" not in sys.path:
        sys.path.append("")
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
        if not isinstance(found, nn.Module):
            found = found()
    except Exception as error:  # the user's code
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HybridNormError(f"{path}: cannot make a module of it: {reason}") from None
    module, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, nn.Module):
        raise HybridNormError(f"{path}: gives no nn.Module, but {type(module).__name__}")
    return module, inputs
