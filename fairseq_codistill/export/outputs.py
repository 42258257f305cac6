"""A model's outputs, in this process and in one that stock fairseq alone has built it in.

    python outputs.py CHECKPOINT DATA EXPECTED

loads a checkpoint as ``fairseq-generate`` does, strictly, and prints whether it gives the expected
outputs.  It is run as a file, as the package must not be imported there.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The languages that DATA has dictionaries of.
SOURCE, TARGET = "source", "target"
# What the last line says.
SAME, OTHER = "the same outputs", "other outputs"

Sentences = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def logits(model: nn.Module, sentences: Sentences, eos: int = 2) -> list[Tensor]:
    """Return the logits for each target token, and for the end of the sentence.

    Args:
        model: of an encoder and a decoder.
        sentences: the indices of source and target, without the end of the sentence.
        eos: the index of the end of the sentence, which is the same in all dictionaries.
    """
    model.eval()
    end = torch.tensor([eos])
    found = []
    for source, target in sentences:
        tokens = torch.cat([source, end]).unsqueeze(0)
        previous = torch.cat([end, target]).unsqueeze(0)
        output = model(tokens, torch.tensor([tokens.shape[1]]), previous)[0]
        found.append(output[0].float())
    return found


def alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-4) -> bool:
    """Return whether two lists of tensors differ by no more than rounding."""
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b, tolerance, tolerance, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def main(checkpoint: str, data: str, expected: str) -> None:
    """Compare the outputs of a checkpoint with the expected ones."""
    from fairseq import checkpoint_utils

    sentences, ours = torch.load(expected, weights_only=True)
    overrides = {"data": data, "source_lang": SOURCE, "target_lang": TARGET}
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([checkpoint], overrides)
    if "fairseq_codistill" in sys.modules:
        sys.exit("the plugin was imported")
    print(SAME if alike(ours, logits(model, sentences)) else OTHER)


if __name__ == "__main__":
    main(*sys.argv[1:])
