"""Statistics of several workers are summed version by version."""

from inferd._pb import open_inference_pb2 as pb
from inferd.metrics.statistics import BatchStatistics, Duration, Statistics
from inferd.rpc import statistics


def counted(times: int, *sizes: int) -> Statistics:
    """Statistics with every duration multiplied by ``times``, and batches of ``sizes``."""
    durations = [Duration(n * times, 100 * n * times) for n in range(1, 7)]
    return Statistics(
        1000 + times,
        10 * times,
        4 * times,
        *durations,
        {size: BatchStatistics(*(Duration(size * times, n * times) for n in (1, 2, 3))) for size in sizes},
    )


def answer(*versions: tuple[str, int, Statistics]) -> bytes:
    made = [statistics.message(name, version, seen) for name, version, seen in versions]
    return pb.ModelStatisticsResponse(model_stats=made).SerializeToString()


def test_every_number_of_every_version_is_added() -> None:
    whole = statistics.summed(
        [
            answer(("m", 1, counted(1, 1, 8)), ("m", 2, counted(2))),
            answer(("m", 2, counted(3, 4)), ("m", 1, counted(4, 8, 2))),
            answer(),
            answer(("n", 1, counted(1))),
        ]
    )
    first, second = counted(5), counted(5, 4)
    second.batches = counted(3, 4).batches
    one, four = counted(1, 1, 8).batches, counted(4, 8, 2).batches
    eight = BatchStatistics(*(Duration(8 * 5, n * 5) for n in (1, 2, 3)))
    first.batches = {1: one[1], 2: four[2], 8: eight}
    first.last_inference, second.last_inference = 1004, 1003
    assert whole == answer(("m", 1, first), ("m", 2, second), ("n", 1, counted(1)))


def test_a_single_response_stays_unchanged() -> None:
    alone = answer(("m", 1, counted(3, 1, 2)))
    assert statistics.summed([alone]) == alone
