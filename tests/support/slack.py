"""A stand-in for Slack and Cloud KMS on 127.0.0.1."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.auth.credentials import AnonymousCredentials
from google.cloud.kms_v1 import KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports.rest import KeyManagementServiceRestTransport

KEY = "projects/p/locations/europe-west1/keyRings/ring/cryptoKeys/key"


class StandInSlack:
    """Accept messages, and decrypt the results of :meth:`encrypted`. ``answer`` is the answer to a message."""

    def __init__(self):
        self.messages = []
        self.tokens = []
        self.answer = {"ok": True}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                answer = (
                    outer.slack(self.headers, sent) if "chat.postMessage" in self.path else outer.kms(self.path, sent)
                )
                body = json.dumps(answer).encode()
                self.send_response(200 if answer else 400)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/api/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def slack(self, headers, sent):
        self.tokens.append(headers["Authorization"].removeprefix("Bearer "))
        if self.answer == {"ok": True}:
            self.messages.append(json.loads(sent))
        return self.answer

    @staticmethod
    def encrypted(plaintext):
        return b"\n" + bytes(each ^ 0x5A for each in plaintext)

    @staticmethod
    def kms(path, sent):
        if path.partition("?")[0] != f"/v1/{KEY}:decrypt":
            return {}
        ciphertext = base64.b64decode(json.loads(sent)["ciphertext"])
        return {"plaintext": base64.b64encode(bytes(each ^ 0x5A for each in ciphertext[1:])).decode()}

    def kms_client(self):
        transport = KeyManagementServiceRestTransport(
            host=self.host, credentials=AnonymousCredentials(), url_scheme="http"
        )
        return KeyManagementServiceClient(transport=transport)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
