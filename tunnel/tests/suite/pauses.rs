//! Programs that do not read for longer than a stream may stall: channels allow it, as plain TCP
//! does.

use std::io::ErrorKind;
use std::time::Duration;

use crate::harness::{Pair, name, pattern, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use towpath_daemon::client::Client;
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::config::ServiceConfig;
use towpath_tunnel::status::ChannelView;

/// How long a stream of a move may stall here.
const STALL_WAIT: Duration = Duration::from_millis(300);

/// A channel from the edge to the region, and a connection through it.
struct Connected {
    pair: Pair,
    program: TcpStream,
    service: TcpStream,
}

impl Connected {
    async fn new(class: Class) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Endpoint::Tcp(listener.local_addr().unwrap());
        let pair = Pair::start_with(
            |edge, region| {
                region.services = vec![ServiceConfig::plain(
                    name("till"),
                    target,
                    vec![name("edge")],
                )];
                for config in [edge, region] {
                    config.limits.stall_wait = Span::new(STALL_WAIT);
                }
            },
            None,
        )
        .await;
        let way = (name("region"), name("till"));
        let listen = "tcp:127.0.0.1:0".parse().unwrap();
        let spec = ChannelSpec::new(name("till"), listen, way, class);
        let client = Client::new(&pair.edge_config.admin.socket);
        let view: ChannelView = client.post("/v1/channels", &spec).await.unwrap();
        let Endpoint::Tcp(address) = view.listen.parse().unwrap() else {
            panic!("{}", view.listen);
        };
        let connecting = async { tokio::join!(TcpStream::connect(address), listener.accept()) };
        let (program, service) = soon(connecting).await;
        Self {
            pair,
            program: program.unwrap(),
            service: service.unwrap().0,
        }
    }
}

/// Writes until nothing is accepted for several times as long as a move's stream may stall; returns
/// the number of bytes.
async fn fill(socket: &mut TcpStream, chunk: &[u8]) -> usize {
    let mut bytes = 0;
    while let Ok(written) =
        timeout(STALL_WAIT * 5, socket.write(&chunk[bytes % chunk.len()..])).await
    {
        bytes += written.expect("the connection lives");
    }
    bytes
}

/// Checks that data written while the other end pauses arrives afterwards.
async fn check_pause(writer: &mut TcpStream, reader: &mut TcpStream) {
    let chunk = pattern(7, 100_003);
    let bytes = fill(writer, &chunk).await;
    let mut heard = vec![0; bytes];
    soon(reader.read_exact(&mut heard)).await.unwrap();
    for (number, part) in heard.chunks(chunk.len()).enumerate() {
        assert!(*part == chunk[..part.len()], "part {number} is another");
    }
    writer.write_all(b"on").await.unwrap();
    soon(reader.read_exact(&mut [0; 2])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_a_channel_outlives_a_pause_of_either_program() {
    for class in [Class::App, Class::Bulk] {
        let mut connected = Connected::new(class).await;
        let (program, service) = (&mut connected.program, &mut connected.service);
        check_pause(program, service).await;
        check_pause(service, program).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_reader_has_half_closed_and_pauses_ends_with_the_peers_tunnel() {
    for is_ours in [true, false] {
        let Connected {
            pair,
            mut program,
            mut service,
        } = Connected::new(Class::App).await;
        let (writer, reader) = match is_ours {
            true => (&mut service, &mut program),
            false => (&mut program, &mut service),
        };
        reader.shutdown().await.unwrap();
        assert_eq!(soon(writer.read(&mut [0; 1])).await.unwrap(), 0);
        fill(writer, &[7; 65_536]).await;
        let Pair {
            world: _world,
            edge,
            region,
            ..
        } = pair;
        let (left, stopped) = match is_ours {
            true => (edge, region),
            false => (region, edge),
        };
        assert_eq!(left.status().links[0].streams, 1);
        stopped.stop().await;
        until("the stream is over", || left.status().links[0].streams == 0).await;
    }
}

/// Writes until the connection is reset.
async fn is_reset(socket: &mut TcpStream) {
    let writing = async {
        loop {
            if let Err(error) = socket.write_all(&[7; 65_536]).await {
                return error.kind();
            }
        }
    };
    let ended = soon(writing).await;
    let is_end = matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    assert!(is_end, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_reader_pauses_ends_with_that_and_with_its_channel() {
    for is_removed in [false, true] {
        let mut connected = Connected::new(Class::App).await;
        fill(&mut connected.program, &[7; 65_536]).await;
        let _paused = if is_removed {
            let client = Client::new(&connected.pair.edge_config.admin.socket);
            let path = "/v1/channels/till?generation=1";
            client.delete::<serde_json::Value>(path).await.unwrap();
            Some(connected.service)
        } else {
            drop(connected.service);
            None
        };
        is_reset(&mut connected.program).await;
        for tunnel in [&connected.pair.edge, &connected.pair.region] {
            until("the stream is over", || {
                tunnel.status().links[0].streams == 0
            })
            .await;
        }
    }
}
