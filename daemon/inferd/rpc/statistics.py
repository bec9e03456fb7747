"""The protocol's statistics of model versions: made from the counts, and summed over several workers."""

from collections.abc import Sequence

from inferd._pb import open_inference_pb2 as pb
from inferd.metrics.statistics import BatchStatistics, Duration, Statistics


def summed(answers: Sequence[bytes]) -> bytes:
    """The responses of several workers to one ModelStatistics call, as one server's; versions in the order of the
    first worker that has them."""
    found: dict[tuple[str, str], pb.ModelStatistics] = {}
    for answer in answers:
        for one in pb.ModelStatisticsResponse.FromString(answer).model_stats:
            if (known := found.get((one.name, one.version))) is None:
                found[one.name, one.version] = one
            else:
                _add(known, one)
    return pb.ModelStatisticsResponse(model_stats=found.values()).SerializeToString()


def _add(to: pb.ModelStatistics, other: pb.ModelStatistics) -> None:
    to.last_inference = max(to.last_inference, other.last_inference)
    to.inference_count += other.inference_count
    to.execution_count += other.execution_count
    _add_durations(to.inference_stats, other.inference_stats)
    sizes = {batch.batch_size: batch for batch in to.batch_stats}
    for batch in other.batch_stats:
        if (known := sizes.get(batch.batch_size)) is None:
            to.batch_stats.append(batch)
        else:
            _add_durations(known, batch)
    to.batch_stats.sort(key=lambda batch: batch.batch_size)


_Stages = pb.InferStatistics | pb.InferBatchStatistics


def _add_durations(to: _Stages, other: _Stages) -> None:
    for name in (field.name for field in to.DESCRIPTOR.fields if field.message_type is not None):
        duration, more = getattr(to, name), getattr(other, name)
        duration.count, duration.ns = duration.count + more.count, duration.ns + more.ns


def message(name: str, version: int, seen: Statistics) -> pb.ModelStatistics:
    """The message for ``seen`` of that version."""
    return pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=seen.last_inference,
        inference_count=seen.inferences,
        execution_count=seen.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(seen.success),
            fail=_duration(seen.fail),
            queue=_duration(seen.queue),
            compute_input=_duration(seen.compute_input),
            compute_infer=_duration(seen.compute_infer),
            compute_output=_duration(seen.compute_output),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[_batch(size, batch) for size, batch in sorted(seen.batches.items())],
    )


def _batch(size: int, seen: BatchStatistics) -> pb.InferBatchStatistics:
    return pb.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(seen.compute_input),
        compute_infer=_duration(seen.compute_infer),
        compute_output=_duration(seen.compute_output),
    )


def _duration(seen: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=seen.count, ns=seen.ns)
