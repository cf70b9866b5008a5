//! Channels of the configuration, beside pushed ones: opened, changed and reset. A channel that
//! cannot listen yet is shown as down and tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::book::{Change, Origin};
use super::{Channel, ChannelSpec, Channels, Started, is_in_the_way, now_unix, start};
use crate::core::Core;
use crate::operators::status::ChannelOrigin;

/// Pauses between attempts to open a channel whose address could not be bound.
const LATE_PAUSE_FIRST: Duration = Duration::from_secs(1);
const LATE_PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// Channels that could not be opened yet: their address is in use, or does not exist on this host.
#[derive(Debug, Default)]
pub(super) struct Late {
    specs: Vec<(Arc<ChannelSpec>, Origin)>,
    /// When they are tried again, and the pause before that.
    next: Option<(Instant, Duration)>,
}

impl Late {
    /// Schedules these channels for another try, after a longer pause each time.
    fn put_off(&mut self, specs: Vec<(Arc<ChannelSpec>, Origin)>) {
        let pause = match self.next {
            Some((_, pause)) => (pause * 2).min(LATE_PAUSE_LONGEST),
            None => LATE_PAUSE_FIRST,
        };
        let is_some = !specs.is_empty();
        self.next = is_some.then(|| (Instant::now() + pause, pause));
        self.specs = specs;
    }
}

fn as_configured(specs: &[ChannelSpec]) -> Vec<(Arc<ChannelSpec>, Origin)> {
    let specs = specs.iter().cloned().map(Arc::new);
    specs.map(|spec| (spec, Origin::Configured)).collect()
}

impl Channels {
    /// Opens the channels pushed before a restart, then the configured ones. If both name a
    /// channel, the newer generation counts, or the pushed one if they are equal. A channel that
    /// cannot listen does not prevent the others: it is tried again.
    pub(crate) async fn begin(&self, core: &Arc<Core>, configured: &[ChannelSpec]) {
        let mut late = self.late.lock().await;
        let mut book = self.recall();
        book.expire(now_unix());
        let remembered = book.specs();
        self.turn(&mut *self.book.lock().await, book);
        let pushed = remembered.into_iter().map(|spec| (spec, Origin::Pushed));
        let mut specs: Vec<_> = pushed.collect();
        self.names(configured);
        specs.extend(as_configured(configured));
        late.put_off(self.open_all(core, specs).await);
    }

    /// Replaces the configured channels by those that the configuration names now; pushed ones
    /// stay. Channels may swap their addresses: those that go or move release theirs before any is
    /// bound. A channel that cannot be opened now is tried again.
    pub(crate) async fn configure(&self, core: &Arc<Core>, configured: &[ChannelSpec]) {
        let mut late = self.late.lock().await;
        self.names(configured);
        let is_configured = |name: &Name| configured.iter().any(|spec| spec.name == *name);
        {
            // Locked until they are closed: one pushed meanwhile would be closed with them.
            let mut book = self.book.lock().await;
            for name in book.forget(is_configured) {
                self.stop(&name, "no longer configured").await;
            }
        }
        for spec in configured {
            let Some(channel) = self.find(&spec.name) else {
                continue;
            };
            let weighed = self
                .book
                .lock()
                .await
                .weigh(spec, Origin::Configured, now_unix());
            let may_move = weighed == Ok(Change::Open) && core.peers.get(&spec.peer).is_some();
            if may_move && !channel.is_at(&spec.listen) {
                channel.vacate().await;
            }
        }
        // Pushed channels that wait for another try are not affected by the configuration.
        let mut specs = std::mem::take(&mut *late).specs;
        specs.retain(|(_, origin)| *origin == Origin::Pushed);
        specs.extend(as_configured(configured));
        late.put_off(self.open_all(core, specs).await);
    }

    /// Reopens channels that had expired only by a clock that was ahead.
    pub(super) async fn have_back(&self, core: &Arc<Core>) {
        let mut late = self.late.lock().await;
        let back = self.book.lock().await.have_back(now_unix());
        if back.is_empty() {
            return;
        }
        tracing::info!(
            count = back.len(),
            "channels that had expired have not by now: was the clock ahead?"
        );
        let mut specs = std::mem::take(&mut late.specs);
        specs.extend(back);
        late.put_off(self.open_all(core, specs).await);
    }

    /// Tries again to open waiting channels, if it is time to.
    pub(super) async fn open_late(&self, core: &Arc<Core>) {
        let mut late = self.late.lock().await;
        if late.next.is_some_and(|(at, _)| at <= Instant::now()) {
            let specs = std::mem::take(&mut late.specs);
            for (spec, origin) in &specs {
                // The spec may be superseded by now; then the listener that is there belongs to the
                // newer one.
                let weighed = self.book.lock().await.weigh(spec, *origin, now_unix());
                let channel = self.find(&spec.name).filter(|_| weighed.is_ok());
                let in_the_way = channel.filter(|one| is_in_the_way(&one.listen, &spec.listen));
                if let Some(channel) = in_the_way {
                    channel.vacate().await;
                }
            }
            late.put_off(self.open_all(core, specs).await);
        }
    }

    /// Opens channels; returns those worth another try.
    async fn open_all(
        &self,
        core: &Arc<Core>,
        specs: Vec<(Arc<ChannelSpec>, Origin)>,
    ) -> Vec<(Arc<ChannelSpec>, Origin)> {
        let (mut failed, mut late) = (Vec::new(), Vec::new());
        for (spec, origin) in specs {
            let opened = match origin {
                Origin::Configured => self.open_as(core, &spec, origin).await,
                Origin::Pushed => self.have_listen(core, &spec).await,
            };
            let Err(fault) = opened else { continue };
            self.tell(&spec.name, origin, &fault);
            self.stand_in((&spec, origin), &fault).await;
            failed.push(spec.name.clone());
            if fault.code == Code::Io {
                late.push((spec, origin));
            }
        }
        // A channel that could not move listens where it did before, if nobody else took that
        // address.
        for name in &failed {
            self.stay(core, name).await;
        }
        late
    }

