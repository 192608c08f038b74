"""What each alert is for, as series that are well, then faulty, then well again.

The fault happens in one pool. A pool beside it in the same namespace, and one of the same name in another
namespace, stay well all the time: so an alert that forgets a label fires for them or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from monitoring.model import Severity

FAULTY = ("blue", "chat")
PLACES = (FAULTY, ("blue", "code"), ("green", "chat"))
"""Namespaces and pools."""
BOTH = (Severity.CRITICAL, Severity.WARNING)
WARNING = (Severity.WARNING,)
CRITICAL = (Severity.CRITICAL,)
SIDECAR, COORDINATOR = "tokenpool-sidecar", "tokenpool-coordinator"


@dataclass(frozen=True)
class Series:
    """One series: its values while well and while faulty, ``None`` if absent. Of a counter: per minute."""

    name: str
    labels: Mapping[str, str]
    well: float | None
    faulty: float | None
    is_counter: bool = False
    has_pool: bool = True


@dataclass(frozen=True)
class Case:
    """An alert's fault. Times are in minutes."""

    alert: str
    severities: tuple[Severity, ...]
    labels: Mapping[str, str]
    """Of the alert, besides severity, namespace and pool."""
    series: tuple[Series, ...]
    value: float = 0.0
    faulty_min: int = 20
    well_min: int = 30
    clears_min: int = 30
    is_everywhere: bool = False
    is_of_namespace: bool = False
    """Whether the fault is of a namespace, not of a pool."""
    about: str = ""


def gauge(name: str, well: float | None, faulty: float | None, **labels: str) -> Series:
    return Series(name, {"job": SIDECAR, "instance": "s1"} | labels, well, faulty)


def counter(name: str, well: float, faulty: float, **labels: str) -> Series:
    return Series(f"{name}_total", {"job": SIDECAR, "instance": "s1"} | labels, well, faulty, is_counter=True)


def of_pool(name: str, well: float | None, faulty: float | None, /, **labels: str) -> Series:
    """A series of a coordinator."""
    return Series(name, {"job": COORDINATOR, "instance": "c1"} | labels, well, faulty)


def of_injector(name: str, well: float | None, faulty: float | None, **labels: str) -> Series:
    """A series of an injector, which belongs to no pool."""
    given = {"job": "tokenpool-injector", "instance": "i1"} | labels
    name, is_counter = name.replace("_bucket_total", "_bucket"), name.endswith("_total")
    return Series(name, given, well, faulty, is_counter, has_pool=False)


def of_resources(name: str, well: float, faulty: float, **labels: str) -> Series:
    """A series of a coordinator about resources, which belong to several pools."""
    given = {"job": COORDINATOR, "instance": "c1"} | labels
    return Series(name, given, well, faulty, has_pool=False)


def requests(outcome: str, well: float, faulty: float, **labels: str) -> Series:
    given = {"entitlement": "g", "tier": "guaranteed", "outcome": outcome} | labels
    return counter("tokenpool_requests", well, faulty, **given)


def up(well: float | None, faulty: float | None, **labels: str) -> Series:
    return Series("up", {"job": SIDECAR, "instance": "s1"} | labels, well, faulty, has_pool=False)


def sidecars(number: int, well: float | None = 1, faulty: float | None = 1) -> tuple[Series, ...]:
    return tuple(gauge("tokenpool_engine_up", well, faulty, instance=f"s{n}") for n in range(1, number + 1))


def asks_half() -> tuple[Series, ...]:
    """The guaranteed entitlement asks for half of its limit."""
    who = {"entitlement": "g", "dimension": "concurrency"}
    return (
        of_pool("tokenpool_pool_demand", 4, 4, **who),
        of_pool("tokenpool_pool_limit", 8, 8, **who),
        of_pool("tokenpool_pool_limit", 8, 8, **who | {"instance": "c2"}),
    )


def streams(met: float, tier: str) -> tuple[Series, ...]:
    """60 streams a minute, of which ``met`` keep the promise while the fault lasts."""
    who = {"entitlement": "e", "tier": tier, "slo": "ttft"}
    return (
        counter("tokenpool_slo_requests", 60, 60, **who),
        counter("tokenpool_slo_met", 60, met, **who),
    )


