"""Image preprocessing compiled into the model, so that clients may send plain u8 images."""

from collections.abc import Mapping

from inferd.config.model import PreprocessingSettings
from inferd.engine.runtime import ov
from inferd.errors import ConfigurationError, listed

_RESIZE = {
    "linear": ov.preprocess.ResizeAlgorithm.RESIZE_LINEAR,
    "cubic": ov.preprocess.ResizeAlgorithm.RESIZE_CUBIC,
    "nearest": ov.preprocess.ResizeAlgorithm.RESIZE_NEAREST,
}
_COLOR = {"RGB": ov.preprocess.ColorFormat.RGB, "BGR": ov.preprocess.ColorFormat.BGR}


def embed(model: ov.Model, tables: Mapping[str, PreprocessingSettings]) -> ov.Model:
    """``model`` with the steps of ``tables``, by input name, in front of its inputs; changed in place.

    Each of these inputs then takes u8 ``[N,H,W,C]`` with the model's own N and C, and any H and W unless
    ``resize`` is "none". Reshape the model first: resizing needs its height and width. Raises
    ConfigurationError for an unknown input or one that is not an image.
    """
    if not tables:
        return model
    processor = ov.preprocess.PrePostProcessor(model)
    for name, table in tables.items():
        index = _index(model, name)
        shape = model.input(index).get_partial_shape()
        _check_image(shape, name, table)
        _describe(processor.input(index), table, shape)
    return processor.build()


def _index(model: ov.Model, name: str) -> int:
    # A port without a name is known by its position, as in the model's signature.
    known = [port.get_names() or {f"input_{index}"} for index, port in enumerate(model.inputs)]
    for index, names in enumerate(known):
        if name in names:
            return index
    raise _problem(name, "the model has no such input", listed(" or ".join(sorted(names)) for names in known))


def _check_image(shape: ov.PartialShape, name: str, table: PreprocessingSettings) -> None:
    if shape.rank.is_dynamic or len(shape) != 4:
        raise _problem(name, f"the input's shape is {shape}", f"an image input of rank 4, {table.layout}")
    channels = shape[table.layout.index("C")]
    if channels.is_dynamic or channels.get_length() not in (1, 3):
        raise _problem(name, f"under layout {table.layout} the input's shape {shape} has {channels} channels", "1 or 3")
    per_channel = table.color_from != table.color_to or 3 in (len(table.mean), len(table.scale))
    if channels.get_length() == 1 and per_channel:
        raise _problem(name, "the input has 1 channel", "no change of colour order, and one number in mean and scale")
    if table.resize != "none" and any(shape[table.layout.index(axis)].is_dynamic for axis in "HW"):
        raise _problem(
            name, f"the input's shape {shape} has no fixed size to resize to", 'resize = "none", or a fixed size'
        )


def _describe(info: ov.preprocess.InputInfo, table: PreprocessingSettings, shape: ov.PartialShape) -> None:
    tensor = info.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    if table.resize != "none":
        # Not set_spatial_dynamic_shape(), whose dimensions start at 0: resizing an empty image would not fail.
        any_size = ov.Dimension(1, -1)
        tensor.set_shape(ov.PartialShape([shape[0], any_size, any_size, shape[table.layout.index("C")]]))
    # f32 whatever the model's type: resizing or subtracting in u8 or f16 would lose precision.
    # The processor appends the conversions to the model's own type and layout by itself.
    steps = info.preprocess().convert_element_type(ov.Type.f32)
    if table.color_from != table.color_to:
        tensor.set_color_format(_COLOR[table.color_from])
        steps.convert_color(_COLOR[table.color_to])
    if table.resize != "none":
        steps.resize(_RESIZE[table.resize])
    if table.mean:
        steps.mean(table.mean[0] if len(table.mean) == 1 else list(table.mean))
    if table.scale:
        steps.scale(table.scale[0] if len(table.scale) == 1 else list(table.scale))
    info.model().set_layout(ov.Layout(table.layout))


def _problem(name: str, problem: str, allowed: str) -> ConfigurationError:
    return ConfigurationError("model.toml", f"preprocessing.{name}", problem, allowed=allowed)