    /// Logs why a channel is not opened, once for each reason, because it is tried again and again.
    fn tell(&self, name: &Name, origin: Origin, fault: &Fault) {
        let known = self.find(name);
        if known.is_some_and(|known| known.figures.is_last_error(fault)) {
            return;
        }
        match origin {
            Origin::Configured if self.closed_by_hand().contains(name) => {
                let remedy = format!("`towpath channel reset {name}` opens it again");
                tracing::info!(channel = %name, remedy, "configured, and closed by hand");
            }
            Origin::Configured => {
                tracing::warn!(channel = %name, %fault, "not opened as configured");
            }
            Origin::Pushed => {
                tracing::error!(channel = %name, %fault, "a channel of before is not opened");
            }
        }
    }

    /// Opens a channel that was pushed before, unless it was changed since.
    async fn have_listen(&self, core: &Arc<Core>, spec: &Arc<ChannelSpec>) -> Result<(), Fault> {
        let book = self.book.lock().await;
        let known = self.find(&spec.name);
        let is_there = known.is_some_and(|known| known.is_at(&spec.listen));
        if is_there || book.find(&spec.name) != Some(spec) {
            return Ok(());
        }
        self.run(core, spec).await.map(Started::keep)
    }

    /// Shows why a channel does not listen: on the existing channel, or on a stand-in until there
    /// is one.
    async fn stand_in(&self, (spec, origin): (&Arc<ChannelSpec>, Origin), fault: &Fault) {
        let mut book = self.book.lock().await;
        if let Some(channel) = self.find(&spec.name).filter(|one| one.absent.is_none()) {
            channel.figures.set_error(fault);
            return;
        }
        // No stand-in if the configuration's channel was refused for another reason than its
        // address, or the pushed one was changed since.
        let is_to_be = match origin {
            Origin::Configured => fault.code == Code::Io,
            Origin::Pushed => book.find(&spec.name) == Some(spec),
        };
        let weighed = book.weigh(spec, origin, now_unix());
        let Some(change) = weighed.ok().filter(|_| is_to_be) else {
            return;
        };
        if change == Change::Open {
            let mut next = book.clone();
            next.open(spec, origin);
            self.turn(&mut book, next);
        }
        let absent = Channel::absent(spec, fault);
        self.running().insert(spec.name.clone(), Arc::new(absent));
    }

    /// Makes a channel that has released its address listen there again.
    async fn stay(&self, core: &Arc<Core>, name: &Name) {
        let _book = self.book.lock().await;
        let is_silent =
            |channel: &Arc<Channel>| !channel.is_listening() && channel.absent.is_none();
        let Some(channel) = self.find(name).filter(is_silent) else {
            return;
        };
        match start(core, (&channel.spec(), &channel.listen), Some(&channel)).await {
            Ok(again) => {
                self.running().insert(name.clone(), Arc::new(again));
            }
            Err(fault) => channel.figures.set_error(&fault),
        }
    }

    /// Records what the configuration names.
    fn names(&self, configured: &[ChannelSpec]) {
        let named = configured
            .iter()
            .map(|spec| (spec.name.clone(), spec.clone()));
        *self.configured.lock() = named.collect();
    }

    /// Returns whether a channel is configured, pushed, or pushed in place of a configured one.
    pub(crate) fn origin(&self, name: &Name) -> ChannelOrigin {
        let is_pushed = self.pushed.lock().contains_key(name);
        let is_configured = self.configured.lock().contains_key(name);
        match (is_pushed, is_configured) {
            (false, _) => ChannelOrigin::Configured,
            (true, false) => ChannelOrigin::Pushed,
            (true, true) => ChannelOrigin::Overriding,
        }
    }

    /// Returns configured channels that were closed by hand.
    pub(crate) fn closed_by_hand(&self) -> Vec<Name> {
        let (pushed, configured): (BTreeMap<_, _>, _) = {
            let pushed = self.pushed.lock().clone();
            (pushed, self.configured.lock())
        };
        let is_closed = |name: &&Name| pushed.get(*name) == Some(&false);
        configured.keys().filter(is_closed).cloned().collect()
    }

    /// Forgets what was pushed under a name and opens the channel as configured.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if the configuration does not name it, `E_STATE` if the configured channel has
    /// expired, `E_IO` if the address cannot be bound or the change cannot be saved; then nothing
    /// has changed.
    pub(crate) async fn reset(&self, core: &Arc<Core>, name: &Name) -> Result<(), Fault> {
        let named = self.configured.lock().get(name).cloned();
        let spec = named.map(Arc::new).ok_or_else(|| {
            let detail = format!("the configuration names no channel {name}");
            let remedy =
                "add it to `channels` there; one that was pushed ends with `towpath channel close`";
            Fault::new(Code::NotFound, detail).remedy(remedy)
        })?;
        let mut book = self.book.lock().await;
        let mut next = book.clone();
        next.unpush(name);
        next.weigh(&spec, Origin::Configured, now_unix())?;
        let started = self.run(core, &spec).await?;
        next.open(&spec, Origin::Configured);
        self.keep(&next).await?;
        self.turn(&mut book, next);
        started.keep();
        tracing::info!(channel = %name, "channel as configured again");
        Ok(())
    }
}
