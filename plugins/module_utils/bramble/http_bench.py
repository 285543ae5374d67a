"""The speed of any address that speaks Ollama's or OpenAI's language, as a client sees it. Standard library only.

Every answer is streamed and timed by the arrival of its chunks, because that is all that every server tells:
hailo-ollama gives no durations, an OpenAI server need not count. Parsers and figures are pure; the clock is passed in.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .conditions import Node, Observation
from .llama_bench import BenchError, is_sha256, read_json, require_enough, same_commit, text_or_none
from .statistics import mean, summary

Api = Literal["ollama", "openai"]
Clock = Callable[[], float]  # seconds, never backwards

CHAT_PATH: dict[Api, str] = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
LONGEST_LINE = 8 << 20  # bytes; Ollama's own client reads no longer one
READ_SIZE = 1 << 16  # bytes
LONGEST_ANSWER = 4 << 20  # bytes of an answer that is no stream
# Seconds within which chunks count as one arrival: a proxy that held them back sent them in one piece.
ONE_ARRIVAL = 0.0005
WARM_UP_TOKENS = 16
CHARACTERS_PER_TOKEN = 4  # of English, roughly; the record says that it is approximate

# Ten tasks of about one length, none of which begins as another does. Each request has one of them behind a number that
# no other request has, of this run or an earlier one: so no server can reuse what it computed for another prompt.
PROMPTS = (
    "A baker sells loaves at three prices and wants to know which of them earns most in a week. Explain step by "
    "step which figures she has to write down each day, how to compare them at the end of the week, and which "
    "mistakes are easy to make.",
    "Describe how a lighthouse was run before there was electricity. Say who lived there, what had to be done at "
    "each hour of the night, how the lamp was kept burning in a storm, and how a keeper knew that a ship had seen "
    "the light.",
    "Write a letter from a gardener to a friend who has moved to a flat with one small balcony facing north. "
    "Suggest which herbs and flowers would grow there, how often to water them, and what to do with them in the "
    "first frost.",
    "Compare travelling by train and by bicycle through a hilly country. Consider the cost, the time, the "
    "weather, what can be carried, and what a traveller sees on the way, and end with advice for a family with "
    "two children.",
    "Tell a short story about a clock in a village square that runs seven minutes late. Nobody wants to repair "
    "it, and the story should show, without saying so outright, what each of three villagers would lose if it "
    "were right.",
    "Explain to a ten-year-old why the moon changes its shape, why we always see the same side of it, and how "
    "anyone could find this out with a lamp, an orange and a dark room. Use short sentences and no foreign words.",
    "Plan a dinner for six people, one of whom eats no meat and one no nuts. List three courses with their "
    "ingredients, put the work into an order so that one cook with one oven can manage, and say what can be "
    "prepared the day before.",
    "Give instructions for finding out why an old radio is silent. Begin with what needs no tools, go on to what "
    "needs a screwdriver and a lamp, and say clearly at which point somebody who has not learned the trade should "
    "stop.",
    "Summarise the arguments for and against closing a town's main street to cars on Saturdays, as shopkeepers, "
    "parents, bus drivers and old people might put them, and propose a trial that would show within a year who "
    "was right.",
    "Imagine a library that lends tools and not books. Describe how it is organised, which rules its members "
    "agree on, what happens when something comes back broken, and how the town pays for it without charging the "
    "poor.",
)


# What a server sends.


class AnswerError(Exception):
    """This request failed; the message is the server's, or says what happened to the connection."""


@dataclass(frozen=True)
class Event:
    """One line of a stream: its text, whether the answer is whole with it, and the server's counts, if it gives any."""

    text: str = ""
    done: bool = False
    tokens: int | None = None
    prompt_tokens: int | None = None


