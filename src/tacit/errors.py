"""What tacit raises. Each message says what was found, why it matters and what to do."""


class TacitError(RuntimeError):
    """Base of every error that tacit raises on purpose."""


class ConfigurationError(TacitError, ValueError):
    """An argument, or a combination of arguments, cannot mean what was asked."""


class PrivacyError(TacitError):
    """Going on would release something that the reported epsilon does not cover."""


class NoRuleError(PrivacyError):
    """A trainable parameter met the batch in a call whose per-sample gradient is not known.

    Attributes:
        found: what was found, without what to do about it.
    """

    def __init__(self, message: str, found: str | None = None) -> None:
        super().__init__(message)
        self.found = found or message


class LayoutError(PrivacyError):
    """The samples of a batch cannot be told apart at a call that meets a trainable parameter."""


class UnseenError(LayoutError):
    """A tensor was computed from the batch by a call that the engine cannot see."""


class LeakError(PrivacyError):
    """A gradient reached a private parameter without passing the clipping."""


class SecondBackwardError(PrivacyError):
    """A forward pass was differentiated twice, which would count its samples twice."""


class MixingError(PrivacyError):
    """A layer computes statistics over the batch, so that one sample moves another's gradient."""


class SamplingError(PrivacyError):
    """Batches are drawn in a way for which no privacy proof is known."""


class CheckpointError(TacitError):
    """A checkpoint is torn, foreign, or does not belong to this model or optimizer."""


class BudgetError(PrivacyError):
    """A release would pass the budget that was set."""


class MemoryBudgetError(TacitError):
    """A backward cannot be run within the memory that was allowed for it."""


class LedgerError(PrivacyError):
    """A release could not be put on record, or the record is of other data."""


class DistributedError(PrivacyError):
    """Processes that train together differ in what they do, or one of them has stopped."""


class CoupledLossWarning(UserWarning):
    """A model's own loss is computed per sample, since its mean over the batch would couple the samples."""


class FallbackWarning(UserWarning):
    """A module has no rule and runs on a copy of its parameters for each sample: exact, but slower."""
