//! A lab with a watch over it, and the steps and checks that all cases share.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, MigrationView, Phase};

use crate::console::{Console, Silence};
use crate::lab::{Guest, Lab, Link};
use crate::site::Place;
use crate::verdict::{Rest, come_to_rest, wait_for_phase};
use crate::watch::Watch;

/// A link that carries a small guest in a second.
pub const LINK: Link = Link {
    megabits_per_second: 300,
    round_trip: Duration::from_millis(4),
};

/// How long a disturbed move may take to come to rest, on a busy machine.
pub const REST_WAIT: Duration = Duration::from_secs(40);

/// How long a guest may be silent on top of the time that a daemon was away: a paused guest
/// continues at most two seconds after the migrator is back.
pub const SILENCE_EXTRA: Duration = Duration::from_secs(2);

/// The site where guests start.
pub const SOURCE: Place = Place::Edge;

/// The site that guests move to.
pub const TARGET: Place = Place::Region;

/// A lab and the watch over it.
#[derive(Debug)]
pub struct Scene {
    /// The watch over it.
    pub watch: Watch,
    /// The lab.
    pub lab: Lab,
}

/// Plays cases one after the other, in the same lab until one fails; after a failure the lab is
/// replaced, because its state cannot be trusted. Prints each case's duration and summary; returns
/// the failures.
pub fn play_each<C>(
    link: Link,
    cases: impl IntoIterator<Item = (String, C)>,
    play: impl Fn(&mut Scene, C) -> Result<String, String>,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut scene = None;
    for (name, case) in cases {
        let mut now = scene.take().unwrap_or_else(|| Scene::new(link));
        let begun = Instant::now();
        match play(&mut now, case) {
            Ok(told) => {
                eprintln!("{name}: {} ms{told}", begun.elapsed().as_millis());
                scene = Some(now);
            }
            Err(why) => {
                now.lab.show_logs();
                failures.push(format!("{name}: {why}"));
            }
        }
    }
    failures
}

impl Scene {
    /// Builds a lab and begins to watch it.
    #[must_use]
    pub fn new(link: Link) -> Self {
        let lab = Lab::start(link);
        let watch = Watch::start(&lab);
        Self { watch, lab }
    }

    /// Starts a guest and waits until it runs.
    ///
    /// # Panics
    ///
    /// If it does not run.
    #[must_use]
    pub fn guest(&self, guest: &Guest) -> Console {
        self.lab.start_guest(SOURCE, guest);
        let mut console = Console::of(&self.lab, &guest.name);
        console
            .wait_for_more(5, REST_WAIT)
            .expect("a new guest runs");
        console
    }

    /// Waits until the move is at rest and checks everything.
    ///
    /// # Errors
    ///
    /// The expectation that failed.
    pub fn rest(&self, guest: &Guest, console: &mut Console) -> Result<Rest, String> {
        come_to_rest(&self.lab, &guest.name, console, &self.watch, REST_WAIT)
    }

    /// Like [`Scene::rest`], and checks that the guest has moved.
    ///
    /// # Errors
    ///
    /// The expectation that failed.
    pub fn arrives(&self, guest: &Guest, console: &mut Console) -> Result<Rest, String> {
        let rest = self.rest(guest, console)?;
        if rest.place == SOURCE {
            return Err(format!("it stayed: {:?}", rest.moves.first()));
        }
        match rest.moves.first() {
            Some(view) if view.phase != Phase::Done => Err(format!("not done: {view:?}")),
            _ => Ok(rest),
        }
    }

    /// Starts to move a guest.
    ///
    /// # Errors
    ///
    /// The migrator's answer.
    pub fn begin(&self, guest: &Guest, mode: MigrationMode) -> Result<MigrationView, String> {
        let request = Lab::request(guest, SOURCE, mode);
        let begun = self.lab.site(SOURCE).migrate(&request);
        begun.map_err(|problem| format!("not begun: {problem:?}"))
    }

    /// Waits until the guest's move is in a phase, as its source shows it.
    ///
    /// # Errors
    ///
    /// If the move ends before, or is not in that phase in time.
    pub fn reaches(&self, guest: &Guest, phase: Phase) -> Result<MigrationView, String> {
        wait_for_phase(&self.lab, (SOURCE, &guest.name), &[phase], REST_WAIT)
    }

    /// Plays a case. If only a busy machine explains how long the guest was silent, plays it again
    /// while no other lab of this process is active. Returns the guest's longest silence.
    ///
    /// # Errors
    ///
    /// The expectation that failed.
    pub fn play(
        &mut self,
        mut case: impl FnMut(&mut Self) -> Result<Silence, String>,
    ) -> Result<Duration, String> {
        self.lab.share().give_way();
        let silence = case(self)?;
        if !silence.is_doubtful() {
            return Ok(silence.longest);
        }
        eprintln!("{silence:?}: once more, alone");
        let _alone = self.lab.share().alone();
        let again = case(self)?;
        if again.is_doubtful() {
            return Err(format!("{silence:?}, and alone {again:?}"));
        }
        Ok(again.longest)
    }
}