def parse_object(line: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises AnswerError for anything else, and with the server's words for ``{"error": …}``.

    hailo-ollama and Ollama report errors with status 200, in the middle of a stream too.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        shown = line[:80] if isinstance(line, str) else line[:80].decode(errors="replace")
        raise AnswerError(f"the server sent {shown!r}, which is no JSON") from None
    if not isinstance(content, dict):
        raise AnswerError(f"the server sent {str(content)[:80]!r}, which is no JSON object")
    error = content.get("error")
    if error:
        inner = error.get("message") if isinstance(error, dict) else error
        raise AnswerError(str(inner or error)[:300])
    return content


def count_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None


def texts(content: object, *keys: str) -> str:
    """The texts under these keys, put together."""
    return "".join(value for key in keys if isinstance(content, dict) and isinstance(value := content.get(key), str))


def parse_ollama(line: bytes) -> Event | None:
    """A line of ``/api/chat`` or ``/api/generate``, ``\\n`` or ``\\r\\n`` behind it; None for an empty one.

    Raises AnswerError.
    """
    if not line.strip():
        return None
    content = parse_object(line)
    return Event(
        texts(content, "response", "thinking") + texts(content.get("message"), "content", "thinking"),
        content.get("done") is True,
        count_or_none(content.get("eval_count")),
        count_or_none(content.get("prompt_eval_count")),
    )


def parse_openai(line: bytes) -> Event | None:
    """A line of ``/v1/chat/completions``: a server-sent event's ``data:``; None for other fields and comments.

    Counts are in ``usage``, or in llama-server's ``timings``. Raises AnswerError.
    """
    line = line.strip()
    if line.startswith(b"{"):
        # No event at all: an error, or the whole answer of a server that does not stream.
        parse_object(line)
        raise AnswerError("the server did not stream its answer")
    name, _, value = line.partition(b":")
    if name != b"data":
        return None
    value = value.strip()
    if value == b"[DONE]":
        return Event(done=True)
    content = parse_object(value)
    choices = content.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else None
    usage, timings = ({} if not isinstance(found := content.get(key), dict) else found for key in ("usage", "timings"))
    tokens = count_or_none(usage.get("completion_tokens"))
    prompt_tokens = count_or_none(usage.get("prompt_tokens"))
    return Event(
        texts(delta, "content", "reasoning_content", "reasoning"),
        False,
        count_or_none(timings.get("predicted_n")) if tokens is None else tokens,
        prompt_tokens,
    )


Parser = Callable[[bytes], Event | None]
PARSERS: dict[Api, Parser] = {"ollama": parse_ollama, "openai": parse_openai}


@dataclass
class Answer:
    """One answer as it arrived. Times in seconds of the clock; ``arrivals``: of each chunk that held text."""

    started: float
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    server_tokens: int | None = None
    prompt_tokens: int | None = None
    whole: bool = False

    def add(self, event: Event, now: float) -> None:
        if event.text:
            self.arrivals.append(now)
        if event.tokens is not None:
            self.server_tokens = event.tokens
        if event.prompt_tokens is not None:
            self.prompt_tokens = event.prompt_tokens
        self.whole = self.whole or event.done
        self.ended = now

    @property
    def ttft(self) -> float | None:
        """Seconds to the first text; None for an answer without any."""
        return self.arrivals[0] - self.started if self.arrivals else None

    @property
    def total(self) -> float:
        return self.ended - self.started

    def tokens(self, counted: Literal["server", "chunks"]) -> int:
        return self.server_tokens or 0 if counted == "server" else len(self.arrivals)


def decode_rate(arrivals: Sequence[float], tokens: int) -> float | None:
    """Tokens per second of a stream after its first arrival; None where no rate can be known.

    (n-1) / (t_last - t_first) where each token came by itself. Where several came at once, in one chunk or in several
    that were held back, those of the first arrival lie before the time measured and are not counted either: n times
    the share of chunks that came later. None for fewer than two tokens or two arrivals.
    """
    first = sum(1 for arrival in arrivals if arrival - arrivals[0] < ONE_ARRIVAL)
    if tokens < 2 or first == len(arrivals):
        return None
    return tokens * (1 - first / len(arrivals)) / (arrivals[-1] - arrivals[0])


def figures(answers: Sequence[Answer], errors: int) -> tuple[dict[str, Any], Literal["server", "chunks"]]:
    """The record's ``result`` for the answers of one level of concurrency, and who counted the tokens.

    `ttft`, `decode`, `total`, `tokens` of each answer; `throughput`: all tokens by the time from the first request to
    the last answer's end. A figure that no answer allows is left out. The server's count is taken if it gives one for
    every answer, else the number of chunks: then a chunk of several tokens counts as one. Raises ValueError for no
    answers.
    """
    counted: Literal["server", "chunks"] = (
        "server" if all(answer.server_tokens is not None for answer in answers) else "chunks"
    )
    tokens = [answer.tokens(counted) for answer in answers]
    rates = [decode_rate(answer.arrivals, count) for answer, count in zip(answers, tokens, strict=True)]
    span = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
    series: dict[str, tuple[list[float], str]] = {
        "ttft": ([ttft for answer in answers if (ttft := answer.ttft) is not None], "s"),
        "decode": ([rate for rate in rates if rate is not None], "tok/s"),
        "total": ([answer.total for answer in answers], "s"),
        "tokens": ([float(count) for count in tokens], "tokens"),
        "prompt_tokens": ([float(n) for answer in answers if (n := answer.prompt_tokens) is not None], "tokens"),
    }
    result: dict[str, Any] = {name: summary(values, unit) for name, (values, unit) in series.items() if values}
    if span > 0 and sum(tokens) > 0:
        result["throughput"] = {"value": sum(tokens) / span, "unit": "tok/s"}
    if errors:
        result["errors"] = {"value": errors, "unit": "count"}
    return result, counted


# Asking.


def parse_error_page(body: bytes) -> str:
    """What an answer with a bad status says of the cause: its JSON error, else its first telling line.

    hailo-ollama's pages name the cause in the first line below ``stacktrace:``.
    """
    try:
        parse_object(body)
    except AnswerError as error:
        if "which is no JSON" not in str(error):
            return str(error)
    lines = [line.strip(" -\r\t") for line in body.decode(errors="replace").splitlines() if line.strip()]
    if "stacktrace:" in lines[:-1]:
        return lines[lines.index("stacktrace:") + 1][:300]
    return lines[0][:300] if lines else "no reason given"


class Server:
    """An address, asked by one connection a request: dllama-api takes no second one on a connection.

    `timeout`: seconds that one request may take, from connecting to the end of the answer.
    """

    def __init__(self, url: str, timeout: float, clock: Clock = time.monotonic) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
            raise BenchError(f"url: expected http://address:port, got {url}")
        self.url = url.rstrip("/")
        self.host = parts.hostname
        self.port = port
        self.secure = parts.scheme == "https"
        self.prefix = parts.path.rstrip("/")
        self.timeout = timeout
        self.clock = clock

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> Iterator[tuple[socket.socket, http.client.HTTPResponse]]:
        """A connection and the answer whose head has arrived on it. Raises AnswerError for whatever happens to it."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.timeout)
        try:
            connection.connect()
            sock = connection.sock
            # hailo-ollama refuses any other type. Head and body go out in one write, as dllama-api needs it.
            data = None if body is None else json.dumps(body).encode()
            connection.request(
                method, self.prefix + path, data, {"Content-Type": "application/json", "Connection": "close"}
            )
            with connection.getresponse() as response:
                yield sock, response
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AnswerError(connection_error(error, self.timeout)) from error
        finally:
            connection.close()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of an answer that is no stream. Raises AnswerError."""
        with self.open("GET" if body is None else "POST", path, body) as (_, response):
            return response.status, response.read(LONGEST_ANSWER)

    def stream(self, api: Api, body: dict[str, Any]) -> Answer:
        """One answer, timed. Raises AnswerError."""
        answer = Answer(self.clock())
        with self.open("POST", CHAT_PATH[api], body) as (sock, response):
            if response.status != 200:
                page = parse_error_page(response.read(LONGEST_ANSWER))
                raise AnswerError(f"status {response.status}: {page}")
            self._read(PARSERS[api], sock, response, answer)
        if not answer.whole:
            raise AnswerError(f"the answer broke off after {len(answer.arrivals)} chunks")
        return answer

    def _read(self, parse: Parser, sock: socket.socket, response: http.client.HTTPResponse, answer: Answer) -> None:
        rest = b""
        now = self.clock()
        while not answer.whole:
            left = answer.started + self.timeout - now
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            data = response.read1(READ_SIZE)
            now = self.clock()
            # At the end, a last line without its end: dllama-api's [DONE] is one.
            *lines, rest = (rest + data).split(b"\n") if data else (rest, b"")
            if len(rest) > LONGEST_LINE:
                raise AnswerError(f"the server sent a line of more than {LONGEST_LINE >> 20} MiB")
            for line in lines:
                event = parse(line)
                if event is not None:
                    answer.add(event, now)
            if not data:
                return


def connection_error(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer within {timeout:g} s (timeout)"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut in the middle of the answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_own(host: str) -> bool:
    """Whether an address is this machine's: then the conditions that are read here are the server's."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as sock:
                sock.bind(address)  # refused for an address of another machine
                return True
    return False


# What is asked.


@dataclass(frozen=True)
class Wanted:
    """What is asked of the model. Tokens; ``keep_alive`` in seconds; ``extra`` goes into the body of each request."""

    model: str
    max_tokens: int = 128
    requests: int = 5
    prompts: Sequence[str] = PROMPTS
    keep_alive: int = 300
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens a prompt has."""
        return round(mean([len(prompt) for prompt in self.prompts]) / CHARACTERS_PER_TOKEN)

    def body(self, api: Api, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Greedy, so that a run can be repeated. keep_alive is a number: hailo-ollama refuses Ollama's "5m"."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
        }
        if api == "ollama":
            body |= {"keep_alive": self.keep_alive, "options": {"num_predict": max_tokens, "temperature": 0}}
        else:
            body |= {"max_tokens": max_tokens, "temperature": 0, "stream_options": {"include_usage": True}}
        return body | self.extra


class Questions:
    """Prompts, each with a number of its own in front. For several threads."""

    def __init__(self, prompts: Sequence[str], salt: str) -> None:
        self._numbered = ((f"({salt}-{number:04d})", prompts[number % len(prompts)]) for number in itertools.count())
        self._lock = threading.Lock()

    def next(self) -> str:
        with self._lock:
            return " ".join(next(self._numbered))


def check(wanted: Wanted, concurrency: Sequence[int], timeout: float, allow_few: bool) -> None:
    """Raises BenchError, which names the option, for what cannot be measured."""
    if not wanted.model.strip():
        raise BenchError("model: is empty")
    if wanted.max_tokens < 2:
        raise BenchError(f"max_tokens: must be 2 or more for a rate, not {wanted.max_tokens}")
    if not concurrency or min(concurrency) < 1:
        raise BenchError(f"concurrency: must be 1 or more, not {list(concurrency)}")
    if timeout < 1:
        raise BenchError(f"timeout: must be 1 or more, not {timeout:g}")
    # hailo-ollama takes an empty prompt for text, Ollama for a wish to load the model.
    if not wanted.prompts or not all(prompt.strip() for prompt in wanted.prompts):
        raise BenchError("prompts: one is empty")
    require_enough(wanted.requests, "requests", allow_few)
    if wanted.requests < max(concurrency):
        raise BenchError(f"requests: {wanted.requests} cannot keep {max(concurrency)} clients (concurrency) at work")


def find_api(server: Server) -> Api:
    """The language of an address: Ollama's if it has /api/version, OpenAI's if it has /v1/models. Raises BenchError."""
    said = []
    for path, key, api in (("/api/version", "version", "ollama"), ("/v1/models", "data", "openai")):
        try:
            status, body = server.ask(path)
            if status == 200 and key in parse_object(body):
                return "ollama" if api == "ollama" else "openai"
            said.append(f"{path}: status {status}")
        except AnswerError as error:
            said.append(f"{path}: {error}")
    raise BenchError(
        f"url: {server.url} answers neither as Ollama nor as OpenAI ({'; '.join(said)}). Does the service run, and "
        "is it this address and port?"
    )


def ask_object(server: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object at a path; an empty one if there is none."""
    try:
        status, content = server.ask(path, body)
        return parse_object(content) if status == 200 else {}
    except AnswerError:
        return {}


def entry(listing: dict[str, Any], key: str, names: Sequence[str], model: str) -> dict[str, Any]:
    """The model's own entry in a list of models; an empty one if it is not there."""
    entries = listing.get(key)
    for found in entries if isinstance(entries, list) else []:
        if isinstance(found, dict) and any(found.get(name) in (model, f"{model}:latest") for name in names):
            return found
    return {}


def read_engine(server: Server, api: Api, builds: Path) -> dict[str, Any]:
    """The record's ``engine``, from what the server says of itself. `builds`: build.json of this node's llama.cpp."""
    engine: dict[str, Any] = {"name": "ollama", "commit": None, "build_key": None, "version": None}
    models = ask_object(server, "/v1/models").get("data")
    owners = (
        {model.get("owned_by") for model in models if isinstance(model, dict)} if isinstance(models, list) else set()
    )
    if "bramble" in owners:
        return engine | {"name": "bramble-gateway"}
    if api == "ollama":
        try:
            greeting = server.ask("/")[1]
        except AnswerError:
            greeting = b""
        if b"hailo-ollama" in greeting:
            # Its /api/version is a constant and not its version.
            return engine | {"name": "hailo-ollama"}
        return engine | {"version": text_or_none(ask_object(server, "/api/version").get("version"))}
    if "llamacpp" not in owners:
        return engine | {"name": "openai"}
    # llama-server's build_info: b<number>-<commit>.
    info = re.fullmatch(r"b\d+-([0-9a-f]{7,40})", str(ask_object(server, "/props").get("build_info")))
    commit = info[1] if info else None
    build = read_json(builds)
    known = text_or_none(build.get("commit"))
    key = (
        text_or_none(build.get("key"))
        if commit and known and same_commit(commit, known) and is_own(server.host)
        else None
    )
    return engine | {"name": "llama.cpp", "commit": commit, "build_key": key}


def read_model(server: Server, api: Api, model: str) -> dict[str, Any]:
    """The record's ``model``, as far as the server tells: its checksum it never does."""
    if api == "ollama":
        found = entry(ask_object(server, "/api/tags"), "models", ("name", "model"), model)
        details = found.get("details")
        quant = details.get("quantization_level") if isinstance(details, dict) else None
        size = found.get("size")
    else:
        meta = entry(ask_object(server, "/v1/models"), "data", ("id",), model).get("meta")
        quant, size = (meta.get("ftype"), meta.get("size")) if isinstance(meta, dict) else (None, None)
    return {"name": model, "sha256": None, "quant": text_or_none(quant), "bytes": count_or_none(size) or None}


# Measuring.


def load_model(server: Server, wanted: Wanted) -> tuple[float | None, str | None]:
    """Has an Ollama load the model: seconds that it took, or None and a note where that is no measurement.

    Raises BenchError with the server's words. A request without a prompt is a wish to load, for hailo-ollama too.
    """
    if entry(ask_object(server, "/api/ps"), "models", ("name", "model"), wanted.model):
        return None, "the model was loaded already"
    begin = server.clock()
    try:
        status, body = server.ask(
            "/api/generate", {"model": wanted.model, "keep_alive": wanted.keep_alive, "stream": False}
        )
        seconds = server.clock() - begin
        if status != 200:
            raise AnswerError(f"status {status}: {parse_error_page(body)}")
        done = parse_object(body).get("done_reason") == "load"
    except AnswerError as error:
        raise failure(server, wanted.model, "load it", str(error)) from None
    return (seconds, None) if done else (None, "the server did not say that it loaded the model")


def failure(server: Server, model: str, what: str, cause: str) -> BenchError:
    return BenchError(
        f"{server.url}: model {model}: cannot {what}: {cause}. Does the address have this model, under this name, and "
        "what does the service's log say (journalctl)?"
    )


def ask_all(
    server: Server, api: Api, wanted: Wanted, questions: Questions, concurrency: int
) -> tuple[list[Answer], list[str]]:
    """The answers and the errors of as many requests as are wanted, by so many clients at once."""

    def one(_: int) -> Answer | str:
        try:
            return server.stream(api, wanted.body(api, questions.next(), wanted.max_tokens))
        except AnswerError as error:
            return str(error)

    with ThreadPoolExecutor(concurrency) as clients:
        outcomes = list(clients.map(one, range(wanted.requests)))
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    return answers, [outcome for outcome in outcomes if isinstance(outcome, str)]


def answer_notes(wanted: Wanted, result: dict[str, Any], counted: str, errors: Sequence[str]) -> list[str]:
    """What a reader of the figures must know of how they came about."""
    notes = []
    if errors:
        notes.append(f"{len(errors)} of {wanted.requests} requests failed, the first with: {errors[0]}")
    # hailo-ollama gives one token fewer than it was asked for.
    if result["tokens"]["mean"] < wanted.max_tokens - 1:
        notes.append(
            f"answers ended early, after {result['tokens']['mean']:.0f} of {wanted.max_tokens} tokens on average"
        )
    if counted == "chunks":
        notes.append("the server counts no tokens: a chunk counts as one")
    rated = result.get("decode", {}).get("n", 0)
    if rated < result["total"]["n"]:
        notes.append(f"only {rated} of {result['total']['n']} answers had two chunks or more, apart from each other")
    return notes


def measure(
    server: Server,
    api: Api | Literal["auto"],
    wanted: Wanted,
    concurrency: Sequence[int],
    node: Node,
    *,
    salt: str,
    builds: Path,
    engine: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> Iterator[tuple[dict[str, Any], str]]:
    """For each level of concurrency the record (without host, id, schema and raw) and the log of it, as it ends.

    `salt` must be another one in each run. `engine` and `model`: what the caller knows better than the server says.
    Raises BenchError if the model cannot be loaded or answers none of a level's requests.
    """
    if model and model.get("sha256") and not is_sha256(model["sha256"]):
        raise BenchError(f"model_facts.sha256: expected 64 lower-case hex digits, got {model['sha256']}")
    api = find_api(server) if api == "auto" else api
    facts = read_model(server, api, wanted.model) | {key: value for key, value in (model or {}).items() if value}
    by = read_engine(server, api, builds) | {key: value for key, value in (engine or {}).items() if value}
    load = node.load()
    seconds, load_note = load_model(server, wanted) if api == "ollama" else (None, None)
    questions = Questions(wanted.prompts, salt)
    try:
        server.stream(api, wanted.body(api, questions.next(), min(wanted.max_tokens, WARM_UP_TOKENS)))
    except AnswerError as error:
        raise failure(server, wanted.model, "have an answer", str(error)) from None
    for clients in dict.fromkeys(concurrency):
        with Observation(node, load) as seen:
            answers, errors = ask_all(server, api, wanted, questions, clients)
        if not answers:
            raise failure(server, wanted.model, f"have an answer to any of {wanted.requests} requests", errors[0])
        result, counted = figures(answers, len(errors))
        notes = answer_notes(wanted, result, counted, errors)
        if seconds is not None:
            result["load"] = {"value": seconds, "unit": "s"}
        elif load_note:
            notes.append(load_note)
        if not is_own(server.host):
            notes.append("asked over the network: the conditions are those of the node that asked")
        record = {
            "started_at": seen.started_at,
            "kind": "http_generate",
            "engine": by,
            "model": facts,
            "params": {
                "api": api,
                "prompt_tokens": wanted.prompt_tokens,
                "max_tokens": wanted.max_tokens,
                "concurrency": clients,
                "requests": wanted.requests,
                "token_count": counted,
            }
            | ({"extra": wanted.extra} if wanted.extra else {}),
            "result": result,
            "conditions": seen.conditions(notes),
            "duration_s": seen.duration_s,
        }
        yield record, raw_log(server, clients, answers, errors)


def raw_log(server: Server, clients: int, answers: Sequence[Answer], errors: Sequence[str]) -> str:
    """What is kept beside the record: of each answer the times of its chunks, in seconds after the request."""
    lines = [f"# {server.url}, {clients} at once"]
    for answer in answers:
        content = {
            "started": round(answer.started, 6),
            "total": round(answer.total, 6),
            "chunks": [round(arrival - answer.started, 6) for arrival in answer.arrivals],
            "tokens": answer.server_tokens,
            "prompt_tokens": answer.prompt_tokens,
        }
        lines.append(json.dumps(content))
    lines += [json.dumps({"error": error}) for error in errors]
    return "\n".join(lines) + "\n"
