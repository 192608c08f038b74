"""All recording rules and alerts. ``docs/runbook.md`` has a section for each alert.

Both coordinators report each pool (the follower a little later), so pool-wide numbers are the larger of both,
never their sum. Sheds are the outcomes of status 429. Averages cover a minute or more: token buckets and the
admission queue absorb shorter bursts.

A fault of one sidecar is a warning. An alert is critical only if a pool cannot serve, or if the fault
concerns more than a quarter of its sidecars. So a fault of one of five is never critical.
"""

from __future__ import annotations

from monitoring.model import Alert, Group, Record, Severity

SLO_OBJECTIVE = 0.95
"""The share of streams that keep a promised latency. The SLO controller also tolerates 1 late one in 20."""
FEWEST_STREAMS = 20
"""Streams in the longer window before a missed promise is an alert: one late answer in a night is not one."""
MANY = 0.25
"""The share of a pool's sidecars beyond which a fault of sidecars is critical."""

_POOL = "namespace, pool"
_WHERE = "namespace, job, instance"
_LIMITS = "tokens_per_second|kv_tokens|concurrency"
_FULL = "engine_full|preempted"
_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_STREAMS = f"{_POOL}, entitlement, tier, slo"

RECORDING = Group(
    "tokenpool-recording",
    (
        # The pool of each sidecar's target. It stays known while the target does not answer.
        Record(
            "tokenpool:target_pool:last",
            f"(group by ({_WHERE}, pool) (tokenpool_engine_up) or on ({_WHERE}) tokenpool:target_pool:last)"
            f" and on ({_WHERE}) up",
        ),
        Record("tokenpool:sidecars:count", f"count by ({_POOL}) (tokenpool_engine_up)"),
        Record(
            "tokenpool:requests:rate1m",
            f"sum by ({_POOL}, entitlement, tier, outcome) (rate(tokenpool_requests_total[1m]))",
        ),
        Record(
            "tokenpool:requests:rate5m",
            f"sum by ({_POOL}, entitlement, tier, outcome) (rate(tokenpool_requests_total[5m]))",
        ),
        # Each of the first three outcomes is the name of a dimension.
        Record(
            "tokenpool:requests_shed:rate5m", f'tokenpool:requests:rate5m{{outcome=~"{_LIMITS}|{_FULL}"}}'
        ),
        # Shares of requests that were shed, 0 to 1.
        Record(
            "tokenpool:requests_shed:ratio_rate5m",
            f"sum by ({_POOL}, entitlement, tier) (tokenpool:requests_shed:rate5m)"
            f" / sum by ({_POOL}, entitlement, tier) (tokenpool:requests:rate5m)",
        ),
        Record(
            "tokenpool:tier_requests_shed:ratio_rate5m",
            f"sum by ({_POOL}, tier) (tokenpool:requests_shed:rate5m)"
            f" / sum by ({_POOL}, tier) (tokenpool:requests:rate5m)",
        ),
        # The share of a pool's sidecars that shed a guaranteed entitlement, 0 to 1.
        Record(
            "tokenpool:sidecars_shedding_guaranteed:ratio_rate5m",
            f"count by ({_POOL}, entitlement, outcome) ("
            f"sum by ({_POOL}, job, instance, entitlement, outcome) ("
            f'rate(tokenpool_requests_total{{tier="guaranteed", outcome=~"{_LIMITS}|{_FULL}"}}[5m])) > 0)'
            f" / on ({_POOL}) group_left () tokenpool:sidecars:count",
        ),
        Record(
            "tokenpool:tokens:rate1m",
            f"sum by ({_POOL}, entitlement, kind) (rate(tokenpool_tokens_total[1m]))",
        ),
        *(
            Record(
                f"tokenpool:{metric}:p{round(100 * quantile)}_5m",
                f"histogram_quantile({quantile},"
                f" sum by ({_POOL}, entitlement, le) (rate(tokenpool_{metric}_bucket[5m])))",
            )
            for metric in ("time_to_first_token_seconds", "time_per_output_token_seconds")
            for quantile in (0.5, 0.99)
        ),
        *(
            Record(
                f"tokenpool:slo_missed:ratio_rate{window}",
                f"1 - sum by ({_STREAMS}) (rate(tokenpool_slo_met_total[{window}]))"
                f" / sum by ({_STREAMS}) (rate(tokenpool_slo_requests_total[{window}]))",
            )
            for window in _WINDOWS
        ),
        *(
            Record(
                f"tokenpool:slo_requests:increase{window}",
                f"sum by ({_STREAMS}) (increase(tokenpool_slo_requests_total[{window}]))",
            )
            for window in ("1h", "6h", "1d", "3d")
        ),
        Record(
            "tokenpool:pool_limit:max", f"max by ({_POOL}, entitlement, dimension) (tokenpool_pool_limit)"
        ),
        Record(
            "tokenpool:pool_demand:max", f"max by ({_POOL}, entitlement, dimension) (tokenpool_pool_demand)"
        ),
        # The demand of all guaranteed and elastic entitlements.
        Record(
            "tokenpool:entitled_demand:sum",
            f"sum by ({_POOL}, dimension) (tokenpool:pool_demand:max"
            f' and on ({_POOL}, entitlement) tokenpool_requests_total{{tier=~"guaranteed|elastic"}})',
        ),
        Record("tokenpool:pool_capacity:max", f"max by ({_POOL}, dimension) (tokenpool_pool_capacity)"),
        Record("tokenpool:pool_held:max", f"max by ({_POOL}, entitlement, dimension) (tokenpool_pool_held)"),
        Record("tokenpool:pool_debt:max", f"max by ({_POOL}, entitlement) (tokenpool_pool_debt)"),
        Record("tokenpool:pool_debt:min", f"min by ({_POOL}, entitlement) (tokenpool_pool_debt)"),
        Record("tokenpool:desired_replicas:max", f"max by ({_POOL}) (tokenpool_desired_replicas)"),
        Record("tokenpool:engines_up:max", f"max by ({_POOL}) (tokenpool_engines_up)"),
    ),
)

