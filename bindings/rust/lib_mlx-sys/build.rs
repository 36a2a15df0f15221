//! Finds liblib_mlx: `LIB_MLX_LIB_DIR`, else pkg-config, else the checkout that this crate lies in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{exit, Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["LIB_MLX_LIB_DIR", "PKG_CONFIG", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let Some(directory) = named().or_else(from_pkg_config).or_else(checkout) else {
        println!("cargo:warning=liblib_mlx was not found: build it with `python build_ffi.py`, or set LIB_MLX_LIB_DIR");
        exit(1);
    };
    println!("cargo:rustc-link-search=native={}", directory.display());
    println!("cargo:rustc-link-lib=dylib=lib_mlx");
    // For build scripts of crates that depend on this one, as DEP_LIB_MLX_LIBDIR: a run path is theirs to set.
    println!("cargo:libdir={}", directory.display());
}

fn named() -> Option<PathBuf> {
    env::var_os("LIB_MLX_LIB_DIR").map(PathBuf::from)
}

fn from_pkg_config() -> Option<PathBuf> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(program).args(["--variable=libdir", "lib_mlx"]).output().ok()?;
    let directory = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !directory.is_empty()).then(|| directory.into())
}

fn checkout() -> Option<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../lib_mlx").canonicalize().ok()?;
    ["liblib_mlx.so", "liblib_mlx.dylib"].iter().any(|name| directory.join(name).exists()).then_some(directory)
}
