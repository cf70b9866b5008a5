//! Handshakes that fail over a certificate: the message and the remedy for each.
//!
//! TLS has an alert for each class of failure, and none of them is mended by looking at the
//! network. The side that refuses knows more than its alert says; the other side has only the
//! alert. A refused dialler has proved no identity. So refused incoming handshakes are reported for
//! the whole host, never for a peer.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use quinn::{Connection, ConnectionError, FrameStats, TransportErrorCode};
use rustls::AlertDescription;
use towpath_certs::{Refusal, Rejection};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

use crate::links::peer::{Barred, Unreached};
use crate::operators::health::{RECENT, Whose};
use crate::trust::OWN_REVOKED_REMEDY;

/// The message for a host whose certificate the peer refuses as revoked.
pub(crate) const OURS_REVOKED: &str =
    "this host's certificate is revoked: the peer refuses it in the handshake";

/// Minimum time before the same reason for not reaching a peer is logged again after others came
/// between.
const TOLD_AGAIN: Duration = Duration::from_mins(10);

/// RFC 9001: the QUIC error code of a TLS alert is this plus the alert's number.
const ALERTS: u64 = 0x100;

/// The TLS alert that a QUIC error code stands for, if any.
fn alert_of(code: TransportErrorCode) -> Option<AlertDescription> {
    let number = u64::from(code).checked_sub(ALERTS)?;
    u8::try_from(number).ok().map(AlertDescription::from)
}

/// The TLS alert with which this side ended a handshake.
pub(crate) fn alert_we_sent(error: &ConnectionError) -> Option<AlertDescription> {
    match error {
        ConnectionError::TransportError(error) => alert_of(error.code),
        _ => None,
    }
}

/// The TLS alert that ended a handshake, and whose certificate it concerns: that of
/// the side that did not send it.
fn alert(error: &ConnectionError) -> Option<(Whose, AlertDescription)> {
    match error {
        ConnectionError::ConnectionClosed(close) => {
            Some((Whose::Ours, alert_of(close.error_code)?))
        }
        error => Some((Whose::Peers, alert_we_sent(error)?)),
    }
}

/// Whether the authenticated peer of a connection refuses our certificate as revoked.
///
/// An alert alone proves nothing. The keys of a handshake's first packets are public, and anybody
/// on the path can end the handshake with any alert. Once we have sent packets under later keys, we
/// accept none under these keys any more.
pub(crate) fn is_told_revoked(connection: &Connection) -> bool {
    let reason = connection.close_reason();
    reason.is_some_and(|reason| is_proven_revoked(&reason, &connection.stats().frame_tx))
}

/// The same, from the reason why a connection ended and the frames sent over it.
fn is_proven_revoked(reason: &ConnectionError, sent: &FrameStats) -> bool {
    let is_revoked = alert(reason).is_some_and(|(whose, alert)| {
        whose == Whose::Ours && Rejection::from_any_alert(alert) == Some(Rejection::Revoked)
    });
    // These frames are only in 1-RTT packets, which we send once the peer's part of the handshake
    // is fully verified.
    is_revoked && (sent.stream > 0 || sent.new_connection_id > 0)
}

/// The fault of a handshake that failed over a certificate. `noted` is the last
/// certificate of the peer that was refused here.
pub(crate) fn of(error: &ConnectionError, noted: Option<&Refusal>) -> Option<Unreached> {
    let (whose, alert) = alert(error)?;
    let told = Rejection::from_any_alert(alert)?;
    let noted = noted.filter(|noted| whose == Whose::Peers && is_of(noted.reason, told));
    let reason = noted.map_or(told, |noted| noted.reason);
    let detail = match (whose, reason, noted) {
        (Whose::Peers, Rejection::Revoked, _) => "refused in the handshake".to_owned(),
        (Whose::Ours, Rejection::Revoked, _) => OURS_REVOKED.to_owned(),
        (Whose::Peers, Rejection::WrongName, Some(noted)) => {
            format!("its certificate is another's: {}", noted.detail)
        }
        (Whose::Peers, reason, _) => peers(reason).to_owned(),
        (Whose::Ours, reason, _) => ours(reason).to_owned(),
    };
    let code = match (whose, reason) {
        (Whose::Peers, Rejection::Revoked) => Code::Denied,
        _ => Code::Certificate,
    };
    Some(Unreached {
        fault: Fault::new(code, detail).remedy(remedy(whose, reason)),
        barred: (reason == Rejection::Revoked).then_some(Barred::Revoked(whose)),
    })
}