# A guaranteed entitlement's limit is never below its guarantee. If a dimension sheds it while its demand is
# clearly below its limit, it is shed inside its guarantee, or the lease store is wrong.
_SHED = (
    f"label_replace(sum by ({_POOL}, entitlement, outcome)"
    f' (tokenpool:requests_shed:rate5m{{tier="guaranteed",'
    f' outcome=~"{_LIMITS}"}}), "dimension", "$1", "outcome", "(.*)") > 0.01'
    f" and on ({_POOL}, entitlement, dimension) ("
    "max_over_time(tokenpool:pool_demand:max[5m]) < 0.8 * min_over_time(tokenpool:pool_limit:max[5m]))"
)
# Beyond its guarantee a guaranteed entitlement may be shed for room on the engine. It may not while it asks
# less than its limit of every dimension.
_SHED_FOR_ROOM = (
    f'sum by ({_POOL}, entitlement) (tokenpool:requests_shed:rate5m{{tier="guaranteed", entitlement!="other",'
    f' outcome=~"{_FULL}"}}) > 0.01'
    f" unless on ({_POOL}, entitlement) ("
    "max_over_time(tokenpool:pool_demand:max[5m]) >= 0.8 * min_over_time(tokenpool:pool_limit:max[5m]))"
)


def _guaranteed_shed() -> tuple[Alert, ...]:
    """Both alerts about sheds inside a guarantee: critical where many sidecars shed, else a warning."""
    shedding = "tokenpool:sidecars_shedding_guaranteed:ratio_rate5m"
    of_some = f"and on ({_POOL}, entitlement, outcome) {shedding} > {MANY}"
    for_room = f'and on ({_POOL}, entitlement) {shedding}{{outcome=~"{_FULL}"}} > {MANY}'
    return tuple(
        alert
        for severity in Severity
        for alert in (
            Alert(
                "TokenpoolGuaranteedShed",
                severity,
                f"{_SHED} {of_some}" if severity is Severity.CRITICAL else _SHED,
                "2m",
                "{{ $labels.entitlement }} of pool {{ $labels.pool }} is shed inside its guarantee",
                '{{ printf "%.2f" $value }} requests/s of the guaranteed entitlement'
                " {{ $labels.entitlement }} are"
                " shed on {{ $labels.dimension }}, of which it asks less than four fifths of its limit.",
                "guaranteed-shed",
            ),
            Alert(
                "TokenpoolGuaranteedShedForRoom",
                severity,
                f"({_SHED_FOR_ROOM}) {for_room}" if severity is Severity.CRITICAL else _SHED_FOR_ROOM,
                "2m",
                "{{ $labels.entitlement }} of pool {{ $labels.pool }} is shed for room inside its guarantee",
                '{{ printf "%.2f" $value }} requests/s of the guaranteed entitlement'
                " {{ $labels.entitlement }} are"
                " shed because an engine is full. Its demand is less than four fifths of its limits.",
                "guaranteed-shed",
            ),
        )
    )


