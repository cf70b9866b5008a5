//! The status page in a real browser, wide and narrow. Its policy forbids scripts.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::trust::sign;
use crate::harness::{Pair, echo, name, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_certs::Authority;
use towpath_certs::renewal::LIST_VALIDITY;
use towpath_daemon::client::Client;
use towpath_protocol::class::Class;
use towpath_protocol::identity::Name;
use towpath_tunnel::config::{Config, PeerConfig};

/// Program names of the browser in distributions.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Seconds a browser may take to start and draw, on a busy machine.
const DRAW_SECONDS_MAX: u32 = 60;

/// Widths of a telephone and of a desk, in pixels.
const WIDTHS: [u32; 2] = [390, 1280];

fn browser() -> Option<&'static str> {
    let folders = std::env::var_os("PATH")?;
    let has =
        |name: &&str| std::env::split_paths(&folders).any(|folder| folder.join(name).exists());
    BROWSERS.into_iter().find(has)
}

/// Runs the browser on the page and returns its output.
fn browse(browser: &str, profile: &Path, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg(DRAW_SECONDS_MAX.to_string())
        .arg(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu"])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ])
        .args(["--hide-scrollbars", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A script that measures how far to the right a page extends, in pixels, including parts that
/// would have to be scrolled to. A list cell too narrow for a word counts as far out of reach.
const REACH: &str = "<script>\
    const all = what => [...document.querySelectorAll(what)];\
    const right = part => part.getBoundingClientRect().right;\
    const narrow = cell => cell.clientWidth < 100 ? 9999 : 0;\
    const reach = [document.documentElement.scrollWidth, ...all('body *').map(right), ...all('.list td').map(narrow)];\
    parent.postMessage(Math.ceil(Math.max(...reach)), '*')</script></body>";

/// Checks that a whole page fits into a frame of this width, as on a telephone; otherwise returns
/// its width.
fn page_fits(browser: &str, folder: &Path, page: &str, width: u32) -> Result<(), u32> {
    std::fs::write(
        folder.join("framed.html"),
        page.replacen("</body>", REACH, 1),
    )
    .unwrap();
    let frame = format!(
        "<body><script>onmessage = told => document.body.id = 'w' + told.data</script>\
         <iframe src=\"framed.html\" width=\"{width}\" height=\"800\" frameborder=\"0\"></iframe></body>"
    );
    let outside = folder.join("frame.html");
    std::fs::write(&outside, frame).unwrap();
    let url = format!("file://{}", outside.display());
    let shown = browse(
        browser,
        folder,
        &["--virtual-time-budget=2000", "--dump-dom", &url],
    );
    let told = shown.split_once("<body id=\"w").expect("the frame tells");
    let (number, _) = told.1.split_once('"').expect("a number");
    match number.parse::<u32>().expect("a number") {
        wide if wide > width => Err(wide),
        _ => Ok(()),
    }
}

/// A host with everything that the page may have to show: links that are down, channels with long
/// names and addresses, and a revocation list.
fn crowd(edge: &mut Config) {
    edge.peers[0].send_rate = Some("100Mbit".parse().unwrap());
    edge.admin.http = Some("127.0.0.1:0".parse().unwrap());
    let long = "a-site-of-a-long-name-as-they-are-where-a-fleet-has-many-of-them";
    let absent = [&long[..63], "depot"].map(name);
    edge.peers.extend(absent.clone().map(PeerConfig::new));
    let certs = edge.certificates.ca.parent().unwrap().to_owned();
    let channel = |title: &str, peer: &Name| {
        let place = certs.join(format!(
            "a-program-that-has-a-rather-long-name-of-its-own-{title}"
        ));
        let listen = format!("unix:{}", place.display());
        serde_json::from_value(serde_json::json!({
            "name": title, "listen": listen, "peer": peer, "service": &long[..40],
        }))
        .unwrap()
    };
    edge.channels = vec![
        channel("till", &edge.peers[0].site),
        channel("stock-of-all-that-is-kept", &absent[0]),
        channel("dns", &absent[1]),
    ];
    let authority = certs.with_file_name("ca");
    sign(&Authority::open(&authority).unwrap(), LIST_VALIDITY);
    let crl = certs.join("crl.pem");
    std::fs::copy(authority.join("crl.pem"), &crl).unwrap();
    edge.certificates.crl = Some(crl);
}

/// Draws the page at the widths of a telephone and a desk; keeps the pictures if told where.
fn draw(browser: &str, folder: &Path, url: &str) {
    for width in WIDTHS {
        let picture = folder.join(format!("page-{width}.png"));
        let (size, to) = (
            format!("--window-size={width},4000"),
            format!("--screenshot={}", picture.display()),
        );
        browse(browser, folder, &[&size, &to, url]);
        let png = std::fs::read(&picture).unwrap();
        assert!(
            png.starts_with(b"\x89PNG") && png.len() > 10_000,
            "{} bytes",
            png.len()
        );
        if let Some(kept) = std::env::var_os("TOWPATH_PAGES") {
            let kept = Path::new(&kept).join(picture.file_name().unwrap());
            std::fs::copy(&picture, kept).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_that_is_drawn_is_the_peers_where_that_is_the_one_that_holds() {
    let wish = |_: &mut Config, region: &mut Config| {
        region.peers[0].receive_rate = Some("8Mbit".parse().unwrap());
    };
    let pair = Pair::start_with(wish, None).await;
    let client = Client::new(&pair.edge_config.admin.socket);
    soon(async {
        while !client.text("/").await.unwrap().contains("class=\"cap\"") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_links_pictures_and_certificate() {
    let Some(browser) = browser() else {
        println!("skipped: no browser, one of {}", BROWSERS.join(", "));
        return;
    };
    let pair = Pair::start_with(|edge, _| crowd(edge), None).await;
    let echo = echo(pair.echo());
    let mut local = pair.open("echo", Class::App).await.unwrap();
    local.write_all(&[1; 5000]).await.unwrap();
    local.read_exact(&mut [0; 5000]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Opened as an operator opens it, so that the page's policy applies here too.
    let url = format!("http://{}/", pair.edge.http_address().unwrap());

    let shown = browse(browser, folder.path(), &["--dump-dom", &url]);
    for told in [
        "1 of 3 links healthy",
        "\u{25cf} healthy",
        "100 Mbit/s",
        "4.8 KiB",
        "ends",
        "<svg",
        "class=\"cap\"",
        "stock-of-all-that-is-kept",
        "list 1, 0 revoked",
    ] {
        assert!(shown.contains(told), "{told} is not shown in {shown}");
    }
    let [telephone, _] = WIDTHS;
    let wide = page_fits(browser, folder.path(), &shown, telephone);
    assert!(
        wide.is_ok(),
        "a telephone has to be scrolled sideways: {wide:?}"
    );
    for too_wide in [
        "main{min-width:391px}",
        "section{overflow-x:auto}.channels{min-width:391px}",
    ] {
        let style = format!("<style>{too_wide}</style></head>");
        let spoilt = shown.replacen("</head>", &style, 1);
        let wide = page_fits(browser, folder.path(), &spoilt, telephone);
        assert!(wide.is_err(), "{too_wide} is not noticed");
    }
    draw(browser, folder.path(), &url);
    echo.abort();
}
