#!/usr/bin/env python3
"""A stock of goods that takes part in Unanimous' transactions: the contract of docs/PARTICIPANTS.md in one file, on
Python's standard library and psycopg 3. A branch may reserve goods, and what is held can not be promised twice:

    [{"kind": "reserve", "item": "tea", "count": 2}]

The one idea: the branch's state is its row. Each message is one local transaction: insert the row or lock it, see what it
says, do the work, write the row, commit, and only then answer. Nothing that matters is in memory, so there is no recovery
to write: after a crash the rows are there, and whatever is still `prepared` is asked about.
"""
import argparse, contextlib, hashlib, http.client, http.server, json, queue, random, re, threading, time, urllib.parse
from concurrent.futures import ThreadPoolExecutor
import psycopg
from psycopg.rows import namedtuple_row

SCHEMA = """
CREATE TABLE IF NOT EXISTS branches (
    transaction uuid, participant text COLLATE "C",  -- the name as the prepare gave it: inquiries ask by it
    state text NOT NULL CHECK (state IN ('prepared', 'committed', 'refused', 'aborted')),
    operations jsonb, digest text, code text, reason text,
    since timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (transaction, participant));
CREATE INDEX IF NOT EXISTS in_doubt ON branches (transaction) WHERE state = 'prepared';
CREATE TABLE IF NOT EXISTS low_water (prefix text PRIMARY KEY, mark uuid NOT NULL);
CREATE TABLE IF NOT EXISTS stock (
    item text PRIMARY KEY, there bigint NOT NULL, held bigint NOT NULL DEFAULT 0, CHECK (0 <= held AND held <= there));
"""
ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NAME = re.compile("[a-z][a-z0-9-]{0,62}")
BODY_MAX = 256 * 1024


class Refused(Exception):
    """A *no*: its code and its reason. What the branch has done so far is rolled back."""

class Problem(Exception):
    """Neither a vote nor an acknowledgement: status, code, detail."""


# ------ the business: what an operation reserves, applies, gives back

def check(operation):
    match operation:
        case {"kind": "reserve", "item": str(item), "count": int(count)} if item.isprintable() and type(count) is int and 0 < count < 2**53:
            return
    raise Problem(400, "invalid-request", f"no operation of this service: {json.dumps(operation)[:200]}")

def reserve(db, operation):
    held = db.execute("UPDATE stock SET held = held + %(count)s WHERE item = %(item)s AND there - held >= %(count)s", operation)
    if held.rowcount == 0: raise Refused("refused", f"not enough {operation['item']} in stock")

def apply(db, operation):
    db.execute("UPDATE stock SET there = there - %(count)s, held = held - %(count)s WHERE item = %(item)s", operation)

def give_back(db, operation):
    db.execute("UPDATE stock SET held = held - %(count)s WHERE item = %(item)s", operation)


# ------ the protocol: what each message does, inside one local transaction

def on_prepare(db, ask):
    deadline = time.monotonic() + ask["remaining_ms"] / 1000
    if not insert(db, ask, "prepared"):  # A stored row answers first, and the same way every time.
        row = lock(db, ask)
        if row is None: raise Problem(503, "branch-busy", "its row was just dropped; ask again")
        if row.state == "aborted": return no("aborted", "an abort came before the prepare")
        if row.digest != ask["digest"]: raise Problem(422, "prepare-changed", "other operations than the first time")
        return no(row.code, row.reason) if row.state == "refused" else {"vote": "yes"}
    # Nobody else's work: a wrong address must not move our goods. And nothing that ended long ago.
    if ask["participant"] != options.name: raise Problem(409, "other-participant", f"this is {options.name}")
    if mark := mark_above(db, ask):
        write(db, ask, None)
        return no("below-low-water", "the transaction has ended") | {"low_water": mark}
    for operation in ask["operations"]: check(operation)
    try:
        with db.transaction():  # A savepoint: of a refused branch the *no* stays and the work goes.
            if ask.get("session") is not None: raise Refused("work-lost", "this service holds no interactive work")
            # Before its yes a branch may abort, and does when its time is over. After it, never alone.
            left = int(1000 * (deadline - time.monotonic()))
            if left <= 0: raise Refused("deadline", "the deadline has passed")
            db.execute(f"SET LOCAL statement_timeout = {left}")
            for operation in ask["operations"]: reserve(db, operation)
    except (Refused, psycopg.errors.QueryCanceled) as why:
        code, reason = why.args if isinstance(why, Refused) else ("deadline", "the deadline has passed")
        write(db, ask, "refused", code=code, reason=reason, digest=ask["digest"])
        return no(code, reason)
    write(db, ask, "prepared", operations=json.dumps(ask["operations"]), digest=ask["digest"])
    return {"vote": "yes"}

