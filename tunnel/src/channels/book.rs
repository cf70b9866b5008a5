//! The book of channels wanted by the configuration and by pushers. Pure.
//!
//! A channel is *metadata*: a name, a generation that grows with every change, and perhaps an
//! expiry. An older generation than the known one is refused, a known one changes nothing, and a
//! removed channel stays removed until a newer generation. An expired channel is only closed: a
//! clock that had jumped ahead may be corrected, and then the channel is wanted again and the same
//! generation is accepted. The pusher is never asked: channels live on while it is away, until they
//! expire, and pushed channels outlive a restart (`register`).

pub(super) mod register;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;
use utoipa::ToSchema;

/// Most channels of one tunnel, each of which has a listener. As many names again are remembered as
/// removed.
pub const CHANNEL_COUNT_MAX: usize = 1024;

/// A channel as wanted: a listener here, joined to a service at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChannelSpec {
    /// Its name.
    #[schema(value_type = String, example = "till")]
    pub name: Name,
    /// Where local programs reach it.
    #[schema(value_type = String, example = "tcp:127.0.0.1:7001")]
    pub listen: Endpoint,
    /// The site where the service is.
    #[schema(value_type = String, example = "region")]
    pub peer: Name,
    /// The service there, which names who may reach it.
    #[schema(value_type = String, example = "till")]
    pub service: Name,
    /// Class of its traffic, which sets its priority when the link is short of capacity.
    #[serde(default = "app")]
    #[schema(value_type = String, example = "app")]
    pub class: Class,
    /// Grows with every change; an older generation than the known one is refused.
    #[serde(default)]
    #[schema(default = 0)]
    pub generation: u64,
    /// When it expires, in seconds since 1970; never if absent.
    #[serde(default)]
    pub expires_unix_seconds: Option<u64>,
    /// Highest rate at which it sends, counted on the wire.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10Mbit")]
    pub cap: Option<Rate>,
}

const fn app() -> Class {
    Class::App
}

impl ChannelSpec {
    /// Creates a channel of generation 0, without expiry and without a cap.
    #[must_use]
    pub fn new(name: Name, listen: Endpoint, (peer, service): (Name, Name), class: Class) -> Self {
        Self {
            name,
            listen,
            peer,
            service,
            class,
            generation: 0,
            expires_unix_seconds: None,
            cap: None,
        }
    }
}

impl ChannelSpec {
    /// Whether another spec says the same. A port chosen by the system is no change.
    fn is_said_by(&self, other: &Self) -> bool {
        let listen = self.listen.clone();
        other.listen.is_met_by(&listen)
            && *self
                == Self {
                    listen,
                    ..other.clone()
                }
    }
}

/// What is known of a name: a channel, or that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    generation: u64,
    /// `None` if it was removed.
    spec: Option<Arc<ChannelSpec>>,
    is_expired: bool,
    /// Whether it was pushed. Pushed entries are kept over a restart, because their pusher may
    /// never repeat them.
    is_pushed: bool,
}

impl Entry {
    /// Returns the channel, unless it was removed or has expired.
    fn open(&self) -> Option<&Arc<ChannelSpec>> {
        self.spec.as_ref().filter(|_| !self.is_expired)
    }

    /// Returns what another spec of the same name changes.
    fn weigh(&self, spec: &ChannelSpec, origin: Origin) -> Result<Change, Fault> {
        let (name, generation) = (&spec.name, spec.generation);
        if generation > self.generation {
            return Ok(Change::Open);
        }
        if generation == self.generation {
            if self
                .spec
                .as_deref()
                .is_some_and(|known| known.is_said_by(spec))
            {
                let is_open = self.open().is_some();
                return Ok(if is_open { Change::Same } else { Change::Open });
            }
            if origin == Origin::Configured && !self.is_pushed {
                return Ok(Change::Open);
            }
            if self.spec.is_some() {
                let detail = format!("channel {name}: generation {generation} said something else");
                return Err(Fault::new(Code::State, detail).remedy(newer_than(generation)));
            }
        }
        Err(older(name, generation, self))
    }
}

