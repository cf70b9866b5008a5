//! Finds the `towpath` program under test beside this test's own, and builds it if it is missing or
//! old.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Folders whose sources are not part of the program.
const NOT_LINKED: [&str; 4] = ["tests", "fuzz", "target", "benches"];

/// The program's path; it is built at most once per test process.
pub(crate) fn towpath() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(find)
}

fn find() -> PathBuf {
    let own = std::env::current_exe().expect("a test has a program");
    // target/<profile>/deps/<test>
    let profile = own.ancestors().nth(2);
    let profile = profile.expect("cargo puts tests two folders deep");
    let program = profile.join("towpath");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.expect("the tests lie in the workspace");
    // A test run of the whole workspace has already built it, with other features than a separate
    // build would use; that build would start from nothing.
    if changed_at(&program) < newest_source(root) {
        build(profile, root);
    }
    assert!(program.is_file(), "cargo built no {}", program.display());
    program
}

fn build(profile: &Path, root: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "towpath-cli"])
        .arg("--target-dir")
        .arg(profile.parent().expect("the profile's folder has a parent"))
        .current_dir(root);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo runs where its tests run");
    assert!(status.success(), "towpath was not built: {status}");
}

fn changed_at(path: &Path) -> SystemTime {
    let metadata = std::fs::metadata(path);
    let changed = metadata.and_then(|metadata| metadata.modified());
    changed.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The modification time of the program's newest source file.
fn newest_source(folder: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(folder).expect("the sources").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') || NOT_LINKED.contains(&name.as_ref()) {
            continue;
        }
        if path.is_dir() {
            newest = newest.max(newest_source(&path));
        } else if name.ends_with(".rs") || name == "Cargo.lock" {
            newest = newest.max(changed_at(&path));
        }
    }
    newest
}