def on_commit(db, ask):
    row = lock(db, ask)
    # "Not found" is never success: somebody has lost what was promised, and has to hear of it.
    if row is None: raise Problem(409, "vote-lost", "there is no vote here to commit")
    if row.state not in ("prepared", "committed"): raise Problem(409, "outcome-differs", "this branch was aborted")
    if row.state == "prepared":  # The effect and the state are written together: however often it is told, it is done once.
        for operation in row.operations: apply(db, operation)
        write(db, ask, "committed")
    return {"state": "committed"}

def on_abort(db, ask):
    if insert(db, ask, "aborted"):  # A tombstone, to which a late prepare loses.
        if mark_above(db, ask): write(db, ask, None)  # There the mark says as much.
        return {"state": "aborted"}
    row = lock(db, ask)
    if row is None: raise Problem(503, "branch-busy", "its row was just dropped; ask again")
    if row.state == "committed": raise Problem(409, "outcome-differs", "this branch was committed")
    if row.state == "prepared":
        for operation in row.operations: give_back(db, operation)
        write(db, ask, "aborted")
    return {"state": "aborted"}

def no(code, reason): return {"vote": "no", "code": code, "reason": reason}

def insert(db, ask, state):
    """Whether the row was not there. Waits for whoever is just inserting it: never lock a row that may not exist."""
    return db.execute("INSERT INTO branches (transaction, participant, state) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                      (ask["transaction"], ask["participant"], state)).rowcount == 1

def lock(db, ask):
    return db.execute("SELECT * FROM branches WHERE transaction = %(transaction)s AND participant = %(participant)s FOR UPDATE",
                      ask).fetchone()

def write(db, ask, state, **columns):
    """The row's new state, and these columns; without a state there shall be no row."""
    change = "DELETE FROM branches" if state is None else "UPDATE branches SET " + ", ".join(
        f"{name} = %({name})s" for name in ["state", *columns]) + ", since = clock_timestamp()"
    db.execute(change + " WHERE transaction = %(transaction)s AND participant = %(participant)s", {**ask, **columns, "state": state})


# ------ the low-water mark: below it all is finished, so its rows may go

heard = {}  # The highest mark of each prefix (the first 48 bits of an id) that calls have brought.

def hear(ask):
    mark, prefix = ask.get("low_water"), ask["transaction"][:13]
    if mark and mark[:13] == prefix: heard[prefix] = max(mark, heard.get(prefix, mark))

def mark_above(db, ask):
    """Read after the row was inserted, by a later statement: read before, a round of pruning could fall between the two."""
    row = db.execute("SELECT mark FROM low_water WHERE prefix = %s AND mark > %s", (ask["transaction"][:13], ask["transaction"]))
    return str(found.mark) if (found := row.fetchone()) else None

def prune():
    for prefix, mark in list(heard.items()):
        with local_transaction(OUTCOMES) as db:  # The rows go, and the mark is kept, together.
            db.execute("INSERT INTO low_water VALUES (%s, %s) ON CONFLICT (prefix) DO UPDATE SET mark = excluded.mark "
                       "WHERE low_water.mark < excluded.mark", (prefix, mark))
            db.execute("DELETE FROM branches WHERE transaction >= %s AND transaction < %s AND state <> 'prepared'",
                       (prefix + "-0000-0000-000000000000", mark))


# ------ inquiries: in doubt, a branch asks for ever and never decides alone

turns = {}  # Of each branch in doubt: how often it was asked about, and when it is its turn again.
asking = ThreadPoolExecutor(32)

def inquire():
    with local_transaction(OUTCOMES) as db:
        rows = db.execute("SELECT transaction::text, participant FROM branches WHERE state = 'prepared' "
                          "AND since < clock_timestamp() - interval '1 s' ORDER BY since LIMIT 10000").fetchall()
    for row in turns.keys() - set(rows): turns.pop(row, None)
    for row in rows:
        asked, due = turns.get(row, (0, 0.0))
        if due <= time.monotonic():
            turns[row] = (asked + 1, time.monotonic() + 60)  # Until this inquiry has ended.
            asking.submit(ask_all, row, asked)

def ask_all(row, asked):
    for address in options.coordinator:
        with logged(f"asking {address} about {row.transaction}"):
            outcome = ask_one(urllib.parse.urlsplit(address), row)
            if outcome in ("committed", "aborted"):
                with local_transaction(OUTCOMES) as db:
                    (on_commit if outcome == "committed" else on_abort)(db, row._asdict())
                break
    pause = min(10, 0.2 * 2 ** min(asked, 10)) * random.uniform(0.5, 1)  # Capped, and not all at the same moment.
    turns[row] = (asked + 1, time.monotonic() + pause)

def ask_one(url, row):
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection  # Follows no redirects.
    with contextlib.closing(kind(url.netloc, timeout=3)) as connection:
        connection.request("GET", f"{url.path.rstrip('/')}/v1/transactions/{row.transaction}/outcome?participant={row.participant}")
        response = connection.getresponse()
        if response.status == 404: raise Problem(404, "foreign-transaction", "is this the right coordinator?")
        # Only a 200 that echoes both exactly is an answer. Whatever else it is: ask again.
        told = json.loads(response.read(65536)) if response.status == 200 else {}
        return told["outcome"] if (told.get("transaction"), told.get("participant")) == row else None


# ------ the local transaction, and the routes

PREPARES, OUTCOMES = queue.LifoQueue(), queue.LifoQueue()  # Connections of their own: an outcome never waits behind prepares.

@contextlib.contextmanager
def local_transaction(pool):
    db, warned = pool.get(timeout=5), []
    note = lambda notice: warned.append(notice.sqlstate)
    try:
        if db is None or db.closed:  # READ COMMITTED for the mark; synchronous, so that what is answered is on the disk.
            db = psycopg.connect(options.database, autocommit=True, row_factory=namedtuple_row, options="-c lock_timeout=3s "
                                 "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed")
        db.add_notice_handler(note)
        with db.transaction(): yield db
        # Where somebody cancels the wait for a standby, Postgres answers the commit with success and a warning.
        if {"01000", "57P01"} & set(warned): raise psycopg.OperationalError("the commit is unclear")
    finally:
        if db is not None: db.remove_notice_handler(note)
        pool.put(db)

@contextlib.contextmanager
def logged(what):
    try: yield
    except Exception as error: print(f"{what}: {error!r}; trying again", flush=True)

def canonical(body):
    """The same for bodies that are equal apart from white space and member order; numbers by their text: no money is rounded."""
    number, members = (lambda text: ("number", text)), (lambda pairs: ("object", sorted(pairs, key=lambda pair: pair[0])))
    return json.loads(body, parse_int=number, parse_float=number, object_pairs_hook=members)

def read(path, body):
    """A message, or a ValueError that says what is wrong with it."""
    ask = json.loads(body or b"{}")
    if not isinstance(ask, dict): raise ValueError("the body is no object")
    for member, form in ("transaction", ID), ("participant", NAME), ("low_water", ID):
        text = ask.get(member)
        if not (isinstance(text, str) and form.fullmatch(text)) and (member, text) != ("low_water", None):
            raise ValueError(f"{member}: {text!r}")
    if path == "/v1/prepare":
        if not isinstance(ask.get("operations"), list): raise ValueError("operations: not an array")
        if type(ask.get("remaining_ms")) is not int or not 0 <= ask["remaining_ms"] <= 600_000: raise ValueError("remaining_ms")
        operations = dict(canonical(body)[1])["operations"]
        ask["digest"] = hashlib.sha256(repr(operations).encode(errors="surrogatepass")).hexdigest()
    return ask

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, timeout, wbufsize, disable_nagle_algorithm = "HTTP/1.1", 60, -1, True

    def do_GET(self): self.answer(self.look)
    def do_POST(self): self.answer(self.message)
    def log_message(self, *_): pass

    def answer(self, found):
        try: status, body = 200, found()
        except Problem as problem: status, body = self.problem(*problem.args)
        except (ValueError, RecursionError) as error: status, body = self.problem(400, "invalid-request", str(error))
        except (psycopg.Error, queue.Empty) as error:  # Neither yes nor no: it is asked again.
            status, body = self.problem(503, "database-unavailable", f"ask again: {error}")
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.send_header("Content-Length", str(len(text)))
        if self.close_connection: self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)

    def problem(self, status, code, detail):
        return status, {"type": f"urn:unanimous:problem:{code}", "title": code.replace("-", " "), "status": status,
                        "code": code, "detail": detail}

    def message(self):
        routes = {"/v1/prepare": (on_prepare, PREPARES), "/v1/commit": (on_commit, OUTCOMES), "/v1/abort": (on_abort, OUTCOMES)}
        kept, self.close_connection = self.close_connection, True  # What is not read to its end is not followed by another.
        if self.path not in routes: raise Problem(404, "not-found", self.path)
        length = int(self.headers.get("Content-Length", 0))
        if not 0 <= length <= BODY_MAX: raise Problem(413, "payload-too-large", f"at most {BODY_MAX} bytes")
        body = self.rfile.read(length)
        if len(body) < length or "Transfer-Encoding" in self.headers: raise ValueError("the body is not whole")
        self.close_connection = kept
        ask = read(self.path, body)
        hear(ask)
        handle, pool = routes[self.path]
        with local_transaction(pool) as db: answer = handle(db, ask)
        return {"transaction": ask["transaction"], "participant": ask["participant"]} | answer  # Behind the commit.

    def look(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match url.path.strip("/").split("/"):
            case ["v1", "describe"]: return {"participant": options.name, "protocol": 1, "features": []}
            case ["v1", "branches"]: return self.branches(int(query.get("limit", 100)), query.get("state"), query.get("after", ""))
            case ["v1", "branches", id]:
                if not ID.fullmatch(id): raise ValueError(f"{id!r} is no transaction id")
                found, missing = self.select("WHERE transaction = %s", (id,)), "unknown-branch"
            case ["stock", item]: found, missing = self.rows("SELECT item, there FROM stock WHERE item = %s", (item,)), "not-found"
            case _: found, missing = [], "not-found"
        if not found: raise Problem(404, missing, f"{self.path}: there is nothing")
        return found[0]

    def branches(self, limit, state, after):
        id, _, name = after.partition("@")
        if not 1 <= limit <= 1000 or (id and not ID.fullmatch(id)): raise ValueError("limit is 1 to 1000, after a cursor")
        states = {None: None, "aborted": ["aborted", "refused"]}.get(state, [state])
        found = self.select("WHERE (transaction, participant) > (%s, %s) AND (%s::text[] IS NULL OR state = ANY (%s)) "
                            "ORDER BY transaction, participant LIMIT %s", (id or "0" * 32, name, states, states, limit + 1))
        last = found[limit - 1] if len(found) > limit else None
        return {"branches": found[:limit], "next": last and f"{last['transaction']}@{last['participant']}"}

    def select(self, which, values):
        return self.rows("SELECT transaction::text, participant, CASE state WHEN 'refused' THEN 'aborted' ELSE state END AS state, "
                         "to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS since FROM branches " + which, values)

    def rows(self, sql, values):
        with local_transaction(OUTCOMES) as db: return [row._asdict() for row in db.execute(sql, values)]

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256

def again_and_again(work, pause):
    while True:
        with logged(work.__name__): work()
        time.sleep(pause)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="stock", help="as the coordinator has it registered")
    parser.add_argument("--database", required=True, help="postgresql://user:password@host/name")
    parser.add_argument("--listen", default="127.0.0.1:8083", help="host:port; the base URL is http://host:port")
    parser.add_argument("--coordinator", action="append", required=True, help="whom to ask about branches in doubt; may be repeated")
    parser.add_argument("--stock", action="append", default=[], metavar="ITEM=COUNT", help="what there is at first; may be repeated")
    options = parser.parse_args()
    for pool, size in (PREPARES, 6), (OUTCOMES, 4):
        for _ in range(size): pool.put(None)
    with local_transaction(OUTCOMES) as db:
        db.execute("SELECT pg_advisory_xact_lock(7070)")  # Two that start at the same moment would both make the tables.
        db.execute(SCHEMA)
        for item, _, there in (entry.partition("=") for entry in options.stock):
            db.execute("INSERT INTO stock VALUES (%s, %s) ON CONFLICT DO NOTHING", (item, int(there)))
    for work, pause in (inquire, 0.2), (prune, 0.5):
        threading.Thread(target=again_and_again, args=(work, pause), daemon=True).start()
    host, _, port = options.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    print(f"ready listen={host}:{server.server_port}", flush=True)
    server.serve_forever()
