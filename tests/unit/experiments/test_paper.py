"""The paper's second experiment: its files, what it reads from a run, its goals and its picture."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments import paper, scarcity
from experiments.paper import ANALYTICS, LOST, Result, goals, main, pool_file, result_of, scenario
from experiments.shares import PhaseResult, by_phase, debts, picture, table
from loadgen.reading import parse
from loadgen.records import EntitlementSample, Outcome, PhaseMeta, Run, Sample
from tests.support.loadgen_builders import attempt, run
from tokenpool.poolfile.reading import parse as parse_pool
from toolbox.pictures import drawing

WEIGHTS = {"tight": 1.0, "loose": 1.0}
PHASES = [PhaseMeta("peak", 0.0, 10.0), PhaseMeta("node lost", 10.0, 20.0)]


def recorded() -> Run:
    """In the second phase the loose tenant is refused twice, and served once of its three attempts."""
    refused = {"outcome": Outcome.SHED, "reason": "concurrency", "tokens": 0}
    return run(
        attempt(1.0, 0.1, tenant="tight", request="1"),
        attempt(1.0, 0.2, tenant="loose", request="1"),
        attempt(12.0, 0.3, tenant="tight", request="2", lasts_s=2.0),
        attempt(15.0, 0.4, tenant="tight", request="3", lasts_s=2.0),
        attempt(12.0, None, tenant="loose", request="2", is_last=False, lasts_s=0.0, **refused),
        attempt(13.0, None, tenant="loose", request="2", attempt=2, is_last=False, lasts_s=0.0, **refused),
        attempt(14.0, 0.5, tenant="loose", request="2", attempt=3, intended_s=12.0, lasts_s=1.0),
        samples=[
            Sample(at, source, "sidecar", entitlements={"loose": EntitlementSample(debt=debt)})
            for at, source, debt in ((12.0, "a", 1.0), (12.5, "b", 2.0), (13.0, "a", 3.0))
        ],
        phases=PHASES,
        duration_s=20.0,
    )


def test_the_files_are_valid_and_have_the_tenants_of_the_paper(tmp_path: Path) -> None:
    made = parse(scenario(paper.Sizes()), "scenario.yaml", {}, tmp_path)
    file = parse_pool(pool_file(), name="pool.yaml").file
    assert [tenant.name for tenant in made.tenants] == list(paper.TENANTS)
    assert [entitlement.slo.ttft_ms for entitlement in file.entitlements] == [500, 30_000, 30_000]
    assert {entitlement.ceiling.concurrency for entitlement in file.entitlements} == {5}
    assert [phase.name for phase in made.phases] == ["peak", LOST, "recovered", ANALYTICS]
    assert made.tenants[2].starts_s == made.phases[-1].from_s
    assert made.tenants[0].starts_s == 0


def test_a_phase_has_admitted_shares_service_latencies_and_reasons() -> None:
    first, second = by_phase(recorded(), WEIGHTS)
    assert first.jain == pytest.approx(1.0, abs=0.01)
    tight, loose = second.shares
    assert (tight.attempts, tight.admitted, tight.admitted_share) == (2, 2, 1.0)
    assert (loose.attempts, loose.admitted, loose.refused) == (3, 1, {"concurrency": 2})
    assert tight.service + loose.service == pytest.approx(1.0)
    assert tight.service > loose.service
    assert (tight.fair, loose.fair) == (0.5, 0.5)
    assert loose.ttft_p99_s == pytest.approx(0.5)  # of the admitted attempt
    assert loose.e2e_p99_s == pytest.approx(3.0)  # of the request
    assert second.jain < 1.0


def test_a_tenant_without_attempts_is_not_part_of_a_phase() -> None:
    (only,) = by_phase(recorded(), {**WEIGHTS, "late": 1.0})[1:]
    assert [share.tenant for share in only.shares] == ["tight", "loose"]


def test_debt_is_the_mean_of_the_sidecars_in_each_second() -> None:
    assert debts(recorded(), "loose") == [(12.5, 1.5), (13.5, 3.0)]
    assert debts(recorded(), "tight") == []


def test_the_table_has_a_row_for_each_tenant_of_each_phase() -> None:
    lines = table(by_phase(recorded(), WEIGHTS)).splitlines()
    assert len(lines) == 2 + 2 * 2
    assert lines[-1].startswith("|  | |  | loose | 3 | 33.3% |")
    assert lines[-1].endswith("| concurrency 2 |")


def test_the_picture_is_well_formed_and_shows_each_tenant() -> None:
    made = picture(recorded(), WEIGHTS, "A heading", "with debt, seed 1")
    text = drawing(made)
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "node lost" in text
    assert ">loose</text>" in text


def test_the_goal_is_for_scarcity_with_debt() -> None:
    phases = [PhaseResult("peak", 0.5, 0.5), PhaseResult(LOST, 0.99, 0.9), PhaseResult(ANALYTICS, 0.97, 0.9)]
    ours = Result("published", "with debt", 1, phases, [])
    assert [is_reached for _, is_reached in goals([ours])] == [True, False]
    assert goals([replace(ours, system="without debt"), replace(ours, form="four")]) == []


def test_a_result_is_written_as_json() -> None:
    made = result_of("published", "with debt", recorded(), WEIGHTS)
    assert json.loads(json.dumps(asdict(made)))["phases"][1]["shares"][1]["refused"] == {"concurrency": 2}


def test_an_unknown_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["third"])
    assert "'third' is not a form; the forms are published, four" in capsys.readouterr().err


def test_the_short_form_keeps_all_phases() -> None:
    assert all(length > 0 for length in (paper.SHORT.peak, paper.SHORT.lost, paper.SHORT.analytics))
    assert isinstance(paper.SHORT.four, scarcity.Sizes)
