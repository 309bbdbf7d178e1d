"""The rules as tests of a JUnit report, which every continuous integration shows."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from rnp_hub.gate.result import GateReport
from rnp_hub.text import one_line


def junit(report: GateReport) -> str:
    """XML: one suite, a case for each rule in force."""
    statuses = [each.status for each in report.rules]
    seconds = sum(s for stage, s in report.timing_s.items() if not stage.startswith("of these"))
    suite = ET.Element(
        "testsuite",
        name="rnp-hub gate",
        tests=str(len(statuses)),
        failures=str(statuses.count("fail")),
        errors="0",
        skipped=str(statuses.count("skip")),
        time=f"{seconds:.3f}",
    )
    for each in report.rules:
        name = one_line(" ".join(filter(None, (each.id, each.rule.name, each.file))))
        case = ET.SubElement(
            suite, "testcase", classname=one_line(f"rnp-hub.{report.model}"), name=name, time="0"
        )
        told = one_line(f"{each.measured}; limit: {each.limit}; where: {each.where}")
        if each.status == "fail":
            ET.SubElement(case, "failure", message=told, type=each.id).text = each.rule.help
        elif each.status == "skip":
            ET.SubElement(case, "skipped", message=told)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, "unicode") + "\n"
