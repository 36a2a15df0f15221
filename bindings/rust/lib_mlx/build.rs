//! Gives this crate's tests and examples a run path to the library. A crate that depends on `lib_mlx` sets its own.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(directory) = std::env::var("DEP_LIB_MLX_LIBDIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{directory}");
    }
}
