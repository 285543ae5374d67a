"""From benchmark records to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bramble.records.schema import Record
from bramble.report.answers import reference_section, reference_subjects, summarise, tasks_section
from bramble.report.findings import Findings, sort_out
from bramble.report.model import Code, Link, Note, PageLink, Report, Strong
from bramble.report.reading import latest
from bramble.report.strategies import TOKEN_TIME
from bramble.report.tables import conditions_section, network_section, nodes_section, quality_section
from bramble.report.words import say

NETWORK_LINK = say(
    Strong("Network profile"), ": where the time of a generated token goes, ", PageLink("by strategy", "network"), "."
)


def build(
    records_by_host: Mapping[str, Sequence[Record]],
    *,
    generated_at: str,
    cluster: str = "",
    measured: str = "../measured",
    unreadable: int = 0,
) -> Report:
    """The report of all records.

    Pure: the same records and arguments give the same report. Of each series (the same thing measured on the same
    host) the newest record counts. If it is suspect, it is shown, and the newest before it that is not counts.
    Records of where a token's time goes have a page of their own (`build_network`), which this one links to.

    Args:
        records_by_host: valid benchmark records by host, as `bramble.records.store.load` gives them.
        generated_at: when, in UTC, such as ``2026-11-21T12:00:00Z``; it stands at the top of the page.
        cluster: the name of the inventory.
        measured: the path from the page to the directory that the records' ``raw`` is relative to.
        unreadable: how many lines of the files are no valid record.
    """
    told = [record for host in sorted(records_by_host) for record in records_by_host[host]]
    everything = [record for record in told if record["kind"] != TOKEN_TIME]
    usable = latest(record for record in everything if not record.get("suspect"))
    suspect = tuple(each for each in latest(everything) if each.suspect)
    findings = sort_out(usable, suspect)
    title = "Baseline" + (f" of {cluster}" if cluster else "")
    warnings = warn(findings, unreadable)
    profile = (NETWORK_LINK,) if len(everything) < len(told) else ()
    if not findings.shown:
        nothing = say("There is no record yet, so there is nothing to report. ", Code("bramble bench"), " makes some.")
        return Report(title, generated_at, warnings, (nothing, *profile), ())
    compared = [each for side in reference_subjects(findings) for each in side]
    sections = (
        reference_section(findings),
        tasks_section(findings),
        nodes_section(findings, all_compared=len(compared) == len(findings.subjects)),
        network_section(findings),
        quality_section(findings),
        conditions_section(findings, measured),
    )
    used = tuple(each.id for each in findings.shown)
    return Report(title, generated_at, warnings, (*summarise(findings), *profile), sections, used)


def warn(findings: Findings, unreadable: int) -> tuple[Note, ...]:
    """What a reader must know before the first figure."""
    notes = []
    shown = findings.shown
    stand_ins = [each for each in shown if each.stand_ins]
    if stand_ins:
        reasons = sorted({reason for each in stand_ins for reason in each.stand_ins})
        share = "All" if len(stand_ins) == len(shown) else f"{len(stand_ins)} of"
        notes.append(
            Note(
                (
                    Strong("Stand-ins."),
                    f" {share} {len(shown)} records come from stand-ins: {' and '.join(reasons)}. "
                    "Such figures show that measuring works; they say nothing about real hardware or a real model.",
                )
            )
        )
    if findings.suspect:
        notes.append(
            Note(
                (
                    Strong("Suspect."),
                    f" {len(findings.suspect)} of {len(shown)} records are not to be trusted. They are listed under ",
                    Link("conditions", "#conditions"),
                    ", and nothing is concluded from them.",
                )
            )
        )
    if unreadable:
        notes.append(
            Note((Strong("Unreadable."), f" Lines of the files that are no valid record, and left out: {unreadable}."))
        )
    return tuple(notes)
