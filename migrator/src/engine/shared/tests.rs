//! Tests of what the board shows and for how long.

use super::*;
use crate::engine::tests::{ground, host, order};

#[test]
fn what_a_move_carried_counts_once_over_its_attempts_and_the_starts_of_its_host() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let counted = || {
        let text = shared.metrics.text(&shared.board());
        let name = "\ntowpath_migration_data_processed_bytes_total ";
        let (_, rest) = text.split_once(name).expect("it is counted");
        rest.split_whitespace().next().map(str::to_owned)
    };
    let mut order = order(1);
    order.spent.raw_bytes = 500;
    let view = |raw_bytes| MigrationView {
        raw_bytes,
        ..order.view(&ground, Phase::Copying)
    };
    // Carried before this start, by an attempt that is over.
    assert_eq!(order.view(&ground, Phase::Copying).raw_bytes, 500);
    shared.board().show_known_move(view(500));
    for (raw_bytes, said) in [(500, "0"), (700, "200"), (700, "200"), (900, "400")] {
        shared.board().show_move(view(raw_bytes));
        assert_eq!(counted().as_deref(), Some(said));
    }
}

#[test]
fn a_move_that_goes_on_behind_an_attempt_that_ended_stays_shown() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let show = |number: usize, phase: Phase| {
        let view = order(number as u128).view(&ground, phase);
        shared.board().show_move(view);
    };
    // As at the target, where every attempt ends on its own.
    for phase in [Phase::Failed, Phase::Copying] {
        show(0, phase);
    }
    (1..=FINISHED_COUNT_MAX + 9).for_each(|number| show(number, Phase::Done));
    let board = shared.board();
    assert!(board.moves.contains_key(&MigrationId(0)), "it goes on");
    assert_eq!(board.moves.len(), FINISHED_COUNT_MAX + 1);
}
