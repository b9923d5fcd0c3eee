"""launch.py: reading requirements, and real first starts of a small project whose packages are made on the spot."""

import ast
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# Builds the small project without setuptools, so that no index is asked. `hold` makes the build wait, `full` break.
BACKEND = """
import pathlib, time, zipfile
def get_requires_for_build_editable(config_settings=None):
    return []
def build_editable(directory, config_settings=None, metadata_directory=None):
    if pathlib.Path("hold").exists():
        pathlib.Path("holding").touch()
        time.sleep(600)
    if pathlib.Path("full").exists():
        raise OSError(28, "No space left on device")
    name = "tinymusician-0.1.0-py3-none-any.whl"
    extras = "Provides-Extra: train\\n"
    for extra in ("test", "audiocraft"):
        extras += f"Provides-Extra: {extra}\\nRequires-Dist: tinyextra; extra == '{extra}'\\n"
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as wheel:
        info = "tinymusician-0.1.0.dist-info/"
        wheel.writestr("tinymusician_here.pth", str(pathlib.Path.cwd()))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tinymusician\\nVersion: 0.1.0\\n"
                       + "Requires-Dist: tinybase>=1,<2\\n" + extras)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tinymusician"
version = "0.1.0"
dependencies = [
    "tinybase>=1,<2",
]
[project.optional-dependencies]
train = [
]
test = [
    "tinymusician[train]",
    "tinyextra",
]
audiocraft = [
    "tinyextra",
]
"""
SERVE = """
import tinybase
def serve(host, port, open_browser, output_dir):
    print("serving", tinybase.VALUE, host, port, open_browser, output_dir)
"""


def load_launch():
    spec = importlib.util.spec_from_file_location("launch", REPO / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launch = load_launch()


def make_wheel(folder, name, files, version="1.0", requires=""):
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info/"
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "".join(f"{path},,{len(text)}\n" for path, text in files.items()))


@pytest.fixture
def project(tmp_path):
    """A small project with our launch.py: a runtime package, a test package, a studio that prints its orders."""
    root = tmp_path / "a project"
    (root / "studio").mkdir(parents=True)
    (root / "wheels").mkdir()
    shutil.copy(REPO / "launch.py", root)
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "studio" / "__init__.py").touch()
    (root / "studio" / "app.py").write_text(SERVE)
    make_wheel(root / "wheels", "tinybase", {"tinybase/__init__.py": "VALUE = 42\n", "tinybase/data.txt": "x" * 1000})
    tools = {f"{tool}/__main__.py": f"import sys; print('{tool}', *sys.argv[1:])" for tool in ("ruff", "pytest")}
    make_wheel(root / "wheels", "tinyextra", {f"{tool}/__init__.py": "" for tool in ("ruff", "pytest")} | tools)
    return root


def environment(root, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTEST", "PYTHON"))}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (root / "wheels").as_uri(), "PIP_CONFIG_FILE": os.devnull}
    return kept | offline | {"TINYMUSICIAN_HOME": str(root / "out")} | more


def base_python():
    """The interpreter outside any virtual environment: what a newcomer types as `python`."""
    return getattr(sys, "_base_executable", sys.executable)


def run(root, *arguments, **more):
    """`python launch.py ...` from another folder."""
    command = [base_python(), str(root / "launch.py"), *arguments]
    return subprocess.run(command, cwd="/", env=environment(root, **more), capture_output=True, text=True, timeout=120)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_requirements_are_read_as_toml_has_them():
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    text = (REPO / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    assert launch.read_requirements(text) == {"": project["dependencies"], **project["optional-dependencies"]}


def test_every_requirement_is_understood():
    for extras in ((), ("train",), ("test",), ("audiocraft",)):
        assert all(launch.is_met(requirement) in (True, False) for requirement in launch.wanted(extras))
    assert launch.unmet(("test",)) == []


@pytest.mark.parametrize(
    ("version", "clause", "holds"),
    [
        ("2.11.0+cu130", "==2.11.*", True),
        ("2.110.0", "==2.11.*", False),
        ("2.11", "==2.11.0", True),
        ("5.0.0rc1", ">=5.0", True),
        ("6", "<6", False),
        ("5.99.1", "<6", True),
        ("0.24", ">=0.25.1", False),
    ],
)
def test_versions_compare_by_their_numbers(version, clause, holds):
    assert launch.clause_holds(version, clause) is holds


def test_a_marker_for_a_later_python_asks_for_nothing():
    assert launch.is_met("no-such-package>=1; python_version >= '3.99'")
    assert not launch.is_met("no-such-package>=1; python_version >= '3.1'")


def test_it_parses_on_a_python_that_is_too_old():
    ast.parse((REPO / "launch.py").read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 14, 0)])
def test_a_python_outside_the_range_is_one_sentence(version, monkeypatch, capsys):
    monkeypatch.setattr(launch.sys, "version_info", version)
    assert launch.main([]) == 1
    said = capsys.readouterr().err
    assert f"Python 3.{version[1]} is not supported" in said
    assert said.count("\n") == 1