/// Who asked for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration, which is read again at every start.
    Configured,
    /// A request while the tunnel ran.
    Pushed,
}

/// What a spec changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: it is known already.
    Same,
    /// The channel must be opened or changed.
    Open,
}

/// All known channels.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Book(BTreeMap<Name, Entry>);

impl Book {
    /// Returns what a spec would change.
    ///
    /// # Errors
    ///
    /// `E_STATE` if a newer generation is known, if the spec has expired, or if the same generation
    /// said something else; `E_BUSY` if there are too many channels. The configuration may change a
    /// channel of its own without a new generation.
    pub(crate) fn weigh(
        &self,
        spec: &ChannelSpec,
        origin: Origin,
        now_unix: u64,
    ) -> Result<Change, Fault> {
        let (name, generation) = (&spec.name, spec.generation);
        if spec.expires_unix_seconds.is_some_and(|end| end <= now_unix) {
            let detail = format!("channel {name}: generation {generation} has expired");
            let remedy = "give it an end that is still to come, and look at this host's clock";
            return Err(Fault::new(Code::State, detail).remedy(remedy));
        }
        let known = self.0.get(name);
        let change = known.map_or(Ok(Change::Open), |known| known.weigh(spec, origin))?;
        // A closed or expired channel takes a place again like any other.
        let is_open = known.is_some_and(|known| known.open().is_some());
        let open = self.0.values().filter_map(Entry::open);
        if !is_open && open.count() >= CHANNEL_COUNT_MAX {
            let detail = format!("{CHANNEL_COUNT_MAX} channels are known");
            let remedy = "close one of `towpath channel ls` first";
            return Err(Fault::new(Code::Busy, detail).remedy(remedy));
        }
        Ok(change)
    }

    /// Records a channel that was weighed and opened.
    pub(crate) fn open(&mut self, spec: &Arc<ChannelSpec>, origin: Origin) {
        let known = Entry {
            generation: spec.generation,
            spec: Some(Arc::clone(spec)),
            is_expired: false,
            is_pushed: origin == Origin::Pushed,
        };
        self.0.insert(spec.name.clone(), known);
        // Of closed or expired names, the one with the lowest generation is forgotten first: nobody
        // is likely to push that again.
        while self.0.len() > 2 * CHANNEL_COUNT_MAX {
            let removed = self.0.iter().filter(|(_, known)| known.open().is_none());
            let oldest = removed.min_by_key(|(_, known)| known.generation);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.0.remove(&name);
        }
    }

    /// Removes a channel; returns whether it was open. `None` stands for the known generation.
    ///
    /// # Errors
    ///
    /// `E_STATE` if a newer generation is known, `E_NOT_FOUND` if the name is unknown.
    pub(crate) fn close(&mut self, name: &Name, generation: Option<u64>) -> Result<bool, Fault> {
        let known = self.0.get_mut(name).ok_or_else(|| not_found(name))?;
        let generation = generation.unwrap_or(known.generation);
        if generation < known.generation {
            return Err(older(name, generation, known));
        }
        let was_open = known.open().is_some();
        *known = Entry {
            generation,
            spec: None,
            is_expired: false,
            is_pushed: true,
        };
        Ok(was_open)
    }

    /// Forgets what was pushed under a name.
    pub(crate) fn unpush(&mut self, name: &Name) {
        if self.0.get(name).is_some_and(|known| known.is_pushed) {
            self.0.remove(name);
        }
    }

    /// Returns pushed names, and whether each is a channel (`true`) or was removed.
    pub(crate) fn pushed(&self) -> BTreeMap<Name, bool> {
        let pushed = self.0.iter().filter(|(_, known)| known.is_pushed);
        let told = pushed.map(|(name, known)| (name.clone(), known.spec.is_some()));
        told.collect()
    }

