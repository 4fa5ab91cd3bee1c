#!/usr/bin/env python3
"""A stock of goods that takes part in Unanimous' transactions: the contract of docs/PARTICIPANTS.md in one file, on
Python's standard library and psycopg 3. A branch may reserve goods, and what is held can not be promised twice:

    [{"kind": "reserve", "item": "tea", "count": 2}]

The one idea: the branch's state is its row. Each message is one local transaction: make the row or lock it, see what it
says, do the work, write the row, commit, and only then answer. Nothing that matters is in memory, so there is no
recovery to write: after a crash the rows are there, and whatever is still `prepared` is asked about.
"""
import argparse, contextlib, http.client, http.server, json, queue, re, threading, time, urllib.parse
import psycopg, psycopg.rows

AT_THE_START = """
SELECT pg_advisory_xact_lock(7070);  -- Two that start at the same moment would both make the tables.
CREATE TABLE IF NOT EXISTS branches (
    transaction text COLLATE "C", participant text COLLATE "C", PRIMARY KEY (transaction, participant),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'prepared', 'committed', 'aborted')),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    operations jsonb, vote jsonb,  -- What the prepare asks for, and what it is answered, however often it comes.
    asked int NOT NULL DEFAULT 0, ask_at timestamptz NOT NULL DEFAULT clock_timestamp() + interval '1 s');
CREATE INDEX IF NOT EXISTS in_doubt ON branches (ask_at) WHERE state = 'prepared';
CREATE TABLE IF NOT EXISTS low_water (prefix text PRIMARY KEY, mark text COLLATE "C" NOT NULL);
CREATE TABLE IF NOT EXISTS stock (
    item text PRIMARY KEY, there bigint NOT NULL, held bigint NOT NULL DEFAULT 0, CHECK (0 <= held AND held <= there));
UPDATE branches SET asked = 0, ask_at = clock_timestamp() WHERE state = 'prepared';
"""

class Refused(Exception):
    """A *no*: its code and its reason. The branch's work is rolled back, and the *no* stays."""

class Problem(Exception):
    """Neither a vote nor an acknowledgement. Nothing is kept of the local transaction."""
    def __init__(self, status, code, detail):
        super().__init__(status, {"type": f"urn:unanimous:problem:{code}", "title": code.replace("-", " "),
                                  "status": status, "code": code, "detail": detail})

# ------ the business: what an operation is, and what it reserves, applies, gives back

RESERVE = "UPDATE stock SET held = held + %(count)s WHERE item = %(item)s AND there - held >= %(count)s"
APPLY = "UPDATE stock SET held = held - %(count)s, there = there - %(count)s WHERE item = %(item)s"
GIVE_BACK = "UPDATE stock SET held = held - %(count)s WHERE item = %(item)s"

def change_stock(db, how, operations):
    for operation in operations:
        if db.execute(how, operation).rowcount == 0:
            raise Refused("refused", f"not enough {operation['item']} in stock")

def is_operation(given):
    match given:  # Texts and whole numbers only: nothing of them is rounded, so what reads as equal is equal.
        case {"kind": "reserve", "item": str(item), "count": int(count), **more}:
            return item.isprintable() and type(count) is int and count > 0 and not more
    return False

# ------ the protocol: the branch's row decides the answer, by the state table of the contract

def carry_out(message, ask):
    with local_transaction(PREPARES if message == "prepare" else OUTCOMES) as db:
        answer = state_table(db, message, ask, enter(db, ask))
    return {"transaction": ask["transaction"], "participant": ask["participant"]} | answer  # Behind the commit.

def enter(db, ask):
    """The branch's row, locked; a new one, `active`, where there was none. Of two copies of a message one waits."""
    return db.execute("INSERT INTO branches (transaction, participant, operations) VALUES (%s, %s, %s) "
                      "ON CONFLICT (transaction, participant) DO UPDATE SET state = branches.state RETURNING *",
                      (ask["transaction"], ask["participant"], json.dumps(ask.get("operations")))).fetchone()

def state_table(db, message, ask, row):
    match message, row.state:
        case "prepare", "active": return vote(db, ask)
        case "prepare", _ if row.operations in (None, ask["operations"]): return row.vote  # The same every time.
        case "prepare", _: raise Problem(422, "prepare-changed", "other operations than the first time")
        case "commit", "prepared":  # Effect and state are written together: however often it is told, it is done once.
            change_stock(db, APPLY, row.operations)
            return write(db, ask, "committed", row.vote)
        case "abort", "prepared" | "active":  # Of an unknown branch a tombstone stays: a late prepare loses to it.
            if row.state == "prepared": change_stock(db, GIVE_BACK, row.operations)
            return write(db, ask, "aborted", no("aborted", "the transaction was aborted"))
        case ("commit", "committed") | ("abort", "aborted"): return {"state": row.state}
        # Both are alarms, and never success: what was promised is lost, or the other outcome has been carried out.
        case "commit", "active": raise Problem(409, "vote-lost", "there is no vote here to commit")
        case _: raise Problem(409, "outcome-differs", f"this branch was {row.state}")

