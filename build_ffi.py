"""Builds the native library into lib_mlx/: by hand (`python build_ffi.py [DIRECTORY]`) and as hatchling's build hook.

What comes out: `liblib_mlx.so` (`.dylib`), the C library that hosts link, which knows no Python, and on Linux
`liblib_mlx.so.1`, its name at run time; `_backend_cpXY.so`, which it loads, for the Python version that runs this
script (run it with several versions to serve them all); on Linux `_cpu.so`, which makes MLX fast on the CPU; and the
headers, a pkg-config file and a CMake package.

They are compiled here by plain compiler calls. cffi only generates C: its own build steps would link libpython
and, under pyenv, put the build machine's library directory into the run path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as _BuildHook
except ImportError:  # run by hand with cffi alone
    _BuildHook = object  # type: ignore[assignment,misc]  # stands in for a base class

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "native"
INCLUDE = ROOT / "include"
PACKAGING = ROOT / "packaging"
PACKAGE = ROOT / "lib_mlx"

DARWIN = sys.platform == "darwin"
SUFFIX = ".dylib" if DARWIN else ".so"
FRONT = f"liblib_mlx{SUFFIX}"
HEADER = INCLUDE / "lib_mlx.h"
VERSION, ABI = re.findall(r"#define LIB_MLX_(?:ABI_)?VERSION \"?([\d.]+)", HEADER.read_text())
VERSIONED = f"{FRONT}.{ABI}"  # Mach-O keeps the ABI's version inside the file instead of its name
BACKEND = f"_backend_cp{sys.version_info.major}{sys.version_info.minor}.so"
CPU = "_cpu.so"
HAS_CPU = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}

FRONT_SOURCES = ("front.c", "loader.c", "python_home.c", "paths.c", "status_table.c", "threads.c", "answer.c")
BACKEND_SOURCES = ("backend.c", "interpreter.c", "threads.c", "answer.c")
CPU_SOURCES = ("blas.c", "dequantize.c", "paths.c", "standins.c")
# kernels.c is compiled for each level of instructions; standins.c picks one at run time.
KERNEL_FLAGS = ("-O3", "-ffp-contract=fast")
KERNEL_LEVELS = {"baseline": ()} | (
    {
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
    }
    if platform.machine() == "x86_64"
    else {}
)

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c11")
FLAGS = ("-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-D_GNU_SOURCE", "-D_DARWIN_C_SOURCE")

# What attach.py may use; everything else in the backend is plain C.
CDEF = """
    extern "Python+C" char *lm_dispatch(int operation, int64_t handle, char *json);
    extern const int lm_backend_abi;
    extern int lm_owns_python;
    extern const char *lm_library;
    void lm_publish(int64_t handle, const char *json);
    void lm_model_ready(void);
    void lm_attach_failed(const char *message);
    char *strdup(const char *text);
