"""The latencies of a replay: response (from when a request was due) and service (from when it was sent)."""

from collections.abc import Sequence

from decant.timing import RequestTiming, Summary, summarize
from decant_bench.columns import RequestColumns
from decant_bench.measures import series_of

_SHOWN = ("ttft_response_s", "ttft_service_s", "e2e_response_s", "e2e_service_s", "tpot_s")


def latency_summaries(timings: Sequence[RequestTiming]) -> dict[str, Summary]:
    """Percentiles over the completed requests, in seconds; failed ones have no latency, they are counted."""
    series = series_of(RequestColumns.of_timings(timings))
    return {name: summarize(series[name].values.tolist()) for name in _SHOWN}