def vote(db, ask):
    if ask["participant"] != options.name: raise Problem(409, "other-participant", f"this is {options.name}")
    # Read after the row was made, by a later statement: read before, a round of pruning could fall between the two.
    mark = "SELECT mark FROM low_water WHERE prefix = left(%(transaction)s, 13) AND mark > %(transaction)s"
    if found := db.execute(mark, ask).fetchone():
        db.execute("DELETE FROM branches WHERE transaction = %(transaction)s AND participant = %(participant)s", ask)
        return no("below-low-water", "the transaction has ended") | {"low_water": found.mark}
    try:
        with db.transaction():  # A savepoint.
            if ask.get("session") is not None: raise Refused("work-lost", "this service holds no interactive work")
            change_stock(db, RESERVE, ask["operations"])
            # Before its yes a branch may abort, and does when its time is over. After it, never alone.
            if time.monotonic() >= ask["deadline"]: raise Refused("deadline", "the deadline has passed")
        state, answer = "prepared", {"vote": "yes"}
    except Refused as why: state, answer = "aborted", no(*why.args)
    write(db, ask, state, answer)
    return answer

def no(code, reason): return {"vote": "no", "code": code, "reason": reason}

def write(db, ask, state, vote):
    db.execute("UPDATE branches SET state = %s, vote = %s, since = clock_timestamp() WHERE transaction = %s "
               "AND participant = %s", (state, json.dumps(vote), ask["transaction"], ask["participant"]))
    return {"state": state}

# ------ the local transaction: outcomes have connections of their own, and never wait behind prepares

PREPARES, OUTCOMES = queue.LifoQueue(), queue.LifoQueue()

@contextlib.contextmanager
def local_transaction(pool):
    db = pool.get(timeout=5)
    try:
        if db.closed: db = connect()
        with db.transaction(): yield db
        if db.warnings:  # When a wait for a standby is cancelled, Postgres calls the commit a success, with a warning.
            db.close()
            raise psycopg.OperationalError("the commit is unclear")
    finally: pool.put(db)

def connect():
    settings = ("-c synchronous_commit=on -c default_transaction_isolation=read\\ committed -c lock_timeout=3s "
                "-c client_min_messages=warning -c timezone=UTC")
    db = psycopg.connect(options.database, autocommit=True, row_factory=psycopg.rows.namedtuple_row, options=settings)
    db.warnings = []
    db.add_notice_handler(db.warnings.append)
    return db

# ------ the rounds: in doubt, a branch asks for ever and never decides alone; below the low-water mark its row may go

heard = {}  # The highest mark of each prefix (the first 48 bits of an id) that calls have brought.

def prune():
    for mark in list(heard.items()):
        with local_transaction(OUTCOMES) as db:  # The rows go, and the mark is kept, together.
            db.execute("INSERT INTO low_water VALUES (%s, %s) ON CONFLICT (prefix) DO UPDATE SET mark = excluded.mark "
                       "WHERE low_water.mark < excluded.mark", mark)
            db.execute("DELETE FROM branches WHERE transaction > %s AND transaction < %s AND state <> 'prepared'", mark)

def inquire():
    with local_transaction(OUTCOMES) as db:  # The pause until it is asked again grows to some seconds, and is random.
        row = db.execute("""UPDATE branches SET asked = asked + 1,
                ask_at = clock_timestamp() + 0.2 * 2 ^ least(asked, 5) * (0.5 + random()) * interval '1 s'
            WHERE (transaction, participant) = (
                SELECT transaction, participant FROM branches WHERE state = 'prepared' AND ask_at < clock_timestamp()
                ORDER BY ask_at LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING transaction, participant""").fetchone()
    if row:
        for address in options.coordinator: attempt(ask_coordinator, address, row)
    return row

def ask_coordinator(address, row):
    url = urllib.parse.urlsplit(f"{address.rstrip('/')}/v1/transactions/{row.transaction}/outcome")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection  # Follows no redirects.
    with contextlib.closing(kind(url.netloc, timeout=3)) as wire:
        wire.request("GET", f"{url.path}?participant={row.participant}")
        answer = wire.getresponse()
        match answer.status, json.loads(answer.read(65536)):
            case 200, {"transaction": row.transaction, "participant": row.participant, "outcome": "pending"}: pass
            case 200, {"transaction": row.transaction, "participant": row.participant, "outcome": outcome}:
                carry_out({"committed": "commit", "aborted": "abort"}[outcome], row._asdict())
            case other: raise ValueError(f"no answer: {other}")  # Only a 200 that echoes both exactly is one.

def attempt(work, *given):
    try: return work(*given)
    except Exception as error: print(f"{work.__name__} {given}: {error!r}; trying again", flush=True)

def again_and_again(work):
    while True:
        if not attempt(work): time.sleep(0.5)