    /// Forgets configured channels that the configuration no longer names; returns their names.
    pub(crate) fn forget(&mut self, is_configured: impl Fn(&Name) -> bool) -> Vec<Name> {
        let is_gone = |name: &Name, known: &Entry| !known.is_pushed && !is_configured(name);
        let gone = self.0.iter().filter(|(name, known)| is_gone(name, known));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.0.remove(name);
        }
        gone
    }

    /// Records a pushed name from before a restart.
    fn remember(&mut self, name: Name, generation: u64, spec: Option<ChannelSpec>) {
        let known = Entry {
            generation,
            spec: spec.map(Arc::new),
            is_expired: false,
            is_pushed: true,
        };
        self.0.insert(name, known);
    }

    /// Returns the open channel of a name.
    pub(crate) fn find(&self, name: &Name) -> Option<&Arc<ChannelSpec>> {
        self.0.get(name).and_then(Entry::open)
    }

    /// Returns every open channel, by name.
    pub(crate) fn specs(&self) -> Vec<Arc<ChannelSpec>> {
        let specs = self.0.values().filter_map(Entry::open);
        specs.cloned().collect()
    }

    /// Marks expired channels; returns their names.
    pub(crate) fn expire(&mut self, now_unix: u64) -> Vec<Name> {
        let mut gone = Vec::new();
        for (name, known) in &mut self.0 {
            let end = known.open().and_then(|spec| spec.expires_unix_seconds);
            if end.is_some_and(|end| end <= now_unix) {
                known.is_expired = true;
                gone.push(name.clone());
            }
        }
        gone
    }

    /// Reopens channels that had expired by a clock that was ahead and have not by the present one,
    /// as far as there are places; returns them.
    pub(crate) fn have_back(&mut self, now_unix: u64) -> Vec<(Arc<ChannelSpec>, Origin)> {
        let open_count = self.0.values().filter_map(Entry::open).count();
        let is_to_be = |spec: &&Arc<ChannelSpec>| {
            let end = spec.expires_unix_seconds;
            end.is_none_or(|end| end > now_unix)
        };
        let over = self.0.values_mut().filter(|known| known.is_expired);
        let back = over.filter_map(|known| {
            let spec = Arc::clone(known.spec.as_ref().filter(is_to_be)?);
            known.is_expired = false;
            let origin = if known.is_pushed {
                Origin::Pushed
            } else {
                Origin::Configured
            };
            Some((spec, origin))
        });
        back.take(CHANNEL_COUNT_MAX.saturating_sub(open_count))
            .collect()
    }
}

fn older(name: &Name, generation: u64, known: &Entry) -> Fault {
    let (newest, is) = match &known.spec {
        Some(_) if known.is_expired => (known.generation, "has expired"),
        Some(_) => (known.generation, "is known"),
        None => (known.generation, "was removed"),
    };
    let detail = format!("channel {name}: generation {generation} is too old, {newest} {is}");
    Fault::new(Code::State, detail).remedy(newer_than(newest))
}

/// Remedy for a generation that is not the newest.
fn newer_than(generation: u64) -> String {
    format!("use a generation above {generation}")
}

/// Fault for an unknown channel.
pub(crate) fn not_found(name: &Name) -> Fault {
    let remedy = "`towpath channel ls` lists those there are";
    Fault::new(Code::NotFound, format!("no channel is called {name}")).remedy(remedy)
}

