//! Numbers for machines, records and messages, and a cache of the real machine's answers.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity};
use towpath_protocol::ownership::{Action, Event, Holder, Ownership, Record, Root, Word};

/// A multiplicative hash. The keys are small numbers and not under attack.
#[derive(Default)]
pub(crate) struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[expect(clippy::disallowed_types, reason = "looked up, never walked")]
type QuickMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<QuickHasher>>;

struct Interner<T> {
    values: Vec<T>,
    numbers: QuickMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    fn new() -> Self {
        Self {
            values: Vec::new(),
            numbers: QuickMap::default(),
        }
    }

    fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = u32::try_from(self.values.len()).expect("fewer than 2^32");
        self.values.push(value.clone());
        self.numbers.insert(value.clone(), number);
        number
    }

    fn value(&self, number: u32) -> &T {
        &self.values[number as usize]
    }
}

/// A packet between the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Packet {
    /// A message of the handover.
    Said {
        to: usize,
        from: usize,
        attempt: AttemptId,
        word: Word,
    },
    /// Everything the target needs to run, sent while the guest was frozen.
    Image {
        to: usize,
        attempt: u8,
        version: u8,
        is_whole: bool,
    },
}

/// An action with numbers instead of its contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    Persist(u32),
    Say(u32),
    /// To a host that is not in the world.
    SayElsewhere,
    Run,
    Thaw,
    DiscardImage,
    FreeImage,
    Swap(u8, u8),
    ReadRegister,
}

/// The two hosts and the liar.
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];

const GUEST: GuestId = GuestId(7);

/// The tables of everything that has a number.
pub(crate) struct Tables {
    identities: Vec<HostIdentity>,
    machines: Interner<Ownership>,
    records: Interner<Record>,
    packets: Interner<Packet>,
    holders: Interner<Holder>,
    events: Interner<Event>,
    heard: Vec<u32>,
    handled: QuickMap<(u32, u32), u32>,
    polled: Vec<Option<Option<(Act, u32)>>>,
    recovered: QuickMap<(u8, u32), u32>,
}

impl Tables {
    pub(crate) fn new() -> Self {
        let identity = |name: &&str| HostIdentity {
            trust_domain: "d".parse().expect("a name"),
            site: "s".parse().expect("a name"),
            host: name.parse().expect("a name"),
        };
        Self {
            identities: NAMES.iter().map(identity).collect(),
            machines: Interner::new(),
            records: Interner::new(),
            packets: Interner::new(),
            holders: Interner::new(),
            events: Interner::new(),
            heard: Vec::new(),
            handled: QuickMap::default(),
            polled: Vec::new(),
            recovered: QuickMap::default(),
        }
    }

    pub(crate) fn identity(&self, host: usize) -> &HostIdentity {
        &self.identities[host]
    }

    pub(crate) fn host(&self, identity: &HostIdentity) -> usize {
        let found = self.identities.iter().position(|known| known == identity);
        found.expect("a host of this world")
    }

    pub(crate) fn owner(&self, host: usize) -> Ownership {
        Ownership::owner(self.identities[host].clone(), GUEST, Epoch(1)).0
    }

    pub(crate) fn vacant(&self, host: usize) -> Ownership {
        Ownership::vacant(self.identities[host].clone(), GUEST)
    }

    pub(crate) fn machine(&self, number: u32) -> &Ownership {
        self.machines.value(number)
    }

    pub(crate) fn number_of_machine(&mut self, machine: &Ownership) -> u32 {
        self.machines.number(machine)
    }

    pub(crate) fn record(&self, number: u32) -> &Record {
        self.records.value(number)
    }

    pub(crate) fn number_of_record(&mut self, record: &Record) -> u32 {
        let bytes = record.encode();
        assert_eq!(
            Record::decode(&bytes).as_ref(),
            Ok(record),
            "the journal's bytes"
        );
        self.records.number(record)
    }

    pub(crate) fn packet(&self, number: u32) -> &Packet {
        self.packets.value(number)
    }

