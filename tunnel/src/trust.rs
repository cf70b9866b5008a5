//! The host's identity and trusted authorities: reread when files change, without touching links.
//!
//! ```text
//!   files change ─► read ─► key, chain, lists valid? ─┬─ yes ─► used for new handshakes; links
//!                                                     │         live on or are replaced (see
//!                                                     │         `standing`)
//!                                                     └─ no ──► current ones stay; status says why
//! ```
//!
//! Certificate, key and authorities are one unit: all of them change, or none. The lists of revoked
//! certificates are a unit of their own, so that a host whose own certificate has ended still
//! learns of revocations. The newest lists and the last good certificate are kept in the state
//! folder (`remembered`). So files that a running tunnel would not use do not prevent a start
//! either.
//!
//! The paths of the files may change too. A revocation list that is added to the configuration is
//! used without a restart, since the first list is often needed in an emergency.

pub(crate) mod dropped;
pub(crate) mod failures;
mod remembered;
pub(crate) mod standing;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant, SystemTime};

use parking_lot::Mutex;
use quinn::{Connection, Endpoint};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use towpath_certs::{Freshness, Identity, IdentityPaths, Revocations, tls, view};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::class::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};

use self::remembered::Remembered;
use crate::config::CertificatesConfig;
use crate::core::Core;
use crate::links::link::Link;
use crate::quic::transport;
use crate::state_files::Folder;

pub(crate) use self::remembered::{keep as remember, keep_now as remember_now};

/// What a peer is told when its live link is closed because its certificate is revoked.
const REVOKED: &str = "the certificate has been revoked";

/// How long a caller waits for a requested look at the files: far longer than any working disk
/// takes.
const WISH_WAIT: Duration = Duration::from_secs(10);

/// Interval between looks at the files. A revoked peer has to be out within a second, and a look
/// costs three to five `stat` calls.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Age below which a file is read again although its times are unchanged. It may have changed
/// within one tick of its timestamps: a few milliseconds on local file systems, a second on some
/// network file systems.
const YOUNG: Duration = Duration::from_secs(2);

/// Interval at which unchanged files that could not be used are read again. Their certificate may
/// become valid in a moment, or the clock may be about to be set.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Longest interval at which unchanged files are read again that are unusable because an authority
/// has ended. The interval doubles from [`RETRY_INTERVAL`] up to this, since each attempt writes a
/// log line.
const ENDED_INTERVAL: Duration = Duration::from_mins(10);

/// The remedy shown when this host's own certificate is revoked.
pub(crate) const OWN_REVOKED_REMEDY: &str = "have a new certificate issued to this host with `towpath certs issue`, and find out why the old one was \
     revoked";

/// Interval between log lines about an aging or stale list.
const REMINDER_INTERVAL: Duration = Duration::from_hours(24);

/// The result of reading the files so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// Why the current content of the files is not in use, if it is not.
    pub problem: Option<Fault>,
    /// When the identity in use was taken into use.
    pub since: Option<SystemTime>,
}

/// The host's identity and trusted authorities.
#[derive(Debug)]
pub(crate) struct Trust {
    files: Mutex<CertificatesConfig>,
    host: HostIdentity,
    live: Mutex<Arc<Identity>>,
    reading: Mutex<Reading>,
    watched: Mutex<Watched>,
    taken: AtomicU64,
    refused: AtomicU64,
    rollbacks: AtomicU64,
    /// The newest lists seen, in use or not. Older lists are refused.
    newest: Mutex<Arc<Revocations>>,
    wish: Notify,
    /// Number of looks requested, and the number of those that are done.
    wishes: AtomicU64,
    granted: watch::Sender<u64>,
    /// State to keep for the next start.
    remembered: Remembered,
}

/// State of the files when they were last read.
#[derive(Debug, Default)]
struct Watched {
    prints: Vec<Print>,
    /// A failure that counts only if the next look finds the files unchanged: two files are
    /// replaced one after the other.
    unsettled: Option<Fault>,
    /// When unusable files are read again, and the length of that pause.
    retry: Option<(StdInstant, Duration)>,
}

