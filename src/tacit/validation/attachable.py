"""May this model and this optimizer be made private? Found out before anything is touched."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import LBFGS, Optimizer

from tacit.distributed import check_sharding, is_spread, reshard, unwrapped
from tacit.errors import ConfigurationError, MixingError
from tacit.validation.compiled import is_compiled_wrapper, plain_module


def check_attachable(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters to be made private, by name: those that the optimizer steps.

    A compiled model's are those of the model inside.

    Raises:
        ConfigurationError: they are of the wrong kind, do not belong together, or are private already.
        MixingError: batch normalization in train mode.
        NotImplementedError: parameters spread over processes, but not by ``fully_shard`` over all of them;
            ``fully_shard`` with torch.compile.
    """
    if not isinstance(module, nn.Module):
        raise ConfigurationError(f"module is a {type(module).__name__}, not an nn.Module.")
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    if isinstance(optimizer, LBFGS):
        raise ConfigurationError(
            "LBFGS evaluates the loss many times a step, and each would be a release. Use another optimizer."
        )
    reshard(module)  # after a forward some modules own other parameters than the optimizer steps
    compiled = any(is_compiled_wrapper(part) for part in module.modules())
    module = plain_module(module)
    _check_wrappers(module)
    if compiled and any(is_spread(p) for p in module.parameters()):
        raise NotImplementedError(
            "torch.compile and fully_shard are not supported together. Pass the model without torch.compile, or use "
            "DistributedDataParallel."
        )
    private = [name or "the model" for name, m in module.named_modules() if _is_private(m)]
    if private:
        raise ConfigurationError(
            f"{private[0]} is private already: make_private() was called twice. Two engines would clip and count each "
            "other's gradients. Call detach() on the first engine, or go on with what it returned."
        )
    _check_batch_norm(module)
    chosen = _private_parameters(module, optimizer)
    check_sharding(module, chosen)
    return chosen


def _is_private(module: nn.Module) -> bool:
    # An entrance is found by its type's name: the validation sits below the capture.
    return type(module.__dict__.get("forward")).__qualname__ == "Entrance"


def _check_wrappers(module: nn.Module) -> None:
    if isinstance(module, nn.DataParallel):
        raise ConfigurationError(
            "nn.DataParallel runs copies of the model whose parameters are not the optimizer's. Pass the model inside."
        )
    if unwrapped(module) is not module:  # if given as it is, it was unwrapped before
        raise ConfigurationError(
            "the module is torch.compile(DistributedDataParallel(model)). Pass the DistributedDataParallel object to "
            "make_private(), and compile that, or the model inside."
        )


def _check_batch_norm(module: nn.Module) -> None:
    found = [name for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if found:
        raise MixingError(
            f"batch normalization in train mode: {', '.join(found)}. It normalizes each sample with the others of its "
            "batch, so no sample has a gradient of its own and clipping bounds nothing. Use GroupNorm or "
            "InstanceNorm, or put these layers in eval() mode with running statistics from public data."
        )


def _private_parameters(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    known = {id(p) for p in module.parameters()}
    foreign = len(stepped - known)
    if foreign:
        raise ConfigurationError(
            f"{foreign} of the optimizer's {len(stepped)} parameter tensors are not the model's: they would be "
            "stepped without clipping. Build the optimizer over this model's parameters, after moving or wrapping it."
        )
    chosen = {name: p for name, p in module.named_parameters() if id(p) in stepped}
    if not any(p.requires_grad for p in chosen.values()):
        raise ConfigurationError("no parameter of the optimizer requires a gradient: there is nothing to train.")
    for name, parameter in chosen.items():
        if not parameter.is_floating_point() and parameter.requires_grad:
            raise ConfigurationError(
                f"the parameter {name!r} is {parameter.dtype}: only real floating-point ones are trained."
            )
        if parameter.grad is not None:
            parameter.grad = None  # left over from before; never part of a release
    return chosen
