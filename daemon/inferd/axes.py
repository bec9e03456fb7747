"""The axes that a pool of infer requests may vary on, one row each. No other place lists them.

Everything else iterates over this table: settings, the properties a model is compiled with and reads back, the tunable
settings, the search, profiles, the Tuner service, the command line. A new device axis is one more field of
:class:`AxisValues`, after ``batch`` and before ``path``, with its :class:`ChoiceAxis`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Literal, Protocol

ExecutionPath = Literal["async", "sync"]
# A value of a choice; None leaves it to the device.
Value = bool | str | None


class CpuKinds(Protocol):
    """What decides which choices a CPU has."""

    @property
    def shares_cores(self) -> bool:
        """Whether two of its logical CPUs share a core."""

    @property
    def core_types(self) -> tuple[str, ...]:
        """The kinds of its cores, empty where there is one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountAxis:
    """An axis of whole numbers of 1 to ``most``: those next to each other behave alike.

    ``one`` and ``many`` describe a candidate, ``help`` explains its flag. Where there is a ``property`` a change
    needs a compile, and the device ``families`` know it.
    """

    one: str
    many: str
    help: str
    most: int
    property: str = ""
    families: frozenset[str] = frozenset()
    setting: str = ""
    """The key of ``[execution]``; "" where there is none."""

    def text(self, value: int) -> str:
        """``value`` as a candidate's description has it."""
        return (self.one if value == 1 else self.many).format(value)

    def cell(self, value: int) -> str:
        """``value`` in a table."""
        return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAxis:
    """An axis of values without an order.

    ``words`` are the settings' words for its values, next to "auto", which leaves it to the device. ``help`` says what
    is chosen, ``texts`` describe a candidate by it, and ``heading`` stands above its column, which is left out where
    nothing was tried unless it is ``always_shown``.
    """

    words: Mapping[str, Value]
    help: str
    texts: Mapping[Value, str]
    heading: str
    always_shown: bool = False

    property: str = ""
    """The OpenVINO property, "" for what needs no compile. The device ``families`` know it."""
    families: frozenset[str] = frozenset()
    written: Mapping[Value, bool | str] = field(default_factory=lambda: {True: True, False: False})
    """How OpenVINO writes each value."""
    in_blob: bool = True
    """Whether a compiled blob depends on it; else one blob serves all values."""
    offered: Callable[[CpuKinds], tuple[Value, ...]] = lambda _: ()
    """What may be tried on a CPU, the device's own choice first; empty where there is no choice."""
    places_threads: bool = False
    """Whether it decides on which CPUs threads run, which outlives the model (OpenVINO fact 30)."""
    inline_word: str = "auto"
    """What "auto" means where runs are computed on the thread that starts them."""

    def word(self, value: Value) -> str:
        """What settings call ``value``, "auto" for None."""
        return next((word for word, known in self.words.items() if known == value), "auto")

    def text(self, value: Value) -> str:
        """``value`` as a candidate's description has it; "" for what is left to the device."""
        return self.texts.get(value, "")

    def cell(self, value: Value) -> str:
        """``value`` in a table."""
        return value if isinstance(value, str) else {None: "auto", True: "yes", False: "no"}[value]

    def value_read(self, seen: object) -> Value:
        """The value that OpenVINO reports as ``seen``; None where it does not tell."""
        for value, theirs in self.written.items():
            if theirs is seen or (isinstance(theirs, str) and theirs.lower() == str(seen).lower()):
                return value
        return None


_SWITCH = {"on": True, "off": False}
_CPU = frozenset({"CPU"})


def _row(axis: CountAxis | ChoiceAxis) -> dict[str, CountAxis | ChoiceAxis]:
    return {"axis": axis}


