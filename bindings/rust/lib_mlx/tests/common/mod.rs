//! What the tests with a model share.

use lib_mlx::LoadConfig;

/// The crafted checkpoint of `LIB_MLX_TEST_MODEL`; without it a test has nothing to do.
pub fn model_path() -> Option<String> {
    let path = std::env::var("LIB_MLX_TEST_MODEL").ok();
    if path.is_none() {
        eprintln!("skipped: LIB_MLX_TEST_MODEL is not set");
    }
    path
}

/// Loads it under the name "crafted".
pub fn config(path: &str) -> LoadConfig {
    LoadConfig::new(path).model_id("crafted")
}