def _burn(factor: float, long: str, short: str) -> str:
    """The promise is missed ``factor`` times as often as the objective allows, for long and still now."""
    missed = round(factor * (1 - SLO_OBJECTIVE), 4)
    return (
        f"tokenpool:slo_missed:ratio_rate{long} > {missed}"
        f" and tokenpool:slo_missed:ratio_rate{short} > {missed}"
        f" and tokenpool:slo_requests:increase{long} >= {FEWEST_STREAMS}"
    )


def _burn_rates() -> tuple[Alert, ...]:
    """The SLO alerts of several windows, after the SRE workbook: quick loss is critical, slow loss is not.

    The factors spend 2 % of a month's budget in 1 h, 5 % in 6 h, 10 % in 1 d and in 3 d. Only a guarantee is
    critical.
    """
    quick = f"({_burn(14.4, '1h', '5m')}) or ({_burn(6, '6h', '30m')})"
    slow = f"({_burn(3, '1d', '2h')}) or ({_burn(1, '3d', '6h')})"
    summary = "{{ $labels.entitlement }} of pool {{ $labels.pool }} misses its {{ $labels.slo }} promise"
    description = (
        "{{ $value | humanizePercentage }} of the streams of {{ $labels.entitlement }}"
        " ({{ $labels.tier }}) missed"
        " slo.{{ $labels.slo }}_ms %s."
    )
    return (
        Alert(
            "TokenpoolSloBurn",
            Severity.CRITICAL,
            f'({quick}) and on ({_STREAMS}) tokenpool:slo_missed:ratio_rate5m{{tier="guaranteed"}}',
            "2m",
            summary,
            description % "within hours",
            "slo-burn",
        ),
        Alert(
            "TokenpoolSloBurn",
            Severity.WARNING,
            slow,
            "15m",
            summary,
            description % "within days",
            "slo-burn",
        ),
    )


