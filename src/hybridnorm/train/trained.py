"""The model of a run, with what is known of it."""

from dataclasses import dataclass
from pathlib import Path

from hybridnorm.model import Transformer
from hybridnorm.recipe import Recipe, load_recipe
from hybridnorm.train.run_dir import find_checkpoint, load_model


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run."""

    run_dir: Path
    model: Transformer
    """float32, on the CPU."""
    recipe: Recipe
    step: int
    val_loss: float | None
    """In nats per token; None where this step was not evaluated."""
    problems: list[str]
    """A line for each damaged checkpoint that was passed over."""

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return self.step * self.recipe.train.tokens_per_step


def load_trained(run_dir: Path, which: str = "last") -> Trained:
    """The checkpoint called `which`: "last", "best" or a step.

    Raises:
        HybridNormError: not a run, or no such (or a damaged) checkpoint.
    """
    path, meta, problems = find_checkpoint(run_dir, which)
    return Trained(
        run_dir=run_dir,
        model=load_model(path, meta),
        recipe=load_recipe(run_dir / "recipe.toml"),
        step=meta["step"],
        val_loss=meta["val_loss"],
        problems=problems,
    )
