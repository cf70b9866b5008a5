//! Forecasts of what links will carry: samples each link every second, keeps the history, and
//! forecasts from it.
//!
//! The sending side knows when the path was the limit, so it measures the capacity and tells the
//! receiving side, which sees only what arrived, not what the path could have carried.

mod files;
mod views;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::time::{MissedTickBehavior, interval, timeout};
use towpath_daemon::shutdown::Shutdown;
use towpath_forecast::count::{to_f64, whole};
use towpath_forecast::forecaster::Forecaster;
use towpath_forecast::history::{History, Sample};
use towpath_forecast::moment::Moment;
use towpath_forecast::zone::Zone;
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::LinkId;
use towpath_protocol::rate::Rate;

use crate::config::Config;
use crate::core::Core;
use crate::links::peer::Peer;
use crate::operators::health::LOSS_PER_MILLION;
use crate::shaping::timetable;
use crate::state_files::Folder;

pub use views::{ForecastDocument, ForecastView, QuantilesView};

pub(crate) use views::{Query, SCHEMA, bytes_per_second, cap_at, document};

/// Seconds between samples of a link.
const LOOK_SECONDS: u32 = 1;

/// Seconds that a probe's result counts for: enough to make its hour known. A probe fills the path
/// for less than that, because measuring is its only purpose.
const PROBE_SECONDS: u32 = 5;

/// Seconds between writes of a history. Losing an hour of it does no harm, and a flash disk lasts
/// longer.
const SAVE_SECONDS: u64 = 3600;

/// How long writing all histories may take at the end. The service manager waits ten seconds for
/// this and the farewell.
const SAVE_WAIT: Duration = Duration::from_secs(5);

/// Samples for which the received bytes are remembered. A peer's claim is about its previous
/// sample, arrives within one more and stays valid for two; and its samples are not aligned with
/// ours.
const CAME_COUNT: usize = 4;

/// Largest claim of a peer about its path, per second, as a multiple of the bytes received in two
/// consecutive samples. A path counts as filled after a fifth of a second, which may span two
/// samples.
const CLAIM_MAX: u64 = 5;

/// How long the path must have been the limit within a sample for its rate to count.
const FILLED_MIN: Duration = Duration::from_millis(300);

/// Part of a cap, per mille, that the bytes on the wire must reach within a sample for the cap to
/// count as the limit. The shaper uses 98 % of the cap under load, and samples are not exact to the
/// millisecond.
const REACHED_PER_MILLE: u128 = 950;

/// Direction of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From us to the peer.
    Send,
    /// From the peer to us.
    Receive,
}

impl Direction {
    pub(crate) const ALL: [Self; 2] = [Self::Send, Self::Receive];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

/// The forecasters of all peers.
#[derive(Debug)]
pub(crate) struct Outlook {
    zone: Zone,
    folder: Option<Arc<Folder>>,
    peers: RwLock<BTreeMap<Name, Arc<Mutex<PeerHistory>>>>,
}

/// What is known of one peer.
#[derive(Debug, Default)]
struct PeerHistory {
    /// By direction; `None` until the history has been read.
    forecasters: Option<[Forecaster; 2]>,
    /// Whether they are being learnt anew.
    is_learning: bool,
    seen: Option<Snapshot>,
    /// Capacity found by a probe since the last sample, in bytes per second.
    probed: Option<u64>,
}

/// Counters at the time of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Snapshot {
    link: LinkId,
    at: Instant,
    /// Bytes and time for which the path was the limit, from the estimator.
    filled_bytes: u64,
    filled_time: Duration,
    /// Bytes on the wire and the cap in force, by direction.
    wire: [(u64, Option<Rate>); 2],
    /// Bytes received on the wire of this link in each of the latest samples, newest first.
    came: [u64; CAME_COUNT],
}

impl Snapshot {
    /// Records the bytes received since the previous sample.
    fn note_came(&mut self, before: Option<&Self>) {
        if let Some(before) = before.filter(|before| before.link == self.link) {
            self.came[1..].copy_from_slice(&before.came[..CAME_COUNT - 1]);
            let [_, (bytes, _)] = self.wire;
            self.came[0] = bytes.saturating_sub(before.wire[1].0);
        }
    }

