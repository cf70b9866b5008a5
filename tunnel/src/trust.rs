//! Who we are and whom we trust: read again when the files change, swapped without touching a link.
//!
//! ```text
//!  files change ─► read ─► key, chain, lists hold? ─┬─ yes ─► new handshakes use it; links live on,
//!                                                   │         or are made anew (`standing`)
//!                                                   └─ no ──► what we have stays, and status says why
//! ```
//!
//! Certificate, key and authorities are one thing and change together or not at all. The lists of
//! revoked certificates are another: a host whose own certificate has ended still hears of them. The
//! newest ones, and the last good certificate, are kept in the state folder (`remembered`): files that a running tunnel
//! does not use keep none from starting either.
//! Which files those are may change as well: a list that the configuration names from now on is in use
//! without a restart, for the first host is stolen on a day when nobody has named one.

pub(crate) mod dropped;
pub(crate) mod failures;
mod remembered;
pub(crate) mod standing;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as StdInstant, SystemTime};

use quinn::{Connection, Endpoint};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use towpath_certs::{Freshness, Identity, Revocations, tls, view};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};

use self::remembered::Remembered;
use crate::config::CertificatesConfig;
use crate::core::Core;
use crate::links::link::Link;
use crate::quic::transport;
use crate::state_files::Folder;

pub(crate) use self::remembered::{keep as remember, keep_now as remember_now};

/// What a peer is told whose live link is closed because its certificate is revoked.
const REVOKED: &str = "the certificate has been revoked";

/// How long whoever asked for a look waits for it: far longer than a disk takes that answers at all.
const WISH_WAIT: Duration = Duration::from_secs(10);

/// How often the files are looked at: a revoked peer is to be out within a second, and a look costs
/// four calls of `stat`.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A file changed so recently may have been changed again without its time showing it: the clock of
/// file systems ticks every few milliseconds, that of some network file systems every second.
const YOUNG: Duration = Duration::from_secs(2);

/// How soon files that could not be used are tried again though nothing about them has changed: a
/// certificate that begins in a moment, or a clock that is being set.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How soon at last, twice as late each time, the same files are read again that were of no use after an authority's
/// time had ended: each time says so in the log.
const ENDED_INTERVAL: Duration = Duration::from_mins(10);

/// What to do about a host whose own certificate is revoked.
pub(crate) const OWN_REVOKED_REMEDY: &str = "have a new certificate issued to this host with `towpath certs issue`, and find out why the old one was \
     revoked";

/// How often an aging or stale list is called out in the log.
const REMINDER_INTERVAL: Duration = Duration::from_hours(24);

/// How reading the files went so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// Why what the files hold now is not in use, if it is not.
    pub problem: Option<Fault>,
    /// Since when what is in use is in use.
    pub since: Option<SystemTime>,
}

/// Who we are and whom we trust.
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
    /// The newest lists there were, in use or not: none that is older is taken.
    newest: Mutex<Arc<Revocations>>,
    wish: Notify,
    /// How many looks somebody has asked for, and how many of those have been.
    wishes: AtomicU64,
    granted: watch::Sender<u64>,
    /// What the next start is to know.
    remembered: Remembered,
}

/// What the files looked like when they were last read.
#[derive(Debug, Default)]
struct Watched {
    prints: Vec<Print>,
    /// A failure that counts only if the next look finds the files unchanged: whoever replaces two
    /// files does so one after the other.
    unsettled: Option<Fault>,
    /// When files that could not be used are tried again, and how long that is after they last were.
    retry: Option<(StdInstant, Duration)>,
}

/// A file's mark: another file or another content has another one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a look at the files brought.
enum Look {
    Same,
    /// To be taken into use; the fault says what else the files hold that cannot be.
    New(Box<Identity>, Option<Fault>),
    Failed(Fault),
}

impl Trust {
    /// Reads the files of a host for the first time, and what is kept in the state folder of the newest lists:
    /// whoever can put back last month's list and start the tunnel again gets no further than otherwise. Files that
    /// cannot be used leave the last good certificate in use, as they do while the tunnel runs.
    ///
    /// # Errors
    ///
    /// `E_CERTIFICATE` if they cannot be used and no good certificate is kept, and for an unusable list too if none is
    /// kept: a host that was told to refuse revoked peers does not start without knowing them.
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

    /// The host we are, as long as the tunnel runs.
    pub(crate) const fn host(&self) -> &HostIdentity {
        &self.host
    }

    /// What is in use now.
    pub(crate) fn current(&self) -> Arc<Identity> {
        Arc::clone(&lock(&self.live))
    }

    /// What is in use now, and a number that is another one whenever that changes.
    pub(crate) fn now(&self) -> (Arc<Identity>, u64) {
        let live = lock(&self.live);
        (Arc::clone(&live), self.taken.load(Ordering::Relaxed))
    }

