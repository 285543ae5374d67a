"""Benchmark records: what was measured, kept in the inventory.

`schema`: what a record is. `physics`: what memory allows, and which figures are suspect for it. `store`: the files.
`query`: series, the latest of each. `compare`: what changed beyond noise.

Standard library only: the command, the module `benchmark_record`, the inventory plugin and the filters import it.
"""

from __future__ import annotations

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

__all__ = [
    "KINDS",
    "PARAMS",
    "SCHEMA",
    "Conditions",
    "Engine",
    "Figure",
    "Kind",
    "Metric",
    "Model",
    "Partial",
    "Record",
    "RecordError",
    "canonical",
    "check",
    "check_host",
    "defects",
    "figure",
    "identify",
    "partial_defects",
]
