"""A participant that agrees to everything and keeps nothing. Prints its base URL, then serves until it is killed."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = sys.argv[1]
AGREES = {
    "/v1/prepare": {"vote": "yes"},
    "/v1/commit": {"state": "committed"},
    "/v1/abort": {"state": "aborted"},
}


class Participant(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.path == "/v1/describe":
            self.answer(200, {"participant": NAME, "protocol": 1, "features": []})
        else:
            self.answer(404, {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        echo = {member: asked[member] for member in ("transaction", "participant")}
        self.answer(200, echo | AGREES[self.path])

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Participant)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