# ------ the routes

ID = "[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
NAME = "[a-z][a-z0-9-]{0,62}"

def read(message, headers, stream):
    """What is asked, or a ValueError that says what is wrong with it."""
    length = int(headers.get("Content-Length", 0))
    if not 0 <= length <= 256 * 1024: raise Problem(413, "payload-too-large", "at most 256 KiB")
    body = stream.read(length)
    if len(body) < length: raise ValueError("the body is not whole")
    ask = json.loads(body or b"{}")
    if not isinstance(ask, dict): raise ValueError("the body is no object")
    for member, form in ("transaction", ID), ("participant", NAME), ("low_water", f"{ID}|None"):
        if not re.fullmatch(form, str(ask.get(member))): raise ValueError(f"{member}: {ask.get(member)!r}")
    mark, prefix = ask.get("low_water") or "", ask["transaction"][:13]
    if mark.startswith(prefix): heard[prefix] = max(mark, heard.get(prefix, mark))
    if message != "prepare": return ask | {"operations": None}
    match ask:
        case {"operations": list(them), "remaining_ms": int(ms)} if 0 <= ms <= 600_000 and all(map(is_operation, them)):
            return ask | {"deadline": time.monotonic() + ms / 1000}
    raise ValueError("operations has to be a list of what this service does, remaining_ms 0 to 600000")

def rows(sql, *values):
    with local_transaction(OUTCOMES) as db: return [row._asdict() for row in db.execute(sql, values)]

VIEW = "SELECT transaction, participant, state, to_json(since) AS since FROM branches WHERE "

def branches(query):
    (id, _, name), limit = query.get("after", "").partition("@"), int(query.get("limit", 100))
    if not 1 <= limit <= 1000: raise ValueError("limit is 1 to 1000")
    found = rows(VIEW + "(transaction, participant) > (%s, %s) AND state = coalesce(%s, state) "
                 "ORDER BY transaction, participant LIMIT %s", id, name, query.get("state"), limit)
    last = found[-1] if len(found) == limit else None
    return {"branches": found, "next": last and f"{last['transaction']}@{last['participant']}"}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, timeout = "HTTP/1.1", -1, 60  # A thread for each connection: who is slow delays nobody.
    def log_message(self, *_): pass

    def do_POST(self):
        try: status, body = 200, self.route()
        except Problem as problem: status, body = problem.args
        except (ValueError, RecursionError) as error: status, body = Problem(400, "invalid-request", str(error)).args
        except (psycopg.Error, queue.Empty, Refused) as error:  # Neither yes nor no: it is asked again.
            status, body = Problem(503, "database-unavailable", f"ask again: {error}").args
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.send_header("Content-Length", str(len(text)))
        if status != 200: self.send_header("Connection", "close")  # Its body may be unread, and is no other request.
        self.end_headers()
        self.wfile.write(text)
    do_GET = do_POST

    def route(self):
        path, _, query = self.path.partition("?")
        match self.command, *path.strip("/").split("/"):
            case "POST", "v1", ("prepare" | "commit" | "abort") as message:
                return carry_out(message, read(message, self.headers, self.rfile))
            case "GET", "v1", "describe": return {"participant": options.name, "protocol": 1, "features": []}
            case "GET", "v1", "branches": return branches(dict(urllib.parse.parse_qsl(query)))
            case "GET", "v1", "branches", id:
                if not re.fullmatch(ID, id): raise ValueError(f"{id!r} is no transaction id")
                for row in rows(VIEW + "transaction = %s", id): return row
                raise Problem(404, "unknown-branch", id)
            case "GET", "stock", item:
                for row in rows("SELECT item, there FROM stock WHERE item = %s", item): return row
        raise Problem(404, "not-found", self.path)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="stock", help="as the coordinator has it registered")
    parser.add_argument("--database", required=True, help="postgresql://user:password@host/name")
    parser.add_argument("--listen", default="127.0.0.1:8083", help="host:port; the base URL is http://host:port")
    parser.add_argument("--coordinator", action="append", required=True, help="whom to ask in doubt; may be repeated")
    parser.add_argument("--stock", action="append", default=[], metavar="ITEM=COUNT", help="at first; may be repeated")
    options = parser.parse_args()
    for pool in 6 * [PREPARES] + 4 * [OUTCOMES]: pool.put(connect())
    with local_transaction(OUTCOMES) as db:
        db.execute(AT_THE_START)
        for entry in options.stock:
            db.execute("INSERT INTO stock VALUES (%s, %s) ON CONFLICT DO NOTHING", entry.split("="))
    for work in [prune] + 8 * [inquire]: threading.Thread(target=again_and_again, args=[work], daemon=True).start()
    host, _, port = options.listen.rpartition(":")
    http.server.ThreadingHTTPServer.request_queue_size = 256
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    print(f"ready listen={host}:{server.server_port}", flush=True)
    server.serve_forever()