@dataclass(frozen=True, slots=True)
class AxisValues:
    """The table: a field for each axis, which holds a candidate's value and carries the axis's row.

    ``threads`` are those of all streams together; ``requests`` are in flight at a time, each a run of ``batch`` rows.
    """

    streams: int = field(
        metadata=_row(
            CountAxis(
                one="{} stream",
                many="{} streams",
                help="Streams to serve with",
                most=1024,
                property="NUM_STREAMS",
                # By its documentation an NPU's NUM_STREAMS sizes host executors, or is read-only.
                families=frozenset({"CPU", "GPU"}),
                setting="streams",
            )
        )
    )
    threads: int = field(
        metadata=_row(
            CountAxis(
                one="{} thread",
                many="{} threads",
                help="CPU threads to serve with",
                most=4096,
                property="INFERENCE_NUM_THREADS",
                families=_CPU,
                setting="threads",
            )
        )
    )
    requests: int = field(
        metadata=_row(
            CountAxis(
                one="{} request",
                many="{} requests",
                help="Infer requests to serve with",
                most=4096,
                setting="infer_requests",
            )
        )
    )
    batch: int = field(
        default=1,
        metadata=_row(
            CountAxis(one="batch {}", many="batch {}", help="Largest batch to serve with, in rows", most=65536)
        ),
    )
    pinning: bool | None = field(
        default=None,
        metadata=_row(
            ChoiceAxis(
                words=_SWITCH,
                help="Whether CPU threads stay on one CPU each.",
                texts={True: "pinned", False: "not pinned"},
                heading="pinned",
                always_shown=True,
                property="ENABLE_CPU_PINNING",
                # For a GPU's host threads too, and of no effect on an NPU, by their documentation.
                families=_CPU,
                in_blob=False,
                offered=lambda _: (True, False),
                places_threads=True,
                # The event loop's thread would have to move to one CPU for each run and back.
                inline_word="off",
            )
        ),
    )
    hyper_threading: bool | None = field(
        default=None,
        metadata=_row(
            ChoiceAxis(
                words=_SWITCH,
                help="Whether two CPU threads may share a core that has two hardware threads.",
                texts={True: "with hyper-threading", False: "no hyper-threading"},
                heading="hyper-\nthreads",
                property="ENABLE_HYPER_THREADING",
                families=_CPU,
                in_blob=False,
                offered=lambda cpu: (True, False) if cpu.shares_cores else (),
                places_threads=True,
            )
        ),
    )
    core_type: str | None = field(
        default=None,
        metadata=_row(
            ChoiceAxis(
                words={"any": "any", "performance": "performance", "efficient": "efficient"},
                help="Which cores CPU threads run on, if the CPU has both kinds.",
                texts={kind: f"cores {kind}" for kind in ("any", "performance", "efficient")},
                heading="cores",
                property="SCHEDULING_CORE_TYPE",
                families=_CPU,
                written={"any": "ANY_CORE", "performance": "PCORE_ONLY", "efficient": "ECORE_ONLY"},
                in_blob=False,
                offered=lambda cpu: ("any", *cpu.core_types) if len(cpu.core_types) > 1 else (),
                places_threads=True,
            )
        ),
    )
    path: ExecutionPath = field(
        default="async",
        metadata=_row(
            ChoiceAxis(
                words={"async": "async", "sync": "sync"},
                help="How to start runs.",
                texts={"async": "async", "sync": "sync"},
                heading="path",
                always_shown=True,
            )
        ),
    )


AXES: dict[str, CountAxis | ChoiceAxis] = {f.name: f.metadata["axis"] for f in fields(AxisValues)}
QUANTITIES = {name: axis for name, axis in AXES.items() if isinstance(axis, CountAxis)}
CHOICES = {name: axis for name, axis in AXES.items() if isinstance(axis, ChoiceAxis)}
# The choices that a device is given when a model is compiled.
DEVICE_CHOICES = {name: axis for name, axis in CHOICES.items() if axis.property}

compile_key_of: Callable[[Any], tuple[Any, ...]] = attrgetter(*(n for n, axis in AXES.items() if axis.property))
"""The values of a candidate that can't change without compiling or importing the model again."""
placement_of: Callable[[Any], tuple[Any, ...]] = attrgetter(*(n for n, c in CHOICES.items() if c.places_threads))
"""The values of a candidate that decide on which CPUs threads run."""
