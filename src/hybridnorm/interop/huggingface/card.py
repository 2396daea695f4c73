"""The model card of an export: README.md, and the drawing of the placement."""

from dataclasses import replace
from pathlib import Path

from hybridnorm.data import DataConfig
from hybridnorm.files import write_whole
from hybridnorm.model import parameter_counts
from hybridnorm.placements import Placement
from hybridnorm.placements.show import equations, save_drawing
from hybridnorm.recipe import Recipe, dump_recipe
from hybridnorm.train import Trained
from hybridnorm.train.report import read_metrics

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- hybridnorm
# license: the choice is yours
---

# {title}, {parameters} parameters

Pretrained with hybridnorm for {steps:,} steps on {tokens:,} tokens.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained(folder{remote})
model = AutoModelForCausalLM.from_pretrained(folder{remote})
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

## Placement of the norms

{source}

![{title}]({drawing})

```text
{equations}
```

## Data

{data}

## Results

{results}

## Recipe

```toml
{recipe}```
"""


def write_card(trained: Trained, folder: Path, *, remote_code: bool) -> None:
    """Write README.md and the drawing into `folder`.

    Args:
        remote_code: whether the folder brings code that its user has to trust.
    """
    placement, config = trained.model.placement, trained.model.config
    _, drawing = save_drawing(placement, folder, config.n_layers)
    counts = parameter_counts(config, placement)
    card = _CARD.format(
        title=placement.title or placement.name,
        parameters=f"{counts.total:,}",
        steps=trained.step,
        tokens=trained.tokens,
        remote=", trust_remote_code=True" if remote_code else "",
        source=". ".join(filter(None, (placement.source, placement.note)))
        or "A placement of ours.",
        drawing=drawing.name,
        equations=_equations(placement, config.n_layers),
        data=_data(_portable(trained.recipe)),
        results=_results(trained),
        recipe=dump_recipe(_portable(trained.recipe)),
    )
    write_whole(folder / "README.md", card)


def _equations(placement: Placement, n_layers: int) -> str:
    return "\n\n".join(
        "\n".join([section.title, *(f"  {line}" for line in section.lines)])
        for section in equations(placement, n_layers)
    )


def _portable(recipe: Recipe) -> Recipe:
    """The recipe with names in place of paths, which are those of the machine it ran on."""
    data, start = recipe.data, recipe.train.start
    data = replace(
        data,
        source=Path(data.source).name,
        cache=DataConfig().cache,
        tokenizer=Path(data.tokenizer).name,
        prepared=tuple(Path(folder).name for folder in data.prepared),
    )
    train = replace(recipe.train, start=None if start is None else Path(start).name)
    return replace(recipe, data=data, train=train)


def _data(recipe: Recipe) -> str:
    data = recipe.data
    sources = ", ".join(f"`{name}`" for name in data.prepared or (data.source,))
    return (
        f"{sources}, in sequences of {recipe.train.seq_len} tokens, "
        f"{recipe.train.batch_size} at a time."
    )


def _results(trained: Trained) -> str:
    """The held-out losses up to the checkpoint as a table."""
    rows = [
        f"| {row['step']:,} | {row['tokens']:,} | {row['val_loss']:.4f} | "
        f"{row['val_bits_per_byte']:.4f} |"
        for row in read_metrics(trained.run_dir).evaluations
        if row["step"] <= trained.step and row["val_loss"] is not None
    ]
    head = "| step | tokens | held-out loss (nats per token) | bits per byte |\n|---|---|---|---|"
    return "\n".join([head, *rows]) if rows else "No evaluation yet."
