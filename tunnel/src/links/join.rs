//! Joins the two connections of a successful attempt to dial into a link.
//!
//! ```text
//!   connected ─► Join on both ─┬─────────────────────────► Joined on both ─► link in use
//!                              └─► presumed: link in use ─► Joined on both ─► confirmed
//! ```
//!
//! After an outage, the tunnel that answers on the same host is presumed to be the same run as
//! before. The new link is then put in use before the peer has confirmed it, so that streams ask to
//! go on one round trip sooner. The peer answers these streams only once it has taken the link
//! itself. So streams lose nothing if the peer turns out to be another run or refuses the link. In
//! that case nothing is presumed again until a link has been joined.
//!
//! New streams begin only once the peer has confirmed the link. Otherwise another run could serve
//! them while this side recorded them as streams of the earlier run. If the peer is another run, a
//! link to that run takes the connections over.

use std::net::IpAddr;
use std::sync::Arc;

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;
use towpath_protocol::class::{Leg, PerLeg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_protocol::preamble::{
    Join, Joined, LINK_VERSIONS, LinkId, PathReport, Preamble, RunId,
};
use towpath_protocol::rate::Rate;
use towpath_protocol::version::Speaker;

use crate::core::{self, Core};
use crate::links::dial::ATTEMPT_TIME;
use crate::links::link::{Joint, Link, close};
use crate::links::peer::{Barred, ONE_TUNNEL_REMEDY, Peer, Unreached, tunnel_name};
use crate::operators::health::Whose;
use crate::quic::wire;
use crate::streams::serve;
use crate::streams::table::Party;
use crate::trust::failures;
use crate::trust::standing::{self, Chain, Papers};

/// The two connections of a link that is being made.
pub(crate) struct Connections {
    pub both: PerLeg<Connection>,
    /// The certificate chain that we have shown on both.
    pub shown: Chain,
    /// The local address that they were dialled from.
    pub source: Option<IpAddr>,
}

/// The peer's side of the terms of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The protocol version of the link.
    pub version: u16,
    /// The run of the peer's tunnel.
    pub run: RunId,
    /// The cap on what the peer wants to receive.
    pub receive_rate_max: Option<Rate>,
}

impl From<Joined> for Terms {
    fn from(joined: Joined) -> Self {
        Self {
            version: joined.version,
            run: joined.run,
            receive_rate_max: joined.receive_rate_max.map(Rate::clamped),
        }
    }
}

impl Terms {
    /// Whether a link made with these terms can go on under others. The peer may change its cap,
    /// but not its version or run.
    fn fit(self, others: Self) -> bool {
        (self.version, self.run) == (others.version, others.run)
    }
}

/// The stream on which a connection joins the link.
type Words = (SendStream, RecvStream);

/// Joins two connections to a link, and puts the link in use.
///
/// # Errors
///
/// The reason why there is no link. A link that was already put in use is given up.
pub(crate) async fn join(
    core: &Arc<Core>,
    peer: &Arc<Peer>,
    connections: Connections,
) -> Result<(), Unreached> {
    let host = serve::identity_of(&connections.both.urgent)?;
    let is_same = serve::identity_of(&connections.both.bulk)? == host;
    let joining = Joining {
        core,
        peer,
        host,
        id: core::random_link()?,
        told: peer.receive_rate(),
        connections,
    };
    if !is_same {
        let detail = "two hosts answered for the two connections of one link";
        return Err(joining.refused(Fault::new(Code::Denied, detail)));
    }
    match joining.peer.presume(&joining.host) {
        Some(terms) => joining.presuming(terms).await,
        None => joining.asking().await,
    }
}

/// Two connections that are being joined.
struct Joining<'a> {
    core: &'a Arc<Core>,
    peer: &'a Arc<Peer>,
    host: HostIdentity,
    id: LinkId,
    /// The cap on what we want to receive, as told to the peer.
    told: Option<Rate>,
    connections: Connections,
}

