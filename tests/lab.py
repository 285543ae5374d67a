"""A lab's nodes for tests: their addresses, a shell on each, and playbooks run on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import testinfra
import yaml
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
HOSTS = {"lab-roles": ["pi1", "pi2"], "lab-cluster": ["pi1", "pi2", "pi3"]}


class Lab:
    """One lab. Its name is its inventory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inventory = f"inventory/{name}"
        self.state = ROOT / ".bramble" / "labs" / name

    @cache  # noqa: B019 (two labs a run at most)
    def variables(self, host: str) -> dict[str, Any]:
        """What the inventory says of a host."""
        done = run(str(BIN / "ansible-inventory"), "-i", self.inventory, "--host", host)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def address(self, host: str) -> str:
        return str(self.variables(host)["ansible_host"])

    def host(self, name: str) -> Host:
        """testinfra's view of a node, by ssh as users have it."""
        config = self.state / "ssh_config"
        config.write_text(
            f"Host *\n User pi\n IdentityFile {self.state}/id_ed25519\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {self.state}/known_hosts\n StrictHostKeyChecking yes\n"
        )
        return testinfra.get_host(f"ssh://{self.address(name)}", ssh_config=str(config), timeout=15)

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*sudo(), str(ROOT / "lab/podman"), *arguments)

    def shell(self, node: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command as root in a node, past its firewall and sshd."""
        return run(
            *sudo(), str(ROOT / "lab/podman"), "exec", f"{self.name}-{node}", "sh", "-c", command, timeout=timeout
        )

    def break_(self, how: str, node: str) -> None:
        """stop, freeze, cut or mend a node, or put its emulated hardware at fault (lab/break.sh)."""
        done = run(*sudo(), str(ROOT / "lab/break.sh"), how, f"{self.name}-{node}")
        assert done.returncode == 0, done.stderr

    def wait_until_up(self, *nodes: str, timeout: float = 90) -> None:
        """Wait for nodes that may be about to reboot, or be coming back: up, in the same boot, three times in a row."""
        end = time.monotonic() + timeout
        ask = "stat -c %Y /proc/1; systemctl is-system-running"
        seen: list[str] = []
        while len(seen) < 3:
            assert time.monotonic() < end, f"{nodes} are not up after {timeout:.0f} s: {seen}"
            told = [self.shell(node, f"test ! -e /run/nologin && ss -Hltn sport = :22 && {ask}") for node in nodes]
            now = "".join(one.stdout for one in told)
            up = all(re.search(r"LISTEN[^\0]*^(running|degraded)$", one.stdout, re.MULTILINE) for one in told)
            seen = [*seen, now] if up and seen[-1:] in ([], [now]) else [now] if up else []
            time.sleep(0.5)

    def play(self, playbook: str, *arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """ansible-playbook on this lab."""
        return run(str(BIN / "ansible-playbook"), "-i", self.inventory, playbook, *arguments, timeout=timeout)

    def bramble(self, *arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        """The bramble command on this lab's inventory."""
        return run(str(BIN / "bramble"), *arguments, "-i", self.inventory, timeout=timeout)

    def declare(self, hosts: Mapping[str, Any]) -> None:
        """Writes the inventory's hosts.yml."""
        (ROOT / self.inventory / "hosts.yml").write_text(yaml.safe_dump(dict(hosts), sort_keys=False))


@contextmanager
def other_inventory(lab: Lab, name: str) -> Iterator[Lab]:
    """The same nodes by another inventory, `<the lab's>-<name>`, with variables and records of the lab's own, and no
    hosts yet. It is left there when it ends, without the links and without a plan."""
    other = Lab(lab.name)
    other.inventory = f"{lab.inventory}-{name}"
    directory = ROOT / other.inventory
    directory.mkdir(exist_ok=True)
    links = {
        directory / "group_vars": "../lab/group_vars",
        directory / "measured": f"../{lab.name}/measured",
        # The lab's variables look for the lab's files by the inventory's name.
        ROOT / ".bramble/labs" / directory.name: lab.name,
    }
    for link, target in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    for file in ("measured.yml", "planned.yml"):
        (directory / file).write_text((ROOT / "inventory/lab" / file).read_text())
    try:
        yield other
    finally:
        for path in (*links, directory / "plan.json"):
            path.unlink(missing_ok=True)


class Asker(threading.Thread):
    """Somebody who asks the gateway again and again while others change the cluster.

    `answers`: status (0: none came), Retry-After and text of each."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.model = model
        self.over = threading.Event()
        self.answers: list[tuple[int, str | None, str]] = []
        self.slowest = 0.0

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.ask()

    def ask(self) -> None:
        options = {"num_predict": 4}
        body = json.dumps({"model": self.model, "prompt": "Hello", "stream": False, "options": options}).encode()
        request = urllib.request.Request(f"{self.url}/api/generate", body, {"Content-Type": "application/json"})
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                self.answers.append((answer.status, None, answer.read().decode()))
        except urllib.error.HTTPError as error:
            self.answers.append((error.code, error.headers.get("Retry-After"), error.read().decode()))
        except OSError as error:
            self.answers.append((0, None, str(error)))
        self.slowest = max(self.slowest, time.monotonic() - began)

    def end(self) -> None:
        """Stops, and sees that nobody got anything but an answer or an error that says when to try again."""
        self.over.set()
        self.join(150)
        assert not self.is_alive()
        for code, retry, text in self.answers:
            assert code == 200 or (code in (502, 503) and retry and json.loads(text)["error"]), (code, retry, text)
        counts = {code: sum(code == one for one, _, _ in self.answers) for code, _, _ in self.answers}
        print(f"{len(self.answers)} requests meanwhile: {counts}; the slowest took {self.slowest:.1f} s")
        assert counts.get(200, 0) >= 2


def sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def run(*command: str, timeout: float = 300, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002
    """A command in the checkout, with the virtual environment's programs first. Without `input` nobody can be asked."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "plugins/callback"),
    }
    told: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False, **told
    )


def recap(output: str) -> dict[str, dict[str, int]]:
    """The recap of a run: host → counts. Fails if there is none: a run that did nothing proves nothing."""
    found = {}
    for line in output.partition("PLAY RECAP")[2].splitlines():
        host, _, counts = line.partition(":")
        if "ok=" in counts:
            found[host.strip()] = {
                key: int(value) for key, value in (word.split("=") for word in counts.split() if "=" in word)
            }
    assert found, output[-2000:]
    assert all(counts["ok"] > 0 or counts["unreachable"] > 0 for counts in found.values()), found
    return found
