"""What goes along with a training step by step, and how its state is taken up again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer

from prunekit.errors import UsageError
from prunekit.recover.numbers import is_whole


class Companion(Protocol):
    """What goes along with training, in the form of PyTorch's learning-rate schedulers.

    One may say ``settled``, a bool, whether the model has the form that it is to have at the end (a sparsity,
    say). Validations before that are passed over when the best weights are chosen. It may say ``steps_left``,
    the optimizer steps until then: a run that has fewer is refused. It may have ``use(*optimizers)``: the
    loop that it goes along with calls it with the optimizers that train the model, before the first step.

    Law: where the state of one is loaded into another that was made by the same arguments, both go on alike.
    """

    def step(self) -> None:
        """An optimizer step was made."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of them, whatever is needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on where the other one was."""
        ...


def is_settled(companion: Companion) -> bool:
    """The model has the form that the companion is to give it; true of those that do not say."""
    return bool(getattr(companion, "settled", True))


def use_optimizers(companion: Companion, optimizers: Sequence[Optimizer]) -> None:
    """Tell a companion that has use for them which optimizers train its model.

    Raises:
        TrainingError: one of another model; or UsageError.
    """
    use = getattr(companion, "use", None)
    if callable(use):
        use(*optimizers)


def step_of(state_dict: Mapping[str, Any], made_by: Mapping[str, Any], *, where: str) -> int:
    """Where a companion was, if its state is that of another one made by the same arguments.

    Args:
        state_dict: with the ``step`` and all of ``made_by``; whatever else it has is left alone.
        made_by: the arguments that both have to share, as JSON holds them.
        where: the companion's name.

    Raises:
        UsageError: an argument differs, or the step is none.
    """
    step = state_dict.get("step")
    differ = sorted(name for name in made_by if name not in state_dict or state_dict[name] != made_by[name])
    if not is_whole(step) or step < 0:
        differ.append("step")
    if differ:
        raise UsageError(
            f"The state is that of another run: it differs in {', '.join(differ)}",
            expected="the state of one made by the same arguments on a model of the same form",
            where=f"{where}.load_state_dict",
        )
    assert is_whole(step)
    return step
