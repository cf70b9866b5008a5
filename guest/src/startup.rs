//! Starts a guest process: from a folder with a description to a guest that can be driven.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::{FlockOperation, Mode};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{
    GuestConfig, GuestKind, GuestQuota, MEMORY_BYTES_MAX, VCPU_COUNT_MAX,
};
use towpath_protocol::message::CONFIG_BYTES_MAX;

use crate::GuestProcessOptions;
use crate::console::Console;
use crate::engine::Engine;
use crate::kvm::KvmGuest;
use crate::log::Log;
use crate::memory::Memory;
use crate::plain;
use crate::process::ProcessGuest;
use crate::server;
use crate::service::Service;

/// The process enforces only the limits of the format; quotas are enforced by its migrator.
const QUOTA: GuestQuota = GuestQuota {
    memory_bytes_max: MEMORY_BYTES_MAX,
    vcpu_count_max: VCPU_COUNT_MAX,
};

pub(crate) fn run(options: &GuestProcessOptions) -> Result<(), Fault> {
    leave_parent();
    let folder = &options.folder;
    let log = Log::open(&folder.join("guest.log"), |log| {
        // Panic messages go to the log, or to where they went before if that fails.
        let _ = rustix::stdio::dup2_stderr(log);
    })
    .map_err(|error| plain::fault("guest.log", &error))
    .or_else(|fault| say(Some(&fault)).and(Err(fault)))?;
    // The caller may have set up its own subscriber. Lines then go to its writer, in effect the
    // log.
    let _ = tracing_subscriber::fmt()
        .with_writer(Mutex::new(log))
        .with_ansi(false)
        .try_init();
    let prepared = prepare(options);
    say(prepared.as_ref().err())?;
    rustix::stdio::dup2_stdout(std::io::stderr()).map_err(|error| io("guest.log", &error))?;
    let mut prepared = prepared?;
    let result = server::serve(&prepared.listener, &mut prepared.service);
    prepared.service.end();
    // The folder belongs to the migrator. These two files only have a meaning while the process
    // lives.
    for name in ["guest.sock", "guest.pid"] {
        if let Err(error) = std::fs::remove_file(folder.join(name)) {
            tracing::warn!(%error, name, "left behind");
        }
    }
    tracing::info!("guest process ends");
    // Exiting frees everything at once. Dropping the service first would free memory page by page,
    // which for a guest of a gigabyte keeps anyone who waits for the end a tenth of a second
    // longer.
    std::mem::forget(prepared.service);
    result
}

struct Prepared {
    listener: std::os::fd::OwnedFd,
    service: Service,
    /// Locked while the process lives.
    _pid: File,
}

fn prepare(options: &GuestProcessOptions) -> Result<Prepared, Fault> {
    let folder = &options.folder;
    let pid = lock_pid(&folder.join("guest.pid"))?;
    let config = read_config(&folder.join("config.json"))?;
    config.check(&QUOTA)?;
    // Only a machine has devices that write memory; a process guest's tracker sees all writes.
    let memory = Memory::create(config.memory_bytes, config.kind == GuestKind::Kvm)?;
    let console = Console::open(&folder.join("console.log"))?;
    let engine: Box<dyn Engine> = match config.kind {
        GuestKind::Kvm => Box::new(KvmGuest::create(&config, memory.clone(), console)?),
        GuestKind::Process => Box::new(ProcessGuest::create(&config, memory.clone(), console)?),
    };
    let listener = server::listen(folder, "guest.sock")?;
    let (name, kind, is_incoming) = (&config.name, config.kind, options.is_incoming);
    tracing::info!(guest = %config.id, %name, %kind, is_incoming, "guest made");
    Ok(Prepared {
        listener,
        service: Service::new(config, engine, memory, options.is_incoming),
        _pid: pid,
    })
}

/// Marks every file above the standard streams to be closed in the programs that this process
/// starts.
pub(crate) fn keep_files_from_children() {
    /// The first descriptor that is no standard stream.
    const FIRST: libc::c_uint = 3;
    let (last, flags) = (libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: sets a flag of descriptors; it closes none and reads no memory of ours.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, FIRST, last, flags) };
    if marked != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "guests inherit the files that this process inherited");
    }
}

/// Detaches the process from its parent.
fn leave_parent() {
    let mode = Mode::from_raw_mode(0o077);
    rustix::process::umask(mode);
    if let Err(error) = rustix::process::setsid() {
        // It leads a session already, which serves the same purpose.
        tracing::debug!(%error, "no new session");
    }
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
}

/// Reports the result of the start on standard output, which the parent reads.
fn say(fault: Option<&Fault>) -> Result<(), Fault> {
    let line = match fault {
        None => "ready\n".to_owned(),
        Some(fault) => {
            tracing::error!(%fault, "guest cannot be made");
            let detail = fault.detail.replace('\n', " ");
            format!("fault {} {detail}\n", fault.code)
        }
    };
    let mut output = std::io::stdout().lock();
    let said = output
        .write_all(line.as_bytes())
        .and_then(|()| output.flush());
    match said {
        // The parent died. The guest is ready for the next migrator.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| io("standard output", &error)),
    }
}

fn lock_pid(path: &Path) -> Result<File, Fault> {
    let shown = path.display();
    let mut options = OpenOptions::new();
    options.create(true).read(true).write(true).truncate(false);
    let mut file = plain::open(&mut options, path)
        .map_err(|error| plain::fault(&shown.to_string(), &error))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        Fault::new(
            Code::AlreadyRunning,
            format!("{shown} is locked by a guest process that lives: {error}"),
        )
    })?;
    let written = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| io(&shown.to_string(), &error))?;
    Ok(file)
}

fn read_config(path: &Path) -> Result<GuestConfig, Fault> {
    let shown = path.display();
    let wrong =
        |error: &dyn std::fmt::Display| Fault::new(Code::Config, format!("{shown}: {error}"));
    let file = plain::open(OpenOptions::new().read(true), path).map_err(|error| {
        let fault = plain::fault(&shown.to_string(), &error);
        match fault.code {
            Code::Path => fault,
            _ => wrong(&error),
        }
    })?;
    let mut text = String::new();
    let length_max = CONFIG_BYTES_MAX as u64;
    file.take(length_max + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(&error))?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(wrong(&format!("more than {length_max} bytes")));
    }
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

fn io(what: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Code::Io, format!("{what}: {error}"))
}
