#!/usr/bin/env python3
"""Start TinyMusician: `python launch.py` opens the studio, `python launch.py test` runs the checks.

Needs only the standard library. Where the packages of pyproject.toml are there, it uses them; where they are not, it
makes `.venv` beside this file, installs them with visible progress and starts again inside. A stamp in `.venv` makes
every later start immediate, and tells an install that was cut off: the next start then mends what is damaged.
(One file on its own, however long: nothing else can be imported before the environment is there.)
"""

import argparse
import contextlib
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "tinymusician.json"
OLDEST, NEWEST = (3, 10), (3, 13)
AUDIOCRAFT = "audiocraft==1.3.0"
NEEDED_BYTES = 2 * 10**9


class Problem(Exception):
    """Something the user has to know, in one sentence."""


# ---- what is needed, and what is there -------------------------------------------------------------------------------


def read_requirements(text):
    """pyproject.toml's text, one quoted requirement a line -> {"": those of the runtime, extra: its own}."""
    lists, section, current = {}, "", None
    for line in map(str.strip, text.splitlines()):
        if current is None and line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
        elif current is None and line.endswith("= ["):
            key = line.split("=")[0].strip()
            if section == "project" and key == "dependencies":
                current = lists.setdefault("", [])
            elif section == "project.optional-dependencies":
                current = lists.setdefault(key, [])
        elif line == "]":
            current = None
        elif current is not None and line.startswith('"'):
            current.append(line.split('"')[1])
    return lists


def wanted(extras):
    """Every requirement of the runtime and of `extras`; "tinymusician[train]" stands for the list of that extra."""
    lists = read_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = []
    for requirement in lists[""] + [item for extra in extras for item in lists[extra]]:
        inner = re.fullmatch(r"tinymusician\[(\w+)\]", requirement)
        found += lists[inner.group(1)] if inner else [requirement]
    return found + ([AUDIOCRAFT] if "audiocraft" in extras else [])


def release(version):
    """The numbers of a version: "2.11.0+cpu" -> (2, 11, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))


def clause_holds(version, clause):
    """Whether a version meets one clause: ==X, ==X.*, >=X or <X, compared by their release numbers."""
    operator, bound = re.fullmatch(r"(==|>=|<)\s*([\w.]+(?:\.\*)?)", clause.strip()).groups()
    have, need = release(version), release(bound.replace(".*", ""))
    if bound.endswith(".*"):
        return have[: len(need)] == need
    width = max(len(have), len(need))
    have, need = (numbers + (0,) * (width - len(numbers)) for numbers in (have, need))
    return {"==": have == need, ">=": have >= need, "<": have < need}[operator]


def is_met(requirement):
    """Whether the running interpreter has a requirement such as "numpy>=2.1,<3; python_version >= '3.13'"."""
    spec, _, marker = requirement.partition(";")
    since = re.search(r"python_version >= '([\d.]+)'", marker)
    if since and sys.version_info[:2] < release(since.group(1)):
        return True
    name, clauses = re.fullmatch(r"([\w.-]+)\s*(.*)", spec.strip()).groups()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return all(clause_holds(version, clause) for clause in clauses.split(",") if clause)


def unmet(extras):
    """The requirements that the running interpreter lacks."""
    return [requirement for requirement in wanted(extras) if not is_met(requirement)]


# ---- the environment -------------------------------------------------------------------------------------------------


def read_stamp():
    """What `.venv` says about itself: {"ready": bool, "extras": [...]}, or {} where it is missing or not ours."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        return {"ready": False, "extras": []}
    return stamp if VENV_PYTHON.exists() else {**stamp, "ready": False}


def write_stamp(ready, extras):
    """Say whether `.venv` is whole, in one step, so that a cut-off write cannot pass for a finished install."""
    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps({"ready": ready, "extras": extras}), encoding="utf-8")
    os.replace(str(new), str(STAMP))


def site_packages():
    """The folders in which the packages of `.venv` lie."""
    return [*VENV.glob("lib/python*/site-packages"), *VENV.glob("Lib/site-packages")]


def is_whole(dist_info):
    """Whether every file that an installed package recorded is there in its full size."""
    try:
        with open(dist_info / "RECORD", newline="", encoding="utf-8") as record:
            sizes = [(dist_info.parent / row[0], row[2]) for row in csv.reader(record) if len(row) == 3 and row[2]]
        return (dist_info / "INSTALLER").exists() and all(path.stat().st_size == int(size) for path, size in sizes)
    except (OSError, ValueError):
        return False