"""


def main(directory: Path = PACKAGE, extra_flags: tuple[str, ...] = ()) -> list[Path]:
    """Build whatever in `directory` is missing or was built from other sources or settings; return all files."""
    directory.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint(extra_flags)
    names = [FRONT, BACKEND, *([] if DARWIN else [VERSIONED]), *([CPU] if HAS_CPU else [])]
    outputs = [directory / name for name in names]
    if not all(_is_current(output, fingerprint) for output in outputs):
        with tempfile.TemporaryDirectory() as scratch:
            build = _Build(Path(scratch), extra_flags)
            build.write_header(fingerprint)
            files = [build.front(), build.backend()]
            files += [] if DARWIN else [build.versioned()]
            files += [build.cpu()] if HAS_CPU else []
            for output, made in zip(outputs, files, strict=True):
                _install(made.read_bytes(), output, 0o755)
    return [*outputs, *_install_texts(directory)]


def _install_texts(directory: Path) -> list[Path]:
    """Put what C programs are built with into `directory`."""
    folders = {".pc": "share/pkgconfig", ".cmake": "share/cmake/lib_mlx"}
    texts = {directory / "include" / path.name: path.read_text() for path in INCLUDE.iterdir()}
    for path in PACKAGING.iterdir():
        text = path.read_text().replace("@VERSION@", VERSION).replace("@ABI@", ABI)
        texts[directory / folders[path.suffix] / path.name] = text
    for output, text in texts.items():
        if not output.is_file() or output.read_text() != text:
            output.parent.mkdir(parents=True, exist_ok=True)
            _install(text.encode(), output, 0o644)
    return list(texts)


def _fingerprint(extra_flags: tuple[str, ...]) -> str:
    """Identify sources and settings. It is part of every binary: no other record can disagree with them."""
    digest = hashlib.sha256()
    for path in sorted([Path(__file__), *NATIVE.iterdir(), HEADER]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    settings = [sys.version, sys.platform, _build_prefix(), _compiler(), os.environ.get("CFLAGS", ""), extra_flags]
    digest.update(repr(settings).encode())
    return f"lib_mlx build {digest.hexdigest()}"


def _is_current(output: Path, fingerprint: str) -> bool:
    return output.is_file() and fingerprint.encode() in output.read_bytes()


def _install(content: bytes, output: Path, mode: int) -> None:
    # Never into the file itself: a running process may have it mapped.
    new = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    new.write_bytes(content)
    new.chmod(mode)
    new.replace(output)


def _build_prefix() -> str:
    # sys.prefix of a PEP 517 build is a directory that is gone afterwards.
    return sys.base_prefix


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


class _Build:
    """One build in a scratch directory."""

    def __init__(self, scratch: Path, extra_flags: tuple[str, ...]) -> None:
        self.scratch = scratch
        environment = shlex.split(os.environ.get("CFLAGS", ""))
        self.flags = [*FLAGS, *environment, *extra_flags, f"-I{INCLUDE}", f"-I{NATIVE}", f"-I{scratch}"]
        self.link_flags = ["-shared", *environment, *extra_flags, "-pthread"]

    def write_header(self, fingerprint: str) -> None:
        """Write lm_build.h, the settings that C has to know."""
        values = {
            "LM_BUILD_PREFIX": _build_prefix(),
            "LM_MULTIARCH": sysconfig.get_config_var("MULTIARCH") or "",
            "LM_FINGERPRINT": fingerprint,
        }
        lines = [f"#define {name} {_c_string(value)}\n" for name, value in values.items()]
        (self.scratch / "lm_build.h").write_text("".join(lines))

    def front(self) -> Path:
        """Link liblib_mlx. It must resolve without Python: -z defs proves it."""
        options = [f"-Wl,-soname,{VERSIONED}"]
        if DARWIN:
            versions = [f"-Wl,-compatibility_version,{ABI}", f"-Wl,-current_version,{VERSION}"]
            options = [f"-Wl,-install_name,@rpath/{FRONT}", *versions]
        return self._link_complete(FRONT, FRONT_SOURCES, options)

    def versioned(self) -> Path:
        """Link what leads from the name that the front has as its SONAME to the file that it is."""
        leading = self._compile(NATIVE / "versioned.c", STRICT)
        target = self.scratch / "target"
        self._run("-shared", "-nostdlib", f"-Wl,-soname,{FRONT}", "-o", str(target), str(leading))
        made = self.scratch / VERSIONED
        options = [f"-Wl,-soname,{VERSIONED}", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
        self._run("-shared", "-nostdlib", *options, "-o", str(made), str(leading), str(target))
        return made

    def backend(self) -> Path:
        """Link the backend. Python's symbols stay open: the front has loaded a libpython by then."""
        headers = [f"-isystem{path}" for path in _python_headers()]
        objects = [self._compile(NATIVE / name, (*STRICT, *headers)) for name in BACKEND_SOURCES]
        objects.append(self._compile(self._generate_unit(), ("-std=gnu11", *headers)))
        options = ["-Wl,-undefined,dynamic_lookup"] if DARWIN else []
        return self._link(self.scratch / BACKEND, objects, options, [])

    def cpu(self) -> Path:
        """Link the shim between MLX and an OpenBLAS."""
        # With sanitizers compilers take minutes for these loops, whose results tests compare with MLX's.
        plain = ("-fno-sanitize=all", "-O1") if self._sanitized() else ()
        kernels = [
            self._compile(NATIVE / "kernels.c", (*STRICT, *KERNEL_FLAGS, *flags, *plain), f"kernels_{level}")
            for level, flags in KERNEL_LEVELS.items()
        ]
        return self._link_complete(CPU, CPU_SOURCES, [], kernels)

    def _generate_unit(self) -> Path:
        import cffi

        ffi = cffi.FFI()
        ffi.embedding_api("")  # embedding mode; the functions of lib_mlx.h are our own C
        ffi.cdef(CDEF)
        ffi.embedding_init_code((NATIVE / "attach.py").read_text())
        ffi.set_source("_lib_mlx_ffi", (NATIVE / "attach.c").read_text())
        unit = self.scratch / "attach_unit.c"
        with contextlib.redirect_stdout(None):
            ffi.emit_c_code(str(unit))
        return unit

    def _compile(self, source: Path, options: tuple[str, ...], name: str | None = None) -> Path:
        made = self.scratch / f"{name or source.stem}.o"
        self._run(*self.flags, *options, "-c", str(source), "-o", str(made))
        return made

    def _sanitized(self) -> bool:
        return any(flag.startswith("-fsanitize") for flag in self.link_flags)

    def _link_complete(
        self, name: str, sources: tuple[str, ...], options: list[str], objects: Sequence[Path] = ()
    ) -> Path:
        # A sanitizer's own symbols come from the program.
        if not DARWIN and not self._sanitized():
            options = [*options, "-Wl,-z,defs"]
        objects = [*objects, *(self._compile(NATIVE / source, STRICT) for source in sources)]
        return self._link(self.scratch / name, objects, options, ["-ldl", "-lm"])

    def _link(self, made: Path, objects: list[Path], options: list[str], libraries: list[str]) -> Path:
        exports = self.scratch / "exports"
        if DARWIN:  # not run here
            exports.write_text("_lib_mlx_*\n")
            options = [*options, f"-Wl,-exported_symbols_list,{exports}"]
        else:
            exports.write_text("{ global: lib_mlx_*; local: *; };\n")
            # Never unmapped: threads of ours run its code after the host's dlclose().
            options = [*options, f"-Wl,--version-script={exports}", "-Wl,-z,nodelete"]
        self._run(*self.link_flags, *options, "-o", str(made), *map(str, objects), *libraries)
        return made

    def _run(self, *arguments: str) -> None:
        command = [*_compiler(), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the developer's own CC
        if result.returncode:
            sys.exit(f"{shlex.join(command)}\n{result.stdout}{result.stderr}")


def _python_headers() -> set[str]:
    return {sysconfig.get_path("include"), sysconfig.get_path("platinclude")}


def _c_string(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class CustomBuildHook(_BuildHook):  # type: ignore[type-arg]  # hatchling's config type is not public
    """Hatchling's entry point: wheels and editable installs carry the built library."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and add the results to a wheel. An editable install finds them in the source tree."""
        if self.target_name != "wheel":
            return
        outputs = main()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version != "editable":
            files = build_data["force_include"]
            files.update({str(output): f"lib_mlx/{output.relative_to(PACKAGE)}" for output in outputs})


if __name__ == "__main__":
    for built in main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE):
        print(built)
