//! The `towpath` program under test: found beside this test's own, built if it is missing or old.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program, built once for each test process.
pub(crate) fn towpath() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

/// Cargo knows best whether the program is older than its sources; when nothing changed it says so in
/// less than a second.
fn build() -> PathBuf {
    let own = std::env::current_exe().expect("a test has a program");
    // target/<profile>/deps/<test>
    let profile = own
        .ancestors()
        .nth(2)
        .expect("cargo puts tests two folders deep");
    let program = profile.join("towpath");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "towpath-cli"])
        .arg("--target-dir")
        .arg(profile.parent().expect("the profile's folder has a parent"))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo runs where its tests run");
    assert!(status.success(), "towpath was not built: {status}");
    assert!(program.is_file(), "cargo built no {}", program.display());
    program
}
