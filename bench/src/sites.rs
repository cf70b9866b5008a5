//! Tunnels of two sites for the benches, with certificates and sockets in one folder.

use std::path::Path;
use std::time::SystemTime;

use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::{Authority, Identity, Validity};
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::config::{
    AdminConfig, CertificatesConfig, Config, Limits, PeerConfig, ServiceConfig,
};

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
    Ok(Config {
        site: host.site,
        host: host.host,
        listen: None,
        socket: folder.join(format!("{own}-run/tunnel.sock")),
        state_dir: None,
        time_zone: Default::default(),
        peers: vec![PeerConfig {
            site: peer.parse()?,
            address: None,
            send_rate: None,
            send_timetable: None,
            receive_rate: None,
            probe: None,
        }],
        services: vec![ServiceConfig {
            name: "sink".parse()?,
            socket: folder.join(format!("{own}-sink.sock")),
            target: None,
            allow: vec![peer.parse()?],
        }],
        channels: Vec::new(),
        admin: AdminConfig {
            socket: folder.join(format!("{own}-run/admin.sock")),
            http: None,
        },
        certificates: CertificatesConfig {
            cert: files.cert,
            key: files.key,
            ca: files.ca,
            crl: None,
        },
        limits: Limits::default(),
    })
}
