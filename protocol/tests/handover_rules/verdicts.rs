//! What a host remembers of attempts that it has decided, however often the guest has moved since.

use towpath_protocol::fault::Code;
use towpath_protocol::ownership::{Action, Event, State, VERDICT_COUNT_MAX, Word};

use super::{
    attempt, check_ignored, commit, feed, hear, host, prepare, relinquished, restarted, taken,
    words,
};

#[test]
fn h01_a_source_that_was_away_for_long_hears_what_became_of_its_commit() {
    let mut machine = taken();
    feed(&mut machine, Event::ImageComplete);
    // Its answer is lost. Meanwhile the guest goes to another host and comes back, again and again.
    for number in (10..).step_by(10).take(2 * VERDICT_COUNT_MAX) {
        let (there, target) = (attempt(number), host("c"));
        feed(
            &mut machine,
            Event::Offer {
                attempt: there,
                target,
            },
        );
        feed(&mut machine, Event::Withdraw);
        let mark = machine.record().high_water.0;
        let left = feed(
            &mut machine,
            Event::Offer {
                attempt: attempt(number + 1),
                target: host("c"),
            },
        );
        assert_eq!(words(&left), [prepare(mark + 1)]);
        let root = super::ROOT;
        feed(
            &mut machine,
            Event::Sealed {
                root,
                is_whole: true,
            },
        );
        feed(&mut machine, hear("c", number + 1, Word::Ready { root }));
        feed(&mut machine, hear("c", number + 1, Word::Ack));
        let mark = machine.record().high_water.0;
        // The first offer back fails.
        feed(&mut machine, hear("c", number + 2, prepare(mark + 1)));
        feed(&mut machine, Event::GiveUp);
        feed(&mut machine, hear("c", number + 3, prepare(mark + 2)));
        feed(&mut machine, Event::ImageReady { root });
        feed(&mut machine, Event::ImageComplete);
        let taken = feed(&mut machine, hear("c", number + 3, commit(mark + 2)));
        assert_eq!(words(&taken), [Word::Ack, Word::Complete]);
    }
    let answered = feed(&mut machine, hear("a", 1, commit(2)));
    assert_eq!(words(&answered), [Word::Ack, Word::Complete]);
    assert!(machine.may_run());
}

#[test]
fn a_guest_known_to_run_at_its_target_stays_there_whatever_that_says_later() {
    let mut machine = relinquished(false);
    let actions = feed(&mut machine, hear("b", 1, Word::Ack));
    assert!(matches!(actions[..], [Action::Persist(_)]), "{actions:?}");
    assert_eq!(feed(&mut machine, hear("b", 1, Word::Ack)), []);
    let (restarted, actions) = restarted(&machine, "a");
    assert_eq!(actions, []);
    // A target that has lost its record refuses the guest, or waits for it with an old image.
    for mut machine in [machine, restarted] {
        let root = super::ROOT;
        for word in [Word::Nack, Word::Ready { root }] {
            check_ignored(&machine, &hear("b", 1, word), Code::Conflict);
        }
        feed(&mut machine, hear("b", 1, Word::Complete));
        assert!(matches!(machine.record().state, State::Released { .. }));
    }
}