/// Fingerprint of a file: it differs for another file or other content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The result of a look at the files.
enum Look {
    Same,
    /// An identity to take into use. The fault says what else in the files cannot be used.
    New(Box<Identity>, Option<Fault>),
    Failed(Fault),
}

impl Trust {
    /// Reads a host's files for the first time, and the newest lists from the state folder. So
    /// putting back an old list and restarting the tunnel does not bring that list into use. If the
    /// files cannot be used, the last good certificate is used, as it is while the tunnel runs.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if the files cannot be used and no good certificate is kept, or if a list
    /// cannot be used and none is kept: a host that was told to refuse revoked peers does not start
    /// without knowing them.
    pub(crate) fn load(
        files: &CertificatesConfig,
        us: (&Name, &Name),
        folder: Option<&Arc<Folder>>,
    ) -> Result<Self, Fault> {
        let prints = prints(files);
        let remembered = Remembered::new(folder);
        let (identity, unused) = first(files, us, &remembered)?;
        let known = Arc::new(remembered.lists(&identity));
        let mut problem = None;
        let revocations = match &files.crl {
            None => Arc::default(),
            Some(crl) => match identity.load_revocations(crl, &known) {
                Ok(lists) => Arc::new(lists),
                Err(fault) if known.is_empty() => return Err(fault),
                Err(fault) => {
                    problem = Some(fault);
                    Arc::clone(&known)
                }
            },
        };
        let is_news = is_news(&revocations, &known);
        let identity = identity.refusing(Arc::clone(&revocations));
        if unused.is_none() {
            remembered.note_identity(&identity);
        }
        let is_whole = unused.is_none() && problem.is_none();
        let trust = Self {
            files: Mutex::new(files.clone()),
            host: identity.host().clone(),
            live: Mutex::new(Arc::new(identity)),
            reading: Mutex::new(Reading {
                problem: None,
                since: Some(SystemTime::now()),
            }),
            watched: Mutex::new(Watched {
                prints,
                retry: (!is_whole).then(|| retry_in(RETRY_INTERVAL)),
                ..Watched::default()
            }),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            rollbacks: AtomicU64::new(0),
            newest: Mutex::new(known),
            wish: Notify::new(),
            wishes: AtomicU64::new(0),
            granted: watch::Sender::new(0),
            remembered,
        };
        if is_news {
            trust.keep_lists(&revocations);
        }
        trust.warn_of_own();
        if unused.is_some() {
            trust.warn_of_before();
        }
        for fault in unused.iter().chain(&problem) {
            trust.note(fault);
        }
        Ok(trust)
    }