    /// Whether enough bytes arrived for the peer's claim to have filled a path of this rate, in
    /// bytes per second, to be plausible.
    fn supports(&self, claim: u64) -> bool {
        let in_a_row = self
            .came
            .windows(2)
            .map(|looks| looks[0].saturating_add(looks[1]));
        in_a_row
            .max()
            .is_some_and(|most| claim <= most.saturating_mul(CLAIM_MAX))
    }
}

impl Outlook {
    pub(crate) fn new(config: &Config, folder: Option<Arc<Folder>>) -> Self {
        let peers = config.peers.iter();
        Self {
            zone: config.time_zone.clone(),
            folder,
            peers: RwLock::new(
                peers
                    .map(|peer| (peer.site.clone(), Arc::default()))
                    .collect(),
            ),
        }
    }

    /// Makes room for the history of a peer that was added, which then has to be read.
    pub(crate) fn add(&self, site: &Name) {
        self.peers.write().entry(site.clone()).or_default();
    }

    /// Ends the history of a peer that was removed, and writes it: the peer may be added again.
    pub(crate) fn remove(&self, site: &Name) {
        self.save(site);
        self.peers.write().remove(site);
    }

    fn history(&self, site: &Name) -> Option<Arc<Mutex<PeerHistory>>> {
        self.peers.read().get(site).cloned()
    }

    /// Calls `what` with a peer's forecaster; `None` while its history has not been read.
    pub(crate) fn with<T>(
        &self,
        site: &Name,
        direction: Direction,
        what: impl FnOnce(&Forecaster) -> T,
    ) -> Option<T> {
        let known = self.history(site)?;
        let known = known.lock();
        known
            .forecasters
            .as_ref()
            .map(|forecasters| what(&forecasters[direction as usize]))
    }

    /// Records the path's capacity as found by a probe.
    pub(crate) fn note_probe(&self, site: &Name, bytes_per_second: u64) {
        if let Some(known) = self.history(site) {
            known.lock().probed = Some(bytes_per_second);
        }
    }

    /// Reads a peer's history. Takes a while, because everything is learnt again from it.
    pub(crate) fn load(&self, site: &Name) {
        let made = Direction::ALL.map(|direction| {
            let history = match &self.folder {
                Some(folder) => files::load(folder, site, direction),
                None => History::default(),
            };
            Forecaster::new(self.zone.clone(), history)
        });
        if let Some(known) = self.history(site) {
            // The peer may have been removed and added again meanwhile, and its history read.
            known.lock().forecasters.get_or_insert(made);
        }
    }

    /// Learns anew the forecasts that a clock that was put back has led astray. Takes as long as
    /// `load`.
    fn learn_anew(&self, site: &Name) {
        let Some(known) = self.history(site) else {
            return;
        };
        for direction in Direction::ALL {
            let history = |forecaster: &Forecaster| {
                let needs_retraining = forecaster.needs_retraining();
                needs_retraining.then(|| forecaster.history().clone())
            };
            let Some(history) = self.with(site, direction, history).flatten() else {
                continue;
            };
            let again = Forecaster::new(self.zone.clone(), history);
            if let Some(forecasters) = &mut known.lock().forecasters {
                forecasters[direction as usize].adopt_model(again);
            }
        }
        known.lock().is_learning = false;
    }

    /// Writes a peer's history.
    fn save(&self, site: &Name) {
        let Some(folder) = &self.folder else { return };
        for direction in Direction::ALL {
            let encode = |forecaster: &Forecaster| forecaster.history().encode();
            let Some(bytes) = self.with(site, direction, encode) else {
                continue;
            };
            if let Err(fault) = files::save(folder, site, direction, &bytes) {
                tracing::warn!(peer = %site, %fault, "the history of a link cannot be kept");
            }
        }
    }

