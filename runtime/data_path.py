"""The data path: the modules that a request passes through. A compiled build compiles them with mypyc.

This is the only list. ``setup.py`` runs this file by its path, before any dependency is installed, so it
imports nothing. ``runtime/build.py`` and the tests import it. ``docs/decisions/`` has the gain in CPU time.

The planner is not listed, because plans take as long either way. mypyc restricts the listed modules:

- Structs of msgspec cannot be compiled: mypyc drops the annotations that the decoder reads.
- A class takes no keywords, and has no base outside these modules except the built-in types that it supports.
- A slice of bytes must not end before it begins.
- Numbers become what their type says. So a module that encodes and compares records is not listed.

``tests/test_architecture.py`` checks most of these rules.
"""

MODULES = (
    "sidecar.controller.access_log",
    "sidecar.controller.accounts",
    "sidecar.controller.authentication",
    "sidecar.controller.controller",
    "sidecar.controller.engine_priority",
    "sidecar.controller.refusals",
    "sidecar.controller.settlement",
    "sidecar.controller.stored_responses",
    "sidecar.decisions",
    "sidecar.dialects.bodies",
    "sidecar.dialects.dialect",
    "sidecar.dialects.openai",
    "sidecar.dialects.prefixes",
    "sidecar.dialects.stream_reader",
    "sidecar.dialects.usage_readers",
    "sidecar.engine.state",
    "sidecar.handover.asking",
    "sidecar.handover.frames",
    "sidecar.handover.peer_port",
    "sidecar.histogram",
    "sidecar.lifecycle",
    "sidecar.proxy.answers",
    "sidecar.proxy.bounds",
    "sidecar.proxy.connection",
    "sidecar.proxy.connection_manager",
    "sidecar.proxy.events",
    "sidecar.proxy.exchange",
    "sidecar.proxy.framing",
    "sidecar.proxy.head_cache",
    "sidecar.proxy.head_policy",
    "sidecar.proxy.heads",
    "sidecar.proxy.interface",
    "sidecar.proxy.receiving",
    "sidecar.proxy.request_ids",
    "sidecar.proxy.request_parser",
    "sidecar.proxy.tls",
    "sidecar.proxy.upstream",
    "sidecar.proxy.waiting",
    "sidecar.telemetry",
    "sidecar.tracing.interface",
    "tokenpool.accounting.account",
    "tokenpool.accounting.bucket",
    "tokenpool.accounting.group_accounts",
    "tokenpool.accounting.ledger",
    "tokenpool.accounting.meter",
    "tokenpool.accounting.retries",
    "tokenpool.accounting.ticket",
    "tokenpool.admission.affinity",
    "tokenpool.admission.pending",
    "tokenpool.admission.placement",
    "tokenpool.admission.preemption",
    "tokenpool.admission.queue",
    "tokenpool.admission.rules",
    "tokenpool.capacity.room",
    "tokenpool.capacity.slo_controller",
    "tokenpool.control.admission_control",
    "tokenpool.control.driver",
    "tokenpool.control.effects",
    "tokenpool.control.guest",
    "tokenpool.control.guests",
    "tokenpool.control.preferring",
    "tokenpool.leases.lease_state",
    "tokenpool.leases.leases",
    "tokenpool.leases.shares",
    "tokenpool.leases.sync",
    "tokenpool.leases.waits",
    "tokenpool.planning.active_accounts",
    "tokenpool.pricing.cost",
    "tokenpool.pricing.estimators",
    "tokenpool.pricing.experts",
    "tokenpool.pricing.learned_costs",
)
"""Dotted names, in alphabetical order."""
