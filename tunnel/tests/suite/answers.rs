//! Answers that come before the request is complete: a service may refuse an upload and close.

use crate::harness::{Pair, pattern, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use towpath_protocol::class::Class;

/// The length of a service's refusal of an upload: more than a socket buffers.
const ANSWER_BYTES: usize = 1 << 20;

/// Uploads without end; returns what is received until the stream ends.
async fn uploads(local: UnixStream) -> Vec<u8> {
    let (mut read, mut write) = local.into_split();
    let writing = tokio::spawn(async move {
        let chunk = vec![7; 64 * 1024];
        while write.write_all(&chunk).await.is_ok() {}
    });
    let mut heard = Vec::new();
    // Whatever the way it ends.
    let _ = soon(read.read_to_end(&mut heard)).await;
    soon(writing).await.unwrap();
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_whole_from_a_service_that_goes_in_the_middle_of_an_upload() {
    let pair = Pair::start().await;
    for class in [Class::App, Class::Bulk] {
        let (local, mut remote) = pair.stream(class).await;
        let client = tokio::spawn(uploads(local));
        let answer = pattern(3, ANSWER_BYTES);
        soon(remote.read_exact(&mut [0; 100_000])).await.unwrap();
        soon(remote.write_all(&answer)).await.unwrap();
        drop(remote);
        let heard = soon(client).await.unwrap();
        assert!(heard == answer, "{class}: {} bytes heard", heard.len());
    }
}
