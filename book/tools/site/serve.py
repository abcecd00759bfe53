"""`make serve`: the built pages on localhost; PORT says where, 8000 without."""

import functools
import http.server
import sys

from .build import HTML


def main():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", int((sys.argv[1:] or ["8000"])[0])), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
