"""A guestbook: GET / shows the entries and how many words the worker counted, POST / adds one."""

import html
import http.server
import os
import signal
import sys
import urllib.parse

ENTRIES = os.environ.get("GUESTBOOK", "entries.txt")
TITLE = "Guestbook"


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return ""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer("ok\n", "text/plain")
        entries = "".join(f"<li>{html.escape(e)}</li>" for e in read(ENTRIES).splitlines())
        words = read(ENTRIES + ".words").strip() or "0"
        self.answer(
            f"<!doctype html><title>{TITLE}</title><h1>{TITLE}</h1>"
            f"<ul>{entries}</ul><p>{words} words, counted by the worker</p>"
            "<form method=post><input name=entry><button>Sign</button></form>\n",
            "text/html; charset=utf-8",
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        entry = urllib.parse.parse_qs(body).get("entry", [""])[0].replace("\n", " ")
        with open(ENTRIES, "a", encoding="utf-8") as f:
            f.write(entry + "\n")
        print("signed:", entry, flush=True)
        self.send_response(303)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, text, kind):
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        print(self.address_string(), format % args, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("serving on port 8000", flush=True)
    http.server.ThreadingHTTPServer(("", 8000), Page).serve_forever()
