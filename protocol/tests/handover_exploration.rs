//! Explores every interleaving of the handover on the real machines, and nine bugs that must be
//! detected.

mod exploration;

use std::fmt::Write;

use exploration::search::{Found, explore};
use exploration::{Bounds, Mistake, Violation};
use towpath_protocol::ownership::Decider;

const A: Decider = Decider::SourceJournal;
const B: Decider = Decider::Witness;

#[expect(
    clippy::print_stdout,
    reason = "the numbers are what a search is read for"
)]
fn report(name: &str, found: &Found) {
    let mut line = format!(
        "{name}: {} worlds, {} moved, {} returned, {} blocked while the target is silent, {} stuck",
        found.world_count,
        found.moved_count,
        found.returned_count,
        found.blocked_count,
        found.stuck_count
    );
    for violation in Violation::ALL {
        let count = found.count(violation);
        if count > 0 {
            let way = found.way(violation);
            write!(line, "\n  {violation:?} ({count}): {way}").expect("memory");
        }
    }
    println!("{line}");
}

/// Checks a correct shell: no violation, nothing stuck, and the guest does move.
fn check(name: &str, bounds: Bounds) {
    let found = explore(bounds);
    report(name, &found);
    assert_eq!(found.violation_count(), 0, "{name}");
    assert_eq!(found.stuck_count, 0, "{name}");
    assert!(found.moved_count > 0, "{name}");
    assert_eq!(found.returned_count > 0, bounds.has_return, "{name}");
}

/// Checks a faulty shell: these violations reveal it.
fn catch(decider: Decider, mistake: Mistake, caught_by: &[Violation]) {
    let mut bounds = Bounds::new(decider, 2, 1);
    bounds.mistake = Some(mistake);
    bounds.root_tells = mistake != Mistake::AttemptReused;
    let found = explore(bounds);
    report(&format!("{mistake:?}"), &found);
    for violation in caught_by {
        assert!(found.count(*violation) > 0, "{mistake:?}: {violation:?}");
    }
}

#[test]
fn mode_a_three_attempts_and_two_power_losses_each() {
    check("mode a", Bounds::new(A, 3, 2));
}

#[test]
fn mode_a_with_kills_that_spare_the_guest() {
    let bounds = Bounds::new(A, 2, 1);
    check("kills", Bounds { kills: 2, ..bounds });
}

#[test]
fn mode_a_switched_with_blocks_missing() {
    let bounds = Bounds::new(A, 2, 1);
    let (has_post_copy, kills) = (true, 1);
    check(
        "post-copy",
        Bounds {
            has_post_copy,
            kills,
            ..bounds
        },
    );
}

#[test]
fn mode_a_with_freezes_that_are_given_up() {
    let bounds = Bounds::new(A, 2, 1);
    check(
        "unseals",
        Bounds {
            unseals: 2,
            ..bounds
        },
    );
}

#[test]
fn mode_a_there_and_back_and_there() {
    let bounds = Bounds::new(A, 3, 1);
    let has_return = true;
    check(
        "return",
        Bounds {
            has_return,
            ..bounds
        },
    );
    let (has_post_copy, kills) = (true, 1);
    let bounds = Bounds::new(A, 2, 1);
    check(
        "return, post-copy",
        Bounds {
            has_return,
            has_post_copy,
            kills,
            ..bounds
        },
    );
}

#[test]
fn mode_a_hearing_words_while_actions_wait() {
    let bounds = Bounds::new(A, 2, 1);
    check(
        "waiting",
        Bounds {
            waiting: 2,
            ..bounds
        },
    );
}

#[test]
fn h05_mode_a_beside_a_third_host_that_lies() {
    let bounds = Bounds::new(A, 2, 1);
    let (has_liar, kills) = (true, 1);
    check(
        "liar",
        Bounds {
            has_liar,
            kills,
            ..bounds
        },
    );
}

#[test]
fn mode_b_two_attempts_and_two_power_losses_each() {
    check("mode b", Bounds::new(B, 2, 2));
}

#[test]
fn mode_b_there_and_back_with_kills() {
    let bounds = Bounds::new(B, 2, 1);
    let (has_return, kills) = (true, 1);
    check(
        "mode b, return",
        Bounds {
            has_return,
            kills,
            ..bounds
        },
    );
}

#[test]
fn mistake_1_the_source_resumes_on_a_timeout() {
    let caught_by = [Violation::TwoRunners, Violation::Rollback];
    catch(A, Mistake::ResumeOnTimeout, &caught_by);
}

#[test]
fn mistake_2_the_commit_is_said_before_it_is_durable() {
    let caught_by = [Violation::TwoRunners, Violation::Rollback];
    catch(A, Mistake::CommitBeforeFsync, &caught_by);
}

#[test]
fn mistake_3_the_target_runs_before_its_ownership_is_durable() {
    let caught_by = [
        Violation::Lost,
        Violation::Rollback,
        Violation::WithoutRight,
    ];
    catch(A, Mistake::RunBeforeFsync, &caught_by);
}

#[test]
fn mistake_4_the_refusal_is_not_durable() {
    let caught_by = [Violation::TwoRunners, Violation::Rollback];
    catch(A, Mistake::RefusalNotDurable, &caught_by);
}

#[test]
fn mistake_5_an_attempt_is_used_again() {
    catch(A, Mistake::AttemptReused, &[Violation::StaleImage]);
}

/// What stops mistake 5 in a correct shell: the root identifies the image, not the attempt.
#[test]
fn an_attempt_that_is_used_again_is_stopped_by_the_root() {
    let mut bounds = Bounds::new(A, 2, 1);
    bounds.mistake = Some(Mistake::AttemptReused);
    let found = explore(bounds);
    report("attempt reused, roots tell", &found);
    assert_eq!(found.violation_count(), 0);
}

#[test]
fn mistake_6_the_target_starts_at_the_end_of_the_data() {
    let caught_by = [Violation::TwoRunners, Violation::Rollback];
    catch(A, Mistake::TargetStartsAtEnd, &caught_by);
}

#[test]
fn mistake_7_in_mode_b_the_source_resumes_on_a_timeout() {
    catch(B, Mistake::WitnessResumeOnTimeout, &[Violation::TwoRunners]);
}

#[test]
fn mistake_8_in_mode_b_the_offer_is_said_before_it_is_durable() {
    let caught_by = [Violation::TwoRunners, Violation::Rollback];
    catch(B, Mistake::OfferBeforeFsync, &caught_by);
}

#[test]
fn mistake_9_in_mode_b_the_target_runs_before_its_ownership_is_durable() {
    let caught_by = [
        Violation::Lost,
        Violation::Rollback,
        Violation::WithoutRight,
    ];
    catch(B, Mistake::RunBeforeFsync, &caught_by);
}
