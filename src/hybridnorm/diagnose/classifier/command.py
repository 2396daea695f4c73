"""`hybridnorm classify MODULE`."""

from pathlib import Path

from torch import nn

from hybridnorm.diagnose.classifier.capture import Inputs
from hybridnorm.diagnose.classifier.model import Report, classify
from hybridnorm.errors import HybridNormError, in_a_line
from hybridnorm.files import write_whole
from hybridnorm.foreign import load_model
from hybridnorm.placements.show import save_drawing
from hybridnorm.terminal import Screen
from hybridnorm.train import import_object


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
    found = import_object(path.replace(":", "."), "no folder, and no module")
    if not isinstance(found, nn.Module):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # the user's code
            reason = in_a_line(error)
            raise HybridNormError(f"{path}: cannot make a module of it: {reason}") from None
    module, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, nn.Module):
        raise HybridNormError(f"{path}: gives no nn.Module, but {type(module).__name__}")
    return module, inputs
