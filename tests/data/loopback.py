"""A server that gives what its paths ask for."""

import http.server
import socket

CONTENT = b"weights" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says what goes wrong."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
        elif "broken" in self.path:
            self.send_error(500)
        elif "silent" in self.path:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT) * (2 if "cut" in self.path else 1)))
            self.end_headers()
            self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass
