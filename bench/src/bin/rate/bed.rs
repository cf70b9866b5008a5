//! Two network namespaces with a cable between them, made with `ip` and `tc`, gone when dropped.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use towpath_bench::sites::Failure;
use towpath_protocol::rate::Rate;

/// Addresses of the two ends; each also names its side.
pub(crate) const SOURCE: &str = "10.99.77.1";
pub(crate) const TARGET: &str = "10.99.77.2";

/// The cable's name at both ends.
pub(crate) const CABLE: &str = "cable";

/// The namespaces.
#[derive(Debug)]
pub(crate) struct Bed {
    number: u32,
}

/// A process in one of them, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Child(Option<std::process::Child>);

/// A token bucket of the kernel's, which is taken away when this is dropped.
#[derive(Debug)]
pub(crate) struct Bucket<'a>(&'a Bed);

impl Bed {
    /// Makes both, or says why that cannot be.
    pub(crate) fn make() -> Result<Self, Failure> {
        let bed = Self {
            number: std::process::id(),
        };
        let (source, target) = (bed.name(SOURCE), bed.name(TARGET));
        for space in [&source, &target] {
            run("ip", &["netns", "add", space])?;
        }
        run(
            "ip",
            &[
                "-n", &source, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE,
                "netns", &target,
            ],
        )?;
        for (space, address) in [(&source, SOURCE), (&target, TARGET)] {
            let address = format!("{address}/24");
            run("ip", &["-n", space, "addr", "add", &address, "dev", CABLE])?;
            // Packets are counted one by one, as on a real wire, and not in batches.
            let up = ["-n", space, "link", "set", CABLE, "gso_max_segs", "1", "up"];
            run("ip", &up)?;
        }
        Ok(bed)
    }

    /// Starts this program at one side.
    pub(crate) fn start(&self, side: &str, arguments: &[&OsStr]) -> Result<Child, Failure> {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(side)])
            .arg(std::env::current_exe()?)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Child(Some(child)))
    }

    /// Caps what leaves the source, with the burst that the tunnel has too.
    pub(crate) fn cap(&self, cap: Rate) -> Result<Bucket<'_>, Failure> {
        let rate = format!("{}bit", cap.bits_per_second());
        let burst = cap.bytes_per_second() / 100;
        let burst = burst.max(3000).to_string();
        run(
            "tc",
            &[
                "-n",
                &self.name(SOURCE),
                "qdisc",
                "add",
                "dev",
                CABLE,
                "root",
                "tbf",
                "rate",
                &rate,
                "burst",
                &burst,
                "latency",
                "50ms",
            ],
        )?;
        Ok(Bucket(self))
    }

    fn name(&self, side: &str) -> String {
        let end = if side == SOURCE { "source" } else { "target" };
        format!("towpath-rate-{}-{end}", self.number)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for side in [SOURCE, TARGET] {
            // One that was never made cannot be taken away.
            let _ = run("ip", &["netns", "del", &self.name(side)]);
        }
    }
}

impl Drop for Bucket<'_> {
    fn drop(&mut self) {
        let space = self.0.name(SOURCE);
        // It goes with the namespace at the latest.
        let _ = run("tc", &["-n", &space, "qdisc", "del", "dev", CABLE, "root"]);
    }
}

impl Child {
    /// Waits for its end; gives what it wrote.
    pub(crate) fn output(mut self) -> Result<String, Failure> {
        let child = self.0.take().ok_or("it was waited for already")?;
        let output = child.wait_with_output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // One that has ended by itself is only collected.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), said.trim()).into())
}