    pub(crate) fn packet_count(&self) -> u32 {
        u32::try_from(self.packets.values.len()).expect("few")
    }

    pub(crate) fn number_of_packet(&mut self, packet: &Packet) -> u32 {
        let number = self.packets.number(packet);
        assert!(number < 128, "a world's packets are a set of 128 bits");
        if let Packet::Said {
            from,
            attempt,
            word,
            ..
        } = packet
            && number as usize == self.heard.len()
        {
            let event = Event::Heard {
                from: self.identities[*from].clone(),
                attempt: *attempt,
                word: word.clone(),
            };
            let event = self.number_of_event(&event);
            self.heard.push(event);
        } else if number as usize == self.heard.len() {
            self.heard.push(u32::MAX);
        }
        number
    }

    /// The event of receiving a packet that is a message.
    pub(crate) fn hearing(&self, packet: u32) -> u32 {
        self.heard[packet as usize]
    }

    pub(crate) fn number_of_event(&mut self, event: &Event) -> u32 {
        self.events.number(event)
    }

    pub(crate) fn holder(&self, number: u8) -> &Holder {
        self.holders.value(number.into())
    }

    pub(crate) fn number_of_holder(&mut self, holder: &Holder) -> u8 {
        u8::try_from(self.holders.number(holder)).expect("few holders")
    }

    /// The machine after an event; the same number if the machine ignores the event.
    pub(crate) fn handle(&mut self, machine: u32, event: u32) -> u32 {
        if let Some(after) = self.handled.get(&(machine, event)) {
            return *after;
        }
        let before = self.machines.value(machine);
        let mut changed = before.clone();
        let result = changed.handle(self.events.value(event).clone());
        assert!(
            result.is_ok() || changed == *before,
            "a fault changes nothing"
        );
        let after = self.machines.number(&changed);
        self.handled.insert((machine, event), after);
        after
    }

    /// The machine's next action, with the machine after it.
    pub(crate) fn poll(&mut self, machine: u32) -> Option<(Act, u32)> {
        let position = machine as usize;
        if position >= self.polled.len() {
            self.polled.resize(position + 1, None);
        }
        if let Some(known) = self.polled[position] {
            return known;
        }
        let mut rest = self.machines.value(machine).clone();
        let from = self.host_of(&rest);
        let polled = rest.poll().map(|action| {
            let act = self.number_action(from, action);
            (act, self.machines.number(&rest))
        });
        self.polled[position] = Some(polled);
        polled
    }

    pub(crate) fn recover(&mut self, host: usize, journal: u32) -> u32 {
        let key = (u8::try_from(host).expect("two hosts"), journal);
        if let Some(machine) = self.recovered.get(&key) {
            return *machine;
        }
        let record = self.records.value(journal).clone();
        let machine = Ownership::recover(self.identities[host].clone(), record);
        let number = self.machines.number(&machine);
        self.recovered.insert(key, number);
        number
    }

    fn host_of(&self, machine: &Ownership) -> usize {
        self.host(machine.host())
    }

    fn number_action(&mut self, from: usize, action: Action) -> Act {
        match action {
            Action::Persist(record) => Act::Persist(self.number_of_record(&record)),
            Action::Say { to, attempt, word } => {
                let to = self.host(&to);
                if to > 1 {
                    return Act::SayElsewhere;
                }
                Act::Say(self.number_of_packet(&Packet::Said {
                    to,
                    from,
                    attempt,
                    word,
                }))
            }
            Action::Run { .. } => Act::Run,
            Action::Thaw => Act::Thaw,
            Action::DiscardImage => Act::DiscardImage,
            Action::FreeImage => Act::FreeImage,
            Action::Swap { expected, new } => Act::Swap(
                self.number_of_holder(&expected),
                self.number_of_holder(&new),
            ),
            Action::ReadRegister => Act::ReadRegister,
        }
    }
}

/// The root of an image. Differs between versions, unless a search disables that.
pub(crate) const fn root(version: u8, tells: bool) -> Root {
    Root([if tells { version } else { 0 }; 32])
}
