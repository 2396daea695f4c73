"""Fine-tune an export of `hybridnorm export` on texts of yours: whole, or by LoRA.

    python examples/finetune.py exports/star notes.txt --out tuned
    python examples/finetune.py exports/star notes.txt --out tuned --lora

It needs `transformers[torch]` (and `peft` for --lora), not hybridnorm. Documents are separated by
blank lines. What it writes is again a folder that `AutoModelForCausalLM` loads.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)


def examples(tokenizer: PreTrainedTokenizerBase, text: str) -> list[dict[str, torch.Tensor]]:
    """The documents of `text`, each ended, one after the other, cut into full-length pieces."""
    documents = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    ids = [i for d in documents for i in [*tokenizer(d)["input_ids"], tokenizer.eos_token_id]]
    length = min(tokenizer.model_max_length, len(ids))
    pieces = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the export")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tuned model")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters, then merge")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    if args.lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            args.out,
            max_steps=args.steps,
            learning_rate=args.lr,
            per_device_train_batch_size=8,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=examples(tokenizer, args.text.read_text(encoding="utf-8")),
    )
    trainer.train()
    if args.lora:
        model = model.merge_and_unload()
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