def remove_damaged():
    """After an install that was cut off: forget packages that are not whole, so that pip puts them in again."""
    for site in site_packages():
        damaged = [info for info in site.glob("*.dist-info") if not is_whole(info)]
        for path in [*site.glob("~*"), *damaged]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def has_pip():
    """Whether `.venv` runs and its pip is whole."""
    if not any(is_whole(info) for site in site_packages() for info in site.glob("pip-*.dist-info")):
        return False
    try:
        return subprocess.run([str(VENV_PYTHON), "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def make_venv():
    """Make `.venv`, mend it, or make it anew where that is hopeless; a broken one that is not ours is left alone."""
    ours = bool(read_stamp())
    if VENV.exists() and has_pip():
        if ours:
            remove_damaged()
        return
    if VENV.exists() and any(VENV.iterdir()) and not ours:
        raise Problem(f"{VENV} is no working environment; delete that folder and start again.")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    write_stamp(False, [])
    base = getattr(sys, "_base_executable", None) or sys.executable
    made = subprocess.run([base, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0 and "ensurepip" in made.stdout + made.stderr:
        raise Problem("this Python cannot make environments; install its venv package (Debian: python3-venv).")
    if made.returncode != 0:
        raise Problem(explain(made.stdout + made.stderr))


def explain(said):
    """The complaint of pip or venv -> one sentence that says what to do."""
    if re.search(r"No space left|Errno 28|not enough space|[Qq]uota exceeded", said):
        return f"the disk is full: installing takes about 6 GB in {ROOT} and in the temporary folder."
    if re.search(r"Connection|Max retries|name resolution|ProxyError|timed out|SSLError|getaddrinfo", said):
        return "the package index cannot be reached; check the network and start again, what is there is kept."
    errors = [line for line in said.splitlines() if "error" in line.lower()] or ["no reason given"]
    return f"the packages could not be installed ({errors[-1].strip().rstrip('.')})."


def pip_install(python, *what, lock=None):
    """Run pip with its progress in sight; its complaints become one sentence."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *what]
    keep = () if lock is None else (lock,)
    environment = dict(os.environ, PIP_USER="0")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=environment, pass_fds=keep) as pip:
        try:
            said = pip.stderr.read().decode("utf-8", "replace")
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode != 0:
        raise Problem(explain(said))


@contextlib.contextmanager
def only_one():
    """Hold a lock that lasts as long as we, or a pip that outlives us; wait while another start installs (POSIX)."""
    if os.name == "nt":
        yield None
        return
    import fcntl

    with open(__file__, "rb") as this:
        try:
            fcntl.flock(this, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another start is installing into .venv; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(this, fcntl.LOCK_EX)
        yield this.fileno()


def fill_venv(extras):
    """Make or mend `.venv` and install the project with its extras; stamp it when everything is in."""
    before = read_stamp()
    with only_one() as lock:
        stamp = read_stamp()
        if stamp.get("ready") and stamp != before:
            return
        free = shutil.disk_usage(ROOT).free
        if not stamp and free < NEEDED_BYTES:
            raise Problem(f"the disk is full: {free / 1e9:.1f} GB free in {ROOT}, about 6 GB needed.")
        every = sorted({*extras, *stamp.get("extras", [])})
        print(f"TinyMusician: installing its packages into {VENV} (several GB on Linux, once).", flush=True)
        make_venv()
        write_stamp(False, every)
        pip_install(VENV_PYTHON, "-e", f".[{','.join(every)}]" if every else ".", lock=lock)
        if "audiocraft" in every:
            pip_install(VENV_PYTHON, "--no-deps", AUDIOCRAFT, lock=lock)
        write_stamp(True, every)


def extend_own(extras):
    """Put the missing extras into the user's own virtual environment, which has the runtime already."""
    print(f"TinyMusician: adding {', '.join(extras)} to {sys.prefix}.", flush=True)
    pip_install(sys.executable, *[requirement for requirement in unmet(extras) if requirement != AUDIOCRAFT])
    if "audiocraft" in extras:
        pip_install(sys.executable, "--no-deps", AUDIOCRAFT)


def prepare(extras):
    """The interpreter to go on with: this one when it has what is needed, else that of `.venv`, made or mended."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        if unmet(extras) or read_stamp().get("ready") is False:
            fill_venv(extras)
        if unmet(extras):
            raise Problem(f"{unmet(extras)[0]} is still missing; delete {VENV} and start again.")
        return sys.executable
    if not unmet(extras):
        return sys.executable
    if sys.prefix != sys.base_prefix and not unmet(()) and importlib.util.find_spec("pip"):
        extend_own(extras)
        return sys.executable
    if not read_stamp().get("ready"):
        fill_venv(extras)
    return str(VENV_PYTHON)


# ---- what it starts --------------------------------------------------------------------------------------------------


def check_python():
    """Refuse a Python outside the range that the packages support."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
        there = next((name for name in names if shutil.which(name)), "one of them")
        got = ".".join(map(str, sys.version_info[:2]))
        raise Problem(f"Python {got} is not supported, 3.10 to 3.13 are; start with {there}.")


def check_port(host, port):
    """Refuse a port that another program holds, before anything heavy starts."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise Problem(f"there is no host {host!r}; 127.0.0.1 is this machine, 0.0.0.0 all its networks.") from None
    except OSError as error:
        raise Problem(f"cannot serve on {host}:{port} ({error.strerror}); choose another with --port.") from None


def run_tests(arguments):
    """ruff, then pytest; the first exit code that is not 0, else 0."""
    # The tests run several programs side by side, where threads that spin while they wait bring all to a crawl.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    commands = (["ruff", "check", "."], ["pytest", *arguments])
    lint, tests = [subprocess.call([sys.executable, "-m", *call], cwd=ROOT, env=environment) for call in commands]
    return lint or tests


def open_studio(options):
    """Serve the studio until it is stopped."""
    output = Path(os.environ.get("TINYMUSICIAN_HOME") or Path.home() / "TinyMusician").expanduser()
    output.mkdir(parents=True, exist_ok=True)
    try:
        from studio.app import serve
    except ImportError as error:
        raise Problem(f"a package is damaged ({error}); delete {VENV} and start again.") from error
    try:
        serve(host=options.host, port=options.port, open_browser=not options.no_browser, output_dir=output)
    except RuntimeError as error:
        raise Problem(f"the studio stopped: {error}") from error
    return 0


def port_number(text):
    """argparse type: a port from 1 to 65535."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"port is {text!r}; a number from 1 to 65535 is allowed")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence."""

    def error(self, message):
        self.exit(2, f"launch.py: {message} (see --help)\n")


def read_arguments(argv):
    """The command line; what follows `test` goes to pytest as it is, but for a `--with EXTRA` right after it."""
    parser = Parser(prog="launch.py", description="Open the TinyMusician studio; the first start installs it.")
    parser.add_argument("command", nargs="?", choices=["test"], help="ruff and the tests; pytest's arguments follow")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=7860, help="port to serve on (default 7860)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    parser.add_argument("--with", dest="extra", choices=["audiocraft"], help="install AudioCraft beside the packages")
    end = argv.index("test") + 1 if "test" in argv else len(argv)
    if argv[end : end + 1] == ["--with"]:
        end += 2
    options = parser.parse_args(argv[:end])
    options.pytest_arguments = argv[end:]
    return options


def start_again(python, argv):
    """The same command inside the environment."""
    command = [python, str(ROOT / "launch.py"), *argv]
    sys.stdout.flush()
    if os.name == "nt":
        return subprocess.call(command)
    return os.execv(python, command)


def start(argv):
    """Prepare the environment and do what the command line says; returns the exit code."""
    check_python()
    options = read_arguments(argv)
    if options.command is None:
        check_port(options.host, options.port)
    extras = [extra for extra in (options.command, options.extra) if extra]
    python = prepare(extras)
    if python != sys.executable:
        return start_again(python, argv)
    return run_tests(options.pytest_arguments) if options.command else open_studio(options)


def main(argv):
    """Returns the exit code: 1 for a failure with its sentence on standard error, 130 when stopped."""
    try:
        return start(argv)
    except Problem as problem:
        print(f"launch.py: {problem}", file=sys.stderr)
    except OSError as error:
        print(f"launch.py: {error.filename or ROOT}: {error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("launch.py: stopped.", file=sys.stderr)
        return 130
    return 1


def on_terminate(*_):
    """SIGTERM stops like Ctrl-C, so that a running pip is ended too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_terminate)
    sys.exit(main(sys.argv[1:]))