PROMISES = Group(
    "tokenpool-promises",
    (
        *_guaranteed_shed(),
        *_burn_rates(),
        Alert(
            "TokenpoolElasticShed",
            Severity.WARNING,
            'tokenpool:tier_requests_shed:ratio_rate5m{tier="elastic"} > 0.2',
            "15m",
            "A fifth of the elastic requests of pool {{ $labels.pool }} is shed",
            "{{ $value | humanizePercentage }} of the elastic tier's requests have been shed for 15"
            " minutes: the pool"
            " is too small for its demand, or ceilings are too low.",
            "elastic-shed",
        ),
        Alert(
            "TokenpoolSpotStarved",
            Severity.WARNING,
            'tokenpool:tier_requests_shed:ratio_rate5m{tier="spot"} > 0.98',
            "1h",
            "Spot receives almost no service from pool {{ $labels.pool }}",
            "{{ $value | humanizePercentage }} of the spot tier's requests have been shed for an hour: no"
            " capacity is left for it. Tell its owners.",
            "spot-starved",
        ),
        # The SLO controllers of the sidecars reserve slots while guaranteed requests miss their slo.ttft_ms.
        Alert(
            "TokenpoolSloMissed",
            Severity.WARNING,
            "min_over_time(tokenpool_slots_reserved[5m]) > 0",
            "10m",
            "Guaranteed requests miss their SLO at {{ $labels.instance }}",
            "{{ $labels.instance }} has kept {{ $value }} slots from spot and bursts for 10 minutes, and"
            " guaranteed requests still wait longer for their first token than their SLO.",
            "slo-missed",
        ),
        Alert(
            "TokenpoolOverpromised",
            Severity.WARNING,
            f"max by ({_POOL}, dimension) (tokenpool_overpromised) == 1",
            "10m",
            "Pool {{ $labels.pool }} has promised more {{ $labels.dimension }} than it can have",
            "The guarantees of pool {{ $labels.pool }} add up to more {{ $labels.dimension }} than"
            " replicas.max engines sustain, as measured now: they cannot all be kept at once.",
            "overpromised",
        ),
        # Debt is bounded at 4 s in both directions, and returns when service is fair again.
        Alert(
            "TokenpoolDebtStuck",
            Severity.WARNING,
            "min_over_time(tokenpool:pool_debt:min[5m]) >= 3.9"
            " or max_over_time(tokenpool:pool_debt:max[5m]) <= -3.9",
            "15m",
            "The debt of {{ $labels.entitlement }} is stuck at {{ $value }} s",
            "{{ $labels.entitlement }} of pool {{ $labels.pool }} has been {{ $value }} s from its fair"
            " share for 15 minutes, the most that is counted: something other than the limits keeps it from"
            " its share.",
            "debt-stuck",
        ),
        Alert(
            "TokenpoolReplicasMissing",
            Severity.WARNING,
            "tokenpool:desired_replicas:max > tokenpool:engines_up:max",
            "15m",
            "Pool {{ $labels.pool }} has fewer engines than it needs",
            "{{ $value }} replicas of pool {{ $labels.pool }} have been needed for 15 minutes, and fewer"
            " answer: the autoscaler does not follow, has no nodes, or engines do not start.",
            "replicas-missing",
        ),
        # Demand of guaranteed and elastic tenants raises the hint, up to replicas.max. If demand stays
        # above the
        # capacity and the hint asks for no more replicas, the hint is at replicas.max.
        Alert(
            "TokenpoolScaleHintAtMax",
            Severity.WARNING,
            f"max by ({_POOL}) (avg_over_time(tokenpool:entitled_demand:sum[5m])"
            " / (tokenpool:pool_capacity:max > 0)) > 1.1"
            f" and on ({_POOL}) tokenpool:desired_replicas:max <= tokenpool:engines_up:max",
            "15m",
            "Pool {{ $labels.pool }} may not grow as far as it is asked to",
            'Guaranteed and elastic tenants of pool {{ $labels.pool }} ask {{ printf "%.1f" $value }} times'
            " what its engines sustain, and the scale hint is met: it is at replicas.max.",
            "scale-hint-at-max",
        ),
        # Every coordinator shows the stored hint, unless it is too old. Then the autoscaler has no metric.
        Alert(
            "TokenpoolScaleHintMissing",
            Severity.WARNING,
            f"tokenpool:engines_up:max > 0 unless on ({_POOL}) tokenpool:desired_replicas:max",
            "5m",
            "Pool {{ $labels.pool }} has no scale hint",
            "{{ $value }} engines of pool {{ $labels.pool }} answer, and no coordinator has had a scale hint"
            " for 5 minutes: the autoscaler leaves the replicas as they are.",
            "scale-hint-missing",
        ),
        Alert(
            "TokenpoolScaleHintsDiffer",
            Severity.WARNING,
            f"max by ({_POOL}) (tokenpool_desired_replicas) - min by ({_POOL})"
            " (tokenpool_desired_replicas) > 0",
            "2m",
            "Coordinators of pool {{ $labels.pool }} show different scale hints",
            "Two coordinators have differed by {{ $value }} replicas for 2 minutes: they do not use the"
            " same store.",
            "scale-hints-differ",
        ),
    ),
)

_FAILED = (
    f'sum by ({_POOL}) (tokenpool:requests:rate5m{{outcome=~"upstream_error|upstream_timeout"}})'
    f' / sum by ({_POOL}) (tokenpool:requests:rate5m{{outcome=~"finished|upstream_error|upstream_timeout"}})'
)
# The Prometheus operator names a job by its PodMonitor ("NAMESPACE/NAME"), unless jobLabel or a relabelling
# names it.
_DOWN = 'up{job=~"(.+/)?tokenpool-(sidecar|coordinator|injector)"} == 0'


def _requests_fail() -> tuple[Alert, ...]:
    summary = (
        "{{ $value | humanizePercentage }} of the requests of pool {{ $labels.pool }} fail in the engines"
    )
    description = "Engines fail or stop answering during admitted requests."
    return tuple(
        Alert(
            "TokenpoolRequestsFail",
            severity,
            f"{_FAILED} > {bound}",
            "5m",
            summary,
            description,
            "requests-fail",
        )
        for severity, bound in ((Severity.CRITICAL, MANY), (Severity.WARNING, 0.05))
    )