impl Joining<'_> {
    /// Puts the link in use once the peer has confirmed it.
    async fn asking(self) -> Result<(), Unreached> {
        let asked = async {
            let mut words = self.ask().await?;
            let terms = self.hear(&mut words).await?;
            Ok((terms, words))
        };
        let (terms, words) = in_time(&self.peer.site, asked)
            .await
            .map_err(|fault| self.refused(fault))?;
        let link = Arc::new(self.link(terms));
        self.take(&link)?;
        self.attend(&link, words);
        Ok(())
    }

    /// Puts the link in use at once. If the peer turns out to be another run, another link takes
    /// the connections over. If it refuses the link, the link is given up.
    async fn presuming(self, presumed: Terms) -> Result<(), Unreached> {
        let mut words = in_time(&self.peer.site, self.ask())
            .await
            .map_err(|fault| self.refused(fault))?;
        let link = Arc::new(self.link(presumed).presumed());
        self.take(&link)?;
        let joined = in_time(&self.peer.site, self.hear(&mut words)).await;
        let taken = match joined {
            Ok(terms) if terms.fit(presumed) => {
                link.hear_of_path(&PathReport {
                    receive_rate_max: terms.receive_rate_max.map(Rate::bytes_per_second),
                    filled_bytes_per_second: None,
                });
                self.peer.note_joined(&link);
                Ok(Arc::clone(&link))
            }
            Ok(terms) => {
                let anew = Arc::new(self.link(terms));
                self.take(&anew).map(|()| anew)
            }
            Err(fault) => Err(self.refused(fault)),
        };
        let unreached = match taken {
            Ok(link) => {
                self.attend(&link, words);
                return Ok(());
            }
            Err(unreached) => unreached,
        };
        // Waits until the given-up link is no longer in use: the reason that its end records must
        // not overwrite why it was refused.
        self.peer.without(&link).await;
        Err(unreached)
    }

    /// Sends `Join` on both connections.
    async fn ask(&self) -> Result<PerLeg<Words>, Fault> {
        let (urgent, bulk) = tokio::try_join!(self.ask_on(Leg::Urgent), self.ask_on(Leg::Bulk))?;
        Ok(PerLeg { urgent, bulk })
    }

    async fn ask_on(&self, leg: Leg) -> Result<Words, Fault> {
        let opened = self.connections.both[leg].open_bi().await;
        let (mut send, recv) =
            opened.map_err(|error| Fault::new(Code::Unreachable, error.to_string()))?;
        let join = Preamble::Join(Join {
            versions: LINK_VERSIONS,
            link: self.id,
            leg,
            receive_rate_max: self.told.map(Rate::bytes_per_second),
            run: self.core.run,
        });
        wire::write(&mut send, &join).await?;
        Ok((send, recv))
    }

    /// Waits for the peer's answers on both connections.
    async fn hear(&self, PerLeg { urgent, bulk }: &mut PerLeg<Words>) -> Result<Terms, Fault> {
        let (terms, _) = tokio::try_join!(self.hear_on(urgent), self.hear_on(bulk))?;
        Ok(terms)
    }

    async fn hear_on(&self, (_, recv): &mut Words) -> Result<Terms, Fault> {
        let (ours, theirs) = (tunnel_name(self.core.trust.host()), tunnel_name(&self.host));
        let ours = Speaker {
            name: &ours,
            versions: LINK_VERSIONS,
        };
        match wire::read(recv, self.core.preamble_wait()).await? {
            Preamble::Joined(joined) => {
                ours.accept(joined.version, &theirs)?;
                Ok(joined.into())
            }
            // A tunnel that already has its link refuses another one. Remedies are not sent over
            // the wire.
            Preamble::Refused(fault) if fault.code == Code::State => {
                Err(fault.remedy(ONE_TUNNEL_REMEDY))
            }
            Preamble::Refused(fault) => Err(ours.refused_by(&theirs, &fault)),
            other => {
                let detail = format!("{} in answer to Join", other.name());
                Err(Fault::new(Code::Unexpected, detail))
            }
        }
    }

    fn link(&self, terms: Terms) -> Link {
        let connections = &self.connections;
        let joint = Joint {
            id: self.id,
            version: terms.version,
            party: Party {
                host: self.host.clone(),
                run: terms.run,
            },
            dialler: self.core.site.clone(),
            connections: connections.both.clone(),
            told: self.told,
            theirs: terms.receive_rate_max,
        };
        Link::new(joint, self.peer, &self.core.window_memory)
            .with_papers(Papers::shown(Arc::clone(&connections.shown)))
            .with_source(connections.source)
    }

    /// Puts a link in use. If it is refused, closes it and returns the reason like that of a failed
    /// attempt.
    fn take(&self, link: &Arc<Link>) -> Result<(), Unreached> {
        let trusted = self.core.trust.check_link(link);
        let trusted = trusted.map_err(|fault| Unreached {
            fault,
            barred: Some(Barred::Revoked(Whose::Peers)),
        });
        let taken = trusted.and_then(|()| Ok(self.peer.adopt(link)?));
        if let Err(unreached) = &taken {
            let fault = &unreached.fault;
            link.close(fault.code, &fault.detail);
        }
        taken
    }

    /// Starts to serve a link that both sides have taken.
    fn attend(&self, link: &Arc<Link>, words: PerLeg<Words>) {
        link.set_control(words.urgent);
        serve::accept(self.core, self.peer, link);
    }

    /// Closes connections that do not become a link, and returns the reason.
    fn refused(&self, fault: Fault) -> Unreached {
        let both = &self.connections.both;
        // Only now is it known whether the peer refuses our certificate: in TLS 1.3 the dialling
        // side finishes its handshake before the peer has checked its certificate.
        let why = both.iter().find_map(Connection::close_reason);
        let unreached = match why {
            Some(reason) if fault.code == Code::Unreachable => failures::of(&reason, None)
                .unwrap_or_else(|| Fault::new(fault.code, reason.to_string()).into()),
            _ => fault.into(),
        };
        if both.iter().any(failures::is_told_revoked) {
            standing::note_refused(self.peer, &self.host, &self.connections.shown);
        }
        for connection in both.iter() {
            close(connection, unreached.fault.code, "not joined");
        }
        unreached
    }
}

/// Limits `joining` to the time of one attempt.
async fn in_time<T>(
    site: &Name,
    joining: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let joined = timeout(ATTEMPT_TIME, joining).await;
    joined.unwrap_or_else(|_| Err(Fault::new(Code::Stalled, format!("{site} does not join"))))
}
