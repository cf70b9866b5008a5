//! The tunnel's built-in bench service: access to it is denied like to any other, and it counts
//! correctly.

use crate::harness::{Pair, name, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use towpath_protocol::class::Class;
use towpath_protocol::fault::Code;
use towpath_tunnel::bench_service::{BenchRequest, SOCKET, USAGE_BYTES, Usage};
use towpath_tunnel::config::{Config, PeerConfig, ServiceConfig};
use towpath_tunnel::shares::Share;

fn allow(config: &mut Config, site: &str) {
    let allow = vec![name(site)];
    let service = ServiceConfig::told(name("bench"), SOCKET.into(), allow);
    config.services.push(service);
    // Each allowed site must be a configured peer, or the configuration is invalid.
    if config.peers.iter().all(|peer| peer.site.as_str() != site) {
        config.peers.push(PeerConfig::new(name(site)));
    }
}

async fn ask(pair: &Pair, wish: BenchRequest, class: Class) -> UnixStream {
    let mut stream = pair.open("bench", class).await.unwrap();
    stream.write_all(&[wish.byte()]).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bench_is_denied_unless_the_configuration_names_the_site() {
    let pair = Pair::start().await;
    let fault = pair.open("bench", Class::Bulk).await.unwrap_err();
    assert_eq!(fault.code, Code::Denied);
    let other = Pair::start_with(|_, region| allow(region, "elsewhere"), None).await;
    let fault = other.open("bench", Class::Bulk).await.unwrap_err();
    assert_eq!(fault.code, Code::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wish_is_granted_and_counted() {
    let with = |_: &mut Config, region: &mut Config| {
        allow(region, "edge");
        region.peers[0].send_rate = Some("1Gbit".parse().unwrap());
        let capped = Share {
            cap: Some("80Mbit".parse().unwrap()),
            ..Share::default()
        };
        region.peers[0].shares.0.insert(Class::App, capped);
    };
    let pair = Pair::start_with(with, None).await;
    soon(async {
        let bytes = pattern(7, 3_000_000);
        let mut sink = ask(&pair, BenchRequest::Sink, Class::Bulk).await;
        sink.write_all(&bytes).await.unwrap();
        sink.shutdown().await.unwrap();
        assert_eq!(sink.read_u64_le().await.unwrap(), 3_000_000);

        let mut echo = ask(&pair, BenchRequest::Echo, Class::Demand).await;
        echo.write_all(&bytes[..64]).await.unwrap();
        let mut heard = [0; 64];
        echo.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, bytes[..64]);

        let mut source = ask(&pair, BenchRequest::Source, Class::Bulk).await;
        let mut heard = vec![1; 1_000_000];
        source.read_exact(&mut heard).await.unwrap();
        source.shutdown().await.unwrap();
        // Data in flight still arrives, and then the stream ends.
        source.read_to_end(&mut heard).await.unwrap();

        let mut count = ask(&pair, BenchRequest::Count, Class::Bulk).await;
        count.write_all(&bytes[..1_000_000]).await.unwrap();
        // The count is reported before the end, or this would wait for ever.
        while count.read_u64_le().await.unwrap() < 1_000_000 {}
        count.write_all(&bytes[..5]).await.unwrap();
        count.shutdown().await.unwrap();
        let mut heard = Vec::new();
        count.read_to_end(&mut heard).await.unwrap();
        assert!(heard.ends_with(&1_000_005_u64.to_le_bytes()));

        let mut usage = ask(&pair, BenchRequest::Usage, Class::Control).await;
        let mut told = [0; USAGE_BYTES];
        usage.read_exact(&mut told).await.unwrap();
        let told = Usage::decode(&told).unwrap();
        assert!(told.cpu_nanos > 0 && told.sent_packets > 0, "{told:?}");
        assert_eq!(told.cap_bytes_per_second, 1_000_000_000 / 8);
        let mut class_caps = [0; Class::ALL.len()];
        class_caps[Class::App.index()] = 80_000_000 / 8;
        assert_eq!(told.class_caps_bytes_per_second, class_caps);
        // An older bench reads less of it, and a newer one up to the end.
        assert_eq!(usage.read(&mut [0]).await.unwrap(), 0);

        let mut nonsense = pair.open("bench", Class::App).await.unwrap();
        nonsense.write_all(b"x").await.unwrap();
        let mut heard = Vec::new();
        nonsense.read_to_end(&mut heard).await.unwrap();
        assert!(heard.is_empty());
    })
    .await;
}