    /// Has this in use from now on.
    fn take(&self, identity: Identity) {
        let mut live = lock(&self.live);
        *live = Arc::new(identity);
        // Before anybody can read the one with the number of the other.
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    /// How reading the files went.
    pub(crate) fn reading(&self) -> Reading {
        lock(&self.reading).clone()
    }

    /// How often changed files were taken into use, and how often they were not.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.taken), of(&self.refused))
    }

    /// How often a list was offered that goes back behind the one in use.
    pub(crate) fn rollback_count(&self) -> u64 {
        self.rollbacks.load(Ordering::Relaxed)
    }

    /// Has the files of this configuration used from the next look on; whether they are others than before.
    pub(crate) fn follow(&self, files: &CertificatesConfig) -> bool {
        let mut ours = lock(&self.files);
        let is_other = *ours != *files;
        ours.clone_from(files);
        is_other
    }

    /// Has the files looked at now, and waits until what they say holds: not without end, for their disk may hang.
    pub(crate) async fn look_now(&self) {
        let wished = self.wishes.fetch_add(1, Ordering::AcqRel) + 1;
        self.wish.notify_one();
        let mut granted = self.granted.subscribe();
        let is_granted = granted.wait_for(|count| *count >= wished);
        if timeout(WISH_WAIT, is_granted).await.is_err() {
            tracing::warn!("the certificates' files have not answered for {WISH_WAIT:?}");
        }
    }

    /// Refuses new moves while what has been revoked lately is not known (T12).
    ///
    /// # Errors
    ///
    /// `E_CRL_STALE`.
    pub(crate) fn check_fresh(&self) -> Result<(), Fault> {
        let current = self.current();
        let lists = current.revocations();
        if lists.freshness(SystemTime::now()) != Some(Freshness::Stale) {
            return Ok(());
        }
        let detail = lists.first_to_end().map_or_else(String::new, |view| {
            let (number, issuer, until) = (view.number, &view.issuer, &view.next_update);
            format!("list {number} of {issuer} ended {until}")
        });
        Err(Fault::new(Code::CrlStale, detail))
    }

    /// Refuses a link whose peer has been revoked since its handshake began.
    ///
    /// # Errors
    ///
    /// `E_DENIED`.
    pub(crate) fn check_link(&self, link: &Link) -> Result<(), Fault> {
        let current = self.current();
        let revoked = |leg| is_revoked(current.revocations(), link.connection(leg));
        if revoked(Leg::Urgent) || revoked(Leg::Bulk) {
            return Err(Fault::new(Code::Denied, REVOKED));
        }
        Ok(())
    }

    /// Reads the files if they have changed since the last look, if by now the time of other authorities is over, or
    /// if it is a `wish`.
    fn look(&self, is_wish: bool) -> Look {
        let files = lock(&self.files).clone();
        let now = prints(&files);
        let mut watched = lock(&self.watched);
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

    /// What the files hold that can be used: all of it, the lists alone, or all but the lists once that is settled.
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
        let known = Arc::clone(&lock(&self.newest));
        let lists = |of: &Identity| match &files.crl {
            Some(crl) => of.load_revocations(crl, &known).map(Arc::new),
            None => Ok(Arc::default()),
        };
        let (usable, fault) = match identity {
            Ok(new) => match lists(&new) {
                Ok(lists) => return Ok((new.refusing(lists), None)),
                // A new certificate counts whatever is wrong with the lists, beside those that were the newest.
                Err(fault) if is_settled => {
                    let kept = new.recall_revocations(known.text());
                    let kept = kept.ok().filter(|kept| !kept.is_empty());
                    let Some(kept) = kept else { return Err(fault) };
                    (new.refusing(Arc::new(kept)), fault)
                }
                Err(fault) => return Err(fault),
            },
            // Without a key there is no link that a list could end.
            Err(fault) if !current.has_key() => return Err(fault),
            // A newer list counts whatever else is wrong.
            Err(fault) => (current.clone().refusing(lists(current)?), fault),
        };
        if usable.is_same(current) {
            return Err(fault);
        }
        Ok((usable, Some(fault)))
    }

    /// Notes that these lists are the newest. They are in use before any disk has them.
    fn keep_lists(&self, lists: &Arc<Revocations>) {
        *lock(&self.newest) = Arc::clone(lists);
        self.remembered.note_lists(lists);
    }

    fn note(&self, fault: &Fault) {
        let mut reading = lock(&self.reading);
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

    /// What is wrong with the files, or else with what is in use of them.
    pub(crate) fn problem(&self) -> Option<Fault> {
        let of_files = self.reading().problem;
        of_files.or_else(|| self.own_problem())
    }

    /// Whether the files hold a list that goes back behind the newest one, which stays in use.
    pub(crate) fn is_rolled_back(&self) -> bool {
        let problem = &lock(&self.reading).problem;
        problem
            .as_ref()
            .is_some_and(|fault| fault.code == Code::CrlRollback)
    }

    /// What is wrong with what is in use: that this host's own certificate is revoked.
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

    /// Says what is in use in place of the files.
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
        lock(&self.reading).problem = None;
    }
}