    /// Samples one peer's link; returns whether its forecasts must be learnt anew.
    #[must_use]
    fn look(&self, peer: &Peer, now: Moment) -> bool {
        let Some(known) = self.history(&peer.site) else {
            return false;
        };
        let known = &mut *known.lock();
        let [mut send, receive] = sample(peer, &mut known.seen);
        let mut seconds = LOOK_SECONDS;
        if let Some(rate) = known.probed.take() {
            send = Sample::Capacity(to_f64(rate));
            seconds = PROBE_SECONDS;
        }
        if let Ok(link) = peer.link() {
            match send {
                Sample::Capacity(rate) => link.news.filled(whole(rate)),
                // For the receiver, our own cap is what the path carries. A cap that the receiver
                // asked for is not reported back.
                Sample::CapLimited(cap) if limit_of(link.wanted_rate()) > cap => {
                    link.news.filled(whole(cap));
                }
                _ => {}
            }
        }
        if let Some([sending, receiving]) = &mut known.forecasters {
            sending.observe(now, send, seconds);
            receiving.observe(now, receive, LOOK_SECONDS);
        }
        known.has_to_learn()
    }
}

impl PeerHistory {
    /// Whether a forecaster must be learnt anew. Returns `true` once, then `false` until that is
    /// done.
    fn has_to_learn(&mut self) -> bool {
        let needs_retraining =
            |forecasters: &[Forecaster; 2]| forecasters.iter().any(Forecaster::needs_retraining);
        let has_to = !self.is_learning && self.forecasters.as_ref().is_some_and(needs_retraining);
        self.is_learning |= has_to;
        has_to
    }
}

/// Samples the last second, by direction.
fn sample(peer: &Peer, seen: &mut Option<Snapshot>) -> [Sample; 2] {
    let state = peer.state();
    let Some(link) = state.link.clone().filter(|_| state.is_usable()) else {
        *seen = None;
        return [Sample::Down; 2];
    };
    let (measured, estimate) = (link.measured(), link.estimate());
    let mut now = Snapshot {
        link: link.id,
        at: Instant::now(),
        filled_bytes: estimate.filled_bytes,
        filled_time: estimate.filled_time,
        wire: [
            (peer.pacer.left_bytes(), peer.pacer.rate()),
            (link.came_bytes(), peer.receive_rate()),
        ],
        came: [0; CAME_COUNT],
    };
    now.note_came(seen.as_ref());
    let before = seen.replace(now);
    // The path does not carry what it loses, however much of the cap was sent.
    let is_lossy = measured.lost_per_million >= LOSS_PER_MILLION;
    let [sent, received] = [measured.sent_per_second, measured.received_per_second].map(to_f64);
    let kept_below = link.capacity_shown_by(measured.sent_per_second).map(to_f64);
    let send = match (filled(before, now).or(kept_below), reached(before, now, 0)) {
        (Some(rate), _) => Sample::Capacity(rate.max(sent)),
        (None, Some(cap)) if !is_lossy => Sample::CapLimited(cap),
        (None, _) => Sample::ApplicationLimited(sent),
    };
    let receive = receiving(link.take_filled(), (before, now), received);
    [send, receive]
}

/// Samples the last second for the receiver. The peer's claim about its path counts only if the
/// received bytes support it; otherwise the received rate is all that is known.
fn receiving(
    claim: Option<u64>,
    (before, now): (Option<Snapshot>, Snapshot),
    received: f64,
) -> Sample {
    let claim = claim.filter(|claim| now.supports(*claim));
    match (claim, reached(before, now, 1)) {
        (Some(rate), _) => Sample::Capacity(to_f64(rate).max(received)),
        (None, Some(cap)) => Sample::CapLimited(cap),
        (None, None) => Sample::ApplicationLimited(received),
    }
}

/// Returns the cap of a direction, in bytes per second, if it was the limit since the last sample.
fn reached(before: Option<Snapshot>, now: Snapshot, direction: usize) -> Option<f64> {
    let before = before.filter(|before| before.link == now.link)?;
    let ((bytes_before, cap_before), (bytes, cap)) = (before.wire[direction], now.wire[direction]);
    let cap = cap.filter(|_| cap == cap_before)?;
    let most = cap.bytes_in(now.at.saturating_duration_since(before.at));
    let passed = bytes.checked_sub(bytes_before)?;
    let is_reached = most > 0 && u128::from(passed) * 1000 >= u128::from(most) * REACHED_PER_MILLE;
    is_reached.then(|| bytes_per_second(cap))
}

