//! Tunnels of two sites for the benches, with certificates and sockets in one folder.

use std::path::Path;
use std::time::SystemTime;

use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::{Authority, Identity, Validity};
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};

/// Why a bench cannot go on.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A site's configuration: it knows one peer, which may reach its service `sink`.
///
/// # Errors
///
/// If a name is none, or the certificate cannot be made.
pub fn site(
    authority: &Authority,
    folder: &Path,
    own: &str,
    peer: &str,
) -> Result<Config, Failure> {
    let host = HostIdentity {
        trust_domain: authority.trust_domain().clone(),
        site: own.parse()?,
        host: "box-1".parse()?,
    };
    let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
    let files = authority.issue(&host, validity, &folder.join(own))?;
    Identity::load(&files.cert, &files.key, &files.ca)?;
    let run = folder.join(format!("{own}-run"));
    let mut config = Config::new(
        (host.site, host.host),
        run.join("tunnel.sock"),
        run.join("admin.sock"),
        files.into(),
    );
    config.peers = vec![PeerConfig::new(peer.parse()?)];
    let sink = folder.join(format!("{own}-sink.sock"));
    config.services = vec![ServiceConfig::told(
        "sink".parse()?,
        sink,
        vec![peer.parse()?],
    )];
    Ok(config)
}