QUOTA = {"scope": "entitlement", "name": "checkout", "per": "month", "timezone": "Europe/Berlin"}
AT_S1 = {"job": SIDECAR, "instance": "s1"}
SHED_LABELS = {"entitlement": "g", "dimension": "concurrency", "outcome": "concurrency"}
EE = {"entitlement": "e", "tier": "elastic"}
SPOT = {"entitlement": "s", "tier": "spot"}
PROMISED = {"entitlement": "g", "tier": "guaranteed", "slo": "ttft"}
HINTS = ("tokenpool_desired_replicas", "tokenpool_engines_up")

CASES = (
    Case(
        "TokenpoolGuaranteedShed",
        BOTH,
        SHED_LABELS,
        (
            *sidecars(2),
            *asks_half(),
            requests("finished", 60, 60),
            requests("concurrency", 0, 30),
            requests("concurrency", 0, 30, instance="s2"),
        ),
        value=1.0,
    ),
    Case(
        "TokenpoolGuaranteedShed",
        WARNING,
        SHED_LABELS,
        (*sidecars(5), *asks_half(), requests("finished", 60, 60), requests("concurrency", 0, 30)),
        value=0.5,
        about="one sidecar of five",
    ),
    Case(
        "TokenpoolGuaranteedShedForRoom",
        BOTH,
        {"entitlement": "g"},
        (*sidecars(1), *asks_half(), requests("engine_full", 0, 30)),
        value=0.5,
    ),
    Case(
        "TokenpoolGuaranteedShedForRoom",
        WARNING,
        {"entitlement": "g"},
        (*sidecars(5), *asks_half(), requests("preempted", 0, 30)),
        value=0.5,
        about="one sidecar of five",
    ),
    Case(
        "TokenpoolSloBurn",
        CRITICAL,
        {"entitlement": "e", "tier": "guaranteed", "slo": "ttft"},
        streams(6, "guaranteed"),
        value=0.9,
        well_min=24 * 60,
        faulty_min=70,
        about="nine streams of ten are late for an hour",
    ),
    Case(
        "TokenpoolSloBurn",
        CRITICAL,
        {"entitlement": "e", "tier": "guaranteed", "slo": "ttft"},
        streams(36, "guaranteed"),
        value=0.4,
        well_min=3 * 24 * 60,
        faulty_min=6 * 60,
        clears_min=60,
        about="four streams of ten are late for six hours",
    ),
    Case(
        "TokenpoolSloBurn",
        WARNING,
        {"entitlement": "e", "tier": "guaranteed", "slo": "ttft"},
        streams(48, "guaranteed"),
        value=0.2,
        well_min=6 * 60,
        faulty_min=30 * 60,
        clears_min=8 * 60,
        about="a fifth is late for a day, as with one sidecar of five",
    ),
    Case(
        "TokenpoolSloBurn",
        WARNING,
        {"entitlement": "e", "tier": "elastic", "slo": "ttft"},
        streams(54, "elastic"),
        value=0.1,
        well_min=60,
        faulty_min=3 * 24 * 60,
        clears_min=8 * 60,
        about="a tenth is late for three days",
    ),
    Case(
        "TokenpoolElasticShed",
        WARNING,
        {"tier": "elastic"},
        (requests("finished", 60, 30, **EE), requests("engine_full", 0, 30, instance="s2", **EE)),
        value=0.5,
        faulty_min=30,
    ),
    Case(
        "TokenpoolSpotStarved",
        WARNING,
        {"tier": "spot"},
        (requests("finished", 60, 1, **SPOT), requests("preempted", 60, 99, **SPOT)),
        value=0.99,
        faulty_min=80,
    ),
    Case("TokenpoolSloMissed", WARNING, AT_S1, (gauge("tokenpool_slots_reserved", 0, 2),), value=2),
    Case(
        "TokenpoolOverpromised",
        WARNING,
        {"dimension": "concurrency"},
        (
            of_pool("tokenpool_overpromised", 0, 1, dimension="concurrency"),
            of_pool("tokenpool_overpromised", 0, 1, dimension="concurrency", instance="c2"),
            of_pool("tokenpool_overpromised", 0, 0, dimension="kv_tokens"),
        ),
        value=1,
    ),
    Case(
        "TokenpoolDebtStuck",
        WARNING,
        {"entitlement": "owed"},
        (
            of_pool("tokenpool_pool_debt", 0.5, 4, entitlement="owed"),
            of_pool("tokenpool_pool_debt", 0.5, 3.9, entitlement="owed", instance="c2"),
        ),
        value=3.9,
        faulty_min=30,
    ),
    Case(
        "TokenpoolDebtStuck",
        WARNING,
        {"entitlement": "ahead"},
        (of_pool("tokenpool_pool_debt", 0.5, -4, entitlement="ahead"),),
        value=-4,
        faulty_min=30,
        about="ahead",
    ),
    Case(
        "TokenpoolReplicasMissing",
        WARNING,
        {},
        (of_pool(HINTS[0], 2, 4), of_pool(HINTS[1], 2, 2)),
        value=4,
    ),
    Case(
        "TokenpoolScaleHintAtMax",
        WARNING,
        {},
        (
            requests("finished", 1, 1, **EE),
            of_pool("tokenpool_pool_demand", 8, 32, entitlement="e", dimension="concurrency"),
            of_pool("tokenpool_pool_capacity", 16, 16, dimension="concurrency"),
            of_pool("tokenpool_pool_capacity", 0, 0, dimension="kv_tokens"),
            of_pool(HINTS[0], 2, 2),
            of_pool(HINTS[1], 2, 2),
        ),
        value=2.0,
        faulty_min=30,
    ),
    Case(
        "TokenpoolScaleHintMissing",
        WARNING,
        {},
        (of_pool(HINTS[0], 3, None), of_pool(HINTS[1], 3, 3)),
        value=3,
    ),
    Case(
        "TokenpoolScaleHintsDiffer",
        WARNING,
        {},
        (of_pool(HINTS[0], 3, 3), of_pool(HINTS[0], 3, 5, instance="c2")),
        value=2,
    ),
    Case("TokenpoolTargetDown", WARNING, AT_S1, (up(1, 0), gauge("tokenpool_engine_up", 1, None))),
    Case(
        "TokenpoolTargetDown",
        WARNING,
        {"job": "blue/tokenpool-sidecar", "instance": "s1"},
        (
            up(1, 0, job="blue/tokenpool-sidecar"),
            gauge("tokenpool_engine_up", 1, None, job="blue/tokenpool-sidecar"),
            up(1, 0, job="blue/other-sidecar", instance="o1"),
        ),
        about="the operator's name of a job",
    ),
    Case("TokenpoolEngineDown", WARNING, AT_S1, sidecars(1, 1, 0)),
    Case("TokenpoolNoEngine", CRITICAL, {}, sidecars(2, 1, 0)),
    Case(
        "TokenpoolRequestsFail",
        BOTH,
        {},
        (
            requests("finished", 60, 40),
            requests("upstream_error", 0, 40),
            requests("concurrency", 0, 900),
        ),
        value=0.5,
    ),
    Case(
        "TokenpoolRequestsFail",
        WARNING,
        {},
        (
            *(requests("finished", 60, 60, instance=f"s{n}") for n in range(2, 6)),
            requests("finished", 60, 0),
            requests("upstream_timeout", 0, 60),
        ),
        value=0.2,
        about="all requests of one sidecar of five",
    ),
    Case(
        "TokenpoolAnswersWithoutUsage",
        WARNING,
        {"reason": "compressed"},
        (
            requests("finished", 100, 100),
            counter("tokenpool_answers_without_usage", 0, 10, entitlement="g", reason="compressed"),
            counter("tokenpool_answers_without_usage", 0, 1, entitlement="g", reason="missing"),
        ),
        value=0.1,
        faulty_min=30,
    ),
    Case(
        "TokenpoolStoreDown",
        CRITICAL,
        {},
        (gauge("tokenpool_store_up", 1, 0), of_pool("tokenpool_store_up", 1, 0)),
    ),
    Case(
        "TokenpoolUsageStoreDown",
        WARNING,
        {},
        (
            of_pool("tokenpool_usage_store_up", 1, 0),
            of_pool("tokenpool_usage_store_up", 1, 0, instance="c2"),
        ),
    ),
    Case(
        "TokenpoolCredentialsNotInStep",
        WARNING,
        {},
        (
            of_pool("tokenpool_credential_records_in_step", 1, 0),
            of_pool("tokenpool_credential_records_in_step", 1, 1, instance="c2"),
        ),
    ),
    Case(
        "TokenpoolUsageRecordsLost",
        WARNING,
        {},
        (
            counter("tokenpool_usage_records", 0, 3, result="dropped"),
            counter("tokenpool_usage_records", 100, 100, result="recorded"),
        ),
        value=30,
    ),
    Case(
        "TokenpoolNoLeader",
        CRITICAL,
        {},
        (
            gauge("tokenpool_store_up", 1, 1),
            gauge("tokenpool_store_unled_seconds", 1, 120),
            gauge("tokenpool_store_up", 1, 0, instance="s2"),
            gauge("tokenpool_store_unled_seconds", 1, 20, instance="s2"),
        ),
        value=120,
    ),
    Case(
        "TokenpoolTickFailing",
        WARNING,
        {},
        (
            Series(
                "tokenpool_ticks_total",
                {"job": COORDINATOR, "instance": "c1", "result": "failed"},
                0,
                1,
                True,
            ),
            Series(
                "tokenpool_ticks_total",
                {"job": COORDINATOR, "instance": "c1", "result": "led"},
                240,
                240,
                True,
            ),
        ),
    ),
    Case("TokenpoolTickSlow", WARNING, {}, (of_pool("tokenpool_tick_seconds", 0.01, 0.5),), value=0.5),
    Case(
        "TokenpoolLoopDelayed",
        WARNING,
        AT_S1,
        (gauge("tokenpool_loop_delay_max_seconds", 0.004, 0.5),),
        value=0.5,
    ),
    Case(
        "TokenpoolSidecarDegraded",
        WARNING,
        AT_S1 | {"mode": "joined"},
        (
            gauge("tokenpool_store_mode", 1, 0, mode="joined"),
            gauge("tokenpool_store_mode", 0, 1, mode="cut_off"),
        ),
    ),
    Case(
        "TokenpoolHandoversFail",
        WARNING,
        AT_S1,
        (
            counter("tokenpool_handovers", 60, 60, result="taken"),
            counter("tokenpool_handovers", 0, 60, result="failed"),
        ),
        value=0.5,
    ),
    Case(
        "TokenpoolPeerPortRejects",
        WARNING,
        AT_S1,
        (counter("tokenpool_peer_connections_rejected", 0, 60),),
        value=1.0,
    ),
    Case("TokenpoolWorkersEnd", WARNING, AT_S1, (counter("tokenpool_worker_restarts", 0, 1),), value=15),
    Case("TokenpoolConfigInvalid", WARNING, AT_S1, (gauge("tokenpool_config_current", 1, 0),)),
    Case("TokenpoolCertificateStale", WARNING, AT_S1, (gauge("tokenpool_certificate_current", 1, 0),)),
    Case(
        "TokenpoolCredentialsStale",
        WARNING,
        {**AT_S1, "of": "store"},
        (gauge("tokenpool_credentials_current", 1, 0, of="store"),),
    ),
    Case(
        "TokenpoolJwksStale",
        WARNING,
        {**AT_S1, "issuer": "corp"},
        (gauge("tokenpool_jwks_age_seconds", 250, 2000, issuer="corp"),),
    ),
    Case("TokenpoolConfigRefused", WARNING, AT_S1, (gauge("tokenpool_config_refused", 0, 1),)),
    Case("TokenpoolConfigDiffers", WARNING, AT_S1, (gauge("tokenpool_config_differs", 0, 1),)),
    Case(
        "TokenpoolNoSidecar",
        CRITICAL,
        {},
        (*sidecars(2, 1, None), of_pool("tokenpool_leader", 1, 1), of_pool(HINTS[1], 2, 0)),
    ),
    Case("TokenpoolNoSidecar", CRITICAL, {}, sidecars(1, 1, None), about="a lone sidecar"),
    Case(
        "TokenpoolSidecarsNotScraped",
        WARNING,
        {},
        (*sidecars(2, 1, None), of_pool("tokenpool_leader", 1, 1), of_pool(HINTS[1], 2, 2)),
        value=2,
    ),
    Case(
        "TokenpoolNoCoordinator",
        WARNING,
        {},
        (gauge("tokenpool_store_mode", 1, 1, mode="joined"), of_pool("tokenpool_leader", 1, None)),
    ),
    Case(
        "TokenpoolResourcesNotSynced",
        WARNING,
        {},
        (
            of_resources("tokenpool_resources_synced", 1, 0),
            of_resources("tokenpool_resources_synced", 1, 0, instance="c2"),
        ),
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolResourcesRefused",
        WARNING,
        {"resource": "Entitlement", "state": "rejected"},
        (
            of_resources("tokenpool_resources", 0, 2, resource="Entitlement", state="rejected"),
            of_resources("tokenpool_resources", 0, 0, resource="Entitlement", state="earlier"),
            of_resources("tokenpool_resources", 9, 7, resource="Entitlement", state="accepted"),
        ),
        value=2,
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolQuotaNearlySpent",
        WARNING,
        QUOTA,
        (
            of_pool("tokenpool_quota_tokens", 1000, 1000, **QUOTA),
            of_pool("tokenpool_quota_spent_tokens", 900, 960, **QUOTA),
        ),
        value=0.96,
    ),
    Case(
        "TokenpoolInjectorDown",
        CRITICAL,
        {},
        tuple(of_injector("up", 1, 0, instance=name) for name in ("i1", "i2")),
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolInjectorDown",
        CRITICAL,
        {},
        (of_injector("up", 1, None),),
        value=1,
        well_min=90,
        is_of_namespace=True,
        about="its targets are gone",
    ),
    Case(
        "TokenpoolInjectorDenies",
        WARNING,
        {"reason": "host_network"},
        (
            of_injector("tokenpool_injector_reviews_total", 0, 1, decision="denied", reason="host_network"),
            of_injector("tokenpool_injector_reviews_total", 0, 0, decision="denied", reason="engine_key"),
            of_injector("tokenpool_injector_reviews_total", 5, 5, decision="injected", reason=""),
        ),
        value=15,
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolInjectorSlow",
        WARNING,
        {},
        tuple(
            of_injector("tokenpool_injector_review_seconds_bucket_total", 10, faulty, le=le)
            for le, faulty in (("0.01", 0), ("1.0", 0), ("2.5", 10), ("+Inf", 10))
        ),
        value=2.485,
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolCertificateExpires",
        WARNING,
        {"job": "tokenpool-injector", "instance": "i1"},
        (
            of_injector("tokenpool_certificate_not_after_seconds", 7_776_000, 606_540),
            of_injector("tokenpool_certificate_not_after_seconds", 7_776_000, 7_776_000, instance="i2"),
        ),
        value=600_000,
        faulty_min=80,
        is_of_namespace=True,
    ),
    Case(
        "TokenpoolCertificateExpires",
        CRITICAL,
        {"job": "tokenpool-injector"},
        tuple(
            of_injector("tokenpool_certificate_not_after_seconds", 7_776_000, 82_940, instance=name)
            for name in ("i1", "i2")
        ),
        value=80_000,
        faulty_min=20,
        is_of_namespace=True,
        about="every one in less than a day",
    ),
    Case("TokenpoolNothingScraped", WARNING, {}, sidecars(1, 1, None), is_everywhere=True),
)
"""Each alert fires on what it is for, and clears."""


