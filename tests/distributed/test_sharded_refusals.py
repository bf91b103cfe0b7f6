"""What would not be one private run of a sharded model is refused in each process, in words."""

import pytest
from processes import results
from sharded_situations import SHARDED, sharded_words
from test_refusals import DIFFER, check

LEAK = "LeakError: a gradient reached the parameter"
CHANGED = "PrivacyError: the gradient of '0.weight' was changed after its backward()"

# In each process, or in process 0 and in process 1.
WORDS = {
    "sharded_too_late": ("PrivacyError", "fully_shard() comes before make_private()"),
    "sharded_too_late_inside": ("PrivacyError", "fully_shard() comes before make_private()"),
    "a_part_is_sharded": ("ConfigurationError: '2.weight' is not sharded, and others are", "the whole model"),
    "ignored": ("ConfigurationError: '0.bias' is not sharded, and others are", "without ignored_params"),
    "unfrozen_later": ("ConfigurationError: '0.bias' is not sharded, and others are",),
    "some_of_the_processes": ("is spread over 1 processes, and 2 train", "a mesh of all processes"),
    "several_meshes": ("sharded over different meshes", "one mesh for all modules"),
    "first_version": ("NotImplementedError: FullyShardedDataParallel (FSDP1)", "fully_shard (FSDP2)"),
    "tensor_parallel": ("NotImplementedError: '0.weight' is a DTensor, but of no module that fully_shard",),
    "tensor_parallel_too": ("Tensor parallelism is not supported",),
    "half_precision": ("'0.weight' is torch.bfloat16", "MixedPrecisionPolicy(param_dtype=torch.bfloat16)"),
    "compiled": ("torch.compile and fully_shard are not supported together",),
    "compiled_later": ("NotImplementedError: the model runs under torch.compile", "Leave torch.compile out"),
    "vectorized": ('ConfigurationError: grad_sample_mode="functorch"', 'Use "auto" or "ghost"'),
    "with_a_budget": ("ConfigurationError: with memory_budget=", 'Use grad_sample_mode="ghost"'),
    "unknown_call": ("NoRuleError", "this function is not known to the engine", "add a rule"),
    "handed_out": (
        "PrivacyError: scale hands out a tensor (6,) made of parameters alone",
        "a module that also holds those",
    ),
    "changed_inputs": ("PrivacyError: the inputs of first changed in a hook", "Change inputs within a forward"),
    "checked": ("ConfigurationError: check: the parameters are spread", "before fully_shard()"),
    "saved_by_nobody": ("ConfigurationError: a checkpoint of a sharded model", "Call make_private() first"),
    "saved_nowhere": ("CheckpointError: cannot write into no/such", "Nothing was saved"),
    "loaded_from_nowhere": ("there is no checkpoint at never",),
    "penalty": (f"{LEAK} '0.weight' without passing the clipping",),
    "used_outside": (f"{LEAK} '2.weight' without passing the clipping", "Move the computation into a forward"),
    "used_before": (f"{LEAK} '2.weight' without passing the clipping",),
    "penalty_on_shards": (f"{LEAK} '0.weight' beside its clipped sum",),
    "in_eval_mode": (LEAK, "ran in eval mode with gradients on"),
    "scaled_on_the_way": (f"{LEAK} '0.weight' beside its clipped sum",),
    "changed_in_backward": ("PrivacyError: the gradient of '0.weight' was changed during backward()",),
    "broken_off_in_one": (DIFFER, "sums that were added up and arrived, in their order"),
    "clipped_again": (CHANGED,),
    "clipped_again_in_one": (CHANGED,),
    "moved_a_little": (CHANGED,),
    "moved_unseen": (CHANGED,),
    "cleared_in_one": (DIFFER, "gradient of '0.weight': 'none' in process 0, 'there' in process 1"),
    "emptied_in_one": (DIFFER, "gradient of '0.weight': 'none' in process 0, 'there' in process 1"),
    "zeroed_in_one": (DIFFER, "zeroed gradients since the last release: (1, 0, 4) in process 0"),
    "repeated_in_one": (DIFFER, "backwards that found no gradients, clearings and zeroed gradients"),
    "frozen_in_one": (DIFFER, "trained parameters: ['0.weight', '0.bias', '2.weight', '2.bias'] in process 0"),
    "bound_changed_in_one": (DIFFER, "max_grad_norm: 0.3 in process 0, 0.6 in process 1"),
    "replica_changed_in_one": (DIFFER, "bits of the parameter '2.weight'"),
    "rows_again": ("SamplingError: rows of this batch were differentiated already",),
    "rows_again_behind_a_hook": ("PrivacyError: a hook before the forward of the model changed its inputs",),
    "rows_again_after_evaluation": ("SamplingError: rows of this batch were differentiated already",),
    "changed_inputs_and_type": ("PrivacyError: the inputs of first changed in a hook",),
}
FROM_THE_OTHER = ("clipped_again_in_one",)


@pytest.fixture(scope="module")
def found():
    return results(2, sharded_words)


def test_every_situation_is_refused_in_every_process(found):
    check(found, WORDS, SHARDED, FROM_THE_OTHER)