    /// The host's own identity, constant while the tunnel runs.
    pub(crate) const fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// The identity in use.
    pub(crate) fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.live.lock())
    }

    /// The identity in use and its generation, which changes whenever the identity does.
    pub(crate) fn now(&self) -> (Arc<Identity>, u64) {
        let live = self.live.lock();
        (Arc::clone(&live), self.taken.load(Ordering::Relaxed))
    }

    /// Takes an identity into use.
    fn take(&self, identity: Identity) {
        let mut live = self.live.lock();
        *live = Arc::new(identity);
        // While the lock is held: nobody can read one identity with the generation of the other.
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// The result of reading the files.
    pub(crate) fn reading(&self) -> Reading {
        self.reading.lock().clone()
    }

    /// How often changed files were taken into use, and how often they were refused.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.taken), of(&self.refused))
    }

    /// How often a list was offered that is older than the one in use.
    pub(crate) fn rollback_count(&self) -> u64 {
        self.rollbacks.load(Ordering::Relaxed)
    }

    /// Uses the files of this configuration from the next look on. Returns whether they differ from
    /// the current ones.
    pub(crate) fn follow(&self, files: &CertificatesConfig) -> bool {
        let mut ours = self.files.lock();
        let is_other = *ours != *files;
        ours.clone_from(files);
        is_other
    }

    /// Requests a look at the files, and waits until its result is in use. Gives up after
    /// [`WISH_WAIT`], since the disk may hang.
    pub(crate) async fn look_now(&self) {
        let wished = self.wishes.fetch_add(1, Ordering::AcqRel) + 1;
        self.wish.notify_one();
        let mut granted = self.granted.subscribe();
        let is_granted = granted.wait_for(|count| *count >= wished);
        if timeout(WISH_WAIT, is_granted).await.is_err() {
            tracing::warn!("the certificates' files have not answered for {WISH_WAIT:?}");
        }
    }

    /// Fails while a revocation list is out of date, so that recent revocations may be unknown. New
    /// moves are refused then (T12).
    ///
    /// # Errors
    ///
    /// `E_CRL_STALE` if a list is out of date.
    pub(crate) fn check_fresh(&self) -> Result<(), Fault> {
        let current = self.current();
        let lists = current.revocations();
        if lists.freshness(SystemTime::now()) != Some(Freshness::Stale) {
            return Ok(());
        }
        let detail = lists.first_to_expire().map_or_else(String::new, |view| {
            let (number, issuer, until) = (view.number, &view.issuer, &view.next_update);
            format!("list {number} of {issuer} ended {until}")
        });
        Err(Fault::new(Code::CrlStale, detail))
    }

    /// Refuses a link whose peer was revoked after its handshake began.
    ///
    /// # Errors
    ///
    /// `E_DENIED` if the peer is revoked.
    pub(crate) fn check_link(&self, link: &Link) -> Result<(), Fault> {
        let current = self.current();
        let revoked = |leg| is_revoked(current.revocations(), link.connection(leg));
        if revoked(Leg::Urgent) || revoked(Leg::Bulk) {
            return Err(Fault::new(Code::Denied, REVOKED));
        }
        Ok(())
    }

    /// Reads the files if they may have changed since the last look, if a retry is due, if they
    /// would give other authorities by now, or if `is_wish` is set.
    fn look(&self, is_wish: bool) -> Look {
        let files = self.files.lock().clone();
        let now = prints(&files);
        let mut watched = self.watched.lock();
        let current = self.current();
        let time = SystemTime::now();
        let is_ended = current.has_other_authorities(time);
        let is_over = match watched.retry {
            Some((at, _)) => at <= StdInstant::now(),
            None => is_ended,
        };
        let is_due = is_wish || is_young(&now, time) || is_over;
        if now == watched.prints && !is_due {
            return watched.unsettled.take().map_or(Look::Same, Look::Failed);
        }
        let is_same = now == watched.prints;
        let is_settled = is_same || is_wish;
        watched.prints = now;
        let read = self.read(&files, &current, is_settled);
        watched.unsettled = None;
        let is_whole = matches!(read, Ok((_, None)));
        let before = watched.retry.filter(|_| is_same && is_ended && is_over);
        let wait = next_wait(before.map(|(_, wait)| wait));
        watched.retry = (!is_whole).then(|| retry_in(wait));
        match read {
            Ok((identity, _)) if identity.is_same(&current) => self.clear_problem(),
            Ok((identity, fault)) => {
                let lists = identity.revocations();
                if is_news(lists, current.revocations()) {
                    self.keep_lists(lists);
                }
                return Look::New(Box::new(identity), fault);
            }
            Err(fault) if is_settled => return Look::Failed(fault),
            Err(fault) => watched.unsettled = Some(fault),
        }
        Look::Same
    }

    /// Returns what can be used of the files: everything; or new lists with the current
    /// certificate; or, once the files are settled, the new certificate with the newest known
    /// lists. The fault says what cannot be used.
    fn read(
        &self,
        files: &CertificatesConfig,
        current: &Identity,
        is_settled: bool,
    ) -> Result<(Identity, Option<Fault>), Fault> {
        let identity = files.identity().and_then(|new| {
            let (now, ours) = (new.host(), &self.host);
            if now == ours {
                return Ok(new);
            }
            let detail = format!("the certificate names {now}, and this host is {ours}");
            Err(Fault::new(Code::Certificate, detail))
        });
        let known = Arc::clone(&self.newest.lock());
        let lists = |of: &Identity| match &files.crl {
            Some(crl) => of.load_revocations(crl, &known).map(Arc::new),
            None => Ok(Arc::default()),
        };
        let (usable, fault) = match identity {
            Ok(new) => match lists(&new) {
                Ok(lists) => return Ok((new.refusing(lists), None)),
                // A new certificate is used whatever is wrong with the lists, with the newest known
                // lists.
                Err(fault) if is_settled => {
                    let kept = new.recall_revocations(known.text());
                    let kept = kept.ok().filter(|kept| !kept.is_empty());
                    let Some(kept) = kept else { return Err(fault) };
                    (new.refusing(Arc::new(kept)), fault)
                }
                Err(fault) => return Err(fault),
            },
            // Without a key there are no links that a list could end.
            Err(fault) if !current.has_key() => return Err(fault),
            // A newer list is used whatever else is wrong.
            Err(fault) => (current.clone().refusing(lists(current)?), fault),
        };
        if usable.is_same(current) {
            return Err(fault);
        }
        Ok((usable, Some(fault)))
    }

    /// Records the newest lists. They are used before they are on disk.
    fn keep_lists(&self, lists: &Arc<Revocations>) {
        *self.newest.lock() = Arc::clone(lists);
        self.remembered.note_lists(lists);
    }

    fn note(&self, fault: &Fault) {
        let mut reading = self.reading.lock();
        if reading.problem.as_ref() == Some(fault) {
            return;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        if fault.code == Code::CrlRollback {
            self.rollbacks.fetch_add(1, Ordering::Relaxed);
        }
        tracing::error!(target: "audit", %fault, "changed certificates are not used");
        reading.problem = Some(fault.clone());
    }

    /// The problem of the files, or else of the identity in use.
    pub(crate) fn problem(&self) -> Option<Fault> {
        let of_files = self.reading().problem;
        of_files.or_else(|| self.own_problem())
    }

    /// Whether the files hold a list older than the newest known one, which stays in use.
    pub(crate) fn is_rolled_back(&self) -> bool {
        let problem = &self.reading.lock().problem;
        problem
            .as_ref()
            .is_some_and(|fault| fault.code == Code::CrlRollback)
    }

    /// The problem of the identity in use: this host's own certificate is revoked.
    pub(crate) fn own_problem(&self) -> Option<Fault> {
        self.current().is_revoked().then(|| {
            let detail = "this host's own certificate is revoked: peers that know of it refuse it";
            Fault::new(Code::Certificate, detail).remedy(OWN_REVOKED_REMEDY)
        })
    }

    fn warn_of_own(&self) {
        if let Some(fault) = self.own_problem() {
            let remedy = OWN_REVOKED_REMEDY;
            tracing::warn!(target: "audit", %fault, remedy, "peers will refuse this host");
        }
    }

    /// Logs which identity is used in place of the files.
    fn warn_of_before(&self) {
        let current = self.current();
        let until = &current.view().not_after;
        match current.has_key() {
            true => tracing::warn!(
                target: "audit",
                certificate_until = until,
                "the last good certificate is in use: the files cannot be used"
            ),
            false => tracing::error!(
                target: "audit",
                certificate_until = until,
                "no link is made until the files can be used: the key fits no good certificate"
            ),
        }
    }

    fn clear_problem(&self) {
        self.reading.lock().problem = None;
    }
}

