"""Preprocessing compiled into a model does what the same steps in numpy do."""

from typing import Any

import numpy as np
import pytest

from inferd.config.model import PreprocessingSettings
from inferd.engine.preprocessing import embed
from inferd.engine.runtime import ov
from inferd.errors import ConfigurationError

MEAN, SCALE = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def identity(shape: list[int], dtype: Any = np.float32) -> ov.Model:
    """A model that gives back the image it gets."""
    image = ov.opset13.parameter(shape, dtype, name="image")
    image.output(0).set_names({"image", "pixels"})
    out = ov.opset13.add(image, ov.opset13.constant(np.zeros([1] * len(shape), dtype)))
    return ov.Model([out], [image], "identity")


def run(model: ov.Model, image: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    compiled = ov.Core().compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    result: np.ndarray[Any, Any] = compiled(image)[0].copy()
    return result


def picture(height: int, width: int, batch: int = 1, channels: int = 3) -> "np.ndarray[Any, Any]":
    return np.random.default_rng(7).integers(0, 256, (batch, height, width, channels), np.uint8)


def nearest(image: "np.ndarray[Any, Any]", height: int, width: int) -> "np.ndarray[Any, Any]":
    # Half-pixel centres, where a tie goes to the lower index.
    def source(n_out: int, n_in: int) -> "np.ndarray[Any, Any]":
        place = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        return np.clip(np.ceil(place - 0.5), 0, n_in - 1).astype(int)

    return image[:, source(height, image.shape[1])][:, :, source(width, image.shape[2])]


def linear(image: "np.ndarray[Any, Any]", height: int, width: int) -> "np.ndarray[Any, Any]":
    def along(values: "np.ndarray[Any, Any]", axis: int, n_out: int) -> "np.ndarray[Any, Any]":
        n_in = values.shape[axis]
        place = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, n_in - 1)
        weight = (place - low).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        return np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight

    return along(along(image.astype(np.float64), 1, height), 2, width)


RESIZERS = {"nearest": nearest, "linear": linear}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("resize", ["nearest", "linear"])
@pytest.mark.parametrize("size", [(13, 10), (4, 3), (8, 6)], ids=["larger", "smaller", "same size"])
def test_all_steps_agree_with_numpy(layout: str, resize: str, size: tuple[int, int]) -> None:
    model = identity([1, 3, 8, 6] if layout == "NCHW" else [1, 8, 6, 3])
    table = PreprocessingSettings(
        layout=layout, color_from="RGB", color_to="BGR", resize=resize, mean=MEAN, scale=SCALE
    )
    image = picture(*size)
    got = run(embed(model, {"image": table}), image)
    expected = (RESIZERS[resize](image[..., ::-1], 8, 6) - MEAN) / SCALE
    if layout == "NCHW":
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_cubic_keeps_a_flat_image_flat() -> None:
    got = run(
        embed(identity([1, 3, 8, 6]), {"image": PreprocessingSettings(resize="cubic")}),
        np.full((1, 20, 30, 3), 99, np.uint8),
    )
    np.testing.assert_allclose(got, np.full((1, 3, 8, 6), 99.0), atol=1e-3)


def test_one_number_serves_all_channels() -> None:
    image = picture(8, 6)
    got = run(
        embed(identity([1, 8, 6, 3]), {"image": PreprocessingSettings(layout="NHWC", mean=(10.0,), scale=(4.0,))}),
        image,
    )
    np.testing.assert_allclose(got, (image.astype(np.float32) - 10) / 4, rtol=1e-6)


def test_a_half_precision_model_is_fed_from_f32_arithmetic() -> None:
    image = picture(8, 6)
    table = PreprocessingSettings(layout="NHWC", mean=MEAN, scale=SCALE)
    got = run(embed(identity([1, 8, 6, 3], np.float16), {"image": table}), image)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, (image - np.array(MEAN)) / SCALE, atol=1e-3)


def test_a_grey_image_passes() -> None:
    image = picture(8, 6, channels=1)
    got = run(embed(identity([1, 1, 8, 6]), {"image": PreprocessingSettings(resize="none")}), image)
    np.testing.assert_array_equal(got, image.transpose(0, 3, 1, 2))


