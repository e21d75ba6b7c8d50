"""An OpenAI-compatible server on 127.0.0.1 that sends faults on demand, to test the LLM judge."""

import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """A raw reply: an HTTP status, "hang" (no reply) or "cut" (incomplete body), and a body."""

    status: int | str = 200
    body: str = "{}"
    headers: dict = field(default_factory=dict)


def verdict(winner, explanation="because") -> str:
    """A judge's reply as JSON."""
    return json.dumps({"explanation": explanation, "winner": winner})


def answers_of(text: str) -> tuple[str, str]:
    """The two answers of a request: the texts between marker lines that contain the code."""
    code = re.search(r"carry the code (\w+)", text)[1]
    answers = []
    for number in "12":
        name = f"ANSWER {number} {code}"
        answers.append(text.split(f"<<<{name}>>>\n")[1].split(f"\n<<<END OF {name}>>>")[0])
    return tuple(answers)


class Server:
    """Sends behave(text, number), a text or a Fault, for each request; numbers start at 1."""

    def __init__(self, behave):
        self.behave, self.bodies, self.keys, self.times = behave, [], [], []
        self._lock = threading.Lock()

    @property
    def texts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def reply(self, body: dict, key: str):
        with self._lock:
            self.bodies.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            number = len(self.bodies)
        return self.behave(body["messages"][0]["content"], number)


def _handler(server: Server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each reply waits 40 ms for an acknowledgement

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.reply(body, self.headers["Authorization"])
            if isinstance(reply, str):
                message = {"role": "assistant", "content": reply}
                usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                choices = [{"index": 0, "finish_reason": "stop", "message": message}]
                reply = Fault(body=json.dumps({"choices": choices, "usage": usage}))
            if reply.status == "hang":
                time.sleep(5)
                self.close_connection = True
                return
            data = reply.body.encode()
            self.send_response(200 if reply.status == "cut" else reply.status)
            headers = {"Content-Type": "application/json", **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + 99 * (reply.status == "cut")))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = self.close_connection or reply.status == "cut"

    return Handler


@contextmanager
def serving(behave):
    """Context manager: a running Server; its `url` is a value for --base-url."""
    server = Server(behave)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