/// Why we refused a handshake, if it was over a certificate. Uses the last noted refusal if it fits
/// the alert.
pub(crate) fn refusal(
    error: &ConnectionError,
    noted: impl Fn() -> Option<Refusal>,
) -> Option<Refusal> {
    let (whose, alert) = alert(error)?;
    let reason = Rejection::from_any_alert(alert).filter(|_| whose == Whose::Peers)?;
    let noted = noted().filter(|noted| is_of(noted.reason, reason));
    Some(noted.unwrap_or_else(|| Refusal {
        reason,
        detail: error.to_string(),
    }))
}

/// The log text for an incoming handshake that failed, over a refused certificate or otherwise. The
/// peer's own reason is replaced where possible: it is written by its TLS library, not for
/// operators.
pub(crate) fn words(error: &ConnectionError, refusal: Option<&Refusal>) -> String {
    match (refusal, of(error, None)) {
        (Some(refusal), _) => format!("{}: {}", refusal.reason.as_str(), refusal.detail),
        (None, Some(unreached)) => unreached.fault.detail,
        (None, None) => error.to_string(),
    }
}

/// Whether refusing a certificate for `reason` sends the alert that stands for `told`.
fn is_of(reason: Rejection, told: Rejection) -> bool {
    reason == told || (reason == Rejection::NotYetValid && told == Rejection::Expired)
}

/// What is wrong with the peer.
const fn peers(reason: Rejection) -> &'static str {
    match reason {
        Rejection::NoCertificate => "it shows no certificate",
        Rejection::UnknownAuthority => {
            "its certificate is of an authority that this host does not trust"
        }
        Rejection::Expired => "its certificate has expired, by this host's clock",
        Rejection::NotYetValid => "its certificate is not valid yet, by this host's clock",
        Rejection::WrongName => "its certificate names no host of this domain, or another site",
        Rejection::Revoked => "its certificate is revoked",
        Rejection::WrongUsage | Rejection::Malformed => "its certificate cannot be used",
        Rejection::WrongProtocol => "what answers there speaks another protocol",
    }
}

/// What is wrong with this host, according to the peer.
const fn ours(reason: Rejection) -> &'static str {
    match reason {
        Rejection::NoCertificate => "the peer misses this host's certificate",
        Rejection::UnknownAuthority => {
            "the peer refuses this host's certificate: it does not trust its authority"
        }
        Rejection::Expired | Rejection::NotYetValid => {
            "the peer refuses this host's certificate: by the peer's clock it has expired or is not valid yet"
        }
        Rejection::WrongName => {
            "the peer refuses this host's certificate: it names no host of the peer's domain"
        }
        Rejection::Revoked => OURS_REVOKED,
        Rejection::WrongUsage | Rejection::Malformed => {
            "the peer refuses this host's certificate: it cannot be used"
        }
        Rejection::WrongProtocol => "the peer speaks another protocol",
    }
}

/// The remedy for a refused certificate.
pub(crate) const fn remedy(whose: Whose, reason: Rejection) -> &'static str {
    match (reason, whose) {
        (Rejection::UnknownAuthority, _) => {
            "compare `ca.pem` of both hosts with `towpath certs show`; issue a certificate with `towpath certs issue` \
             under the authority that both are to trust"
        }
        (Rejection::Expired | Rejection::NotYetValid, Whose::Peers) => {
            "compare both hosts' clocks; if they agree, renew the peer's certificate with `towpath certs renew`"
        }
        (Rejection::Expired | Rejection::NotYetValid, Whose::Ours) => {
            "compare both hosts' clocks; if they agree, renew this host's certificate with `towpath certs renew`"
        }
        (Rejection::WrongName, Whose::Peers) => {
            "check the peer's `site` and `address` in the configuration, and its certificate with `towpath certs \
             verify` there; one for the right site is made with `towpath certs issue`"
        }
        (Rejection::Revoked, Whose::Ours) => OWN_REVOKED_REMEDY,
        (Rejection::Revoked, Whose::Peers) => {
            "if that host is to be let in, issue a new certificate to it with `towpath certs issue`"
        }
        (Rejection::WrongProtocol, _) => {
            "check that the address is that of a tunnel of Towpath, and upgrade the older side"
        }
        (_, Whose::Peers) => {
            "look at the peer's certificate with `towpath certs verify` there, and issue another with `towpath certs \
             issue`"
        }
        (_, Whose::Ours) => {
            "look at this host's certificate with `towpath certs verify`, and issue another with `towpath certs issue`"
        }
    }
}

/// An incoming handshake or link that failed because one side refused the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub reason: &'static str,
    pub detail: String,
    pub from: SocketAddr,
    pub at: SystemTime,
    pub remedy: String,
}

impl Refused {
    /// Refused because of the certificate that the peer showed.
    pub(crate) fn by_verifier(from: SocketAddr, refusal: Refusal) -> Self {
        Self {
            reason: refusal.reason.as_str(),
            detail: refusal.detail,
            from,
            at: SystemTime::now(),
            remedy: remedy(Whose::Peers, refusal.reason).to_owned(),
        }
    }