impl CertificatesConfig {
    /// What the files hold, with whichever key is the certificate's.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`]; of two keys that are both there and of no use it names both.
    pub fn identity(&self) -> Result<Identity, Fault> {
        self.with_key(|key| Identity::load(&self.cert, key, &self.ca))
    }

    /// An identity with whichever key is its certificate's.
    ///
    /// # Errors
    ///
    /// As `with`; of two keys that are both there and of no use it names both.
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

/// Whether lists are to be remembered as the newest: no list at all makes none of those before older.
fn is_news(lists: &Revocations, before: &Revocations) -> bool {
    !lists.is_empty() && !lists.is_same(before)
}

/// A fault in one line, with what mends it.
pub(crate) fn with_remedy(fault: &Fault) -> String {
    match &fault.remedy {
        Some(remedy) => format!("{fault}; {remedy}"),
        None => fault.to_string(),
    }
}

/// How long files wait that could not be used, by how long they did before if an authority has ended meanwhile: what is
/// to take its place may begin in a moment, and else it takes somebody who changes the files.
fn next_wait(before: Option<Duration>) -> Duration {
    before.map_or(RETRY_INTERVAL, |before| (2 * before).min(ENDED_INTERVAL))
}

/// A time from now, and how long that is.
fn retry_in(wait: Duration) -> (StdInstant, Duration) {
    (StdInstant::now() + wait, wait)
}

/// The identity to start with: that of the files, or else the last good one, and why the files cannot be used.
///
/// # Errors
///
/// What is wrong with the files, if no good identity of this host is kept.
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

/// Whether this is the host of the configuration.
fn is_host(host: &HostIdentity, (site, name): (&Name, &Name)) -> bool {
    host.site == *site && host.host == *name
}

fn other_host(host: &HostIdentity, (site, name): (&Name, &Name)) -> Fault {
    let detail = format!("the certificate names {host}, the configuration {site}/{name}");
    Fault::new(Code::Certificate, detail)
}

/// Looks at the files until the tunnel stops, and brings what they hold into use.
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
        // Files may lie on a disk that is slow to answer.
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

/// Brings an identity into use for every handshake from now on.
fn adopt(core: &Core, endpoint: Option<&Endpoint>, identity: Identity) -> Result<(), Fault> {
    // All is made before anything is exchanged.
    let server = tls::server_config(&identity, &core.rejections)
        .and_then(|tls| transport::server(tls, &core.limits))?;
    let clients = core
        .peers
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
    for (peer, clients) in core.peers.values().zip(clients) {
        peer.set_clients(Some(clients));
    }
    *lock(&core.trust.reading) = Reading {
        problem: None,
        since: Some(SystemTime::now()),
    };
    Ok(())
}

/// Calls out lists that are about to end or have ended, once a day and whenever it gets worse.
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
        let due = lists.first_to_end().map(|view| view.next_update.as_str());
        tracing::warn!(
            state = freshness.as_str(),
            due,
            "the list of revoked certificates is old; new moves are refused once it has ended"
        );
    }
}

/// Whether a connection's other end has shown a certificate that is revoked, its own or what leads from it to
/// its authority.
fn is_revoked(lists: &Revocations, connection: &Connection) -> bool {
    chain_of(connection).is_some_and(|chain| chain.iter().any(|one| lists.is_revoked(one)))
}

/// Last moment of the certificate that a link's peer has shown, in seconds since 1970.
pub(crate) fn peer_not_after(link: &Link) -> Option<u64> {
    let chain = chain_of(link.connection(Leg::Urgent))?;
    let view = view::view(chain.first()?).ok()?;
    Some(view.not_after_unix_seconds)
}

/// What a connection's other end has shown.
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

/// The mark of a file, or of nothing where there is none.
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

/// Whether a file changed so recently that a later change may not show. One from the future, by this
/// clock, counts as old: it would be read for ever.
fn is_young(prints: &[Print], now: SystemTime) -> bool {
    prints.iter().any(|print| {
        let seconds = u64::try_from(print.changed.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        now.duration_since(changed).is_ok_and(|age| age <= YOUNG)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        // What begins half a minute later is in use within a minute.
        assert!(waits[..4].iter().sum::<Duration>() < Duration::from_secs(80));
        assert_eq!(waits[0], RETRY_INTERVAL);
        assert_eq!(waits[9], ENDED_INTERVAL);
        assert_eq!(next_wait(None), RETRY_INTERVAL);
    }
}
