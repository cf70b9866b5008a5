//! Ends everything that a lab started, even if the test process itself is killed.
//!
//! Every process of a lab has the lab's own folder among its arguments, including guests, which
//! outlive the migrators that started them. So one pass over `/proc` finds all of them and nothing
//! else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long killed processes may take to disappear.
const END_WAIT: Duration = Duration::from_secs(5);

/// Reads the folder, waits until the tests have exited, and cleans up what they left.
const SCRIPT: &str = r#"
read -r folder
cat > /dev/null
for turn in 1 2 3; do
    for process in /proc/[0-9]*; do
        case "$(tr '\0' ' ' < "$process/cmdline" 2> /dev/null)" in
            *" $folder/"*) kill -9 "${process#/proc/}" 2> /dev/null ;;
        esac
    done
done
rm -rf "$folder"
"#;

/// A shell that waits for the end of this process.
#[derive(Debug)]
struct Keeper {
    root: PathBuf,
    _leash: ChildStdin,
    _shell: Child,
}

fn keeper() -> &'static Keeper {
    static KEEPER: OnceLock<Keeper> = OnceLock::new();
    KEEPER.get_or_init(|| {
        use std::os::unix::process::CommandExt;
        let folder = tempfile::Builder::new()
            .prefix("towpath-tests-")
            .tempdir()
            .expect("a folder for tests");
        let root = folder.keep();
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is for the tests; the keeper has to survive it to clean up.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let mut leash = shell.stdin.take().expect("it was piped");
        writeln!(leash, "{}", root.display()).expect("the shell reads");
        Keeper {
            root,
            _leash: leash,
            _shell: shell,
        }
    })
}

/// A lab's own folder. Dropping it ends every process that has a path in it among its arguments.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Creates a new one. Its path is short, because sockets are bound in it.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = keeper().root.join(number.to_string());
        std::fs::create_dir(&path).expect("a folder for a lab");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let deadline = Instant::now() + END_WAIT;
        loop {
            let left = processes_with(&self.path);
            if left.is_empty() {
                break;
            }
            for process in &left {
                // It may have exited by itself in between.
                let _ = kill_process(*process, Signal::KILL);
            }
            if Instant::now() > deadline {
                eprintln!("processes {left:?} of {} do not end", self.path.display());
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}

/// Living processes that have a path below this folder among their arguments.
pub(crate) fn processes_with(folder: &Path) -> Vec<Pid> {
    let mut below = folder.as_os_str().as_encoded_bytes().to_vec();
    below.push(b'/');
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |id: &i32| {
        // A zombie has no arguments any more.
        std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|words| {
            words
                .split(|byte| *byte == 0)
                .any(|word| word.starts_with(&below))
        })
    };
    ids.filter(is_ours).filter_map(Pid::from_raw).collect()
}
