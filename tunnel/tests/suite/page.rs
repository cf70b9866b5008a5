//! The status page in a real browser, wide and narrow. Its policy lets no script run.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Pair, echo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_protocol::channel::Class;

/// Names under which distributions install it.
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

/// Runs the browser on the page and gives what it prints.
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

/// Whether a page fits into a frame of this width, as one is on a telephone; else how wide it is.
fn page_fits(browser: &str, folder: &Path, page: &str, width: u32) -> Result<(), u32> {
    let tell =
        "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script></body>";
    std::fs::write(
        folder.join("framed.html"),
        page.replacen("</body>", tell, 1),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_links_pictures_and_certificate() {
    let Some(browser) = browser() else {
        println!("skipped: no browser, one of {}", BROWSERS.join(", "));
        return;
    };
    let pair = Pair::start_with(
        |edge, _| {
            edge.peers[0].send_rate = Some("100Mbit".parse().unwrap());
            edge.admin.http = Some("127.0.0.1:0".parse().unwrap());
        },
        None,
    )
    .await;
    let echo = echo(pair.echo());
    let mut local = pair.open("echo", Class::App).await.unwrap();
    local.write_all(&[1; 5000]).await.unwrap();
    local.read_exact(&mut [0; 5000]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As an operator opens it, so that what its policy forbids is not drawn here either.
    let url = format!("http://{}/", pair.edge.http_address().unwrap());

    let shown = browse(browser, folder.path(), &["--dump-dom", &url]);
    for told in [
        "1 of 1 links healthy",
        "\u{25cf} healthy",
        "100 Mbit/s",
        "4.8 KiB",
        "ends",
        "<svg",
        "class=\"cap\"",
    ] {
        assert!(shown.contains(told), "{told} is not shown in {shown}");
    }
    let [telephone, _] = WIDTHS;
    let wide = page_fits(browser, folder.path(), &shown, telephone);
    assert!(
        wide.is_ok(),
        "a telephone has to be scrolled sideways: {wide:?}"
    );
    let narrow = "<style>main{min-width:391px}</style></head>";
    let spoilt = shown.replacen("</head>", narrow, 1);
    let wide = page_fits(browser, folder.path(), &spoilt, telephone);
    assert!(wide.is_err(), "a page that is too wide is not noticed");
    for width in WIDTHS {
        let picture = folder.path().join(format!("page-{width}.png"));
        let (size, to) = (
            format!("--window-size={width},1400"),
            format!("--screenshot={}", picture.display()),
        );
        browse(browser, folder.path(), &[&size, &to, &url]);
        let png = std::fs::read(&picture).unwrap();
        assert!(
            png.starts_with(b"\x89PNG") && png.len() > 10_000,
            "{} bytes",
            png.len()
        );
        if let Some(kept) = std::env::var_os("TOWPATH_PAGES") {
            std::fs::copy(
                &picture,
                Path::new(&kept).join(picture.file_name().unwrap()),
            )
            .unwrap();
        }
    }
    echo.abort();
}
