"""The tokenizer of a run as `AutoTokenizer` loads it."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hybridnorm.data import load_tokenizer

_PADDING = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]")


def token_ids(run_dir: Path) -> dict[str, int]:
    """The ids of the special tokens, for a configuration.

    Texts end with the end of a document, and begin after one; where the vocabulary has no token
    for padding, it pads as well.
    """
    tokenizer = load_tokenizer(run_dir)
    end = tokenizer.end_of_document
    known = map(tokenizer.fast().token_to_id, _PADDING)
    padding = next((found for found in known if found is not None), end)
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": padding}


def write_tokenizer(run_dir: Path, folder: Path, max_length: int) -> None:
    """Write the tokenizer of a run into `folder`: it adds no tokens, as in training."""
    fast, ids = load_tokenizer(run_dir).fast(), token_ids(run_dir)
    end, padding = (fast.id_to_token(ids[f"{name}_token_id"]) for name in ("eos", "pad"))
    PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=end,
        eos_token=end,
        pad_token=padding,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