@dataclass(frozen=True)
class Quiet:
    """Series that look like a fault, and the alerts that stay silent for ``minutes``."""

    about: str
    alerts: tuple[str, ...]
    series: tuple[Series, ...]
    minutes: int = 60
    samples: Mapping[str, str] = field(default_factory=dict)
    """Values of further gauges, in promtool's notation, a sample each minute."""

    @property
    def is_long(self) -> bool:
        """Whether it lasts for a day. It has no ``samples`` then."""
        return self.minutes > 12 * 60


QUIET = (
    Quiet(
        "a guaranteed entitlement that asks for more than its limit is shed, and so are others",
        ("TokenpoolGuaranteedShed", "TokenpoolGuaranteedShedForRoom"),
        (
            *sidecars(1),
            requests("concurrency", 30, 30),
            requests("engine_full", 30, 30),
            requests("concurrency", 30, 30, **SPOT),
            of_pool("tokenpool_pool_demand", 12, 12, entitlement="g", dimension="concurrency"),
            of_pool("tokenpool_pool_limit", 8, 8, entitlement="g", dimension="concurrency"),
            of_pool("tokenpool_pool_demand", 10, 10, entitlement="g", dimension="kv_tokens"),
            of_pool("tokenpool_pool_limit", 800, 800, entitlement="g", dimension="kv_tokens"),
            of_pool("tokenpool_pool_demand", 1, 1, entitlement="s", dimension="concurrency"),
            of_pool("tokenpool_pool_limit", 8, 8, entitlement="s", dimension="concurrency"),
        ),
    ),
    Quiet(
        "a tenth of the elastic requests is shed, and half of spot's",
        ("TokenpoolElasticShed", "TokenpoolSpotStarved"),
        (
            requests("finished", 90, 90, **EE),
            requests("engine_full", 10, 10, **EE),
            requests("malformed", 90, 90, **EE),
            requests("finished", 50, 50, **SPOT),
            requests("preempted", 50, 50, **SPOT),
        ),
        minutes=120,
    ),
    Quiet(
        "one stream in 25 is late, and the only stream of a night",
        ("TokenpoolSloBurn",),
        (
            counter("tokenpool_slo_requests", 25, 25, slo="ttft", **EE),
            counter("tokenpool_slo_met", 24, 24, slo="ttft", **EE),
        ),
        minutes=24 * 60,
        samples={
            'tokenpool_slo_requests_total{entitlement="n",tier="guaranteed",slo="ttft"}': "0x600 1x839",
            'tokenpool_slo_met_total{entitlement="n",tier="guaranteed",slo="ttft"}': "0x1440",
        },
    ),
    Quiet(
        "slots are reserved now and then; a debt moves; a tick was slow once; the loop was blocked once",
        ("TokenpoolSloMissed", "TokenpoolDebtStuck", "TokenpoolTickSlow", "TokenpoolLoopDelayed"),
        (),
        samples={
            'tokenpool_slots_reserved{instance="s1"}': " ".join(["2 2 0"] * 20),
            'tokenpool_pool_debt{entitlement="e",instance="c1"}': " ".join(["4 4 1"] * 20),
            'tokenpool_tick_seconds{instance="c1"}': " ".join(["0.5 0.01"] * 30),
            'tokenpool_loop_delay_max_seconds{instance="s1"}': "0.004x10 2 2 0.004x48",
        },
    ),
    Quiet(
        "spot wants more than there is, or the hint is not met yet",
        ("TokenpoolScaleHintAtMax",),
        (
            requests("finished", 1, 1, **SPOT),
            of_pool("tokenpool_pool_demand", 32, 32, entitlement="s", dimension="concurrency"),
            of_pool("tokenpool_pool_capacity", 16, 16, dimension="concurrency"),
            of_pool(HINTS[0], 2, 2),
            of_pool(HINTS[1], 2, 2),
        ),
    ),
    Quiet(
        "a pool without engines has no hint; hints differ for one scrape; a hint was away for two minutes",
        ("TokenpoolScaleHintMissing", "TokenpoolScaleHintsDiffer"),
        (of_pool(HINTS[1], 0, 0, instance="c9"),),
        samples={
            'tokenpool_desired_replicas{instance="c1"}': "3x20 stale _ 3x10 5x27",
            'tokenpool_desired_replicas{instance="c2"}': "3x20 stale _ 3x11 5x26",
        },
    ),
    Quiet(
        "one request in a hundred fails in the engine; one answer in a hundred has no usage",
        ("TokenpoolRequestsFail", "TokenpoolAnswersWithoutUsage"),
        (
            requests("finished", 99, 99),
            requests("upstream_timeout", 1, 1),
            counter("tokenpool_answers_without_usage", 1, 1, entitlement="g", reason="missing"),
        ),
    ),
    Quiet(
        "one engine of two is down; one sidecar of five cannot reach the store, and last heard long ago",
        ("TokenpoolNoEngine", "TokenpoolStoreDown", "TokenpoolNoLeader"),
        (
            gauge("tokenpool_engine_up", 0, 0),
            gauge("tokenpool_engine_up", 1, 1, instance="s2"),
            gauge("tokenpool_store_up", 0, 0),
            gauge("tokenpool_store_unled_seconds", 900, 900),
            *(gauge("tokenpool_store_up", 1, 1, instance=f"s{n}") for n in range(2, 6)),
            *(gauge("tokenpool_store_unled_seconds", 1, 1, instance=f"s{n}") for n in range(2, 6)),
        ),
    ),
    Quiet(
        "the store was down, or another coordinator led; sidecars used an old key once, and lost a replica",
        ("TokenpoolTickFailing", "TokenpoolPeerPortRejects", "TokenpoolHandoversFail"),
        (counter("tokenpool_handovers", 60, 60, result="taken"),),
        samples={
            'tokenpool_ticks_total{instance="c1",result="store_down"}': "0+9x60",
            'tokenpool_peer_connections_rejected_total{instance="s2"}': "0x10 40x50",
            'tokenpool_handovers_total{job="tokenpool-sidecar",instance="s1",result="failed"}': "0x10 60x50",
        },
    ),
    Quiet(
        "one worker was killed once",
        ("TokenpoolWorkersEnd",),
        (),
        samples={'tokenpool_worker_restarts_total{instance="s1"}': "0x20 1x60"},
    ),
    Quiet(
        "a lone sidecar needs no coordinator, and its pool is there",
        (
            "TokenpoolNoCoordinator",
            "TokenpoolNoSidecar",
            "TokenpoolSidecarsNotScraped",
            "TokenpoolNothingScraped",
        ),
        sidecars(1),
    ),
    Quiet(
        "another program of the namespace is down",
        ("TokenpoolTargetDown",),
        (up(0, 0, job="blue/vllm"), up(0, 0, job="my-tokenpool-sidecar-exporter")),
    ),
    Quiet(
        "a pool file was invalid or different for a moment, and a store was away for one",
        ("TokenpoolConfigInvalid", "TokenpoolConfigDiffers", "TokenpoolSidecarDegraded"),
        (),
        samples={
            'tokenpool_config_current{instance="s1"}': "1x10 0 1x48",
            'tokenpool_config_differs{instance="s1"}': "0x10 1x10 0x39",
            'tokenpool_store_mode{instance="s1",mode="joined"}': "1x10 0 0 1x47",
        },
    ),
)
"""Alerts stay silent on what looks like a fault."""

