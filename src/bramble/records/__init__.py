"""Benchmark records: what was measured, kept in the inventory.

`schema`: what a record is. `physics`: what memory allows, and which figures are suspect for it. `store`: the files.
`query`: series, the latest of each. `changes`: what differs beyond noise.

Standard library only: the command, the module `benchmark_record`, the inventory plugin and the filters import it.
"""

from __future__ import annotations

from bramble.records.changes import (
    DIRECTIONS,
    FLOOR,
    SIGNIFICANCE,
    Row,
    Verdict,
    compare,
    differences,
    regressions,
)
from bramble.records.physics import (
    bound,
    memory_bandwidth,
    suspicions,
)
from bramble.records.query import (
    Series,
    first,
    has_record,
    history,
    latest,
    series,
    until,
)
from bramble.records.schema import (
    KINDS,
    PARAMS,
    SCHEMA,
    Conditions,
    Engine,
    Figure,
    Kind,
    Metric,
    Model,
    Partial,
    Record,
    RecordError,
    canonical,
    check,
    check_host,
    defects,
    figure,
    identify,
    partial_defects,
)
from bramble.records.store import (
    Appended,
    append,
    complete,
    contains,
    load,
)

__all__ = [
    "DIRECTIONS",
    "FLOOR",
    "KINDS",
    "PARAMS",
    "SCHEMA",
    "SIGNIFICANCE",
    "Appended",
    "Conditions",
    "Engine",
    "Figure",
    "Kind",
    "Metric",
    "Model",
    "Partial",
    "Record",
    "RecordError",
    "Row",
    "Series",
    "Verdict",
    "append",
    "bound",
    "canonical",
    "check",
    "check_host",
    "compare",
    "complete",
    "contains",
    "defects",
    "differences",
    "figure",
    "first",
    "has_record",
    "history",
    "identify",
    "latest",
    "load",
    "memory_bandwidth",
    "partial_defects",
    "regressions",
    "series",
    "suspicions",
    "until",
]