PARTS = Group(
    "tokenpool-parts",
    (
        Alert(
            "TokenpoolTargetDown",
            Severity.WARNING,
            f"({_DOWN}) + on ({_WHERE}) group_left (pool) (0 * tokenpool:target_pool:last)"
            f" or on ({_WHERE}) ({_DOWN})",
            "2m",
            "{{ $labels.instance }} does not answer",
            "Prometheus has not been able to read the metrics of {{ $labels.instance }}"
            " ({{ $labels.job }}) for 2"
            " minutes.",
            "target-down",
        ),
        Alert(
            "TokenpoolEngineDown",
            Severity.WARNING,
            "tokenpool_engine_up == 0",
            "2m",
            "The engine behind {{ $labels.instance }} does not answer",
            "The sidecar {{ $labels.instance }} has been refusing requests with 503 for 2 minutes.",
            "engine-down",
        ),
        Alert(
            "TokenpoolNoEngine",
            Severity.CRITICAL,
            f"sum by ({_POOL}) (tokenpool_engine_up) == 0",
            "30s",
            "No engine of pool {{ $labels.pool }} answers",
            "Every sidecar of the pool that Prometheus sees has lost its engine; nothing is served.",
            "engine-down",
        ),
        *_requests_fail(),
        Alert(
            "TokenpoolAnswersWithoutUsage",
            Severity.WARNING,
            f"sum by ({_POOL}, reason) (rate(tokenpool_answers_without_usage_total[5m]))"
            f" / on ({_POOL}) group_left () sum by ({_POOL})"
            ' (tokenpool:requests:rate5m{outcome="finished"}) > 0.05',
            "15m",
            "{{ $value | humanizePercentage }} of the answers of pool {{ $labels.pool }} have no usage"
            " ({{ $labels.reason }})",
            "Finished answers are settled by estimate, so that limits and token counts are approximate.",
            "answers-without-usage",
        ),
        # A sidecar that alone cannot reach Redis is TokenpoolSidecarDegraded.
        Alert(
            "TokenpoolStoreDown",
            Severity.CRITICAL,
            f"avg by ({_POOL}) (tokenpool_store_up) < 0.5",
            "1m",
            "The lease store of pool {{ $labels.pool }} does not answer",
            "Most parts of the pool have had no answer from Redis for a minute. Requests are served from"
            " what is known; guarantees hold on each sidecar's share only.",
            "store-down",
        ),
        # What a sidecar last heard says nothing while the lease store is down.
        Alert(
            "TokenpoolNoLeader",
            Severity.CRITICAL,
            f"min by ({_POOL}) (tokenpool_store_unled_seconds and tokenpool_store_up == 1) > 30",
            "30s",
            "No coordinator leads pool {{ $labels.pool }}",
            'No limits have been published for {{ printf "%.0f" $value }} s. The last ones stay in force,'
            " and do not follow demand, lost engines or the pool file.",
            "no-leader",
        ),
        # One coordinator without the database is enough only if no other one has it.
        Alert(
            "TokenpoolUsageStoreDown",
            Severity.WARNING,
            f"max by ({_POOL}) (tokenpool_usage_store_up) == 0",
            "5m",
            "Usage records of pool {{ $labels.pool }} are not stored",
            "No coordinator has stored usage records for five minutes. The sidecars keep them, up to"
            " --usage-spool-bytes. Reports and restored quotas do not include them yet.",
            "usage-store-down",
        ),
        Alert(
            "TokenpoolUsageRecordsLost",
            Severity.WARNING,
            f'sum by ({_POOL}) (increase(tokenpool_usage_records_total{{result="dropped"}}[10m])) > 0'
            f" or sum by ({_POOL})"
            ' (increase(tokenpool_usage_store_records_total{result=~"unreadable|refused"}[10m])) > 0',
            "0s",
            "Usage records of pool {{ $labels.pool }} are lost",
            '{{ printf "%.0f" $value }} usage records were lost in ten minutes. Reports and restored'
            " quotas do not include them.",
            "usage-records-lost",
        ),
        # Two coordinators with a database each: one that is not in step may restore old records.
        Alert(
            "TokenpoolCredentialsNotInStep",
            Severity.WARNING,
            f"min by ({_POOL}) (tokenpool_credential_records_in_step) == 0",
            "5m",
            "Issued keys of pool {{ $labels.pool }} are not stored durably",
            "The database of a coordinator has had other credentials than the lease store for five minutes."
            " Keys work as before. Changes may be refused. If the lease store is emptied, they may be lost.",
            "credentials-not-in-step",
        ),
        Alert(
            "TokenpoolTickFailing",
            Severity.WARNING,
            f'sum by ({_POOL}) (increase(tokenpool_ticks_total{{result="failed"}}[5m])) > 0',
            "0s",
            "Ticks of pool {{ $labels.pool }} fail",
            "A coordinator met a defect while it planned for pool {{ $labels.pool }}; its log has the trace.",
            "tick-failing",
        ),
        Alert(
            "TokenpoolTickSlow",
            Severity.WARNING,
            f"max by ({_POOL}) (min_over_time(tokenpool_tick_seconds[5m])) > 0.25",
            "10m",
            'Ticks of pool {{ $labels.pool }} take {{ printf "%.2f" $value }} s',
            "Limits follow demand later than they should (a tick is due every 0.25 s by default).",
            "tick-slow",
        ),
        # In every half minute one task blocked the event loop. Scrapes, ticks and reloads run in short
        # slices, so that they do not block it.
        Alert(
            "TokenpoolLoopDelayed",
            Severity.WARNING,
            "min_over_time(tokenpool_loop_delay_max_seconds[5m]) > 0.25",
            "5m",
            'The event loop of {{ $labels.instance }} is late by {{ printf "%.2f" $value }} s repeatedly',
            "The event loop of {{ $labels.instance }} ({{ $labels.job }}) has been at least that late in"
            " every half minute of the last ten: all of its requests and streams waited as long.",
            "loop-delayed",
        ),
        Alert(
            "TokenpoolSidecarDegraded",
            Severity.WARNING,
            'tokenpool_store_mode{mode="joined"} == 0',
            "2m",
            "{{ $labels.instance }} decides from shares, not from the lease store",
            "{{ $labels.instance }} has not been joined to the lease store for 2 minutes: it uses a fixed"
            " share of each limit.",
            "sidecar-degraded",
        ),
        # One that is killed once is started again at once.
        Alert(
            "TokenpoolWorkersEnd",
            Severity.WARNING,
            f"sum by ({_POOL}, job, instance) (increase(tokenpool_worker_restarts_total[15m])) > 2",
            "1m",
            "Workers of {{ $labels.instance }} end again and again",
            '{{ printf "%.0f" $value }} workers of {{ $labels.instance }} have ended within 15 minutes. Each'
            " lost its streams and was started again.",
            "workers-end",
        ),
        # Asks for room that got no answer. While a replica restarts, asks at it fail for some seconds.
        Alert(
            "TokenpoolHandoversFail",
            Severity.WARNING,
            f'sum by ({_POOL}, job, instance) (rate(tokenpool_handovers_total{{result="failed"}}[5m]))'
            f" / sum by ({_POOL}, job, instance) (rate(tokenpool_handovers_total[5m])) > 0.1",
            "10m",
            "{{ $labels.instance }} cannot hand requests over",
            "{{ $value | humanizePercentage }} of the asks of {{ $labels.instance }} for room at other"
            " replicas have failed for 10 minutes: their peer ports cannot be reached, or do not accept its"
            " key.",
            "handovers-fail",
        ),
        # All sidecars know a new key after 10 s. So the other side is not a sidecar of the pool, or it uses
        # another store.
        Alert(
            "TokenpoolPeerPortRejects",
            Severity.WARNING,
            f"sum by ({_POOL}, job, instance) (rate(tokenpool_peer_connections_rejected_total[5m])) > 0.05",
            "10m",
            "{{ $labels.instance }} rejects connections to its peer port",
            '{{ printf "%.2f" $value }} connections/s to the peer port of {{ $labels.instance }} have not'
            " proved the pool's key for 10 minutes. Find out who connects.",
            "peer-port-rejects",
        ),
        Alert(
            "TokenpoolConfigInvalid",
            Severity.WARNING,
            "tokenpool_config_current == 0",
            "1m",
            "The pool file at {{ $labels.instance }} is invalid",
            "The pool file (or a key file) on disk could not be put in force; the old one still is.",
            "config-invalid",
        ),
        Alert(
            "TokenpoolCertificateStale",
            Severity.WARNING,
            "tokenpool_certificate_current == 0",
            "1m",
            "The certificate on disk at {{ $labels.instance }} cannot be used",
            "Certificate and key on disk do not match, or cannot be read; the old pair stays in force until"
            " it expires.",
            "certificate-stale",
        ),
        Alert(
            "TokenpoolCredentialsStale",
            Severity.WARNING,
            "tokenpool_credentials_current == 0",
            "1m",
            "New credentials of the {{ $labels.of }} on disk at {{ $labels.instance }} cannot be used",
            "The files with the credentials of the {{ $labels.of }} have changed. It does not accept them,"
            " or they cannot be read. The old ones stay in force.",
            "credentials-stale",
        ),
        Alert(
            "TokenpoolJwksStale",
            Severity.WARNING,
            "tokenpool_jwks_age_seconds > 1800",
            "1m",
            "{{ $labels.instance }} cannot read the keys of issuer {{ $labels.issuer }}",
            "The keys of issuer {{ $labels.issuer }} have not been read for half an hour. The last ones stay"
            " in force for a day. JWTs with a new key are refused.",
            "jwks-stale",
        ),
        Alert(
            "TokenpoolConfigRefused",
            Severity.WARNING,
            "tokenpool_config_refused == 1",
            "1m",
            "{{ $labels.instance }} cannot enforce the published pool file",
            "{{ $labels.instance }} enforces an older pool file than the others, mostly because a key file or"
            " variable that the new one names is missing there.",
            "config-refused",
        ),
        Alert(
            "TokenpoolConfigDiffers",
            Severity.WARNING,
            "tokenpool_config_differs == 1",
            "15m",
            "{{ $labels.instance }} has another pool file than the one in force",
            "{{ $labels.instance }} ({{ $labels.job }}) was given a pool file that is not the published one:"
            " a roll-out is not finished. A coordinator that becomes leader publishes its own file.",
            "config-differs",
        ),
    ),
)

