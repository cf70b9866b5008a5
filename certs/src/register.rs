//! The authority's own register: every certificate it issued or revoked, and every list it signed.
//!
//! A file of JSON lines that is only appended to. A line is durable before the certificate or list
//! it records leaves the authority, so that no valid certificate exists that cannot be revoked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::files::KeyFolder;
use crate::view::{LAST_SECOND_OF_9999, rfc3339};

/// The register's file in the authority's folder.
pub const REGISTER: &str = "register.jsonl";

/// Most bytes of a register: some 60,000 certificates, or a quarter of a century of a thousand
/// hosts renewed twice a year. After that a new authority is due.
const REGISTER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The part of [`REGISTER_BYTES_MAX`] that is reserved for revocations and lists.
const REVOKING_BYTES: u64 = 4 * 1024 * 1024;

/// Why a certificate is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No reason is given.
    Unspecified,
    /// Its private key is, or may be, in other hands.
    KeyCompromise,
    /// Another certificate has taken its place.
    Superseded,
    /// The host no longer exists.
    CessationOfOperation,
    /// The host may no longer do what it did.
    PrivilegeWithdrawn,
}

impl Reason {
    /// The reason's name in X.509.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
        }
    }
}

/// A line of the register.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Entry {
    /// A certificate was issued.
    Issued {
        serial: String,
        identity: String,
        at_unix_seconds: u64,
        not_after_unix_seconds: u64,
    },
    /// A certificate was revoked.
    Revoked {
        serial: String,
        reason: Reason,
        at_unix_seconds: u64,
    },
    /// A list of revoked certificates was signed.
    List {
        number: u64,
        at_unix_seconds: u64,
        next_update_unix_seconds: u64,
    },
}

impl Entry {
    /// The latest time in this entry, in seconds since 1970.
    fn latest_unix_seconds(&self) -> u64 {
        match *self {
            Self::Issued {
                at_unix_seconds,
                not_after_unix_seconds: end,
                ..
            }
            | Self::List {
                at_unix_seconds,
                next_update_unix_seconds: end,
                ..
            } => at_unix_seconds.max(end),
            Self::Revoked {
                at_unix_seconds, ..
            } => at_unix_seconds,
        }
    }
}

/// A certificate as the authority remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedView {
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// The host it names.
    pub identity: HostIdentity,
    /// Its state now.
    pub state: IssuedState,
    /// When it was issued, RFC 3339.
    pub issued: String,
    /// When it was issued, in seconds since 1970.
    pub issued_unix_seconds: u64,
    /// Last moment, RFC 3339.
    pub not_after: String,
    /// Last moment in seconds since 1970.
    pub not_after_unix_seconds: u64,
    /// When it was revoked, in seconds since 1970.
    pub revoked_unix_seconds: Option<u64>,
    /// Why it was revoked.
    pub reason: Option<Reason>,
}

/// The state of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuedState {
    /// It can be used.
    Good,
    /// Its validity has ended.
    Expired,
    /// It was revoked.
    Revoked,
}

impl IssuedState {
    /// The word for tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A register, locked against other writers while it is open.
#[derive(Debug)]
pub(crate) struct Register {
    file: File,
    shown: String,
    issued: BTreeMap<String, IssuedView>,
    /// Serial numbers in order of issue.
    order: Vec<String>,
    list_number: u64,
    /// Whether nothing was revoked after the last list.
    is_listed: bool,
    bytes: u64,
}

impl Register {
    /// Opens the register of an authority's folder, waiting while another process has it open.
    pub(crate) fn open(folder: &KeyFolder) -> Result<Self, Fault> {
        let mut file = folder.open_locked(REGISTER)?;
        let shown = folder.path().join(REGISTER).display().to_string();
        let mut text = String::new();
        let read = (&mut file)
            .take(REGISTER_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| Fault::new(Code::Io, format!("reading {shown}: {error}")))?;
        if read as u64 > REGISTER_BYTES_MAX {
            let detail = format!("{shown} is larger than {REGISTER_BYTES_MAX} bytes");
            return Err(Fault::new(Code::Io, detail));
        }
        let mut register = Self {
            file,
            shown,
            issued: BTreeMap::new(),
            order: Vec::new(),
            list_number: 0,
            is_listed: true,
            bytes: 0,
        };
        register.replay(&text)?;
        Ok(register)
    }

