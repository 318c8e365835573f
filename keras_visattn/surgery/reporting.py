"""What surgery changed, and what it costs."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_visattn import complexity
from keras_visattn.surgery.graph import hidden_convolutions
from keras_visattn.tables import aligned
from keras_visattn.typing import Shape


@dataclasses.dataclass(frozen=True)
class Change:
    """Describes one layer that is other than before.

    Args:
        path: String, name of the layer, after the names of the models that hold it.
        kind: `"replaced"`, `"inserted"` or `"removed"`.
        before: String, class of the layer that was there, or `None`.
        after: String, class of the layer that is there, or `None`.
        parameters: Integer, trainable parameters more than before.
        macs: Integer, multiply-adds more than before, or `None` if they are not counted.
    """

    path: str
    kind: str
    before: str | None
    after: str | None
    parameters: int
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds what changed from one model to another; printed, it is a table and a summary.

    Args:
        changes: List of `Change`, in the order of computation.
        before: `complexity.Profile` of the first model.
        after: `complexity.Profile` of the second.
        hidden: List of paths of layers that are no models, but hold convolutions, which surgery
            cannot reach.
    """

    changes: list[Change]
    before: complexity.Profile
    after: complexity.Profile
    hidden: list[str]

    def __str__(self) -> str:
        table = [("name", "change", "parameters", "multiply-adds")]
        for change in self.changes:
            classes = " -> ".join(filter(None, (change.before, change.after)))
            macs = "not counted" if change.macs is None else f"{change.macs:+,}"
            row = (change.path, f"{change.kind}: {classes}", f"{change.parameters:+,}", macs)
            table.append(row)
        lines = [aligned(table, "<<>>"), self.after.compare(self.before)]
        if self.hidden:
            lines.append(f"hold convolutions out of reach: {', '.join(self.hidden)}")
        return "\n".join(lines)


def report(
    before: keras.Model, after: keras.Model, input_shape: Shape | Sequence[Shape] | None = None
) -> Report:
    """Reports what surgery changed in a model, layer by layer, and what it costs.

    Args:
        before: The model that was given to `replace` or to a recipe.
        after: The model that came out, at once or after several steps.
        input_shape: As in `complexity.profile`; it must be given if a size of the model's input
            is unknown.

    Returns:
        A `Report`, with `changes`, the profiles `before` and `after`, and `hidden`.

    Raises:
        ValueError: As in `complexity.profile`.

    Examples:
        >>> model = keras_visattn.models.ResNet(18, filters=16, input_shape=(32, 32, 3))
        >>> new = keras_visattn.surgery.add_cbam(model)
        >>> [change.path for change in keras_visattn.surgery.report(model, new).changes][:2]
        ['stage1_block1_2_bn_cbam', 'stage1_block2_2_bn_cbam']
    """
    first, second = (complexity.profile(model, input_shape) for model in (before, after))
    old, new = ({row.name: row for row in profile.rows} for profile in (first, second))
    changes = [_change(path, old.get(path), new.get(path)) for path in [*new, *(old.keys() - new)]]
    changes = [c for c in changes if c is not None]
    return Report(changes, first, second, hidden_convolutions(after))


def _change(path, old, new):
    if old is None:
        return Change(path, "inserted", None, new.class_name, new.parameters, new.macs)
    if new is None:
        macs = None if old.macs is None else -old.macs
        return Change(path, "removed", old.class_name, None, -old.parameters, macs)
    same = (old.class_name, old.parameters, old.macs) == (new.class_name, new.parameters, new.macs)
    if same:
        return None
    macs = None if None in (old.macs, new.macs) else new.macs - old.macs
    parameters = new.parameters - old.parameters
    return Change(path, "replaced", old.class_name, new.class_name, parameters, macs)
