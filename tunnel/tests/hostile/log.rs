//! What peers that keep to no rule can put into the log.

use std::time::Instant;

use towpath_protocol::preamble::{LinkId, Preamble, Received};

use crate::MEMORY;
use crate::harness::kept::Kept;
use crate::harness::peer::joined;
use crate::harness::{Door, soon, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_links_that_end_with_wrong_words_fill_no_log() {
    /// So many that their lines would be more than there may be.
    const LINKS: u64 = 40;
    let _alone = MEMORY.write().await;
    let log = Kept::log();
    let door = Door::open().await;
    let (before, began) = (log.text().len(), Instant::now());
    for number in 1..=LINKS {
        let link = joined(&door, LinkId(number.into())).await;
        // An answer to no question, until the link is over.
        let word = Preamble::Resumed(Received::default()).encode();
        while let Ok((mut send, _)) = link.bulk.open_bi().await {
            if send.write_all(&word).await.is_err() {
                break;
            }
        }
        soon(link.bulk.closed()).await;
        until("the link is over", || {
            door.region.status().links[0].host.is_none()
        })
        .await;
    }
    let text = log.text();
    // A first few, and one a second.
    let most = 33 + began.elapsed().as_secs();
    for events in [&["stream refused", "link ended"], &["link up", "link down"]] {
        let is_told = |line: &&str| events.iter().any(|event| line.contains(event));
        let told = text[before..].lines().filter(is_told).count() as u64;
        assert!((1..=most).contains(&told), "{told} lines of {events:?}");
    }
}