impl CertificatesConfig {
    /// Loads the identity from the files, with the one of `key` and `next_key` that belongs to the
    /// certificate.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`]. If both keys exist and neither can be used, the fault names both.
    pub fn identity(&self) -> Result<Identity, Fault> {
        self.with_key(|key| {
            Identity::load(&IdentityPaths {
                certificate: &self.cert,
                key,
                authorities: &self.ca,
            })
        })
    }

    /// Loads an identity with the one of `key` and `next_key` that belongs to its certificate.
    ///
    /// # Errors
    ///
    /// As `with`. If both keys exist and neither can be used, the fault names both.
    fn with_key(&self, with: impl Fn(&Path) -> Result<Identity, Fault>) -> Result<Identity, Fault> {
        let loaded = with(&self.key);
        let Some(next) = self.next_key.as_deref().filter(|next| next.exists()) else {
            return loaded;
        };
        loaded.or_else(|first| {
            with(next).map_err(|second| {
                if second.detail == first.detail {
                    return first;
                }
                Fault {
                    detail: format!("{}; {}", first.detail, second.detail),
                    remedy: first.remedy.or(second.remedy),
                    ..first
                }
            })
        })
    }
}

/// Whether to record lists as the newest. An empty set of lists replaces nothing.
fn is_news(lists: &Revocations, before: &Revocations) -> bool {
    !lists.is_empty() && !lists.is_same(before)
}