    fn replay(&mut self, text: &str) -> Result<(), Fault> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            // The last writer was stopped in the middle of its line, so what the line records has
            // not left the authority.
            self.file
                .set_len(whole as u64)
                .map_err(|error| self.failed(&error))?;
        }
        self.bytes = whole as u64;
        for (index, line) in text[..whole].lines().enumerate() {
            let entry = serde_json::from_str(line).map_err(|error| {
                let (shown, line) = (&self.shown, index + 1);
                Fault::new(Code::Io, format!("{shown}:{line} is damaged: {error}"))
            })?;
            self.apply(&entry).map_err(|fault| {
                let (shown, line) = (&self.shown, index + 1);
                Fault::new(Code::Io, format!("{shown}:{line}: {}", fault.detail))
            })?;
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.latest_unix_seconds() > LAST_SECOND_OF_9999 {
            return Err(Fault::new(Code::Io, "a time beyond the year 9999"));
        }
        match entry {
            Entry::Issued {
                serial,
                identity,
                at_unix_seconds,
                not_after_unix_seconds,
            } => {
                let view = IssuedView {
                    serial: serial.clone(),
                    identity: HostIdentity::from_uri(identity)?,
                    state: IssuedState::Good,
                    issued: rfc3339(*at_unix_seconds),
                    issued_unix_seconds: *at_unix_seconds,
                    not_after: rfc3339(*not_after_unix_seconds),
                    not_after_unix_seconds: *not_after_unix_seconds,
                    revoked_unix_seconds: None,
                    reason: None,
                };
                self.order.push(serial.clone());
                self.issued.insert(serial.clone(), view);
            }
            Entry::Revoked {
                serial,
                reason,
                at_unix_seconds,
            } => {
                let view = self.issued.get_mut(serial).ok_or_else(|| {
                    let detail = format!("no certificate {serial} was issued here");
                    Fault::new(Code::NotFound, detail)
                })?;
                view.revoked_unix_seconds = Some(*at_unix_seconds);
                view.reason = Some(*reason);
                self.is_listed = false;
            }
            Entry::List { number, .. } => {
                self.list_number = self.list_number.max(*number);
                self.is_listed = true;
            }
        }
        Ok(())
    }

    /// Appends a line, and returns once it is durable.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), Fault> {
        let mut line = serde_json::to_string(entry)
            .map_err(|error| Fault::new(Code::Io, format!("{}: {error}", self.shown)))?;
        line.push('\n');
        let bytes = self.bytes + line.len() as u64;
        let most = match entry {
            Entry::Issued { .. } => REGISTER_BYTES_MAX - REVOKING_BYTES,
            Entry::Revoked { .. } | Entry::List { .. } => REGISTER_BYTES_MAX,
        };
        if bytes > most {
            let detail = format!("{} is full; the next authority is due", self.shown);
            return Err(Fault::new(Code::State, detail));
        }
        // Applied first, so that an entry that does not fit the register is never written to it.
        self.apply(entry)?;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|error| self.failed(&error))?;
        self.bytes = bytes;
        Ok(())
    }

    /// The number of the last signed list; 0 if there was none.
    pub(crate) const fn list_number(&self) -> u64 {
        self.list_number
    }

    /// Whether a list was signed after the last revocation.
    pub(crate) const fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Every certificate, in order of issue, with its state at `now`.
    pub(crate) fn issued(&self, now: SystemTime) -> Vec<IssuedView> {
        let now = unix_seconds_of(now);
        let views = self.order.iter().filter_map(|serial| {
            let mut view = self.issued.get(serial)?.clone();
            view.state = match view.revoked_unix_seconds {
                Some(_) => IssuedState::Revoked,
                None if view.not_after_unix_seconds <= now => IssuedState::Expired,
                None => IssuedState::Good,
            };
            Some(view)
        });
        views.collect()
    }

    fn failed(&self, error: &std::io::Error) -> Fault {
        Fault::new(Code::Io, format!("writing {}: {error}", self.shown))
    }
}

/// Seconds since 1970; 0 for a clock set before then.
pub(crate) fn unix_seconds_of(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
