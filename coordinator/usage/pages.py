"""The pages of usage on a coordinator's admin port: reports, records, and the page with plots.

Read-only. A report is read from the sums of the usage store, so its time does not depend on the number of
requests.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from aiohttp import web

from coordinator.usage import events, reports
from coordinator.usage.periods import Span, SpanInvalid, span
from coordinator.usage.reports import FOCUS_BY, Line, Record
from coordinator.usage.store import START, By, Position, UsageStore, UsageStoreDown
from dashboard.usage import usage_page
from runtime import pages
from tokenpool.entitlements import Prices
from tokenpool.usage.record import UsageRecord

PER_PIECE = 50
"""Rows in one piece of a report: about 0.3 ms. Ticks run between pieces."""
MOST_DAYS = 3_700
"""The most days of a report by day: ten years. Each day is a query of about 10 µs."""
MOST_ROWS = 100_000
"""The most rows of one report. A year of 250 entitlements by day has 91,250."""
FORMATS = ("json", "csv", "focus")
RECORD_FORMATS = ("cloudevents", "csv")
SETTLED_S = 300.0
"""Seconds after which no record is stored at an earlier time: transactions have ended, and clocks of two
coordinators differ by less."""
_FILTERS = (By.POOL, By.ENTITLEMENT, By.GROUP, By.CREDENTIAL, By.MODEL)


class ReportInvalid(ValueError):
    """The parameters of a report are wrong. The text names them and the fix."""


class UsagePages:
    """The pages about the content of one usage store."""

    def __init__(
        self,
        store: Callable[[], UsageStore | None],
        prices: Callable[[], Mapping[str, Prices | None]],
        clock: Callable[[], float],
    ) -> None:
        """``store`` returns the usage store if there is one, ``prices`` the prices of each pool now.

        ``clock`` returns the seconds since 1970.
        """
        self._store = store
        self._prices = prices
        self._clock = clock
        self._page = usage_page()

    def add_to(self, application: web.Application) -> None:
        """Serve the pages."""
        application.add_routes(
            [
                web.get("/usage", self.page),
                web.get("/usage/report", self.report),
                web.get("/usage/records", self.records, allow_head=False),
            ]
        )

    async def page(self, request: web.Request) -> web.Response:
        """The page of usage, with plots."""
        return web.Response(
            text=self._page.text,
            content_type="text/html",
            charset="utf-8",
            headers={
                "content-security-policy": self._page.policy,
                "cache-control": "no-store",
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
            },
        )

    async def report(self, request: web.Request) -> web.StreamResponse:
        """A report of usage as JSON, CSV or FOCUS, with the parameters of `tokenpool usage`.

        For example ``?by=day&by=entitlement&period=last-month&format=csv``.

        ``since`` and ``until`` may replace ``period``. ``timezone`` sets the days. ``pool``, ``entitlement``,
        ``group``, ``credential_id`` and ``model`` select usage.
        """
        return await self._answer(request, self._report)

    async def records(self, request: web.Request) -> web.StreamResponse:
        """Usage records as CloudEvents, one on each line, or as CSV. `tokenpool export` reads them.

        For example ``?period=yesterday&format=cloudevents``.

        ``format=csv`` is a table. ``pool`` selects one. With ``by=storage``, the span selects by the time of
        storage. It then ends at least five minutes ago; the header ``x-until`` has its end. An
        answer that ends early is incomplete: its last chunk is missing.
        """
        return await self._answer(request, self._records)

    async def _answer(
        self,
        request: web.Request,
        make: Callable[[web.Request, UsageStore], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        store = self._store()
        if store is None:
            said = "no pool records usage; set usage_records: true in the pool file"
            return web.json_response({"error": said}, status=404)
        try:
            return await make(request, store)
        except (ReportInvalid, SpanInvalid) as error:
            return web.json_response({"error": str(error)}, status=400)
        except UsageStoreDown as error:
            return web.json_response({"error": str(error)}, status=503)

    async def _records(self, request: web.Request, store: UsageStore) -> web.StreamResponse:
        query = request.query
        kind, order = query.get("format", "cloudevents"), query.get("by", "settlement")
        if kind not in RECORD_FORMATS:
            raise ReportInvalid(f"format: {kind!r} is not one of {', '.join(RECORD_FORMATS)}")
        if order not in ("settlement", "storage"):
            raise ReportInvalid(f"by: {order!r} is not one of settlement, storage")
        found = self._span(query)
        by_storage = order == "storage"
        until = min(found.until, self._clock() - SETTLED_S) if by_storage else found.until

        async def read(after: Position) -> Sequence[tuple[Position, UsageRecord]]:
            return await store.records(
                found.since, until, by_storage=by_storage, pool=query.get("pool"), after=after
            )

        part = await read(START)  # before the head, so that a failure has a status
        response = web.StreamResponse(headers={"content-type": _RECORD_TYPES[kind], "x-until": repr(until)})
        response.enable_chunked_encoding()
        await response.prepare(request)
        is_first = True
        while part or is_first:
            await response.write(_lines(kind, [each for _, each in part], is_first=is_first))
            if not part:
                break
            is_first = False
            try:
                part = await read(part[-1][0])
            except UsageStoreDown:
                # Without its last chunk the answer counts as broken. The client reads it again.
                if request.transport is not None:
                    request.transport.abort()
                return response
        await response.write_eof()
        return response

    def _span(self, query: Mapping[str, str]) -> Span:
        return span(query.get("period"), query.get("since"), query.get("until"), _zone(query), self._clock())

    async def _report(self, request: web.Request, store: UsageStore) -> web.StreamResponse:
        query = request.query
        kind = query.get("format", "json")
        if kind not in FORMATS:
            raise ReportInvalid(f"format: {kind!r} is not one of {', '.join(FORMATS)}")
        by = FOCUS_BY if kind == "focus" else _by(query.getall("by", [By.ENTITLEMENT.value]))
        found = span(query.get("period"), query.get("since"), query.get("until"), _zone(query), self._clock())
        if By.DAY in by and found.until - found.since > MOST_DAYS * 86400.0:
            raise ReportInvalid(
                f"the period has more than {MOST_DAYS} days; choose a shorter one, or no days"
            )
        where = {each: query[each.value] for each in _FILTERS if each.value in query}
        sums = await store.aggregate(
            reports.queried(by), found.since, found.until, where=where, timezone=found.timezone
        )
        if len(sums) > MOST_ROWS:
            raise ReportInvalid(
                f"the report has {len(sums)} rows, above {MOST_ROWS}; choose a shorter period"
            )
        prices = self._prices()
        rows = reports.lines(sums, by, prices)
        if kind == "json":
            made, content_type = _json(rows, by, found), "application/json; charset=utf-8"
        else:
            content_type = "text/csv; charset=utf-8"
            made = (
                _csv(reports.focus(rows, found, prices), reports.focus_columns())
                if kind == "focus"
                else _csv(reports.records(rows, by), reports.columns(by))
            )
        return await pages.send(request, await pages.made(made), content_type)


_RECORD_TYPES = {"cloudevents": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}


def _lines(kind: str, records: Sequence[UsageRecord], *, is_first: bool) -> bytes:
    """A part of the answer with records."""
    if kind == "csv":
        return events.csv_rows(records, has_heads=is_first).encode()
    return "".join(f"{json.dumps(events.event(each))}\n" for each in records).encode()


def _zone(query: Mapping[str, str]) -> str:
    return query.get("timezone") or "UTC"


def _by(names: Sequence[str]) -> tuple[By, ...]:
    """The columns of a report. Raises ``ReportInvalid``."""
    split = [name for each in names for name in each.split(",") if name]
    known = [each.value for each in By]
    for name in split:
        if name not in known:
            raise ReportInvalid(f"by: {name!r} is not one of {', '.join(known)}")
    return tuple(By(name) for name in dict.fromkeys(split))


def _json(rows: Sequence[Line], by: Sequence[By], found: Span) -> Iterator[str]:
    """The report as JSON, in pieces."""
    head = {
        "since": found.text(found.since),
        "until": found.text(found.until),
        "timezone": found.timezone,
        "by": [each.value for each in by],
        "total": next(reports.records([_total(rows)], ())),
    }
    yield json.dumps(head).removesuffix("}") + ', "rows": ['
    before = ""
    for piece in _pieces(reports.records(rows, by)):
        yield before + ", ".join(json.dumps(each) for each in piece)
        before = ", "
    yield "]}"


def _total(rows: Sequence[Line]) -> Line:
    """The sum of all rows. It has a cost if all rows have one in the same currency."""
    currencies = {each.currency for each in rows}
    whole = reports.total(rows)
    if len(currencies) != 1 or "" in currencies:
        return Line(whole)
    return Line(whole, sum(each.cost or 0.0 for each in rows), currencies.pop())


def _csv(rows: Iterable[Record], columns: Sequence[str]) -> Iterator[str]:
    """A report as CSV, in pieces."""
    yield reports.as_csv([], columns)
    for piece in _pieces(rows):
        yield reports.as_csv(piece, columns).partition("\n")[2]


def _pieces(rows: Iterable[Any]) -> Iterator[list[Any]]:
    following = iter(rows)
    while piece := list(islice(following, PER_PIECE)):
        yield piece
