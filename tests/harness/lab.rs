//! Two sites on this machine with an emulated link between them that can be cut; everything else is
//! real.
//!
//! ```text
//!      edge                                                  region
//!  migrator ── tunnel ──UDP──► relay (rate, delay) ──UDP──► tunnel ── migrator
//!     │                                                                   │
//!   guest  ────────────────────── moves there, and back ─────────────► guest
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::runtime::{Builder, Runtime};
use towpath_bench::relay::{Control, Door, Options, Relay, Side};
use towpath_certs::Authority;
use towpath_certs::register::Reason;
use towpath_certs::renewal::{LIST_VALIDITY, RevocationTarget};
use towpath_migrator::api::{GuestKind, GuestRequest, MigrationMode, MigrationRequest};
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;

use crate::contention::{self, Share};
use crate::keeper::{Folder, processes_with};
use crate::process::show_log;
use crate::program::towpath;
use crate::site::{Place, Reach, Site};

/// How long a killed process may take to end on a busy machine.
const KILLED_WAIT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// How long the first link may take.
const LINK_WAIT: Duration = Duration::from_secs(30);

/// Interval between heartbeats of a lab's guests.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(2);

/// The link between the sites.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Its rate, in each direction.
    pub megabits_per_second: u64,
    /// Its round trip.
    pub round_trip: Duration,
}

/// A guest to start.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name.
    pub name: Name,
    /// Its kind.
    pub kind: GuestKind,
    /// Its memory.
    pub memory_mib: u64,
    /// Pages that it rewrites each second.
    pub dirty_pages_per_second: u64,
    /// The part of its memory that has content; all of it if absent.
    pub working_set_mib: Option<u64>,
}

impl Guest {
    /// A process guest that rewrites 500 pages a second.
    ///
    /// # Panics
    ///
    /// If the name is invalid.
    #[must_use]
    pub fn new(name: &str, memory_mib: u64) -> Self {
        Self {
            name: name.parse().expect("a guest's name"),
            kind: GuestKind::Process,
            memory_mib,
            dirty_pages_per_second: 500,
            working_set_mib: None,
        }
    }

    /// The same guest as a virtual machine.
    #[must_use]
    pub fn virtual_machine(mut self) -> Self {
        self.kind = GuestKind::Kvm;
        self
    }

    /// Whether it is a virtual machine.
    #[must_use]
    pub fn is_virtual_machine(&self) -> bool {
        self.kind == GuestKind::Kvm
    }

    fn request(&self) -> GuestRequest {
        GuestRequest {
            name: self.name.clone(),
            kind: self.kind,
            memory_bytes: self.memory_mib << 20,
            dirty_pages_per_second: self.dirty_pages_per_second,
            working_set_bytes: self.working_set_mib.map(|mib| mib << 20),
            incompressible_percent: 50,
            heartbeat_interval_us: u32::try_from(HEARTBEAT_INTERVAL.as_micros()).expect("short"),
        }
    }
}

/// Checks whether virtual machines can run here.
///
/// # Errors
///
/// Why they cannot.
///
/// # Panics
///
/// If the program under test cannot be run.
pub fn check_kvm() -> Result<(), String> {
    let mut probe = std::process::Command::new(towpath());
    let probed = probe.args(["guest-process", "--probe"]).output();
    let said = probed.expect("the program can be asked").stdout;
    let said = String::from_utf8_lossy(&said);
    let of_kvm = said.lines().find_map(|line| line.strip_prefix("kvm "));
    match of_kvm {
        Some("ready") => Ok(()),
        other => Err(format!("kvm: {}", other.unwrap_or("nothing is said of it"))),
    }
}

/// The lab. Dropping it ends every process it started.
#[derive(Debug)]
pub struct Lab {
    sites: [Site; 2],
    control: Control,
    authority: Authority,
    _relay: Relay,
    folder: Folder,
    _runtime: Arc<Runtime>,
    /// Last, so that the lab counts as active until everything it started has ended.
    share: Share,
}

impl Lab {
    /// Builds the lab and waits until its link is up.
    ///
    /// # Panics
    ///
    /// If anything does not start.
    #[must_use]
    pub fn start(link: Link) -> Self {
        contention::watch();
        let share = Share::take();
        let folder = Folder::new();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = Arc::new(runtime.expect("a runtime"));
        let domain = "lab.towpath".parse().expect("a trust domain");
        let authority = Authority::init(&folder.path().join("authority"), &domain);
        let authority = authority.expect("an authority");
        let far = free_address();
        let bits_per_second = link.megabits_per_second * 1_000_000;
        let doors = vec![Door {
            from: Side::A,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            to: far,
        }];
        let relay = Relay::start(&Options::symmetric(doors, bits_per_second, link.round_trip));
        let relay = relay.expect("a relay");
        let rate = Rate::from_bytes_per_second(bits_per_second / 8).expect("a rate");
        let site = |place, reach| {
            let runtime = Arc::clone(&runtime);
            Site::new(place, folder.path(), &authority, (reach, rate), runtime)
        };
        let mut lab = Self {
            sites: [
                site(Place::Edge, Reach::Dial(relay.doors()[0])),
                site(Place::Region, Reach::Listen(far)),
            ],
            control: relay.control(),
            authority,
            _relay: relay,
            folder,
            _runtime: runtime,
            share,
        };
        lab.sign_list(None, LIST_VALIDITY);
        for place in [Place::Region, Place::Edge] {
            lab.carry_list(place);
            lab.site_mut(place).start_tunnel();
            lab.site_mut(place).start_migrator();
        }
        lab.site(Place::Edge).wait_for_link(LINK_WAIT);
        lab
    }

