"""What a gateway holds while it runs: the models that it routes to, and what all their requests share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decant_serve.access import Access
from decant_serve.admission import Admission
from decant_serve.deadlines import Drain
from decant_serve.engines.protocol import Engine
from decant_serve.metrics import Metrics
from decant_serve.shards.collector import ShardCollector
from decant_serve.supervisor import Supervisor
from decant_serve.timing_log import TimingLog
from decant_serve.tracing import Tracing, Untraced

# Both bring a database along, which most servers have no use for.
if TYPE_CHECKING:
    from decant_serve.batches import Batches
    from decant_serve.lookup import Lookup


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model: its page, its engine (`engine_name` as in the table of engines), and who may go to it.

    `shards` holds what its ranks did, for an engine that has ranks.
    """

    name: str
    engine_name: str
    page: Mapping[str, Any]
    engine: Engine
    supervisor: Supervisor
    admission: Admission
    shards: ShardCollector | None = None
    lookup: "Lookup | None" = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take: seconds in the engine, bytes of body, bytes of an uploaded file."""

    request_limit_s: float
    body_limit_bytes: int
    file_limit_bytes: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """Models by name, who may ask, the way out, and the record of what happened."""

    models: Mapping[str, ServedModel]
    access: Access
    drain: Drain
    timings: TimingLog
    metrics: Metrics
    limits: Limits
    tracing: Tracing = field(default_factory=Untraced)
    batches: "Batches | None" = None