/// Returns the rate since the last sample, in bytes per second, if the path was the limit for long
/// enough.
fn filled(before: Option<Snapshot>, now: Snapshot) -> Option<f64> {
    let before = before.filter(|before| before.link == now.link)?;
    let bytes = now.filled_bytes.checked_sub(before.filled_bytes)?;
    let time = now.filled_time.checked_sub(before.filled_time)?;
    (time >= FILLED_MIN).then(|| to_f64(bytes) / time.as_secs_f64())
}

/// Returns a cap in bytes per second; infinity without one.
fn limit_of(cap: Option<Rate>) -> f64 {
    cap.map_or(f64::INFINITY, bytes_per_second)
}

/// Samples all links every second and writes the histories every hour, until the tunnel stops.
pub(crate) async fn keep(core: Arc<Core>, mut stop: Shutdown) {
    let loading = Arc::clone(&core);
    let load = move || {
        for site in loading.peers.all().keys() {
            loading.outlook.load(site);
        }
    };
    tokio::task::spawn_blocking(load);
    let mut looks = interval(Duration::from_secs(LOOK_SECONDS.into()));
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut count = 0_u64;
    loop {
        tokio::select! {
            () = stop.requested() => break,
            _ = looks.tick() => {}
        }
        let now = timetable::now();
        for peer in core.peers.all().values() {
            if core.outlook.look(peer, now) {
                let (core, site) = (Arc::clone(&core), peer.site.clone());
                tokio::task::spawn_blocking(move || core.outlook.learn_anew(&site));
            }
            if count % SAVE_SECONDS == save_second(&peer.site) {
                let (core, site) = (Arc::clone(&core), peer.site.clone());
                tokio::task::spawn_blocking(move || core.outlook.save(&site));
            }
        }
        count += 1;
    }
}

/// The second of an hour in which a peer's history is written. It depends on the site only, so that
/// the histories are spread over the hour, and peers that come and go do not change those of others.
fn save_second(site: &Name) -> u64 {
    let bytes = site.as_str().bytes();
    bytes.fold(0, |second, byte| {
        (second * 31 + u64::from(byte)) % SAVE_SECONDS
    })
}

