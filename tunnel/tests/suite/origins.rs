//! The origin of a channel (who asked for it), its purpose, and whether it works.

use crate::harness::{Pair, check_answers, echo, metric, name, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::Code;
use towpath_tunnel::Tunnel;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::status::{ChannelList, ChannelOrigin, ChannelState, ChannelView};

fn till() -> ChannelSpec {
    let leads_to = (name("region"), name("echo"));
    let listen = "tcp:127.0.0.1:0".parse().unwrap();
    ChannelSpec::new(name("till"), listen, leads_to, Class::App)
}

async fn connect(view: &ChannelView) -> std::io::Result<TcpStream> {
    match view.listen.parse().unwrap() {
        Endpoint::Tcp(address) => TcpStream::connect(address).await,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_no_connection_came_through_is_failing_until_one_does() {
    let pair = Pair::start().await;
    let client = Client::new(&pair.edge_config.admin.socket);
    let view: ChannelView = client.post("/v1/channels", &till()).await.unwrap();
    assert_eq!(view.state, ChannelState::Healthy, "nothing has failed yet");
    let shown = || pair.edge.status().channels.remove(0);
    // Nothing listens at the service, and the reset may arrive before the connection is
    // established.
    let ended = match connect(&view).await {
        Ok(mut lost) => soon(lost.read(&mut [0])).await,
        Err(error) => Err(error),
    };
    assert!(ended.is_err() || ended.is_ok_and(|count| count == 0));
    until("it fails", || shown().state == ChannelState::Failing).await;
    assert!(shown().reason.starts_with("E_"), "{:?}", shown());
    // The end of the connection is recorded a moment later.
    let is_noted = || shown().last_error == Some(shown().reason);
    until("its error is noted", is_noted).await;
    let page = client.text("/").await.unwrap();
    assert!(page.contains("failing: E_"), "{page}");
    let up = "towpath_channel_up{channel=\"till\",peer=\"region\"}";
    assert_eq!(metric(&pair.edge_config, up).await, 0);

    let echo = echo(pair.echo());
    let mut carried = connect(&view).await.unwrap();
    carried.write_all(b"x").await.unwrap();
    soon(carried.read_exact(&mut [0])).await.unwrap();
    assert_eq!(shown().state, ChannelState::Healthy, "{:?}", shown());
    assert_eq!(metric(&pair.edge_config, up).await, 1);
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_6_what_was_closed_or_capped_by_hand_says_so_and_can_be_had_back() {
    let pair = Pair::start_with(
        |edge, _| {
            edge.channels = vec![till()];
            edge.state_dir = Some(edge.socket.with_file_name("state"));
        },
        None,
    )
    .await;
    let config = pair.edge_config.clone();
    let client = Client::new(&config.admin.socket);
    let show = async || client.get::<ChannelView>("/v1/channels/till").await;
    let origin = async || show().await.unwrap().origin;
    assert_eq!(origin().await, ChannelOrigin::Configured);
    let mut capped = till();
    (capped.generation, capped.cap) = (1, Some("1Mbit".parse().unwrap()));
    let view: ChannelView = client.post("/v1/channels", &capped).await.unwrap();
    assert_eq!(view.origin, ChannelOrigin::Overriding);
    let mut other = till();
    other.name = name("other");
    let view: ChannelView = client.post("/v1/channels", &other).await.unwrap();
    assert_eq!(view.origin, ChannelOrigin::Pushed);
    let left: ChannelList = client.delete("/v1/channels/till").await.unwrap();
    assert_eq!(left.closed_by_hand, ["till"]);

    // It stays closed, and is reported as such.
    pair.edge.stop().await;
    let again = Tunnel::start(&config).await.unwrap();
    assert_eq!(again.status().channels_closed_by_hand, ["till"]);
    let closed = show().await.unwrap_err();
    assert_eq!(closed.code, "E_NOT_FOUND", "{closed:?}");
    assert!(closed.cause.contains("closed by hand"), "{closed:?}");
    assert!(closed.remedy.contains("reset till"), "{closed:?}");
    let reset = async |name: &str| {
        let path = format!("/v1/channels/{name}/reset");
        let nothing = serde_json::json!({});
        client.post::<_, ChannelView>(&path, &nothing).await
    };
    let view = reset("till").await.unwrap();
    assert_eq!(view.origin, ChannelOrigin::Configured);
    assert_eq!((view.generation, view.cap_bits_per_second), (0, None));
    check_answers(view.listen.strip_prefix("tcp:").unwrap()).await;
    let unknown = reset("other").await.unwrap_err();
    assert_eq!(unknown.code, "E_NOT_FOUND", "{unknown:?}");

    // The reset persists as well.
    again.stop().await;
    let again = Tunnel::start(&config).await.unwrap();
    assert!(again.status().channels_closed_by_hand.is_empty());
    assert_eq!(origin().await, ChannelOrigin::Configured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_46_a_second_tunnel_leaves_the_state_folder_of_the_first_alone() {
    let pair = Pair::start_with(
        |edge, _| edge.state_dir = Some(edge.socket.with_file_name("state")),
        None,
    )
    .await;
    let config = pair.edge_config.clone();
    let client = Client::new(&config.admin.socket);
    let _: ChannelView = client.post("/v1/channels", &till()).await.unwrap();

    let mut other = config.clone();
    other.listen = None;
    other.socket = pair.world.path("other-run/tunnel.sock");
    other.admin.socket = pair.world.path("other-run/admin.sock");
    let fault = Tunnel::start(&other).await.unwrap_err();
    assert_eq!(fault.code, Code::AlreadyRunning, "{fault}");
    let (folder, id) = (config.state_dir.clone().unwrap(), std::process::id());
    assert!(
        fault.detail.contains(&folder.display().to_string()),
        "{fault}"
    );
    assert!(fault.detail.contains(&format!("process {id}")), "{fault}");
    // It has bound no socket, though its paths are free, and the pushed channels are intact.
    assert!(!other.socket.exists());
    pair.edge.stop().await;
    let again = Tunnel::start(&config).await.unwrap();
    assert_eq!(again.status().channels.len(), 1);
}
