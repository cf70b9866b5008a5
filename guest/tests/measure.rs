//! Measures what a guest costs and prints it, with loose bounds that any working machine meets.
//!
//! For meaningful numbers run it alone, with `--nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of it is test code"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{EPOCH, Guest, config};
use towpath_protocol::guest_api::{GuestConfig, GuestKind};
use towpath_protocol::space::BlockSet;

for_both_kinds! {
    pages_written_a_second;
    time_to_pause;
    cost_of_a_harvest_of_one_gib;
    time_from_touch_to_page;
}

fn fast(kind: GuestKind) -> GuestConfig {
    let mut fast = config(kind);
    fast.memory_bytes = 256 << 20;
    fast.workload.working_set_bytes = 200 << 20;
    fast.workload.dirty_pages_per_second = 10_000_000;
    fast
}

fn median(mut samples: Vec<Duration>) -> (Duration, Duration) {
    samples.sort_unstable();
    (samples[samples.len() / 2], *samples.last().unwrap())
}

fn pages_written_a_second(kind: GuestKind) {
    for is_tracked in [false, true] {
        let mut guest = Guest::running(&fast(kind));
        if is_tracked {
            guest.process.start_tracking().unwrap();
        }
        let before = guest.wait_for_heartbeats(100);
        let begun = Instant::now();
        let after = guest.wait_for_heartbeats(250);
        let rate = (after.write_count - before.write_count) as f64 / begun.elapsed().as_secs_f64();
        println!("{kind}: {rate:.0} pages/s, tracked: {is_tracked}");
        assert!(rate > 500.0, "{rate}");
    }
}

fn time_to_pause(kind: GuestKind) {
    let mut guest = Guest::running(&fast(kind));
    let mut samples = Vec::new();
    for _ in 0..50 {
        guest.wait_for_heartbeats(3);
        let begun = Instant::now();
        guest.process.pause().unwrap();
        samples.push(begun.elapsed());
        guest.process.resume().unwrap();
    }
    let (median, worst) = median(samples);
    println!("{kind}: paused in {median:?}, at worst {worst:?}");
    assert!(median < Duration::from_millis(500));
}

fn cost_of_a_harvest_of_one_gib(kind: GuestKind) {
    let mut large = config(kind);
    large.memory_bytes = 1 << 30;
    large.workload.working_set_bytes = 900 << 20;
    for (what, rate) in [("idle", 0), ("20,000 pages/s", 20_000)] {
        large.workload.dirty_pages_per_second = rate;
        let mut guest = Guest::running(&large);
        let block_count = guest.process.config().block_count();
        let begun = Instant::now();
        guest.process.start_tracking().unwrap();
        let started = begun.elapsed();
        let mut samples = Vec::new();
        let mut found = 0;
        for _ in 0..20 {
            guest.wait_for_heartbeats(25);
            let mut dirty = BlockSet::empty(block_count);
            let begun = Instant::now();
            found += guest.process.harvest(&mut dirty).unwrap();
            samples.push(begun.elapsed());
        }
        let (median, worst) = median(samples);
        let found = found / 20;
        println!(
            "{kind}: 1 GiB {what}: tracking in {started:?}, harvest of {found} pages in {median:?}, at worst {worst:?}"
        );
        assert!(median < Duration::from_secs(1));
    }
}

fn time_from_touch_to_page(kind: GuestKind) {
    let mut source = Guest::running(&fast(kind));
    source.process.pause().unwrap();
    let state = source.process.save_state().unwrap();
    let mut target = Guest::spawn_incoming(source.process.config());
    target.process.load_state(&state).unwrap();
    let missing = target.process.arm_missing().unwrap();
    target.process.run(EPOCH.next()).unwrap();
    let memory = source.process.memory().unwrap();
    let mut bytes = vec![0; 4096];
    let mut samples = Vec::new();
    let begun = Instant::now();
    while samples.len() < 2000 {
        let asked = Instant::now();
        let block = missing.next_fault(harness::WAIT).unwrap().unwrap();
        let run = towpath_protocol::space::BlockRun {
            start: block,
            count: 1,
        };
        memory.read_runs(&[run], &mut bytes).unwrap();
        missing.install(run, &bytes).unwrap();
        samples.push(asked.elapsed());
    }
    let rate = 2000.0 / begun.elapsed().as_secs_f64();
    let (median, worst) = median(samples);
    println!("{kind}: {rate:.0} faults/s, one in {median:?}, at worst {worst:?}");
    assert!(rate > 20.0);
}
