"""Bundles: made here, moved, and used by C hosts in a place with no Python and nothing of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lib_mlx.bundle import binaries, bundle, check, create
from lib_mlx.bundle.packages import FOR_OTHER_TOKENIZERS, FOR_TERMINALS, own_files
from lib_mlx.errors import InvalidArgument, ModelNotFound, UnsupportedFeature
from tests.abi.conftest import SOURCES, compile_c, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lib_mlx.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="made on Linux only")]

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ("libc", "libm", "libdl", "libpthread", "librt", "libutil", "libresolv", "libgcc_s", "libstdc++")


@pytest.fixture(scope="module")
def made(library: Path, crafted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle with a model, made where a link leads to and moved to another place with an unkind name."""
    assert library.is_file()
    folder = tmp_path_factory.mktemp("bundles")
    model = folder / crafted.name
    shutil.copytree(crafted, model)
    (folder / "further").mkdir()
    (folder / "further" / "notes.txt").touch()
    (model / "linked").symlink_to("../further")
    (model / "linked" / "round").symlink_to(model)
    (folder / "link").symlink_to("first")
    built = create(folder / "link", model=str(model))
    assert built.path == folder / "first"
    moved = folder / "moved é" / "My App"
    moved.parent.mkdir()
    built.path.rename(moved)
    yield bundle.Bundle(moved, built.bytes, built.parts_bytes, moved / "models" / crafted.name)
    shutil.rmtree(folder)


def test_it_is_whole_and_works(made: Bundle) -> None:
    """Its own check finds nothing wrong, after it was moved."""
    assert check(made.path) == []


def test_its_model(made: Bundle, crafted: Path) -> None:
    """All of the model's files are there, also those of folders that are links."""
    assert made.model is not None
    copied = {str(file.relative_to(made.model)) for file in made.model.rglob("*") if file.is_file()}
    assert copied == {"linked/notes.txt", *(file.name for file in crafted.iterdir())}


def test_its_size(made: Bundle) -> None:
    """It is smaller than twice the sum of its parts, and smaller than 300 MB without the model."""
    assert made.bytes < 2 * made.parts_bytes
    assert made.bytes < 300e6


def test_nothing_of_this_machine_is_in_it(made: Bundle) -> None:
    """No file holds a path of the Python, the environment or the checkout it was made from; there are no links."""
    traces = {path for path in (sys.prefix, sys.base_prefix, str(ROOT)) if path not in {"/usr", "/usr/local"}}
    traces |= {os.path.realpath(path) for path in traces}
    found = [
        str(file)
        for file in made.path.rglob("*")
        if file.is_file() and any(trace.encode() in file.read_bytes() for trace in traces)
    ]
    assert found == []
    assert not [path for path in made.path.rglob("*") if path.is_symlink()]


def test_its_packages_are_those_it_needs(made: Bundle) -> None:
    """Nothing for terminals, tests or other models' tokenizers; what is listed is there."""
    manifest = json.loads((made.path / bundle.MANIFEST).read_text())
    packages = {name.lower().replace("_", "-") for name in manifest["packages"]}
    assert {"mlx", "mlx-lm", "numpy", "starlette", "lib-mlx"} <= packages
    assert not packages & {*FOR_TERMINALS, *FOR_OTHER_TOKENIZERS, "pytest", "ruff", "openai", "mlx-vlm", "pip"}
    site = next(made.path.glob("python/lib/python3*/site-packages"))
    assert not [path for path in site.rglob("*") if path.name in {"transformers", "pytest", "tests"}]