_SEEN = f"group by ({_POOL}) (tokenpool_engine_up)"
_KNOWN = (
    f"group by ({_POOL}) (last_over_time(tokenpool_engine_up[1h])) or group by ({_POOL}) (tokenpool_leader)"
)

ABSENCE = Group(
    "tokenpool-absence",
    (
        # Without a series no other alert fires. A pool is known by its coordinators, or by its sidecars of
        # the last hour.
        Alert(
            "TokenpoolNoSidecar",
            Severity.CRITICAL,
            f"({_KNOWN}) unless on ({_POOL}) {_SEEN} unless on ({_POOL}) (tokenpool:engines_up:max > 0)",
            "5m",
            "Pool {{ $labels.pool }} has no sidecar",
            "Prometheus has seen no sidecar of pool {{ $labels.pool }} for 5 minutes, and no coordinator"
            " knows an engine of it: nothing is served.",
            "no-sidecar",
        ),
        Alert(
            "TokenpoolSidecarsNotScraped",
            Severity.WARNING,
            f"tokenpool:engines_up:max > 0 unless on ({_POOL}) {_SEEN}",
            "10m",
            "Prometheus reads no sidecar of pool {{ $labels.pool }}",
            "{{ $value }} engines of pool {{ $labels.pool }} answer, and Prometheus reads none of their"
            " sidecars: most alerts cannot fire.",
            "not-scraped",
        ),
        Alert(
            "TokenpoolNoCoordinator",
            Severity.WARNING,
            f"group by ({_POOL}) (tokenpool_store_mode) unless on ({_POOL}) group by ({_POOL})"
            " (tokenpool_leader)",
            "10m",
            "Prometheus reads no coordinator of pool {{ $labels.pool }}",
            "The sidecars of pool {{ $labels.pool }} share a lease store, and Prometheus reads no"
            " coordinator of the"
            " pool: there is none, or it is not scraped.",
            "not-scraped",
        ),
        # absent() has no labels of its own: nothing is known of what is missing.
        Alert(
            "TokenpoolNothingScraped",
            Severity.WARNING,
            "absent(tokenpool_engine_up)",
            "10m",
            "Prometheus reads no sidecar at all",
            "No sidecar has been scraped for 10 minutes: no alert about one can fire.",
            "not-scraped",
        ),
    ),
)

