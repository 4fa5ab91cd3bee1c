"""Keeps answers from being held for long: whoever may wait a minute waits a moment. Values that are not allowed stay."""

import schemathesis

MOMENT_MS = 100


def is_allowed(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 60_000


@schemathesis.hook
def before_call(context, case, kwargs):
    body, query = case.body, case.query
    if isinstance(body, dict):
        if is_allowed(body.get("wait_ms")):
            body["wait_ms"] = min(body["wait_ms"], MOMENT_MS)
        elif body.get("wait") in ("decided", "applied") and "wait_ms" not in body:
            body["wait_ms"] = MOMENT_MS
    if isinstance(query, dict):
        if is_allowed(query.get("wait_ms")):
            query["wait_ms"] = min(query["wait_ms"], MOMENT_MS)
        elif query.get("wait") in ("decided", "applied") and "wait_ms" not in query:
            query["wait_ms"] = MOMENT_MS