    /// Refused by the dialling peer because of our certificate.
    pub(crate) fn by_dialler(from: SocketAddr, told: Fault) -> Self {
        Self {
            reason: "refused_by_peer",
            detail: told.detail,
            from,
            at: SystemTime::now(),
            remedy: told.remedy.unwrap_or_default(),
        }
    }

    /// Refused because the proven site of the peer is not a peer of this one.
    pub(crate) fn no_peer(from: SocketAddr, detail: String) -> Self {
        Self {
            reason: "unknown_site",
            detail,
            from,
            at: SystemTime::now(),
            remedy: "add that site to `peers` in this tunnel's configuration if it is to be one"
                .to_owned(),
        }
    }

    /// Refused because another tunnel of the site has the link.
    pub(crate) fn not_taken(from: SocketAddr, host: &HostIdentity, fault: &Fault) -> Self {
        Self {
            reason: "not_taken",
            detail: format!("{host}: {}", fault.detail),
            from,
            at: SystemTime::now(),
            remedy: fault.remedy.clone().unwrap_or_default(),
        }
    }

    /// The remedy for a peer that we wait for, in case this handshake was the peer's.
    pub(crate) fn remedy_of_peer(&self) -> String {
        let Self {
            reason,
            from,
            remedy,
            ..
        } = self;
        format!(
            "handshakes are refused here ({reason}, last from {from}); if the peer is there: {remedy}; else check that \
             its datagrams reach the address this one listens at"
        )
    }
}

/// The last refused handshake: one for the whole host, so that strangers cannot fill memory.
#[derive(Debug, Default)]
pub(crate) struct LastRefused(Mutex<Option<Refused>>);

impl LastRefused {
    pub(crate) fn note(&self, refused: Refused) {
        *self.lock() = Some(refused);
    }

    /// The last refused handshake within [`RECENT`].
    pub(crate) fn last(&self) -> Option<Refused> {
        let is_recent = |refused: &Refused| refused.at.elapsed().unwrap_or_default() < RECENT;
        self.lock().clone().filter(is_recent)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Refused>> {
        self.0.lock()
    }
}

/// Why a peer was not reached since the last link, and which reasons were logged: each kind once,
/// and again when it returns after [`TOLD_AGAIN`].
#[derive(Debug, Default)]
pub(crate) struct Failures {
    last: Option<Kind>,
    /// At most one entry per pair of code and remedy.
    told: Vec<(Kind, Instant)>,
}

/// What failures have in common that differ only in an address or a number: code and remedy.
type Kind = (Code, Option<String>);

impl Failures {
    /// Whether to log a failure: its kind differs from the last one, and was not logged within
    /// [`TOLD_AGAIN`].
    pub(crate) fn is_news(&mut self, fault: &Fault, now: Instant) -> bool {
        let kind = (fault.code, fault.remedy.clone());
        if self.last.as_ref() == Some(&kind) {
            return false;
        }
        self.last = Some(kind.clone());
        let is_old = |at: Instant| now.saturating_duration_since(at) >= TOLD_AGAIN;
        self.told.retain(|(_, at)| !is_old(*at));
        let is_told = self.told.iter().any(|(told, _)| *told == kind);
        if !is_told {
            self.told.push((kind, now));
        }
        !is_told
    }
}

#[cfg(test)]
mod tests {
    use quinn::ConnectionClose;

    use super::*;

    fn ours(alert: AlertDescription) -> ConnectionError {
        ConnectionError::TransportError(TransportErrorCode::crypto(alert.into()).into())
    }

    fn theirs(alert: AlertDescription) -> ConnectionError {
        ConnectionError::ConnectionClosed(ConnectionClose {
            error_code: TransportErrorCode::crypto(alert.into()),
            frame_type: None,
            reason: "Other(OtherError(Fault { code: Certificate }))"[..]
                .as_bytes()
                .into(),
        })
    }

