//! What a host remembers of attempts that it has decided, however often the guest has moved since.

use towpath_protocol::ownership::{Event, VERDICT_COUNT_MAX, Word};

use super::{attempt, commit, feed, hear, host, prepare, taken, words};

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
