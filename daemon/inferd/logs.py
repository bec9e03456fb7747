"""Configures structlog once, and writes the canonical line of a request."""

import logging
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import Processor

from inferd.errors import one_line
from inferd.log_writer import LogWriter
from inferd.requests import Observation

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _LossyStream:
    """``stream``, but unwritable text is lost: a full disk must not end the service.

    Python buffers a few kilobytes, and continues from there once there is room.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


# Without local variables, which hold clients' data.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure(
    level: str,
    format: Literal["auto", "json", "console"],  # noqa: A002 - the setting's name
    stream: TextIO | LogWriter = sys.stderr,
    worker: int | None = None,
) -> None:
    """Log to ``stream`` from ``level`` on: for people on a terminal, otherwise as one JSON object a line.

    ``worker`` is added to every line, to tell several workers apart.
    Messages that libraries log themselves, from warnings on, get the same form.
    """
    lossy = cast(TextIO, stream if isinstance(stream, LogWriter) else _LossyStream(stream))
    for_people = stream.isatty() if format == "auto" else format == "console"
    processors: list[Processor] = [
        *([] if worker is None else [lambda _, __, event: {**event, "worker": worker}]),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if for_people else "iso", utc=not for_people),
        *([] if for_people else [_TRACEBACKS]),
        # The default formatter shows local variables.
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if for_people
        else structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *processors],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(lossy),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(lossy)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors]
        )
    )
    logging.basicConfig(handlers=[libraries], level=max(logging.WARNING, LEVELS[level]), force=True)


class RequestLog:
    """One line for each request, with its outcome and its stage times (milliseconds)."""

    def __init__(self, which: Literal["off", "failed", "all"]) -> None:
        self.which = which
        self._log = structlog.get_logger("inferd.request")

    def observe(self, seen: Observation) -> None:
        if self.which == "off" or (self.which == "failed" and seen.outcome == "ok"):
            return
        stages = seen.stages
        self._log.info(
            "request",
            model=seen.model,
            version=seen.version,
            id=one_line(seen.id, 80),  # the client's own text
            outcome=seen.outcome,
            device=seen.device,
            batch=seen.rows,
            total_ms=_ms(stages.total()),
            decode_ms=_ms(stages.decode()),
            queue_ms=_ms(stages.queue()),
            batch_ms=_ms(stages.batch()),
            input_ms=_ms(stages.input()),
            compute_ms=_ms(stages.compute()),
            handover_ms=_ms(stages.handover()),
            output_ms=_ms(stages.output()),
            encode_ms=_ms(stages.encode()),
            **({} if seen.trace is None else {"trace_id": seen.trace.trace_id, "span_id": seen.trace.span_id}),
            **({} if seen.error is None else {"error": str(seen.error)}),
        )


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
