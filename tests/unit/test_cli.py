import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from bramble.cli import app as cli
from bramble.cli.chat import ChatError, ask, choose_model, open_client, printable, rate
from bramble.cli.progress import LiveView, plain_lines, report_end
from bramble.cli.status import NodeFacts, build_report
from bramble.runner import Failure, Host, HostStats, Progress, RunResult, RunStatus, Task, reduce

ROOT = Path(__file__).resolve().parents[2]
URL = "http://gateway:11434"
type Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bramble(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls the command in this process: arguments → exit code, standard output, standard error."""
    monkeypatch.delenv("BRAMBLE_INVENTORY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bramble", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capfd.readouterr()
        code = exit_.value.code
        assert isinstance(code, int | None)
        return code or 0, captured.out, captured.err

    return call


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the real status playbook and an inventory of this machine."""
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "inventory" / "pi").mkdir(parents=True)
    (tmp_path / "site.yml").write_text(
        "- hosts: cluster\n  gather_facts: false\n  tasks:\n    - ansible.builtin.ping:\n"
    )
    for name in ("library", "plugins", "playbooks/status.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "ansible.cfg").write_text((ROOT / "ansible.cfg").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inventory(project: Path, port: int = 9, **more: Any) -> None:
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_host": "127.0.0.1"}
    groups: dict[str, Any] = {
        "cluster": {"hosts": {"pi1": here}},
        "gateway": {"hosts": {"pi1": {"gateway_port": port}}},
        **more,
    }
    (project / "inventory/pi/hosts.yml").write_text(json.dumps({"all": {"children": groups}}))


@contextmanager
def gateway(answers: dict[str, bytes]) -> Iterator[int]:
    """A server on this machine's loopback with one answer per path; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"{}")

        do_POST = do_GET  # noqa: N815 (http.server names it)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ndjson(*objects: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


def piece(text: str) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": text}, "done": False}


END = {"model": "m", "message": {"content": ""}, "done": True, "eval_count": 30, "eval_duration": 2_000_000_000}


# --- Chat


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return open_client(httpx.MockTransport(answer))


def talk(response: httpx.Response | Exception, **options: Any) -> tuple[str, Any]:
    said: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    with client(handle) as http:
        answer = ask(http, URL, "m", "Hello", write=said.append, **options)
    return "".join(said), answer


def test_an_answer_streams_and_is_measured() -> None:
    said, answer = talk(httpx.Response(200, content=ndjson(piece("Black"), piece("berries\x1b[2J"), END)))
    assert said == answer.text == "Blackberries[2J"
    assert (answer.tokens, answer.tokens_per_second, answer.prompt_tokens_per_second) == (30, 15.0, None)


def test_the_request_is_ollamas() -> None:
    seen: list[Any] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, str(request.url), json.loads(request.content)))
        return httpx.Response(200, content=ndjson(END))

    with client(handle) as http:
        ask(http, URL, "m", "Hello", write=str, max_tokens=7)
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    assert seen == [("POST", f"{URL}/api/chat", {**body, "options": {"num_predict": 7}})]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.ConnectError("Connection refused"), "does not answer (Connection refused)"),
        (httpx.UnsupportedProtocol("no protocol"), "is no URL of a gateway"),
        (httpx.Response(404, json={"error": "model 'm' not found"}), "HTTP status 404): model 'm' not found"),
        (httpx.Response(400, json={"error": {"message": "bad", "type": "x"}}), "HTTP status 400): bad"),
        (httpx.Response(502, text="<html>\n</html>"), "HTTP status 502): Bad Gateway"),
        (httpx.Response(200, content=ndjson(piece("a"), {"error": "worker\n died"})), "reports: worker died"),
        (httpx.Response(200, content=ndjson(piece("a"))), "broke off before its end"),
        (httpx.Response(200, content=b""), "broke off before its end"),
        (httpx.Response(200, content=b"<html>"), "does not answer as a gateway does: <html>"),
        (httpx.Response(200, content=b"[1]\n"), "does not answer as a gateway does: [1]"),
    ],
)
def test_whatever_goes_wrong_is_one_line(response: httpx.Response | Exception, message: str) -> None:
    with pytest.raises(ChatError) as error:
        talk(response)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "duration", "expected"), [(30, 2_000_000_000, 15.0), (0, 10, 0.0), (1, 0, None), (None, 5, None)]
)
def test_rate(count: object, duration: object, expected: float | None) -> None:
    assert rate(count, duration) == expected


def test_printable_keeps_text_and_drops_what_steers_a_terminal() -> None:
    assert printable("a\tb\nc é 🫐\x1b]0;x\x07\r\x9b") == "a\tb\nc é 🫐]0;x"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (httpx.Response(200, json={"models": [{"name": "one"}, {"name": "two"}]}), "one"),
        (httpx.Response(200, json={"models": []}), "offers no model yet"),
        (httpx.Response(200, json=[]), "Is the URL right?"),
        (httpx.Response(200, text="hello"), "Is the URL right?"),
        (httpx.Response(500, json={"error": "broken"}), "500): broken"),
    ],
)
def test_choose_model(response: httpx.Response, expected: str) -> None:
    with client(lambda _: response) as http:
        try:
            chosen = choose_model(http, URL)
        except ChatError as error:
            chosen = str(error)
    assert expected in chosen


# --- Progress


def event(kind: str, second: int, **data: Any) -> dict[str, Any]:
    return {"event": kind, "created": f"2026-11-21T02:00:{second:02}+00:00", "event_data": data}


def test_without_a_terminal_only_what_matters_gets_a_line() -> None:
    progress = Progress()
    lines: list[str] = []
    for each in [
        event("playbook_on_play_start", 0, name="Foundation"),
        event("playbook_on_task_start", 0, name="quick and unchanged"),
        event("runner_on_start", 0, host="pi1"),
        event("runner_on_ok", 1, host="pi1", res={}),
        event("playbook_on_task_start", 1, name="changes"),
        event("runner_on_ok", 2, host="pi2", res={"changed": True}),
        event("runner_on_ok", 2, host="pi1", res={"changed": True}),
        event("playbook_on_task_start", 2, name="is slow"),
        event("runner_on_ok", 9, host="pi1", res={}),
        event("playbook_on_task_start", 9, name="fails"),
        event("runner_on_failed", 10, host="pi1", res={"msg": "no"}),
        # No line for a play that was there before, nor for one that no host is left for.
        event("playbook_on_play_start", 10, name="Foundation"),
        event("playbook_on_task_start", 10, name="skipped"),
        event("runner_on_start", 10, host="localhost"),
        event("playbook_on_play_start", 10, name="Engine"),
        event("playbook_on_stats", 10),
    ]:
        after = reduce(progress, each)
        lines += plain_lines(progress, after)
        progress = after
    assert lines == [
        "   0:00  ── Foundation",
        "   0:02  changes: changed pi1, pi2",
        "   0:09  is slow: took 0:07",
        "   0:10  fails: failed on pi1",
    ]


def test_the_live_view_shows_play_task_time_and_hosts() -> None:
    hosts = {"pi1": Host("running", ok=3, changed=1), "pi2": Host("unreachable", failed=1)}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(
            LiveView().draw(Progress(play="Phase 2", task=Task("Build [x]"), hosts=hosts), elapsed=192, task_elapsed=61)
        )
    text = captured.get()
    for expected in ("Phase 2  3:12", "Build [x]  1:01", "running", "ok 3  changed 1  failed 0", "unreachable"):
        assert expected in text


def ended(status: RunStatus, *failures: Failure, output: tuple[str, ...] = ()) -> str:
    stats = {"pi1": HostStats(ok=3, changed=1), "pi2": HostStats(ok=2)}
    root = Path("/project")
    log = root / ".bramble/logs/x.log"
    result = RunResult(
        status, "site.yml", stats, failures, output, 75.0, log, "ansible-playbook -i inventory/pi site.yml"
    )
    stream = StringIO()
    report_end(Console(file=stream, width=40), result, root)
    return stream.getvalue()


def test_a_good_end_is_one_line() -> None:
    assert ended("ok") == "✓ site.yml: 2 hosts, tasks: 5 ok, 1 changed, 1:15  (log: .bramble/logs/x.log)\n"


def test_a_bad_end_names_host_task_place_cause_and_advice() -> None:
    failure = Failure("pi2", "os_base : Install [x]", "/project/roles/a.yml:3", ("one", "No space left on device"))
    assert ended("failed", failure).splitlines() == [
        "✗ pi2: os_base : Install [x]",
        "  at roles/a.yml:3",
        "  one",
        "  No space left on device",
        "What to try",
        "  The disk of pi2 is full. `df -h` there shows which file system; old builds are in /opt, models in "
        "/var/lib/bramble.",
        "  The whole log: .bramble/logs/x.log",
        "  More detail:   ansible-playbook -i inventory/pi site.yml -vv",
    ]


def test_failures_are_sorted_by_host_and_equal_advice_is_joined() -> None:
    text = ended("failed", *(Failure(host, "t", None, ("Connection refused",), True) for host in ("pi3", "pi1", "pi2")))
    assert [line for line in text.splitlines() if line.startswith("✗")] == ["✗ pi1: t", "✗ pi2: t", "✗ pi3: t"]
    assert text.count("does not answer on ssh") == 1
    assert "Each of pi1, pi2 and pi3 does not answer on ssh." in text


def test_an_end_without_a_task_says_what_ansible_said() -> None:
    lines = ended("failed", output=("[WARNING]: w", "[ERROR]: the playbook is odd")).splitlines()
    assert lines[:2] == ["✗ site.yml did not run", "  the playbook is odd"]


def test_an_interrupt_is_no_failure() -> None:
    assert "Interrupted after 1:15" in ended("interrupted")


# --- Commands


def test_every_command_has_help(bramble: Run) -> None:
    commands = ["up", "status", "ask", "demo", "lab up", "lab down", "lab break", "lab mend", "model synth"]
    commands += ["model convert", "model info"]
    for command in commands:
        code, out, _ = bramble(*command.split(), "--help")
        assert code == 0, command
        assert "Usage: bramble" in out, command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "-i", "nowhere"], "The inventory nowhere does not exist"),
        (["lab", "up", "--name", "Lab/../x"], "A lab is named"),
        (["lab", "break", "../pi", "--how", "stop"], "no name of a node"),
        (["lab", "break", "pi1", "--how", "burn"], "burn"),
        (["lab", "break", "pi1"], "--how"),
        (["lab", "up", "--nodes", "0"], "--nodes"),
        (["demo", "--nodes", "1"], "--nodes"),
        (["demo", "--nodes", "13"], "--nodes"),
        (["up", "--tags", "phase1,fase2"], "site.yml has no tag 'fase2'; it has phase1, step_1_1"),
        (["up", "--tags", ""], "site.yml has no tag ''"),
        (["ask"], "Missing argument"),
    ],
)
def test_bad_input_is_refused_with_one_message(bramble: Run, project: Path, arguments: list[str], message: str) -> None:
    code, out, err = bramble(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_a_bad_name_of_a_lab_is_refused_before_the_demo_begins(bramble: Run, project: Path) -> None:
    code, out, err = bramble("demo", "--name", "Lab")
    assert (code, out) == (2, "")
    assert err.startswith("bramble: A lab is named")


def test_version(bramble: Run) -> None:
    code, out, _ = bramble("--version")
    assert code == 0
    assert re.fullmatch(r"bramble \d+\.\d+\.\d+\n", out)


def test_the_tags_that_up_takes_are_those_of_the_site() -> None:
    listed = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", ",", "--list-tags", "site.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {tag for tags in re.findall(r"TAGS: \[(.*)\]", listed) for tag in re.split(r", ?", tags) if tag}
    assert set(cli.TAGS) == found - {"always", "never"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab", "inventory/lab has no hosts.yml: boot the lab first with `make lab-up`."),
        ("lab-two", "inventory/lab-two has no hosts.yml: boot the lab first with `make lab-up LAB=lab-two`."),
        ("mine", "inventory/mine has no hosts.yml: write one, or name another inventory with -i."),
    ],
)
@pytest.mark.parametrize("command", ["up", "status", "ask x"])
def test_an_inventory_without_hosts_is_refused(
    bramble: Run, project: Path, command: str, name: str, message: str
) -> None:
    (project / "inventory" / name / "group_vars").mkdir(parents=True)
    assert bramble(*command.split(), "-i", f"inventory/{name}") == (2, "", f"bramble: {message}\n")


@pytest.mark.parametrize("command", ["status", "ask x"])
@pytest.mark.parametrize("file", ["hosts.yml", "group_vars/all/site.yml"])
def test_an_inventory_that_is_not_filled_in_is_looked_up_nowhere(
    bramble: Run, project: Path, file: str, command: str
) -> None:
    inventory(project)
    path = project / "inventory/pi" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# Replace every CHANGE_ME.\ncluster: {vars: {ansible_user: CHANGE_ME}}\n")
    message = f"inventory/pi/{file} still has CHANGE_ME: run `ansible-playbook playbooks/validate.yml`."
    assert bramble(*command.split()) == (2, "", f"bramble: {message}\n")


def test_a_placeholder_in_a_comment_is_none(project: Path) -> None:
    inventory(project)
    path = project / "inventory/pi/hosts.yml"
    path.write_text("# Replace every CHANGE_ME.\nall: {} # no CHANGE_ME\n")
    cli.refuse_placeholders(project, "inventory/pi")


def test_outside_a_checkout(bramble: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = bramble("status")
    assert code == 2
    assert "not inside a Bramble checkout" in err


@pytest.mark.parametrize(
    ("arguments", "playbook", "extra_vars"),
    [
        (["lab", "up"], "lab_up", {"lab_name": "lab", "lab_nodes": 3}),
        (["lab", "up", "--name", "lab-two", "--nodes", "5"], "lab_up", {"lab_name": "lab-two", "lab_nodes": 5}),
        (["lab", "down"], "lab_down", {"lab_name": "lab"}),
        (
            ["lab", "break", "pi2", "--how", "freeze"],
            "lab_break",
            {"lab_name": "lab", "lab_break_node": "pi2", "lab_break_how": "freeze"},
        ),
        (
            ["lab", "mend", "pi2"],
            "lab_break",
            {"lab_name": "lab", "lab_break_node": "pi2", "lab_break_how": "mend"},
        ),
    ],
)
def test_the_labs_playbooks_get_their_variables(
    bramble: Run, project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], playbook: str, extra_vars: Any
) -> None:
    called: list[Any] = []

    def run_playbook(name: str, **options: Any) -> RunResult:
        called.append((name, options["inventory"], options["extra_vars"], options["root"]))
        return RunResult("ok", name, {}, (), (), 0.0, project / "log", "")

    monkeypatch.setattr(cli, "run_playbook", run_playbook)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, _, err = bramble(*arguments)
    assert code == 0, err
    assert called == [(f"playbooks/{playbook}.yml", ",", extra_vars, project)]


def test_the_labs_playbooks_run_on_this_machine_whatever_the_owners_inventory(
    bramble: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "inventory/pi/hosts.yml").write_text("all: [")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (project / "playbooks/lab_up.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.assert:\n        that: [lab_nodes == 3, lab_name == 'lab']\n"
    )
    code, out, err = bramble("lab", "up")
    assert code == 0, err
    assert out == "The lab's inventory is inventory/lab. Next: bramble up -i inventory/lab\n"


def test_up_runs_the_site_and_says_how_it_ended(bramble: Run, project: Path) -> None:
    inventory(project)
    code, out, err = bramble("up", "--check")
    assert code == 0
    assert out == ""
    assert "✓ site.yml: 1 host, tasks: 1 ok, 0 changed" in err
    assert "--check" in next((project / ".bramble/logs").glob("*.log")).read_text()


def test_up_fails_with_host_task_and_cause(bramble: Run, project: Path) -> None:
    inventory(project)
    (project / "site.yml").write_text(
        "- hosts: cluster\n  gather_facts: false\n  tasks:\n"
        "    - name: Say no\n      ansible.builtin.fail:\n        msg: [first reason, second reason]\n"
    )
    code, _, err = bramble("up")
    assert code == 1
    for line in ("✗ pi1: Say no", "  at site.yml:4", "  first reason", "  second reason", "What to try"):
        assert line in err.splitlines()


def test_status_of_a_cluster_that_is_well(bramble: Run, project: Path) -> None:
    answer = {"version": "9", "backends": [{"name": "b", "last": {"tokens_per_second": 3.25, "at": "2026"}}]}
    with gateway({"/bramble/status": json.dumps(answer).encode()}) as port:
        # The gateway is no node of the cluster: this machine has none of Bramble's services, and need have none.
        inventory(project, gateway={"hosts": {"front": {"ansible_host": "127.0.0.1", "gateway_port": port}}})
        code, out, err = bramble("status", "--json")
    report = json.loads(out)
    assert (code, report["problems"], report["ok"]) == (0, [], True), err
    assert report["last_tokens_per_second"] == 3.25
    assert report["nodes"]["pi1"]["reachable"] is True
    assert report["nodes"]["pi1"]["address"] == "127.0.0.1"


def test_status_names_each_problem_and_a_dead_node_hides_no_other(bramble: Run, project: Path) -> None:
    inventory(project, dead={"hosts": {"pi2": {}}})
    path = project / "inventory/pi/hosts.yml"
    data = json.loads(path.read_text())
    data["all"]["children"]["cluster"]["hosts"]["pi2"] = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    path.write_text(json.dumps(data))
    code, out, err = bramble("status")
    assert code == 1, err
    problems = [line for line in out.splitlines() if line.startswith("✗")]
    assert [problem.split(":")[0] for problem in problems[:2]] == ["✗ pi1", "✗ pi2 (127.0.0.1)"]
    assert problems[2].startswith("✗ The gateway http://127.0.0.1:9 does not answer")
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("text", "message"), [("all: [", "YAML parsing failed"), ("all: {hosts: {x: }}", "no host in the group cluster")]
)
def test_status_that_cannot_look_ends_with_2(bramble: Run, project: Path, text: str, message: str) -> None:
    (project / "inventory/pi/hosts.yml").write_text(text)
    code, out, err = bramble("status", "--json")
    assert code == 2
    assert message in err
    assert out == ""


def test_ask_finds_the_gateway_in_the_inventory(bramble: Run, project: Path) -> None:
    tags = json.dumps({"models": [{"name": "m"}]}).encode()
    with gateway({"/api/tags": tags, "/api/chat": ndjson(piece("Black"), piece("berry"), END)}) as port:
        inventory(project, port)
        code, out, err = bramble("ask", "Which fruit?")
    assert (code, out) == (0, "Blackberry\n")
    assert err.splitlines()[-1] == "m: 30 tokens, 15.0 tokens/s"


def test_ask_says_what_the_gateway_says(bramble: Run) -> None:
    with gateway({"/api/chat": ndjson({"error": "no backend is up"})}) as port:
        code, out, err = bramble("ask", "--url", f"http://127.0.0.1:{port}/", "--model", "m", "x")
    assert (code, out) == (1, "")
    assert err == f"bramble: The gateway http://127.0.0.1:{port} reports: no backend is up\n"


def test_a_question_may_come_in_several_words(bramble: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cli, "ask_gateway", lambda _url, prompt, **_: asked.append(prompt))
    code, _, err = bramble("ask", "--url", URL, "what", "is a", "bramble?", "--max-tokens", "3")
    assert code == 0, err
    assert asked == ["what is a bramble?"]


def test_a_gateway_that_does_not_answer_is_looked_for_where_it_was_named(bramble: Run, project: Path) -> None:
    inventory(project)  # Its gateway is at port 9, where nobody listens.
    code, _, err = bramble("ask", "x")
    assert (code, err.splitlines()[-1].partition("). ")[2]) == (1, "`bramble status` tells why.")
    code, _, err = bramble("ask", "x", "-i", "inventory/pi/hosts.yml")
    assert (code, err.splitlines()[-1].partition("). ")[2]) == (
        1,
        "`bramble status -i inventory/pi/hosts.yml` tells why.",
    )
    code, _, err = bramble("ask", "x", "--url", "http://127.0.0.1:9")
    assert (code, err.partition("). ")[2].startswith("Is the URL right")) == (1, True)
    assert "bramble status" not in err


def test_the_curl_line_is_one_command_for_a_shell() -> None:
    line = cli.curl_line(URL, "it's")
    words = json.loads(
        subprocess.run(
            [
                "sh",
                "-c",
                f'set -- {line}; shift; exec "$PYTHON" -c \'import json,sys; print(json.dumps(sys.argv[1:]))\' "$@"',
            ],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            check=True,
        ).stdout
    )
    assert words[:3] == ["-N", f"{URL}/api/chat", "-d"]
    assert json.loads(words[3])["model"] == "it's"


def test_a_lab_without_root_asks_for_sudo_or_says_so(
    bramble: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "playbooks/lab_down.yml").write_text("[]")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    code, _, err = bramble("lab", "down")
    assert code == 2
    assert "needs root" in err
    assert "There is no sudo here" in err


@pytest.mark.parametrize("model_is_there", [False, True])
def test_the_demo_goes_through_its_steps_and_ends_with_where_to_reach_it(
    bramble: Run, project: Path, monkeypatch: pytest.MonkeyPatch, model_is_there: bool
) -> None:
    steps: list[Any] = []
    if model_is_there:
        (project / cli.DEMO_MODEL).parent.mkdir(parents=True)
        (project / cli.DEMO_MODEL).touch()
        (project / cli.DEMO_MODEL).with_suffix(".json").write_text('{"kv_heads": 3}')

    def run_playbook(name: str, **options: Any) -> RunResult:
        steps.append((name, options["inventory"]))
        return RunResult("ok", name, {}, (), (), 0.0, project / "log", "")

    def synthesize(output: Path, **_: Any) -> None:
        steps.append(("synth", output))

    facts = NodeFacts("10.1.1.1", ("cluster",), {"rpc_head": {"model": "m", "state": "ready", "layers": LAYERS}})
    report = build_report(
        {"pi1": facts}, {"url": URL, "reachable": True, "version": "1", "backends": [], "error": None}
    )
    monkeypatch.setattr(cli, "run_playbook", run_playbook)
    monkeypatch.setattr(cli, "synthesize_model", synthesize)
    monkeypatch.setattr(cli, "look", lambda _, inventory: steps.append(("look", inventory)) or report)
    monkeypatch.setattr(cli, "ask_gateway", lambda url, *_, **options: steps.append(("ask", url)) or options["model"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, out, err = bramble("demo", "--name", "lab-x", "--nodes", "2")
    assert code == 0, err
    expected = [
        ("playbooks/lab_up.yml", ","),
        ("synth", project / cli.DEMO_MODEL),
        ("site.yml", "inventory/lab-x"),
        ("look", "inventory/lab-x"),
        ("ask", URL),
    ]
    assert steps == [step for step in expected if step[0] != "synth" or not model_is_there]
    assert f"Gateway:          {URL}\nLayers per node:  pi1 7, pi2 5\n" in out
    assert cli.curl_line(URL, "m") in out


LAYERS = [{"host": "pi1", "layers": 7, "bytes": 1}, {"host": "pi2", "layers": 5, "bytes": 1}]


def test_a_stand_in_says_what_planning_needs_and_info_says_the_same(bramble: Run, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    code, _, err = bramble("model", "synth", "-o", str(path), "--size", "3M", "--layers", "2", "--quantization", "Q4_0")
    assert (code, err) == (0, "")
    entry = json.loads(path.with_suffix(".json").read_text())
    code, out, _ = bramble("model", "info", str(path), "--json")
    assert code == 0
    shape = json.loads(out)
    for key in (
        "layers",
        "embedding",
        "feed_forward",
        "heads",
        "kv_heads",
        "key_length",
        "vocabulary",
        "tied",
        "bytes",
    ):
        assert entry[key] == shape[key]
    assert entry["family"] == shape["architecture"]

    code, out, _ = bramble("model", "info", str(path))
    assert code == 0
    assert f"output matrix {shape['output_bytes'] / 1e6:.1f}" in " ".join(out.split())
    told = dict(line.strip().split(": ", 1) for line in out.split("model_store_catalogue:")[1].splitlines() if line)
    assert {key: json.loads(value) for key, value in told.items()} == {
        key: value for key, value in entry.items() if key not in ("file", "sha256")
    }


def test_info_of_what_is_no_model(bramble: Run, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("text")
    code, out, err = bramble("model", "info", str(tmp_path / "text.gguf"))
    assert (code, out) == (1, "")
    assert err.startswith(f"bramble: {tmp_path}/text.gguf: not a whole GGUF file")