/// Writes the histories of all peers at the end. A history that has not been read yet is not
/// overwritten.
pub(crate) async fn save_all(core: &Arc<Core>) {
    let left = Arc::new(AtomicUsize::new(core.peers.count()));
    let (core, unsaved) = (Arc::clone(core), Arc::clone(&left));
    let save = move || {
        let began = Instant::now();
        for site in core.peers.all().keys() {
            if began.elapsed() >= SAVE_WAIT {
                break;
            }
            core.outlook.save(site);
            unsaved.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let saved = timeout(SAVE_WAIT, tokio::task::spawn_blocking(save)).await;
    match (saved, left.load(Ordering::Relaxed)) {
        (_, 0) => {}
        (Ok(Err(error)), sites) => tracing::error!(
            %error,
            sites,
            "the last hour of some links' histories is lost: they cannot be written"
        ),
        (Ok(Ok(())) | Err(_), sites) => tracing::warn!(
            sites,
            "the last hour of some links' histories is lost: the disk is too slow"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(link: u128, filled_bytes: u64, millis: u64) -> Snapshot {
        Snapshot {
            link: LinkId(link),
            at: Instant::now(),
            filled_bytes,
            filled_time: Duration::from_millis(millis),
            wire: [(0, None); 2],
            came: [0; CAME_COUNT],
        }
    }

    /// Samples a link that received these bytes in each second; returns the last two samples.
    fn looked_at(came: &[u64]) -> (Option<Snapshot>, Snapshot) {
        let mut all = 0;
        let mut looks = (None, seen(1, 0, 0));
        for bytes in came {
            all += bytes;
            let mut now = seen(1, 0, 0);
            now.wire[1].0 = all;
            now.note_came(Some(&looks.1));
            looks = (Some(looks.1), now);
        }
        looks
    }

    #[test]
    fn a_peers_word_of_its_path_counts_as_far_as_what_came_bears_it_out() {
        let told = |came: &[u64], claim| receiving(Some(claim), looked_at(came), 700.0);
        // A path filled for the whole second, and one filled for part of it.
        for claim in [1_000_000, 3_000_000] {
            let sample = told(&[1_000_000, 1_000_000], claim);
            assert_eq!(sample, Sample::Capacity(to_f64(claim)));
        }
        // 100 Gbit/s, claimed over a link that carries little more than the claim.
        for came in [&[][..], &[0, 500], &[1_000_000, 0, 0, 0, 0, 500]] {
            let sample = told(came, 12_500_000_000);
            assert_eq!(sample, Sample::ApplicationLimited(700.0), "{came:?}");
        }
        // A claim from a fifth of a second that spans two samples may arrive two samples later.
        let sample = told(&[0, 100_000, 100_000, 0, 0], 1_000_000);
        assert_eq!(sample, Sample::Capacity(1e6));
        let sample = told(&[0, 100_000, 100_000, 0, 0], 1_100_000);
        assert_eq!(sample, Sample::ApplicationLimited(700.0));
        // The new link has carried nothing yet.
        let mut other = seen(2, 0, 0);
        other.wire[1].0 = 1_000_000;
        let (_, before) = looked_at(&[1_000_000, 1_000_000]);
        other.note_came(Some(&before));
        let sample = receiving(Some(1_000_000), (Some(before), other), 700.0);
        assert_eq!(sample, Sample::ApplicationLimited(700.0));
    }

    #[test]
    fn a_cap_was_the_limit_if_it_was_used_and_stayed() {
        let cap = Some(Rate::clamped(1_000_000));
        let at = |bytes: u64, cap: Option<Rate>, seconds: u64| {
            let mut seen = seen(1, 0, 0);
            seen.wire[0] = (bytes, cap);
            (Duration::from_secs(seconds), seen)
        };
        let check = |(after, mut now): (Duration, Snapshot), before: Option<Snapshot>| {
            now.at = before.map_or(now.at, |before| before.at) + after;
            reached(before, now, 0)
        };
        let before = Some(at(5_000, cap, 0).1);
        let all = at(995_000, cap, 1);
        assert_eq!(check(all, before), Some(1e6));
        assert_eq!(check(all, None), None, "the first look");
        assert_eq!(check(at(905_000, cap, 1), before), None, "too little");
        let other = Some(Rate::clamped(900_000));
        assert_eq!(check(at(995_000, other, 1), before), None, "another cap");
        assert_eq!(check(at(995_000, None, 1), before), None, "no cap any more");
        assert_eq!(check(all, Some(seen(2, 0, 0))), None, "another link");
    }

    #[test]
    fn after_a_clock_that_was_put_back_both_ways_are_learnt_anew_once() {
        let site: Name = "region".parse().unwrap();
        let outlook = Outlook {
            zone: Zone::utc(),
            folder: None,
            peers: RwLock::new(BTreeMap::from([(site.clone(), Arc::default())])),
        };
        outlook.load(&site);
        let has_to_learn = |now: u64| {
            let known = outlook.history(&site).unwrap();
            let known = &mut *known.lock();
            for forecaster in known.forecasters.iter_mut().flatten() {
                let now = Moment::from_unix_seconds(1_780_272_000 + now);
                forecaster.observe(now, Sample::Capacity(1e6), 60);
            }
            known.has_to_learn()
        };
        for hour in 0..12 {
            assert!(!has_to_learn(hour * 3600));
        }
        assert!(has_to_learn(6 * 3600), "five hours back");
        assert!(!has_to_learn(6 * 3600 + 60), "it is under way");
        outlook.learn_anew(&site);
        assert!(!has_to_learn(7 * 3600));
        for direction in Direction::ALL {
            let known = outlook.with(&site, direction, Forecaster::known_hours);
            assert_eq!(known, Some(7));
        }
        assert!(has_to_learn(0), "and again");
    }

    #[test]
    fn only_a_path_that_was_the_limit_for_long_enough_has_a_capacity() {
        let before = Some(seen(1, 5_000, 100));
        assert_eq!(filled(before, seen(1, 505_000, 600)), Some(1e6));
        assert_eq!(filled(before, seen(1, 105_000, 200)), None, "too short");
        assert_eq!(filled(before, seen(2, 505_000, 600)), None, "another link");
        assert_eq!(
            filled(before, seen(1, 4_000, 600)),
            None,
            "another connection"
        );
        assert_eq!(filled(None, seen(1, 505_000, 600)), None, "the first look");
    }
}