def test_the_input_becomes_u8_nhwc_of_any_size_but_none_under_its_old_names() -> None:
    port = embed(identity([1, 3, 8, 6]), {"pixels": PreprocessingSettings()}).input(0)
    assert port.get_element_type() == ov.Type.u8
    any_size = ov.Dimension(1, -1)
    assert port.get_partial_shape() == ov.PartialShape([1, any_size, any_size, 3])
    assert port.get_names() == {"image", "pixels"}


def test_without_resize_the_input_keeps_the_models_size() -> None:
    model = embed(identity([1, 3, 8, 6]), {"image": PreprocessingSettings(resize="none")})
    assert model.input(0).get_partial_shape() == ov.PartialShape([1, 8, 6, 3])


@pytest.mark.parametrize("batch", [ov.Dimension(1, 8), ov.Dimension(-1), ov.Dimension(2)], ids=str)
def test_the_batch_dimension_stays_as_it_is(batch: ov.Dimension) -> None:
    model = identity([1, 3, 8, 6])
    model.reshape({"image": ov.PartialShape([batch, ov.Dimension(3), ov.Dimension(8), ov.Dimension(6)])})
    model = embed(model, {"image": PreprocessingSettings(resize="nearest")})
    assert model.input(0).get_partial_shape()[0] == batch
    image = picture(5, 5, batch=2)
    np.testing.assert_array_equal(run(model, image), nearest(image, 8, 6).transpose(0, 3, 1, 2))


def test_only_the_named_input_changes() -> None:
    image = ov.opset13.parameter([1, 3, 8, 6], np.float32, name="image")
    image.output(0).set_names({"image"})
    bias = ov.opset13.parameter([1, 3, 1, 1], np.float32, name="bias")
    bias.output(0).set_names({"bias"})
    model = embed(ov.Model([ov.opset13.add(image, bias)], [bias, image], "m"), {"image": PreprocessingSettings()})
    assert model.input("bias").get_element_type() == ov.Type.f32
    assert model.input("image").get_element_type() == ov.Type.u8
    assert [min(port.get_names()) for port in model.inputs] == ["bias", "image"]


def test_no_tables_leave_the_model_alone() -> None:
    model = identity([1, 3, 8, 6])
    assert embed(model, {}) is model


def refusal(model: ov.Model, table: PreprocessingSettings, name: str = "image") -> str:
    with pytest.raises(ConfigurationError) as caught:
        embed(model, {name: table})
    return str(caught.value)


def test_an_unknown_input_is_refused_with_those_there_are() -> None:
    assert refusal(identity([1, 3, 8, 6]), PreprocessingSettings(), "imagge") == (
        "model.toml: preprocessing.imagge: the model has no such input; allowed: image or pixels"
    )


@pytest.mark.parametrize("shape", [[3, 8, 6], [1, 1, 3, 8, 6]])
def test_an_input_that_is_no_image_is_refused(shape: list[int]) -> None:
    assert "allowed: an image input of rank 4, NCHW" in refusal(identity(shape), PreprocessingSettings())


def test_a_dynamic_rank_is_refused() -> None:
    model = identity([1, 3, 8, 6])
    model.reshape({"image": ov.PartialShape.dynamic()})
    assert "rank 4" in refusal(model, PreprocessingSettings())


@pytest.mark.parametrize("shape", [[1, 8, 6, 3], [1, 4, 8, 6], [1, -1, 8, 6]])
def test_a_channel_count_that_fits_no_image_is_refused(shape: list[int]) -> None:
    assert refusal(identity(shape), PreprocessingSettings()).endswith("channels; allowed: 1 or 3")


@pytest.mark.parametrize(
    "table",
    [PreprocessingSettings(color_to="BGR"), PreprocessingSettings(mean=MEAN), PreprocessingSettings(scale=SCALE)],
)
def test_a_grey_input_takes_no_colour_steps(table: PreprocessingSettings) -> None:
    assert "the input has 1 channel" in refusal(identity([1, 1, 8, 6]), table)


def test_resizing_to_an_unknown_size_is_refused() -> None:
    model = identity([1, 3, -1, 6])
    assert "no fixed size to resize to" in refusal(model, PreprocessingSettings())
    assert embed(model, {"image": PreprocessingSettings(resize="none")}).input(0).get_partial_shape()[1].is_dynamic
