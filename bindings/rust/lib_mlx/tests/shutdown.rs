//! A shutdown takes everything down, and the library goes on. Apart, because it would end the other tests' models.

mod common;

use common::{config, model_path};
use lib_mlx::{ErrorCode, Model, ModelState, ServerConfig};

#[test]
fn a_shutdown_unloads_and_a_new_load_works() {
    let Some(path) = model_path() else { return };
    let model = Model::load(&config(&path)).unwrap();
    model.start_server(&ServerConfig::default()).unwrap();
    lib_mlx::shutdown().unwrap();
    assert_eq!(model.status().unwrap_err().code, ErrorCode::InvalidHandle);
    drop(model);
    let again = Model::load(&config(&path)).unwrap();
    assert_eq!(again.status().unwrap().model.state, ModelState::Ready);
}
