//! Tunnels of two sites for the benches, with certificates and sockets in one folder.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::{Authority, Identity, Validity};
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::identity::{HostIdentity, Name};
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};

/// The reason a bench cannot continue.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A site's configuration: it knows one peer, which may reach its service `sink`.
///
/// # Errors
///
/// If a name is invalid, or the certificate cannot be issued.
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
    Identity::load(&files.paths())?;
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

/// The configurations of two sites, edge first; the region listens at `meeting`.
///
/// # Errors
///
/// If certificates cannot be issued.
pub fn sites_that_meet(folder: &Path, meeting: SocketAddr) -> Result<[Config; 2], Failure> {
    let authority = Authority::init(&folder.join("ca"), &"bench.example".parse()?)?;
    let mut edge = site(&authority, folder, "edge", "region")?;
    let mut region = site(&authority, folder, "region", "edge")?;
    edge.peers[0].address = Some(meeting.to_string());
    region.listen = Some(meeting);
    Ok([edge, region])
}

/// Adds a channel, and a service of the same name: from `door` at the edge to `service` at the
/// region.
///
/// # Errors
///
/// If the name is invalid.
pub fn add_channel(
    [edge, region]: &mut [Config; 2],
    (name, class): (&str, Class),
    [door, service]: [Endpoint; 2],
) -> Result<(), Failure> {
    let name: Name = name.parse()?;
    let allow = vec![edge.site.clone()];
    let plain = ServiceConfig::plain(name.clone(), service, allow);
    region.services.push(plain);
    let service = (region.site.clone(), name.clone());
    let spec = ChannelSpec::new(name, door, service, class);
    edge.channels.push(spec);
    Ok(())
}