@pytest.fixture(scope="module")
def bare(made: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with the bundle, C hosts, the C and C++ libraries, and nothing else: no Python, no shell."""
    root = tmp_path_factory.mktemp("root")
    libraries = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name, path in re.findall(r"^\s*(\S+?)\.so\S* \(libc6,x86-64\) => (\S+)", libraries, re.MULTILINE):
        if name in SYSTEM or name.startswith("ld-linux"):
            target = root / "lib" / Path(path).name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    (root / "lib64").symlink_to("lib")
    for folder in ("proc", "dev", "tmp"):
        (root / folder).mkdir()
    for name in ("life", "isolated", "version"):
        flags = [f"-L{made.path / 'lib_mlx'}", "-llib_mlx", "-Wl,-rpath,$ORIGIN/app/lib_mlx", "-pthread", "-ldl"]
        compile_c(SOURCES / f"{name}.c", root / name, "-std=c11", "-D_GNU_SOURCE", *flags)
    shutil.copytree(made.path, root / "app", copy_function=os.link)
    return root


def in_root(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `root` as the root directory, without any environment."""
    mounts = f"mount --bind /proc '{root}/proc' && mount --bind /dev '{root}/dev'"
    script = f'{mounts} && exec env -i "$(command -v chroot)" \'{root}\' "$@"'
    return run(["unshare", "-m", "sh", "-ec", script, "sh", *command])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the root directory")
@pytest.mark.parametrize(
    "command",
    [
        ("/version",),
        ("/life", "/app/models/{model}"),
        ("/life", "/app/models/{model}", '"isolation": "process",'),
        ("/isolated", "/app/models/{model}"),
    ],
    ids=["version", "life", "isolated life", "a death"],
)
def test_c_hosts_where_there_is_no_python(bare: Path, made: Bundle, command: tuple[str, ...]) -> None:
    """C hosts load, serve, suspend, unload, also in isolation, in a root directory without Python."""
    assert made.model is not None
    done = in_root(bare, *(part.format(model=made.model.name) for part in command))
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    if command == ("/version",):
        assert '"python_version": "3.' in done.stdout


def test_what_is_wrong_is_named(made: Bundle, tmp_path: Path) -> None:
    """A missing, changed or added file, a library that is not there, a run path of this machine: each is told."""
    copy = tmp_path / "copy"
    shutil.copytree(made.path, copy, copy_function=os.link)
    (copy / "lib_mlx/abi.py").unlink()
    header = copy / "lib_mlx/include/lib_mlx.h"
    content = header.read_text()
    header.unlink()
    header.write_text(content + "\n")
    (copy / "extra").touch()
    (copy / "python/lib/libz.so.1").unlink()
    faults = "\n".join(check(copy))
    for part in ("abi.py is missing", "lib_mlx.h was changed", "extra was added", "needs libz.so.1"):
        assert part in faults
    backend = next((copy / "lib_mlx").glob("_backend*"))
    shutil.copy(backend, tmp_path / "backend")
    backend.unlink()
    shutil.copy(tmp_path / "backend", backend)
    binaries._patchelf("--set-rpath", "/somewhere/else", str(backend))
    assert f"lib_mlx/{backend.name} has the run path /somewhere/else" in check(copy)


def test_a_library_without_its_backend(made: Bundle, tmp_path: Path) -> None:
    """None is made without the backend of its Python; a check, which calls the library, would tell."""
    with pytest.raises(UnsupportedFeature, match="_backend_cp399"):
        list(own_files("_backend_cp399.so"))
    copy = tmp_path / "copy"
    shutil.copytree(made.path, copy, copy_function=os.link)
    backend = next((copy / "lib_mlx").glob("_backend*"))
    backend.unlink()
    manifest = json.loads((copy / bundle.MANIFEST).read_text())
    del manifest["files"][f"lib_mlx/{backend.name}"]
    (copy / bundle.MANIFEST).unlink()
    (copy / bundle.MANIFEST).write_text(json.dumps(manifest))
    assert [fault for fault in check(copy) if fault.startswith("liblib_mlx.so answers")]


def test_bad_requests(tmp_path: Path, crafted: Path) -> None:
    """A folder with something in it is left alone; a model that is not there is an error; nothing is left behind."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InvalidArgument, match="there already"):
        create(tmp_path / "full")
    with pytest.raises(ModelNotFound):
        create(tmp_path / "new", model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFound):
        create(tmp_path / "far" / "away", model=str(tmp_path / "nowhere"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_place_in_what_is_copied(tmp_path: Path, crafted: Path) -> None:
    """A folder in the model's, the package's or Python's own is refused: the bundle would hold itself."""
    model = tmp_path / "model"
    shutil.copytree(crafted, model)
    before = sorted(path.name for path in model.iterdir())
    for folder in (model, ROOT / "lib_mlx", Path(json.__file__).parent):
        with pytest.raises(InvalidArgument, match="which it is to hold"):
            create(folder / "app", model=str(model))
    assert sorted(path.name for path in model.iterdir()) == before


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}", '{"files": 1}', '{"files": [1]}', "\xff"])
def test_what_is_no_bundle(tmp_path: Path, manifest: str | None) -> None:
    """A folder without a list of files is named as what it is not."""
    if manifest is not None:
        (tmp_path / bundle.MANIFEST).write_text(manifest, "latin-1")
    with pytest.raises(InvalidArgument, match="is no bundle"):
        check(tmp_path)


def test_an_interrupt(tmp_path: Path) -> None:
    """Ctrl-C in the midst of it leaves nothing behind, nor the folders that were made on the way."""
    command = [sys.executable, "-c", "from lib_mlx.cli import main; main()", "bundle", tmp_path / "far" / "away"]
    for stage in ("copying", "relocatable", "compiling"):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as making:
            assert making.stderr is not None
            assert any(stage in line for line in making.stderr)
            time.sleep(0.3)
            os.killpg(making.pid, signal.SIGINT)
            assert making.wait(30) == 130
        assert list(tmp_path.iterdir()) == []


def test_the_command(crafted: Path, tmp_path: Path) -> None:
    """`lib-mlx bundle` makes and checks; what it makes is one folder; a fault ends the check with status 1."""
    command = [Path(sys.executable).with_name("lib-mlx"), "bundle", tmp_path / "MyApp"]
    made = run([*command, "--model", crafted])
    assert made.returncode == 0, made.stderr
    assert re.search(r"MyApp: \d+ MB, 1\.\d\d times its parts", made.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["MyApp"]
    checked = run([*command, "--check"])
    assert (checked.returncode, "is whole and works" in checked.stdout) == (0, True), checked.stderr
    (tmp_path / "MyApp/lib_mlx/abi.py").unlink()
    broken = run([*command, "--check"])
    assert (broken.returncode, broken.stderr) == (1, "lib_mlx/abi.py is missing\n")
    shutil.rmtree(tmp_path / "MyApp")
