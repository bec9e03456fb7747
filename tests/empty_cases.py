"""Requests for which something in a model has nothing to work on, and what is right then.

OpenVINO's CPU plugin leaves what such an operation should give as it was: another request's numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.empty_models import (
    Feed,
    best,
    chosen_in_order,
    const,
    convolved,
    edges,
    empty_branch,
    empty_constant,
    empty_onnx_constant,
    filled,
    first,
    fixed,
    found,
    ir,
    layer_of,
    loop,
    loop_in_branch,
    loop_in_loop,
    none_picked,
    numbers,
    of_chosen,
    op,
    pooled,
    recurrent,
    repeated,
    resized_rows,
    scalar,
    scan,
    sequences,
    whole,
    without_first,
)


@dataclass(frozen=True)
class Case:
    """``other`` is what another client sends before ``empty`` comes, to which ``right`` is the answer. None where there
    is none: the request is refused with ``names`` in the message."""

    name: str
    write: Callable[[Path], Path]
    other: Feed
    empty: Feed
    right: Mapping[str, Any] | None
    names: str = ""

    def __str__(self) -> str:
        return self.name


_NONE, _SOME = numbers(0, 0, 0), numbers(1000, 1001, 1002)

LEFT_UNWRITTEN = [
    Case(
        "loop",
        loop(),
        {"turns": scalar(2), "x": numbers(1000, 1000)},
        {"turns": scalar(0), "x": numbers(1, 1)},
        {"last": [1, 1], "all": filled(0, 2)},
    ),
    Case(
        "loop_of_any_width",
        loop("k"),
        {"turns": scalar(3), "x": numbers(1000, 1000, 5)},
        {"turns": scalar(0), "x": numbers(1, 1)},
        {"last": [1, 1], "all": filled(0, 0)},
    ),
    Case(
        "while",
        repeated(),
        {"begin": scalar(True, bool), "below": scalar(5000, np.float32), "x": numbers(1000, 1000)},
        {"begin": scalar(False, bool), "below": scalar(5, np.float32), "x": numbers(1, 2)},
        {"last": [1, 2], "all": filled(0, 2)},
    ),
    Case(
        "loop_in_branch",
        loop_in_branch(),
        {"single": scalar(False, bool), "turns": scalar(2), "x": numbers(1000, 1000)},
        {"single": scalar(False, bool), "turns": scalar(0), "x": numbers(1, 1)},
        {"y": filled(0, 2)},
    ),
    Case(
        "loop_in_loop",
        loop_in_loop(),
        {"outer": scalar(2), "inner": scalar(2), "x": numbers(1000, 1000)},
        {"outer": scalar(2), "inner": scalar(0), "x": numbers(1, 1)},
        {"last": [1, 1], "all": [0, 0]},
    ),
    Case(
        "loop_of_less_than_none",
        loop(),
        {"turns": scalar(2), "x": numbers(1000, 1000)},
        {"turns": scalar(-1), "x": numbers(1, 1)},
        {"last": [1, 1], "all": filled(0, 2)},
    ),
    Case(
        "growing_sequence",
        sequences(),
        {"turns": scalar(2), "x": numbers(1000, 1000)},
        {"turns": scalar(0), "x": numbers(1, 1)},
        {"y": filled(0, 2)},
    ),
    Case("chosen_in_order", chosen_in_order(), {"x": _SOME}, {"x": _NONE}, {"y": []}),
    Case(
        "empty_branch",
        empty_branch(),
        {"some": scalar(True, bool), "x": _SOME},
        {"some": scalar(False, bool), "x": numbers(1, 2)},
        {"y": []},
    ),
    Case(
        "gru_over_none",
        of_chosen(layer_of("gru")),
        {"x": _SOME},
        {"x": _NONE},
        {"y0": filled(1, 1, 0, 2), "y1": [[[7, 7]]]},
    ),
    Case(
        "lstm_over_none",
        of_chosen(layer_of("lstm")),
        {"x": _SOME},
        {"x": _NONE},
        {"y0": filled(1, 1, 0, 2), "y1": [[[7, 7]]], "y2": [[[8, 8]]]},
    ),
    Case(
        "rnn_over_none",
        of_chosen(layer_of("rnn")),
        {"x": _SOME},
        {"x": _NONE},
        {"y0": filled(1, 1, 0, 2), "y1": [[[7, 7]]]},
    ),
    Case(
        "gru_of_no_steps",
        recurrent("gru"),
        {"x": filled(1, 3, 1), "h": filled(1, 1, 2)},
        {"x": filled(2, 0, 1), "h": filled(2, 1, 2, value=3)},
        {"y0": filled(2, 1, 0, 2), "y1": filled(2, 1, 2, value=3)},
    ),
    Case(
        "lstm_of_no_rows",
        recurrent("lstm"),
        {"x": filled(2, 3, 1), "h": filled(2, 1, 2), "c": filled(2, 1, 2)},
        {"x": filled(0, 3, 1), "h": filled(0, 1, 2), "c": filled(0, 1, 2)},
        {"y0": filled(0, 1, 3, 2), "y1": filled(0, 1, 2), "y2": filled(0, 1, 2)},
    ),
    Case(
        "best_of_none_asked",
        ir(best),
        {"x": _SOME, "k": scalar(2)},
        {"x": _SOME, "k": scalar(0)},
        {"values": [], "places": []},
    ),
    Case(
        "best_of_none_there",
        ir(best),
        {"x": _SOME, "k": scalar(2)},
        {"x": numbers(), "k": scalar(0)},
        {"values": [], "places": []},
    ),
    Case(
        "best_of_none",
        ir(best),
        {"x": _SOME, "k": scalar(2)},
        {"x": numbers(), "k": scalar(1)},
        None,
        "TopK 'TopK_",
    ),
    Case(
        "boxes",
        ir(found),
        {
            "boxes": np.array([[[0, 0, 9, 9], [20, 20, 30, 30]]], np.float32),
            "scores": np.array([[[0.9, 0.8]]], np.float32),
        },
        {"boxes": np.array([[[0, 0, 9, 9]]], np.float32), "scores": np.array([[[0.1]]], np.float32)},
        {"kept": filled(0, 4), "count": [0]},
    ),
    Case("sum_of_none", of_chosen(lambda c: {"y": op.reduce_sum(c, const([0]))}), {"x": _SOME}, {"x": _NONE}, {"y": 0}),
    Case(
        "first_of_none",
        of_chosen(lambda c: {"y": op.gather(c, const(0), const(0)), "n": op.shape_of(c)}),
        {"x": _SOME},
        {"x": _NONE},
        None,
        "Gather 'Gather_",
    ),
    Case(
        "best_of_chosen",
        of_chosen(lambda c: {"y": op.topk(c, const(1), 0, "max", "value").output(0)}),
        {"x": _SOME},
        {"x": _NONE},
        None,
        "TopK 'TopK_",
    ),
    Case(
        "convolution_of_none",
        of_chosen(
            lambda c: {
                "y": op.convolution(
                    op.reshape(c, const([1, 1, -1]), False), const(np.ones((1, 1, 3)), np.float32), [1], [2], [2], [1]
                )
            }
        ),
        {"x": _SOME},
        {"x": _NONE},
        {"y": [[[0, 0]]]},
    ),
    Case(
        "resized_none",
        of_chosen(
            lambda c: {
                "y": op.interpolate(
                    op.reshape(c, const([1, 1, -1]), False), const([4]), "nearest", "sizes", axes=const([2])
                )
            }
        ),
        {"x": _SOME},
        {"x": _NONE},
        None,
        "Interpolate 'Interpolate_",
    ),
    Case(
        "distinct_of_none",
        of_chosen(lambda c: {"y": op.unique(c, None, True).output(0)}),
        {"x": _SOME},
        {"x": _NONE},
        {"y": []},
    ),
    Case(
        "empty_constant",
        ir(empty_constant),
        {"some": scalar(True, bool), "x": filled(2, 2)},
        {"some": scalar(False, bool), "x": filled(2, 2, value=1)},
        {"y": filled(0, 2)},
    ),
    Case(
        "empty_onnx_constant",
        empty_onnx_constant(),
        {"some": scalar(True, bool), "x": _SOME},
        {"some": scalar(False, bool), "x": numbers(1, 2)},
        {"y": [], "b": filled(0, 2), "c": filled(1, 0, 2)},
    ),
    Case(
        "none_picked",
        ir(none_picked),
        {"x": filled(2, 4)},
        {"x": filled(2, 4, value=1)},
        {"y": filled(2, 4, value=1), "none": filled(0, 4)},
    ),
    Case("without_first", ir(without_first), {"x": _SOME}, {"x": numbers(1)}, None, "Gather 'Gather_"),
]
"""Where the CPU plugin gives what is left of ``other``, or of nothing in particular."""

GIVEN_EMPTY = [
    Case("edges", edges(), {"x": filled(3, 4), "src": whole(1, 2)}, {"x": filled(3, 4), "src": whole()}, {"n": [0, 4]}),
    Case(
        "no_rows_at_all",
        edges(),
        {"x": filled(3, 4), "src": whole(1, 2)},
        {"x": filled(0, 4), "src": whole()},
        {"n": [0, 4]},
    ),
    Case(
        "rows_of_none",
        edges(),
        {"x": filled(3, 4), "src": whole(1, 2)},
        {"x": filled(0, 4), "src": whole(0)},
        None,
        "Gather",
    ),
    Case("first_row", ir(first), {"x": filled(3, 2)}, {"x": filled(0, 2)}, None, "Gather 'Gather_"),
    Case("convolved", ir(convolved), {"x": filled(1, 1, 4)}, {"x": filled(1, 1, 0)}, None, "Convolution 'Convolution_"),
    Case(
        "rows_chosen_of_no_columns",
        ir(resized_rows),
        {"x": _SOME, "y": filled(1, 2)},
        {"x": _SOME, "y": filled(1, 0)},
        None,
        "Interpolate 'Interpolate_",
    ),
    Case(
        "pooled",
        ir(pooled),
        {"x": filled(1, 1, 4)},
        {"x": filled(1, 1, 0)},
        None,
        "AdaptiveAvgPool 'AdaptiveAvgPool_",
    ),
    Case(
        "scan",
        scan(),
        {"s0": numbers(1000, 1000), "xs": filled(3, 2)},
        {"s0": numbers(1, 1), "xs": filled(0, 2)},
        {"last": [1, 1], "all": filled(0, 2)},
    ),
    Case(
        "fixed",
        ir(fixed),
        {"x": filled(0, 4), "y": filled(2, 4)},
        {"x": filled(0, 4), "y": filled(2, 4, value=3)},
        {"both": filled(2, 4, value=3), "sums": [0, 0, 0, 0]},
    ),
]
"""Where an input is empty."""