RESOURCES = Group(
    "tokenpool-resources",
    (
        # The coordinators of a namespace read the same resources. A change takes about a second.
        Alert(
            "TokenpoolResourcesNotSynced",
            Severity.WARNING,
            "max by (namespace) (tokenpool_resources_synced) == 0",
            "5m",
            "The coordinators cannot read the resources",
            "For 5 minutes no coordinator could list and watch the resources of Kubernetes. What was read"
            " before stays in force; changes of resources have no effect.",
            "resources-not-synced",
        ),
        Alert(
            "TokenpoolResourcesRefused",
            Severity.WARNING,
            'max by (namespace, resource, state) (tokenpool_resources{state=~"earlier|rejected"}) > 0',
            "5m",
            "{{ $value }} resources of kind {{ $labels.resource }} are not in force as written",
            "{{ $value }} resources of kind {{ $labels.resource }} have the state {{ $labels.state }}. Their"
            " condition Accepted states the reason. An earlier version stays in force where there was one.",
            "resources-refused",
        ),
    ),
)

_BUDGET = f"{_POOL}, scope, name, per, timezone"

QUOTAS = Group(
    "tokenpool-quotas",
    (
        # Every coordinator reports each window; a follower reads it as often as the leader.
        Record(
            "tokenpool:quota_spent:ratio",
            f"max by ({_BUDGET}) (tokenpool_quota_spent_tokens)"
            f" / max by ({_BUDGET}) (tokenpool_quota_tokens)",
        ),
        Alert(
            "TokenpoolQuotaNearlySpent",
            Severity.WARNING,
            "tokenpool:quota_spent:ratio >= 0.95",
            "0s",
            "{{ $labels.scope }} {{ $labels.name }} has spent {{ $value | humanizePercentage }} of its quota",
            "The {{ $labels.scope }} {{ $labels.name }} of pool {{ $labels.pool }} has spent"
            " {{ $value | humanizePercentage }} of its quota per {{ $labels.per }} ({{ $labels.timezone }})."
            " At 100 % its requests are refused until the window ends.",
            "quota-nearly-spent",
        ),
    ),
)

