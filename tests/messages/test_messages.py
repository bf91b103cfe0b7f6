"""What is refused says what was found, why it matters, and what to do."""

import re
from pathlib import Path

import pytest
from refusals import SITUATIONS, checkpoint_behind

from tacit.errors import CheckpointError, TacitError

WORDS: dict[str, tuple[str, str, str]] = {
    "batch norm": ("train mode: 1", "with the others of its batch", "Use GroupNorm or InstanceNorm"),
    "batch norm, affine=False": ("train mode: 1", "with the others of its batch", "Use GroupNorm or InstanceNorm"),
    "batch norm, frozen affine": ("train mode: 1", "with the others of its batch", "Use GroupNorm or InstanceNorm"),
    "batch norm, no running statistics": ("train mode: 1", "with the others of its batch", "Use GroupNorm"),
    "batch norm, switched on later": ("`batch_norm` in 1, BatchNorm1d", "has a gradient of its own", "Use GroupNorm"),
    "batch norm, functional": ("in the model, Calls.forward", "clipping bounds nothing", "Use GroupNorm"),
    "a loss that mixes samples": ("the loss mixes samples: for the batch it is", "moves the gradients", "per sample"),
    "a layer that mixes samples": ("(in layer, Linear", "cannot be told apart by sample", "Keep the batch as one"),
    "rows that others choose": (
        "(6, 5)",
        "rows that other samples chose, since `__getitem__`",
        "depend on that sample",
    ),
    "the batch in a buffer": ("`layer.mean`", "saved with the model without noise", "Freeze the update"),
    "outside any forward": ("'layer.weight' beside its", "released with no bound", "move it into a forward"),
    "second backward": ("a second time over one forward", "up to twice its bound", "Sum the losses and call backward"),
    "released before": ("of draw 0 (epoch 1)", "which epsilon does not cover", "Call optimizer.zero_grad(), then"),
    "the original optimizer": ("the original optimizer was stepped", "without noise", "Call step() on the optimizer"),
    "the original loader": ("nothing was drawn", "epsilon would not cover it", "Iterate the loader that make_private"),
    "an own sampler": ("sampler=WeightedRandomSampler", "WeightedPoissonSampling with public", "or weigh the loss"),
    "drop_last": ("12 records are no multiple of its batch size 5", "change the sample rate", "drop_last=False"),
    "a batch sampler": ("batch_sampler=...", "no privacy proof is known", "Build it with batch_size=..."),
    "an iterable data set": ("Stream is an IterableDataset", "cannot be sampled independently", "Make it map-style"),
    "an unknown keyword": ("make_private()", "unexpected keyword argument", "'max_gradnorm'"),
    "a wrong type": ("noise_multiplier='1'", "is a str", "not a number"),
    "negative noise": ("noise_multiplier=-1.0", "it must be", "finite and at least 0"),
    "noise that is no number": ("noise_multiplier=nan", "it must be", "finite and at least 0"),
    "a negative bound": ("max_grad_norm=-1.0", "it must be", "finite and above 0"),
    "twice": ("the model is private already", "count each other's gradients", "Call detach() on the first engine"),
    "another model's optimizer": ("2 of the optimizer's 2 parameter", "without clipping", "Build the optimizer over"),
    "left midway": ("after 1 of its physical batches", "nothing of it was released", "leave the loop after the step"),
    "changed gradients, as by a GradScaler": (
        "'0.weight' was changed",
        "calibrated for the clipped",
        "after the noise",
    ),
    "a gradient penalty": ("create_graph=True", "bypass the clipping", "Leave gradient penalties out"),
    "max_norm": ("max_norm=1.0", "would reveal which rows were used", "Set max_norm=None"),
    "a nested tensor": ("a NestedTensor", "rows can be followed", "Pass a padded tensor and a mask"),
    "the number of tokens of the whole batch": (
        "num_items_in_batch",
        "depends on the lengths of the others",
        "Leave it",
    ),
}


def holds(words: tuple[str, str, str], message: str) -> None:
    places = [message.find(part) for part in words]
    assert all(place >= 0 for place in places), (words, message)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_said(situation: str) -> None:
    if situation == "left midway":  # not an error: what was accumulated is thrown away
        with pytest.warns(RuntimeWarning) as warned:
            SITUATIONS[situation]()
        holds(WORDS[situation], str(warned[0].message))
        return
    with pytest.raises((TacitError, TypeError)) as caught:
        SITUATIONS[situation]()
    holds(WORDS[situation], str(caught.value))


def test_a_checkpoint_that_knows_of_less_than_was_spent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint_behind(tmp_path)
    holds(("knows of 0 releases", "would forget spent budget", "into a new PrivacyEngine"), str(caught.value))


def test_no_situation_goes_without_words() -> None:
    assert WORDS.keys() == SITUATIONS.keys()
    assert all(re.search(r"\w", part) for words in WORDS.values() for part in words)
