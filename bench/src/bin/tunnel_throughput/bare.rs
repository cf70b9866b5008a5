//! The baseline: two processes that forward one quinn stream and do nothing else.
//!
//! It is as good as a plain forwarder gets: large socket buffers and windows, 256 KiB reads,
//! vectored writes, the same TLS settings; quinn's own congestion control.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, TransportConfig, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use towpath_certs::{Identity, IdentityPaths, Rejections, tls};

use crate::Failure;

const BUFFER_BYTES: usize = 256 * 1024;
const SOCKET_BYTES: usize = 4 * 1024 * 1024;

/// Forwards from a program to the other process (`edge`), or from that process to a program
/// (`region`).
pub(crate) fn run(side: &str, folder: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    match side {
        "edge" => runtime.block_on(edge(folder)),
        "region" => runtime.block_on(region(folder)),
        _ => Err("no such side".into()),
    }
}

fn identity(folder: &Path, site: &str) -> Result<Identity, Failure> {
    let file = |name: &str| folder.join(site).join(name);
    Ok(Identity::load(&IdentityPaths {
        certificate: &file("cert.pem"),
        key: &file("key.pem"),
        authorities: &file("ca.pem"),
    })?)
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(16 << 20))
        .receive_window(VarInt::from_u32(24 << 20))
        .send_window(16 << 20);
    Arc::new(config)
}

fn socket(port: u16) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES).is_err() {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES)?;
    }
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
    Ok(socket)
}

async fn edge(folder: &Path) -> Result<(), Failure> {
    let tls = tls::client_config(
        &identity(folder, "edge")?,
        &"region".parse()?,
        &Arc::new(Rejections::default()),
    )?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = Endpoint::new(
        EndpointConfig::default(),
        None,
        socket(0)?,
        Arc::new(quinn::TokioRuntime),
    )?;
    let port: u16 = wait_for(&folder.join("bare-port")).await?.parse()?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let connection = endpoint
        .connect_with(config, target, "towpath.invalid")?
        .await?;
    let (mut send, _recv) = connection.open_bi().await?;
    let path = folder.join("bare-source.sock");
    // A leftover of an earlier run.
    let _ = std::fs::remove_file(&path);
    let (mut local, _) = UnixListener::bind(&path)?.accept().await?;
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    loop {
        buffer.reserve(BUFFER_BYTES);
        if local.read_buf(&mut buffer).await? == 0 {
            send.finish()?;
            send.stopped().await?;
            return Ok(());
        }
        send.write_chunk(buffer.split().freeze()).await?;
    }
}

async fn region(folder: &Path) -> Result<(), Failure> {
    let rejections = Arc::new(Rejections::default());
    let tls = tls::server_config(&identity(folder, "region")?, &rejections)?;
    let crypto = Arc::new(QuicServerConfig::try_from(tls)?);
    let mut config = quinn::ServerConfig::with_crypto(crypto);
    config.transport_config(transport());
    let endpoint = Endpoint::new(
        EndpointConfig::default(),
        Some(config),
        socket(0)?,
        Arc::new(quinn::TokioRuntime),
    )?;
    let port = endpoint.local_addr()?.port().to_string();
    std::fs::write(folder.join("bare-port.new"), port)?;
    std::fs::rename(folder.join("bare-port.new"), folder.join("bare-port"))?;
    let connection = endpoint.accept().await.ok_or("no connection")?.await?;
    // The process of the next run must not find this port.
    std::fs::remove_file(folder.join("bare-port"))?;
    // Connected before the first byte, which the program sends only once both its ends are there.
    let mut local = UnixStream::connect(folder.join("bare-sink.sock")).await?;
    let (_send, mut recv) = connection.accept_bi().await?;
    let mut pieces: [Bytes; 128] = std::array::from_fn(|_| Bytes::new());
    while let Some(count) = recv.read_chunks(&mut pieces).await? {
        write_all(&mut local, &mut pieces[..count]).await?;
    }
    Ok(())
}

async fn write_all(local: &mut UnixStream, mut pieces: &mut [Bytes]) -> Result<(), Failure> {
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut written = local.write_vectored(&slices).await?;
        while let Some(first) = pieces.first_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            pieces = &mut pieces[1..];
        }
    }
    Ok(())
}

async fn wait_for(path: &Path) -> Result<String, Failure> {
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) => return Ok(text),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