_INJECTOR = 'up{job=~"(.+/)?tokenpool-injector"}'
_EXPIRES_S = "tokenpool_certificate_not_after_seconds - time()"
_EXPIRES = "expires in {{ $value | humanizeDuration }}"
_NOT_RENEWED = "It should have been renewed 30 days before its end."

INJECTOR = Group(
    "tokenpool-injector",
    (
        # While no injector answers, no pod with the label is created. An injector serves all pools.
        Alert(
            "TokenpoolInjectorDown",
            Severity.CRITICAL,
            f"sum by (namespace) ({_INJECTOR}) == 0 or (count by (namespace) ({_INJECTOR} offset 1h)"
            f" unless on (namespace) count by (namespace) ({_INJECTOR}))",
            "2m",
            "No injector answers",
            "Prometheus has reached no injector for 2 minutes. Pods with the label are not created until one"
            " answers; running pods are not affected.",
            "injector-down",
        ),
        # The owner, such as a ReplicaSet, has an Event with the message.
        Alert(
            "TokenpoolInjectorDenies",
            Severity.WARNING,
            "sum by (namespace, reason)"
            ' (increase(tokenpool_injector_reviews_total{decision="denied"}[15m])) > 0',
            "5m",
            "The injector denies pods: {{ $labels.reason }}",
            'The injector has denied {{ printf "%.0f" $value }} pods in 15 minutes with the reason'
            " {{ $labels.reason }}. They are not created until their manifest is changed.",
            "injector-denies",
        ),
        # The API server gives up after 5 s.
        Alert(
            "TokenpoolInjectorSlow",
            Severity.WARNING,
            "histogram_quantile(0.99, sum by (namespace, le)"
            " (rate(tokenpool_injector_review_seconds_bucket[5m]))) > 1",
            "10m",
            'Reviews take {{ printf "%.1f" $value }} s',
            "The slowest hundredth of all reviews takes longer than 1 s. The API server gives up after 5 s.",
            "injector-slow",
        ),
        # cert-manager renews 30 days before the end, and a renewed file is in force within a second.
        Alert(
            "TokenpoolCertificateExpires",
            Severity.CRITICAL,
            f"max by (namespace, job) ({_EXPIRES_S}) < 86400",
            "15m",
            f"The certificate of {{{{ $labels.job }}}} {_EXPIRES}",
            f"Every certificate in force at {{{{ $labels.job }}}} expires in less than a day. {_NOT_RENEWED}",
            "certificate-expires",
        ),
        Alert(
            "TokenpoolCertificateExpires",
            Severity.WARNING,
            f"{_EXPIRES_S} < 7 * 86400",
            "1h",
            f"The certificate of {{{{ $labels.instance }}}} {_EXPIRES}",
            "The certificate in force at {{ $labels.instance }} ({{ $labels.job }}) expires in less than 7"
            f" days. {_NOT_RENEWED}",
            "certificate-expires",
        ),
    ),
)

GROUPS = (RECORDING, PROMISES, PARTS, ABSENCE, RESOURCES, QUOTAS, INJECTOR)
"""All groups, in the order of the files."""
