//! The settings with which a peer is dialled.

use std::sync::Arc;

use towpath_certs::{Identity, Rejections, tls};
use towpath_protocol::class::{Leg, PerLeg};
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;

use crate::config::Limits;
use crate::quic::transport;
use crate::trust::standing::Chain;

/// TLS and QUIC settings for dialling a link.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    /// For each leg.
    pub legs: PerLeg<quinn::ClientConfig>,
    /// For the urgent connection to a peer that has been silent for a long time.
    pub quiet: quinn::ClientConfig,
    /// The certificate that we show, with the chain to its authority.
    pub chain: Chain,
}

/// The settings for dialling a site with the given identity.
pub(super) fn clients(
    site: &Name,
    identity: &Identity,
    rejections: &Arc<Rejections>,
    limits: &Limits,
) -> Result<Clients, Fault> {
    let client = |leg| {
        let tls = tls::client_config(identity, site, rejections)?;
        transport::client(tls, limits, leg)
    };
    let quiet = tls::client_config(identity, site, rejections)?;
    Ok(Clients {
        legs: PerLeg {
            urgent: client(Leg::Urgent)?,
            bulk: client(Leg::Bulk)?,
        },
        quiet: transport::quiet_client(quiet, limits)?,
        chain: identity.chain().into(),
    })
}