def test_first_start_installs_and_the_second_does_not(project):
    port = str(free_port())
    first = run(project, "--no-browser", "--port", port)
    assert first.returncode == 0, first.stderr
    assert "Installing collected packages: tinybase" in first.stdout
    assert f"serving 42 127.0.0.1 {port} False {project / 'out'}" in first.stdout
    second = run(project, "--no-browser", "--port", port)
    assert second.stdout == f"serving 42 127.0.0.1 {port} False {project / 'out'}\n"

    tests = run(project, "test", "-k", "launch", "--help")
    assert tests.returncode == 0, tests.stderr
    assert tests.stdout.splitlines()[-2:] == ["ruff check .", "pytest -k launch --help"]
    again = run(project, "test")
    assert again.stdout.splitlines() == ["ruff check .", "pytest"]


def test_tests_first_then_the_studio(project):
    tests = run(project, "test")
    assert tests.returncode == 0, tests.stderr
    studio = run(project, "--port", str(free_port()))
    assert studio.stdout.startswith("serving 42")


def test_audiocraft_goes_in_without_the_old_packages_that_it_pins(project):
    pinned = "Requires-Dist: no-such-package==2.1\n"
    make_wheel(project / "wheels", "audiocraft", {"audiocraft.py": "KEPT = 1\n"}, "1.3.0", pinned)
    port = str(free_port())
    first = run(project, "--with", "audiocraft", "--port", port)
    assert first.returncode == 0, first.stderr
    python = project / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import audiocraft, ruff"]).returncode == 0
    assert "Installing" not in run(project, "--with", "audiocraft", "--port", port).stdout
    assert "Installing" not in run(project, "test").stdout.split("ruff check")[1]


def test_tests_can_ask_for_audiocraft_too(project):
    make_wheel(project / "wheels", "audiocraft", {"audiocraft.py": "KEPT = 1\n"}, "1.3.0")
    tests = run(project, "test", "--with", "audiocraft", "-k", "parity", "--with", "pytest's own")
    assert tests.returncode == 0, tests.stderr
    assert tests.stdout.splitlines()[-2:] == ["ruff check .", "pytest -k parity --with pytest's own"]
    python = project / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import audiocraft, ruff"]).returncode == 0
    before = run(project, "--with", "audiocraft", "test", "-x")
    assert before.stdout.splitlines() == ["ruff check .", "pytest -x"]


def test_the_next_start_mends_a_killed_install(project):
    (project / "hold").touch()
    command = [base_python(), str(project / "launch.py"), "--no-browser", "--port", str(free_port())]
    first = subprocess.Popen(command, env=environment(project), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (project / "holding").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (project / "hold").unlink()
    mended = run(project, "--no-browser", "--port", str(free_port()))
    assert mended.returncode == 0, mended.stderr
    assert "serving 42" in mended.stdout


def test_a_package_cut_off_halfway_is_installed_again(project):
    assert run(project, "--port", str(free_port())).returncode == 0
    stamp = project / ".venv" / "tinymusician.json"
    stamp.write_text(stamp.read_text().replace("true", "false"))
    [data] = project.glob(".venv/lib/python*/site-packages/tinybase/data.txt")
    data.write_text("cut")
    mended = run(project, "--port", str(free_port()))
    assert mended.returncode == 0, mended.stderr
    assert data.read_text() == "x" * 1000


def test_a_venv_killed_before_it_had_pip_is_made_anew(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "tinymusician.json").write_text('{"ready": fal')
    mended = run(project, "--port", str(free_port()))
    assert mended.returncode == 0, mended.stderr


def test_a_folder_of_someone_else_is_left_alone(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "notes.txt").write_text("mine")
    result = run(project, "--port", str(free_port()))
    assert result.returncode == 1
    assert result.stderr.endswith("is no working environment; delete that folder and start again.\n")
    assert (project / ".venv" / "notes.txt").read_text() == "mine"


def test_a_full_disk_and_no_network_are_one_sentence_each(project):
    (project / "full").touch()
    full = run(project, "--port", str(free_port()))
    assert full.returncode == 1
    assert full.stderr.startswith("launch.py: the disk is full")
    assert full.stderr.count("\n") == 1

    (project / "full").unlink()
    index = f"http://127.0.0.1:{free_port()}/simple"
    shutil.move(project / "wheels", project / "hidden")
    unreachable = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": index, "PIP_RETRIES": "1", "PIP_FIND_LINKS": ""}
    cut_off = run(project, "--port", str(free_port()), **unreachable)
    assert cut_off.returncode == 1
    assert cut_off.stderr.startswith("launch.py: the package index cannot be reached")
    assert cut_off.stderr.count("\n") == 1

    shutil.move(project / "hidden", project / "wheels")
    assert run(project, "--port", str(free_port())).returncode == 0


def test_a_busy_port_is_one_sentence_before_anything_is_installed(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(project, "--port", str(port))
    assert result.returncode == 1
    assert result.stderr.startswith(f"launch.py: cannot serve on 127.0.0.1:{port} (")
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    "arguments", [["--port", "99999"], ["--port", "abc"], ["tset"], ["--with", "fairseq"], ["test", "--with", "x"]]
)
def test_a_wrong_argument_exits_2_with_one_sentence(project, arguments):
    result = run(project, *arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert arguments[-1] in result.stderr


def test_help_needs_no_environment(project):
    result = run(project, "--help")
    assert result.returncode == 0
    assert "--no-browser" in result.stdout
    assert not (project / ".venv").exists()
