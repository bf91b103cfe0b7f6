"""What would not be one private run of all processes is refused in each of them, in words."""

import pytest
from processes import results
from situations import SITUATIONS, words

DIFFER = "DistributedError: the processes do not train the same way"

# In each process, or in process 0 and in process 1.
WORDS = {
    "other_noise": (DIFFER, "noise_multiplier: 1.0 in process 0, 2.0 in process 1"),
    "other_bound": (DIFFER, "max_grad_norm: 1.0 in process 0, 2.0 in process 1"),
    "other_records": (DIFFER, "number of records: 30 in process 0, 38 in process 1"),
    "other_reduction": (DIFFER, "loss_reduction: 'mean' in process 0, 'sum' in process 1"),
    "other_shapes": (DIFFER, "parameter 'weight': ((2, 3)", "((2, 4)"),
    "other_version": (DIFFER, "version of tacit: '0.1.0' in process 0, '0.1.1' in process 1"),
    "other_code": (DIFFER, "code of tacit: 'state 0' in process 0, 'state 1' in process 1"),
    "other_scale": (DIFFER, "scale of the loss: 1024.0 in process 0, 2048.0 in process 1"),
    "scaler_left_out_in_one": ("ConfigurationError: make_private() was given grad_scaler=, and the optimizer",),
    "other_history": (DIFFER, "releases so far: [] in process 0"),
    "one_is_refused": ("ConfigurationError: grad_sample_mode='ghosts' is not known",),
    "without_wrapper": ("PrivacyError: the gradient of '0.bias' was not averaged", "Call the wrapped model"),
    "never_averaged": ("PrivacyError: the gradient of '0.bias' was not averaged", "leave no_sync() for the last"),
    "clipped_again": ("PrivacyError: the gradient of '0.weight' was changed after its backward()",),
    "clipped_again_in_one": ("PrivacyError: the gradient of '0.weight' was changed after its backward()",),
    "changed_before_it_leaves": ("PrivacyError: the gradient of '0.weight' was changed during backward()",),
    "broken_off": ("PrivacyError", "a backward() did not come to its end", "optimizer.zero_grad()"),
    "other_data": (DIFFER, "indices of the Subset"),
    "other_tensors": (DIFFER, "tensor 0 of the data set: '(16, 6) torch.float32"),
    "penalty": ("LeakError: a gradient reached the parameter '0.weight' beside its clipped sum",),
    "bound_changed_in_one": (DIFFER, "max_grad_norm: 0.3 in process 0, 0.6 in process 1"),
    "budget_in_one": (DIFFER, "budget: None in process 0, (3.0, 1e-05) in process 1"),
    "weights_changed_in_one": (DIFFER, "bits of the parameter '2.weight'"),
    "frozen_in_one": (DIFFER, "trained parameters: ['0.weight', '0.bias', '2.weight', '2.bias'] in process 0"),
    "cleared_in_one": (DIFFER, "gradient of '0.weight': 'none' in process 0"),
    "emptied_in_one": (DIFFER, "gradient of '0.weight': 'none' in process 0"),
    "repeated_in_one": (DIFFER, "backwards that found no gradients, clearings and zeroed gradients"),
    "compiled_around": ("ConfigurationError: the module is torch.compile(DistributedDataParallel(model))",),
    "ahead": (DIFFER, "batches, by number, epoch and place: [(0, 1, 0)] in process 0, [(1, 1, 1)] in process 1"),
    "compressed": ("ConfigurationError: this DistributedDataParallel has a communication hook", "without one"),
    "two_wrappers": ("ConfigurationError: the private model is inside two", "Wrap it once"),
    "part_of_the_processes": ("averages over 1 processes, and 2 train", "Leave process_group= out"),
    "part_of_the_model": ("'2.weight' is outside it", "Wrap the whole model"),
    "not_stepped": ("waits for the gradients of 2.weight, 2.bias", "Call requires_grad_(False) on them"),
    "half_precision": ("'0.weight' is torch.bfloat16", "use torch.autocast"),
    "ghost_and_static_graph": ("does not go together", 'use grad_sample_mode="auto"'),
    "static_graph_without_sync": ("learns the graph in its first backward", "leave no_sync() out"),
    "sampler_of_others": ("parts the data among 3 processes, and 2 train together", "leave num_replicas= out"),
    "sampler_of_a_part": ("is of another data set", "Build both over the whole data set"),
}
FROM_THE_OTHER = ("one_is_refused", "clipped_again_in_one", "scaler_left_out_in_one")


@pytest.fixture(scope="module")
def found():
    return results(2, words)


def test_every_situation_is_refused_in_every_process(found):
    check(found, WORDS, SITUATIONS, FROM_THE_OTHER)


def check(found, words, situations, from_the_other):
    """Each situation was refused with its words; process 0 may know of those of process 1."""
    assert words.keys() == {situation.__name__ for situation in situations}
    for name, parts in words.items():
        for rank, one in enumerate(found):
            expected = parts
            if name in from_the_other and rank == 0:
                expected = ("DistributedError: process 1 stopped", *parts)
            assert all(part in one[name] for part in expected), (name, rank, one[name])
