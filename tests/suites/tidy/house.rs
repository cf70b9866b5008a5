//! The repository's files, as input for the rules.

use std::fs;
use std::path::{Path, PathBuf};

/// Deepest folder that is searched; the repository is half as deep.
const FOLDER_DEPTH_MAX: usize = 12;

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a folder of the repository")
}

/// A file of the repository, named by its path from the root.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Reads one file.
pub(crate) fn read(path: &str) -> File {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let path = path.to_owned();
    File { path, text }
}

/// All files with an ending such as `.rs`, sorted by path.
pub(crate) fn files(ending: &str) -> Vec<File> {
    let mut paths = Vec::new();
    collect(root(), 0, &mut |path| {
        let from_root = path.strip_prefix(root()).expect("it was found below");
        let name = from_root.to_str().expect("names of ours are UTF-8");
        if name.ends_with(ending) {
            paths.push(name.to_owned());
        }
    });
    paths.sort();
    assert!(!paths.is_empty(), "no file ends with {ending}");
    paths.iter().map(|path| read(path)).collect()
}

/// Calls `found` for every file that is neither hidden nor build output.
fn collect(folder: &Path, depth: usize, found: &mut dyn FnMut(&Path)) {
    assert!(
        depth <= FOLDER_DEPTH_MAX,
        "{} is too deep",
        folder.display()
    );
    let entries = fs::read_dir(folder).expect("a folder of this project can be read");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry of it too").path())
        .collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name == "target" || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, depth + 1, found);
        } else {
            found(&path);
        }
    }
}

/// Fails with all complaints at once, so that one run shows everything to fix.
pub(crate) fn no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