    #[test]
    fn each_class_of_failure_has_a_plain_reason_and_a_remedy_of_certificates() {
        for (error, reason, remedy) in [
            (
                ours(AlertDescription::CertificateExpired),
                "has expired",
                "both hosts' clocks",
            ),
            (
                ours(AlertDescription::UnknownCA),
                "does not trust",
                "compare `ca.pem`",
            ),
            (
                ours(AlertDescription::CertificateUnknown),
                "another site",
                "`site` and `address`",
            ),
            (
                ours(AlertDescription::CertificateRevoked),
                "refused",
                "towpath certs issue",
            ),
            (
                ours(AlertDescription::CertificateRequired),
                "no certificate",
                "towpath certs verify",
            ),
            (
                theirs(AlertDescription::CertificateExpired),
                "the peer's clock",
                "this host's certificate",
            ),
            (
                theirs(AlertDescription::UnknownCA),
                "does not trust its",
                "compare `ca.pem`",
            ),
            (
                theirs(AlertDescription::CertificateUnknown),
                "the peer refuses",
                "towpath certs verify",
            ),
            (
                theirs(AlertDescription::CertificateRevoked),
                "this host's certificate is revoked",
                "issued to this host",
            ),
            (
                theirs(AlertDescription::NoApplicationProtocol),
                "another protocol",
                "upgrade",
            ),
        ] {
            let told = of(&error, None).unwrap();
            let revoked = told.barred.map(|barred| match barred {
                Barred::Revoked(whose) => whose,
                Barred::NoVersion => panic!("{told:?}"),
            });
            let whose =
                alert(&error).filter(|(_, alert)| *alert == AlertDescription::CertificateRevoked);
            assert_eq!(revoked, whose.map(|(whose, _)| whose));
            let told = told.fault;
            assert!(told.detail.contains(reason), "{told}");
            assert!(!told.detail.contains("Fault"), "{told}");
            let mends = told.remedy.unwrap();
            assert!(mends.contains(remedy), "{mends}");
        }
        for other in [
            ConnectionError::TimedOut,
            ours(AlertDescription::InternalError),
            theirs(AlertDescription::UnexpectedMessage),
        ] {
            assert_eq!(of(&other, None), None, "{other}");
        }
        let refused_there = words(&theirs(AlertDescription::CertificateUnknown), None);
        assert!(
            refused_there.starts_with("the peer refuses"),
            "{refused_there}"
        );
    }

    #[test]
    fn only_the_peer_itself_can_say_that_we_are_revoked() {
        let nothing = FrameStats::default();
        let (mut joined, mut finished) = (nothing, nothing);
        joined.stream = 1;
        finished.new_connection_id = 7;
        let mut handshake = nothing;
        (handshake.crypto, handshake.acks) = (9, 9);
        for (reason, sent, is_proven) in [
            (theirs(AlertDescription::CertificateRevoked), joined, true),
            (theirs(AlertDescription::CertificateRevoked), finished, true),
            // Anybody on the path can send this alert while the handshake lasts.
            (
                theirs(AlertDescription::CertificateRevoked),
                handshake,
                false,
            ),
            (theirs(AlertDescription::CertificateRevoked), nothing, false),
            // Another reason, and a refusal by us.
            (theirs(AlertDescription::CertificateExpired), joined, false),
            (ours(AlertDescription::CertificateRevoked), joined, false),
            (ConnectionError::TimedOut, joined, false),
        ] {
            assert_eq!(is_proven_revoked(&reason, &sent), is_proven, "{reason}");
        }
    }

    #[test]
    fn what_was_found_here_is_said_where_it_fits_the_alert() {
        let noted = |reason, detail: &str| Refusal {
            reason,
            detail: detail.to_owned(),
        };
        let named = noted(Rejection::WrongName, "b answered where a was dialled");
        let told = of(&ours(AlertDescription::CertificateUnknown), Some(&named))
            .unwrap()
            .fault;
        assert!(told.detail.ends_with(&named.detail), "{told}");
        let young = noted(Rejection::NotYetValid, "too young");
        let told = of(&ours(AlertDescription::CertificateExpired), Some(&young))
            .unwrap()
            .fault;
        assert!(told.detail.contains("not valid yet"), "{told}");
        // The noted refusal is not used for another alert, nor for a refusal by the peer.
        for error in [
            ours(AlertDescription::UnknownCA),
            theirs(AlertDescription::CertificateUnknown),
        ] {
            assert_eq!(of(&error, Some(&named)), of(&error, None));
        }
        assert_eq!(
            refusal(&ours(AlertDescription::CertificateUnknown), || Some(
                named.clone()
            )),
            Some(named)
        );
        assert_eq!(
            refusal(&theirs(AlertDescription::CertificateUnknown), || None),
            None
        );
    }

    #[test]
    fn a_reason_is_told_when_it_changes_and_two_in_turn_fill_no_log() {
        let mut failures = Failures::default();
        let begin = Instant::now();
        let fault = |code, number: u64| Fault::new(code, format!("attempt {number}"));
        let mut told = 0;
        for number in 0..100 {
            for code in [Code::Stalled, Code::Stalled, Code::Unreachable] {
                told += usize::from(failures.is_news(&fault(code, number), begin));
            }
        }
        assert_eq!(told, 2);
        let later = begin + TOLD_AGAIN;
        assert!(failures.is_news(&fault(Code::Stalled, 1), later));
        assert!(!failures.is_news(&fault(Code::Stalled, 2), later));
    }
}
