"""The latencies of a replay: response (from when a request was due) and service (from when it was sent)."""

from collections.abc import Sequence

from decant.timing import RequestTiming, Summary, summarize


def latency_summaries(timings: Sequence[RequestTiming]) -> dict[str, Summary]:
    """Percentiles over the completed requests, in seconds; failed ones have no latency, they are counted."""
    done = [timing for timing in timings if timing.ok]
    series = {
        "ttft_response_s": [timing.response_ttft_s for timing in done],
        "ttft_service_s": [timing.ttft_s for timing in done],
        "e2e_response_s": [timing.response_s for timing in done],
        "e2e_service_s": [timing.service_s for timing in done],
        "tpot_s": [timing.tpot_s for timing in done],
    }
    return {name: summarize([v for v in values if v is not None]) for name, values in series.items()}