ONE_OF_FIVE = (
    *(gauge("tokenpool_engine_up", 1, float(n > 1), instance=f"s{n}") for n in range(1, 6)),
    *(gauge("tokenpool_store_up", 1, float(n > 1), instance=f"s{n}") for n in range(1, 6)),
    *(gauge("tokenpool_store_unled_seconds", 1, 1 if n > 1 else 900, instance=f"s{n}") for n in range(1, 6)),
    *(gauge("tokenpool_store_mode", 1, float(n > 1), instance=f"s{n}", mode="joined") for n in range(1, 6)),
    *(requests("finished", 60, 60 if n > 1 else 0, instance=f"s{n}", **EE) for n in range(1, 6)),
    requests("upstream_error", 0, 60, **EE),
    requests("concurrency", 0, 30),
    requests("engine_full", 0, 30),
    *asks_half(),
    *(counter("tokenpool_slo_requests", 12, 12, instance=f"s{n}", **PROMISED) for n in range(1, 6)),
    *(
        counter("tokenpool_slo_met", 12, 12 if n > 1 else 0, instance=f"s{n}", **PROMISED)
        for n in range(1, 6)
    ),
    gauge("tokenpool_slots_reserved", 0, 2),
    gauge("tokenpool_config_current", 1, 0),
    gauge("tokenpool_config_refused", 0, 1),
    gauge("tokenpool_config_differs", 0, 1),
    gauge("tokenpool_certificate_current", 1, 0),
    gauge("tokenpool_credentials_current", 1, 0, of="engine"),
    gauge("tokenpool_jwks_age_seconds", 250, 2000, issuer="corp"),
    gauge("tokenpool_loop_delay_max_seconds", 0.01, 2),
    counter("tokenpool_handovers", 0, 60, result="failed"),
    counter("tokenpool_peer_connections_rejected", 0, 60),
    of_pool("tokenpool_leader", 1, 1),
    of_pool(HINTS[0], 5, 5),
    of_pool(HINTS[1], 5, 4),
)
"""Every fault that one sidecar of five can have."""
ONE_OF_FIVE_WARNS = 17
"""The alerts that say so."""
ONE_OF_FIVE_GONE = (
    up(1, 0),
    *(up(1, 1, instance=f"s{n}") for n in range(2, 6)),
    *(
        gauge(name, 1, 1 if n > 1 else None, instance=f"s{n}")
        for n in range(1, 6)
        for name in ("tokenpool_engine_up", "tokenpool_store_up", "tokenpool_store_unled_seconds")
    ),
    of_pool("tokenpool_leader", 1, 1),
    of_pool(HINTS[0], 5, 5),
    of_pool(HINTS[1], 5, 4),
)
"""One sidecar of five does not answer Prometheus, nor anybody else."""