/// A fault with its remedy, in one line.
pub(crate) fn with_remedy(fault: &Fault) -> String {
    match &fault.remedy {
        Some(remedy) => format!("{fault}; {remedy}"),
        None => fault.to_string(),
    }
}

/// How long to wait before unusable files are read again. If an authority has ended and the files
/// are unchanged, `before` is the last wait, which is doubled: the next authority may become valid
/// in a moment, but later only a change of the files helps.
fn next_wait(before: Option<Duration>) -> Duration {
    before.map_or(RETRY_INTERVAL, |before| (2 * before).min(ENDED_INTERVAL))
}

/// The time after `wait` from now, and `wait`.
fn retry_in(wait: Duration) -> (StdInstant, Duration) {
    (StdInstant::now() + wait, wait)
}

/// The identity to start with: that of the files, or else the last good one with the fault of the
/// files.
///
/// # Errors
///
/// The fault of the files, if no good identity of this host is kept.
fn first(
    files: &CertificatesConfig,
    us: (&Name, &Name),
    remembered: &Remembered,
) -> Result<(Identity, Option<Fault>), Fault> {
    let is_ours = |identity: &Identity| is_host(identity.host(), us);
    let loaded = files.identity().and_then(|identity| {
        let host = identity.host();
        match is_host(host, us) {
            true => Ok(identity),
            false => Err(other_host(host, us)),
        }
    });
    match (loaded, remembered.identity(files, is_ours)) {
        (Ok(identity), _) => Ok((identity, None)),
        (Err(fault), Some(before)) => Ok((before, Some(fault))),
        (Err(fault), None) => Err(fault),
    }
}

/// Whether `host` is the host of the configuration.
fn is_host(host: &HostIdentity, (site, name): (&Name, &Name)) -> bool {
    host.site == *site && host.host == *name
}

fn other_host(host: &HostIdentity, (site, name): (&Name, &Name)) -> Fault {
    let detail = format!("the certificate names {host}, the configuration {site}/{name}");
    Fault::new(Code::Certificate, detail)
}

/// Looks at the files until the tunnel stops, and takes changes into use.
pub(crate) async fn keep(core: Arc<Core>, endpoint: Option<Endpoint>, mut stop: Shutdown) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reminded = None;
    loop {
        let is_wish = tokio::select! {
            () = stop.requested() => return,
            () = core.trust.wish.notified() => true,
            _ = ticks.tick() => false,
        };
        let looking = Arc::clone(&core);
        let wished = core.trust.wishes.load(Ordering::Acquire);
        // The files may be on a slow disk.
        let look = tokio::task::spawn_blocking(move || looking.trust.look(is_wish)).await;
        match look {
            Ok(Look::New(identity, fault)) => {
                let adopted = adopt(&core, endpoint.as_ref(), *identity);
                if let Some(fault) = adopted.err().or(fault) {
                    core.trust.note(&fault);
                }
            }
            Ok(Look::Failed(fault)) => core.trust.note(&fault),
            Ok(Look::Same) | Err(_) => {}
        }
        standing::attend(&core);
        if is_wish {
            core.trust.granted.send_replace(wished);
        }
        remind(&core, &mut reminded);
    }
}