    /// The lab's permit to be active beside others.
    #[must_use]
    pub const fn share(&self) -> &Share {
        &self.share
    }

    /// One of the sites.
    #[must_use]
    pub const fn site(&self, place: Place) -> &Site {
        &self.sites[place as usize]
    }

    /// One of the sites, mutable, to start and kill its daemons.
    pub const fn site_mut(&mut self, place: Place) -> &mut Site {
        &mut self.sites[place as usize]
    }

    /// Cuts the direction from this site.
    pub fn cut_from(&self, from: Place) {
        self.control.cut(match from {
            Place::Edge => Side::A,
            Place::Region => Side::B,
        });
    }

    /// Cuts the link.
    pub fn cut(&self) {
        self.control.cut_both();
    }

    /// Mends the link.
    pub fn heal(&self) {
        self.control.heal();
    }

    /// Revokes certificates, if any are given, and signs the next list, valid for this long.
    ///
    /// # Panics
    ///
    /// If it cannot be signed.
    pub fn sign_list(&self, target: Option<&RevocationTarget>, lasting: Duration) {
        let (reason, now) = (Reason::KeyCompromise, SystemTime::now());
        let signed = match target {
            Some(target) => self.authority.revoke(target, reason, lasting, now),
            None => self.authority.sign_next_list(lasting, now),
        };
        signed.expect("a list of revoked certificates");
    }

    /// Copies the newest list of revoked certificates to a site.
    ///
    /// # Panics
    ///
    /// If it cannot be written there.
    pub fn carry_list(&self, to: Place) {
        let list = self.folder.path().join("authority/crl.pem");
        let (there, new) = (
            self.site(to).list(),
            self.site(to).list().with_extension("new"),
        );
        let carried = std::fs::copy(list, &new).and_then(|_| std::fs::rename(&new, there));
        carried.expect("a list of revoked certificates can be carried");
    }

    /// Revokes a site's host and tells the other site.
    pub fn revoke(&self, place: Place) {
        let host = self.site(place).identity().clone();
        self.sign_list(Some(&RevocationTarget::Host(host)), LIST_VALIDITY);
        self.carry_list(place.other());
    }

    /// Replaces the certificate of a site's host, and starts its tunnel with the new one.
    pub fn certify(&mut self, place: Place) {
        self.sites[place as usize].certify(&self.authority);
    }

    /// Starts a guest.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start_guest(&self, place: Place, guest: &Guest) {
        let started = self.site(place).start_guest(&guest.request());
        started.unwrap_or_else(|problem| panic!("guest {}: {problem:?}", guest.name));
    }

    /// A request to move a guest from a site to the other one.
    #[must_use]
    pub fn request(guest: &Guest, from: Place, mode: MigrationMode) -> MigrationRequest {
        MigrationRequest {
            guest: guest.name.clone(),
            site: from.other().name(),
            mode,
            max_pause_ms: 200,
            rate_bits_per_second: None,
        }
    }

    /// Ends a guest wherever it is, so that the lab can be reused.
    pub fn forget_guest(&self, guest: &Name) {
        for place in Place::ALL {
            // One of them may not know it.
            let _ = self.site(place).stop_guest(guest);
        }
    }

    /// Processes of a guest at a site.
    #[must_use]
    pub fn guest_processes(&self, place: Place, guest: &Name) -> Vec<rustix::process::Pid> {
        // The folder itself is the argument: below the site's folder, and ending with the guest's
        // name.
        let folder = self.site(place).guest_folder(guest);
        let all = processes_with(self.site(place).folder());
        all.into_iter()
            .filter(|id| {
                let path = format!("/proc/{}/cmdline", id.as_raw_nonzero());
                std::fs::read(path).is_ok_and(|words| {
                    words
                        .split(|byte| *byte == 0)
                        .any(|word| word == folder.as_os_str().as_encoded_bytes())
                })
            })
            .collect()
    }

    /// Kills a guest's processes at a site with `kill -9` and waits for their end; returns their
    /// number.
    ///
    /// # Panics
    ///
    /// If one does not end.
    pub fn kill_guest(&self, place: Place, guest: &Name) -> usize {
        let processes = self.guest_processes(place, guest);
        for process in &processes {
            // It may have exited by itself.
            let Ok(held) = pidfd_open(*process, PidfdFlags::empty()) else {
                continue;
            };
            let _ = pidfd_send_signal(&held, Signal::KILL);
            let mut ended = [PollFd::new(&held, PollFlags::IN)];
            let count = poll(&mut ended, Some(&KILLED_WAIT));
            assert_eq!(count, Ok(1), "a killed process does not end");
        }
        processes.len()
    }
}

impl Lab {
    /// Prints the ends of all logs, for a failed case. If `TOWPATH_KEEP` names a folder, copies
    /// everything there.
    pub fn show_logs(&self) {
        if let Some(kept) = std::env::var_os("TOWPATH_KEEP") {
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .arg(self.folder.path())
                .arg(&kept)
                .status();
            eprintln!(
                "the lab's files were copied to {}: {copied:?}",
                kept.display()
            );
        }
        for site in &self.sites {
            for log in [site.tunnel_log(), site.migrator_log()] {
                show_log(log);
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

/// A loopback UDP address that is free now.
fn free_address() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("a bound socket has an address")
}
