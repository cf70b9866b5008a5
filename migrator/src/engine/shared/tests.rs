//! What is shown, and for how long.

use super::*;
use crate::engine::tests::{ground, host, order};

#[test]
fn a_move_that_goes_on_behind_an_attempt_that_ended_stays_shown() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let show = |number: usize, phase: Phase| {
        let view = order(number as u128).view(&ground, phase);
        shared.board().show_move(view);
    };
    // As at its target, where each attempt ends.
    for phase in [Phase::Failed, Phase::Copying] {
        show(0, phase);
    }
    (1..=FINISHED_COUNT_MAX + 9).for_each(|number| show(number, Phase::Done));
    let board = shared.board();
    assert!(board.moves.contains_key(&MigrationId(0)), "it goes on");
    assert_eq!(board.moves.len(), FINISHED_COUNT_MAX + 1);
}