/// Fault for a configured channel that was closed by hand.
pub(crate) fn closed_by_hand(name: &Name) -> Fault {
    let detail = format!("channel {name} is configured, and was closed by hand");
    let remedy = format!("`towpath channel reset {name}` opens it again");
    Fault::new(Code::NotFound, detail).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(generation: u64) -> ChannelSpec {
        let listen = "tcp:127.0.0.1:7001".parse().unwrap();
        let service = ("region".parse().unwrap(), "till".parse().unwrap());
        ChannelSpec {
            generation,
            ..ChannelSpec::new("till".parse().unwrap(), listen, service, Class::App)
        }
    }

    fn take(book: &mut Book, spec: ChannelSpec) -> Result<Change, Code> {
        let change = book
            .weigh(&spec, Origin::Pushed, 100)
            .map_err(|fault| fault.code)?;
        book.open(&Arc::new(spec), Origin::Pushed);
        Ok(change)
    }

    #[test]
    fn con_11_older_generations_are_ignored_and_the_same_one_changes_nothing() {
        let mut book = Book::default();
        assert_eq!(take(&mut book, spec(5)), Ok(Change::Open));
        assert_eq!(take(&mut book, spec(5)), Ok(Change::Same));
        assert_eq!(take(&mut book, spec(4)), Err(Code::State));
        let mut other = spec(5);
        other.peer = "elsewhere".parse().unwrap();
        let fault = book.weigh(&other, Origin::Pushed, 100).unwrap_err();
        assert_eq!(fault.code, Code::State);
        let remedy = fault.remedy.unwrap();
        assert!(remedy.contains("a generation above 5"), "{remedy}");
        assert_eq!(take(&mut book, spec(6)), Ok(Change::Open));
    }

    #[test]
    fn con_6_what_was_removed_stays_removed_until_a_newer_generation() {
        let mut book = Book::default();
        let name = spec(1).name;
        assert_eq!(book.close(&name, None).unwrap_err().code, Code::NotFound);
        take(&mut book, spec(5)).unwrap();
        assert_eq!(book.close(&name, Some(4)).unwrap_err().code, Code::State);
        assert_eq!(book.close(&name, Some(7)), Ok(true));
        assert_eq!(book.close(&name, Some(7)), Ok(false), "twice is once");
        assert_eq!(take(&mut book, spec(6)), Err(Code::State));
        assert_eq!(take(&mut book, spec(7)), Err(Code::State));
        assert_eq!(take(&mut book, spec(8)), Ok(Change::Open));
    }

    #[test]
    fn the_configuration_may_take_back_what_it_alone_has_said() {
        let mut book = Book::default();
        let mut other = spec(3);
        other.peer = "elsewhere".parse().unwrap();
        let configured = |book: &Book, spec: &ChannelSpec| {
            let change = book.weigh(spec, Origin::Configured, 100);
            change.map_err(|fault| fault.code)
        };
        book.open(&Arc::new(spec(3)), Origin::Configured);
        assert_eq!(configured(&book, &spec(3)), Ok(Change::Same));
        assert_eq!(configured(&book, &other), Ok(Change::Open));
        assert_eq!(configured(&book, &spec(2)), Err(Code::State));
        assert_eq!(book.forget(|_| true), []);
        assert_eq!(book.forget(|_| false), [spec(3).name]);
        assert_eq!(configured(&book, &spec(2)), Ok(Change::Open));
        // The configuration cannot take back what was pushed.
        take(&mut book, spec(3)).unwrap();
        assert_eq!(configured(&book, &other), Err(Code::State));
        assert_eq!(book.forget(|_| false), []);
    }

    #[test]
    fn con_7_a_channel_lives_until_it_expires_and_not_longer() {
        let mut book = Book::default();
        let mut brief = spec(1);
        brief.expires_unix_seconds = Some(200);
        take(&mut book, brief.clone()).unwrap();
        assert!(book.expire(199).is_empty());
        assert_eq!(book.expire(200), [brief.name.clone()]);
        assert!(book.expire(300).is_empty());
        assert_eq!(
            book.weigh(&brief, Origin::Pushed, 200).unwrap_err().code,
            Code::State
        );
        brief.expires_unix_seconds = Some(400);
        brief.generation = 2;
        assert_eq!(
            book.weigh(&brief, Origin::Pushed, 200),
            Ok(Change::Open),
            "renewed"
        );
    }

    /// A wall clock may jump ahead and be corrected.
    #[test]
    fn con_7_what_expired_may_be_said_again_once_it_has_not() {
        let mut book = Book::default();
        let mut brief = spec(5);
        brief.expires_unix_seconds = Some(200);
        take(&mut book, brief.clone()).unwrap();
        assert_eq!(book.expire(1000), [brief.name.clone()]);
        assert!(book.specs().is_empty());
        assert_eq!(take(&mut book, spec(4)), Err(Code::State));
        assert_eq!(take(&mut book, spec(5)), Err(Code::State));
        assert_eq!(take(&mut book, brief.clone()), Ok(Change::Open));
        assert_eq!(take(&mut book, brief.clone()), Ok(Change::Same));
        assert_eq!(book.specs().len(), 1);
        // A removed channel stays removed.
        assert_eq!(book.close(&brief.name, None), Ok(true));
        assert_eq!(take(&mut book, brief), Err(Code::State));
    }

    #[test]
    fn con_7_what_expired_by_a_clock_that_was_ahead_is_had_back_once_it_is_right() {
        let mut book = Book::default();
        let mut brief = spec(5);
        brief.expires_unix_seconds = Some(200);
        take(&mut book, brief.clone()).unwrap();
        assert_eq!(book.expire(1000), [brief.name.clone()]);
        assert_eq!(book.have_back(200), []);
        let back = (Arc::new(brief.clone()), Origin::Pushed);
        assert_eq!(book.have_back(199), [back]);
        assert_eq!(book.have_back(199), [], "it is there");
        assert_eq!(take(&mut book, brief.clone()), Ok(Change::Same));
        // A channel closed meanwhile stays closed.
        assert_eq!(book.expire(1000), [brief.name.clone()]);
        assert_eq!(book.close(&brief.name, None), Ok(false));
        assert_eq!(book.have_back(199), []);
        // By then, other channels may have taken all places.
        brief.generation = 6;
        take(&mut book, brief.clone()).unwrap();
        assert_eq!(book.expire(1000), [brief.name]);
        for number in 0..CHANNEL_COUNT_MAX {
            let mut other = spec(1);
            other.name = format!("c{number}").parse().unwrap();
            take(&mut book, other).unwrap();
        }
        assert_eq!(book.have_back(199), []);
    }

    #[test]
    fn l08_channels_are_bounded_and_so_are_the_series_they_are_labels_of() {
        let mut book = Book::default();
        for number in 0..CHANNEL_COUNT_MAX {
            let mut one = spec(1);
            one.name = format!("c{number}").parse().unwrap();
            take(&mut book, one).unwrap();
        }
        assert_eq!(take(&mut book, spec(1)), Err(Code::Busy));
    }

    #[test]
    fn l08_what_was_closed_takes_a_place_again_only_if_there_is_one() {
        let mut book = Book::default();
        let named = |prefix: char, number: usize, generation| {
            let mut one = spec(generation);
            one.name = format!("{prefix}{number}").parse().unwrap();
            one
        };
        for number in 0..CHANNEL_COUNT_MAX {
            take(&mut book, named('a', number, 1)).unwrap();
            assert_eq!(book.close(&named('a', number, 1).name, None), Ok(true));
            take(&mut book, named('b', number, 1)).unwrap();
        }
        assert_eq!(take(&mut book, named('a', 0, 2)), Err(Code::Busy));
        // An open channel may change, and closing one makes room for another.
        assert_eq!(take(&mut book, named('b', 0, 2)), Ok(Change::Open));
        assert_eq!(book.close(&named('b', 0, 1).name, None), Ok(true));
        assert_eq!(take(&mut book, named('a', 0, 2)), Ok(Change::Open));
        assert_eq!(book.specs().len(), CHANNEL_COUNT_MAX);
    }

    proptest! {
        #[test]
        fn con_11_generations_only_ever_grow(
            words in prop::collection::vec((0..8_u64, any::<bool>()), 0..60),
        ) {
            let mut book = Book::default();
            let name = spec(0).name;
            let mut newest = None;
            for (generation, is_open) in words {
                let is_taken = if is_open {
                    take(&mut book, spec(generation)) == Ok(Change::Open)
                } else {
                    book.close(&name, Some(generation)).is_ok()
                };
                if is_taken {
                    prop_assert!(newest <= Some(generation));
                    newest = Some(generation);
                }
                prop_assert_eq!(book.0.get(&name).map(|known| known.generation), newest);
            }
        }
    }
}