/// Takes an identity into use for all handshakes from now on.
fn adopt(core: &Core, endpoint: Option<&Endpoint>, identity: Identity) -> Result<(), Fault> {
    // Everything that can fail comes before the first change.
    let server = tls::server_config(&identity, &core.rejections)
        .and_then(|tls| transport::server(tls, &core.limits))?;
    // A peer that is added meanwhile would keep the settings of the identity before.
    let _unchanging = core.peers.hold();
    let peers = core.peers.all();
    let clients = peers
        .values()
        .map(|peer| peer.clients_of(&identity, &core.rejections, &core.limits))
        .collect::<Result<Vec<_>, _>>()?;
    let (until, lists) = (&identity.view().not_after, identity.revocations());
    let numbers: Vec<_> = lists.views().map(|view| view.number).collect();
    tracing::info!(target: "audit", certificate_until = until, lists = ?numbers, "certificates changed");
    core.trust.remembered.note_identity(&identity);
    core.trust.take(identity);
    core.trust.warn_of_own();
    if let Some(endpoint) = endpoint {
        endpoint.set_server_config(Some(server));
    }
    for (peer, clients) in peers.values().zip(clients) {
        peer.set_clients(Some(clients));
    }
    *core.trust.reading.lock() = Reading {
        problem: None,
        since: Some(SystemTime::now()),
    };
    Ok(())
}

/// Logs lists that are about to end or have ended: once a day, and whenever their state changes.
fn remind(core: &Core, reminded: &mut Option<(Freshness, Instant)>) {
    let current = core.trust.current();
    let lists = current.revocations();
    let freshness = lists.freshness(SystemTime::now());
    let Some(freshness) = freshness.filter(|how| *how != Freshness::Fresh) else {
        *reminded = None;
        return;
    };
    let is_due =
        |(how, at): (Freshness, Instant)| how != freshness || at.elapsed() >= REMINDER_INTERVAL;
    if reminded.is_none_or(is_due) {
        *reminded = Some((freshness, Instant::now()));
        let due = lists
            .first_to_expire()
            .map(|view| view.next_update.as_str());
        tracing::warn!(
            state = freshness.as_str(),
            due,
            "the list of revoked certificates is old; new moves are refused once it has ended"
        );
    }
}

/// Whether the other end of a connection has shown a revoked certificate, as its own or in the
/// chain to its authority.
fn is_revoked(lists: &Revocations, connection: &Connection) -> bool {
    chain_of(connection).is_some_and(|chain| chain.iter().any(|one| lists.is_revoked(one)))
}

/// End of the validity of the certificate that a link's peer has shown, in seconds since 1970.
pub(crate) fn peer_not_after(link: &Link) -> Option<u64> {
    let chain = chain_of(link.connection(Leg::Urgent))?;
    let view = view::of_der(chain.first()?).ok()?;
    Some(view.not_after_unix_seconds)
}

/// The certificate chain that the other end of a connection has shown.
pub(crate) fn chain_of(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    let shown = connection.peer_identity()?;
    Some(*shown.downcast().ok()?)
}

fn prints(files: &CertificatesConfig) -> Vec<Print> {
    let paths = [
        Some(&files.cert),
        Some(&files.key),
        files.next_key.as_ref(),
        Some(&files.ca),
        files.crl.as_ref(),
    ];
    paths.into_iter().flatten().map(print).collect()
}

/// The fingerprint of a file; all zeros if there is none.
fn print(path: &PathBuf) -> Print {
    let seen = std::fs::metadata(Path::new(path));
    seen.map_or(
        Print {
            device: 0,
            inode: 0,
            bytes: 0,
            modified: (0, 0),
            changed: (0, 0),
        },
        |seen| Print {
            device: seen.dev(),
            inode: seen.ino(),
            bytes: seen.len(),
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
        },
    )
}

/// Whether a file changed so recently that a later change may not show in its times. A time in the
/// future by this clock counts as old, or the file would be read for ever.
fn is_young(prints: &[Print], now: SystemTime) -> bool {
    prints.iter().any(|print| {
        let seconds = u64::try_from(print.changed.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(changed).is_ok_and(|age| age <= YOUNG)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_an_ended_authority_made_useless_are_read_again_soon_and_then_seldom() {
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(next_wait(waits.last().copied()));
        }
        // The fourth retry comes within 80 seconds.
        assert!(waits[..4].iter().sum::<Duration>() < Duration::from_secs(80));
        assert_eq!(waits[0], RETRY_INTERVAL);
        assert_eq!(waits[9], ENDED_INTERVAL);
        assert_eq!(next_wait(None), RETRY_INTERVAL);
    }
}
